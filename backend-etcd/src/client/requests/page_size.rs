//! Number of keys in the pages of a list. Plain data, no I/O.

use std::time::Duration;

/// Maximum number of keys in the first page of a list, and in each page of an audit.
pub(crate) const PAGE: i64 = 1000;

/// Minimum number of keys in the first page of a list, over a slow connection.
const SMALL_PAGE: i64 = 16;

/// Bytes of a page, if its records have the mean size of those in the page before. For each page etcd counts the rest
/// of the range, so large ranges need large pages.
const PAGE_BYTES: usize = 2 << 20;

/// Assumed bytes of a record in an answer, apart from its key and value.
const RECORD_OVERHEAD: usize = 32;

/// Maximum growth from one page to the next: the records of the next page may be larger, and a burst may have made the
/// connection look faster than it is.
const MAX_GROWTH: i64 = 4;

/// Divisor of the deadline of a request for the time in which a grown page has to arrive.
const DEADLINE_PART: u32 = 5;

/// Number of keys in the pages of one list. They grow only if the list begins with a page of full size: a connection
/// that has recently lost a page may lose large ones for good.
#[derive(Debug)]
pub(crate) struct PageSize {
    keys: i64,
    grows: bool,
    /// Time in which a grown page has to arrive.
    time: Duration,
}

impl PageSize {
    /// Starts a list whose first page has at most this many keys, by requests with this deadline.
    pub(crate) fn new(keys: i64, deadline: Duration) -> Self {
        Self { keys, grows: keys >= PAGE, time: deadline / DEADLINE_PART }
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

    /// Adapts the pages to one with `count` records whose keys and values have `bytes` bytes, which took this time.
    pub(crate) fn arrived(&mut self, count: usize, bytes: usize, took: Duration) {
        if !self.grows {
            return;
        }
        let bytes = (bytes + count * RECORD_OVERHEAD) as u128;
        let in_time = bytes * self.time.as_micros() / took.as_micros().max(1);
        let fits = in_time.min(PAGE_BYTES as u128) * count as u128 / bytes.max(1);
        self.keys = i64::try_from(fits).unwrap_or(i64::MAX).clamp(PAGE, self.keys * MAX_GROWTH);
    }

    /// Returns the number of keys with which the next list begins, after a page that did not arrive.
    pub(crate) fn after_loss(&self) -> i64 {
        after_loss(self.keys)
    }

    /// Returns the number of keys with which the next list begins, after a complete one.
    pub(crate) fn after_success(&self) -> i64 {
        (self.keys * 2).min(PAGE)
    }
}

/// Returns the number of keys of the next first page, after a page of this many keys that did not arrive.
pub(crate) fn after_loss(keys: i64) -> i64 {
    (keys.min(PAGE) / 4).max(SMALL_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Pages after one with its full number of records of this size, keys and values included.
    fn next(mut pages: PageSize, size: usize, millis: u64) -> PageSize {
        let count = usize::try_from(pages.keys()).unwrap();
        pages.arrived(count, count * size, Duration::from_millis(millis));
        pages
    }

    fn first(keys: i64) -> PageSize {
        PageSize::new(keys, DEADLINE)
    }

    #[test]
    fn pages_grow_to_what_arrives_in_time() {
        let second = |size, millis| next(first(PAGE), size, millis).keys();
        assert_eq!([second(96, 0), second(96, 400), second(96, 2000)], [4000, 2500, PAGE]);
        assert_eq!(second(1 << 20, 10), PAGE, "large values");
        let third = next(next(first(PAGE), 96, 0), 96, 0);
        assert_eq!(third.keys(), 16_000);
        assert_eq!(next(next(third, 96, 0), 96, 0).keys(), 16_384, "2 MiB");
        let impatient = PageSize::new(PAGE, Duration::from_millis(500));
        assert_eq!(next(impatient, 96, 50).keys(), 2000);
        let mut empty = first(PAGE);
        empty.arrived(0, 0, Duration::ZERO);
        assert_eq!(empty.keys(), PAGE);
    }

    /// The connection was fast for the first bytes only.
    #[test]
    fn grown_pages_shrink_with_the_rate() {
        let grown = next(first(PAGE), 96, 10);
        assert_eq!(grown.keys(), 4000);
        assert_eq!(next(grown, 96, 2500).keys(), 1600);
    }

    /// Otherwise a list could fail for ever over a connection that loses large answers only.
    #[test]
    fn pages_stay_small_after_a_loss() {
        assert_eq!(next(first(PAGE), 96, 0).after_loss(), PAGE / 4);
        assert_eq!(next(first(PAGE / 4), 96, 0).keys(), PAGE / 4);
        assert_eq!([250, 500, 1000, 63, 16].map(|keys| first(keys).after_success()), [500, 1000, 1000, 126, 32]);
        assert_eq!([100, 16].map(after_loss), [25, SMALL_PAGE]);
    }

    #[test]
    fn too_large_answers_reduce_pages_to_one_key() {
        let mut pages = first(PAGE);
        assert!([125, 15, 1].iter().all(|keys| pages.reduce() && pages.keys() == *keys));
        assert!(!pages.reduce());
        assert_eq!(next(pages, 10, 0).keys(), 1, "it was too large");
    }
}
