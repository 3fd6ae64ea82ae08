//! Number of keys in the pages of a list. Plain data, no I/O.

use std::time::Duration;

/// Maximum number of keys in the first page of a list, and in each page of an audit.
pub(crate) const PAGE: i64 = 1000;

/// Keys per page over a slow connection.
const SMALL_PAGE: i64 = 16;

/// Bytes to which pages grow. For each page etcd counts the rest of the range, so large ranges need large pages.
const PAGE_BYTES: usize = 2 << 20;

/// Assumed bytes of a record in an answer, apart from its key and value.
const RECORD_OVERHEAD: usize = 32;

/// Time in which a larger page has to arrive, at the rate of the one before. Far less than the deadline of a request.
const PAGE_TIME: Duration = Duration::from_secs(1);

/// Number of keys in the pages of one list. They grow only if the list begins with a page of full size: a connection
/// that has recently lost a page may lose large ones for good.
#[derive(Debug)]
pub(crate) struct PageSize {
    keys: i64,
    grows: bool,
}

impl PageSize {
    /// Starts a list whose first page has at most this many keys.
    pub(crate) fn new(keys: i64) -> Self {
        Self { keys, grows: keys >= PAGE }
    }

    /// Returns the maximum number of keys of the next page.
    pub(crate) fn keys(&self) -> i64 {
        self.keys
    }

    /// Reduces the pages after one that was too large for an answer. Returns `false` if they cannot be smaller.
    pub(crate) fn reduce(&mut self) -> bool {
        let reducible = self.keys > 1;
        (self.keys, self.grows) = ((self.keys / 8).max(1), false);
        reducible
    }

    /// Adapts the pages to one with `count` keys of together `bytes` bytes, values included, that took this time.
    pub(crate) fn arrived(&mut self, count: usize, bytes: usize, took: Duration) {
        if !self.grows {
            return;
        }
        let bytes = (bytes + count * RECORD_OVERHEAD) as u128;
        let in_time = bytes * PAGE_TIME.as_micros() / took.as_micros().max(1);
        let fits = in_time.min(PAGE_BYTES as u128) * count as u128 / bytes.max(1);
        self.keys = i64::try_from(fits).map_or(self.keys, |fits| fits.max(self.keys));
    }

    /// Returns the number of keys with which the next list begins, after a page that did not arrive.
    pub(crate) fn after_loss(&self) -> i64 {
        (self.keys.min(PAGE) / 4).max(SMALL_PAGE)
    }

    /// Returns the number of keys with which the next list begins, after a complete one.
    pub(crate) fn after_success(&self) -> i64 {
        (self.keys * 2).min(PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of the page after one with `keys` keys of this size, values included.
    fn next(keys: i64, size: usize, millis: u64) -> i64 {
        let (mut pages, count) = (PageSize::new(keys), usize::try_from(keys).unwrap());
        pages.arrived(count, count * size, Duration::from_millis(millis));
        pages.keys()
    }

    #[test]
    fn pages_grow_to_what_arrives_in_time() {
        assert_eq!(next(PAGE, 96, 0), 16_384);
        assert_eq!([next(PAGE, 96, 100), next(PAGE, 96, 2000)], [10_000, PAGE]);
        assert_eq!(next(PAGE, 1 << 20, 10), PAGE, "large values");
        let mut pages = PageSize::new(PAGE);
        pages.arrived(0, 0, Duration::ZERO);
        assert_eq!(pages.keys(), PAGE, "an empty page");
    }

    /// Otherwise a list could fail for ever over a connection that loses large answers only.
    #[test]
    fn pages_stay_small_after_a_loss() {
        let mut pages = PageSize::new(PAGE);
        pages.arrived(1000, 96_000, Duration::ZERO);
        assert_eq!((pages.keys(), pages.after_loss()), (16_384, PAGE / 4));
        assert_eq!(next(PAGE / 4, 96, 0), PAGE / 4);
        let sizes = [250, 500, 1000, 63, 16].map(|keys| PageSize::new(keys).after_success());
        assert_eq!(sizes, [500, 1000, 1000, 126, 32]);
        assert_eq!([100, 16].map(|keys| PageSize::new(keys).after_loss()), [25, SMALL_PAGE]);
    }

    #[test]
    fn too_large_answers_reduce_pages_to_one_key() {
        let mut pages = PageSize::new(PAGE);
        assert!([125, 15, 1].iter().all(|keys| pages.reduce() && pages.keys() == *keys));
        assert!(!pages.reduce());
        pages.arrived(1, 10, Duration::ZERO);
        assert_eq!(pages.keys(), 1, "it was too large");
    }
}
