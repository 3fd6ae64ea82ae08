//! Number of keys in the pages of a list. Plain data, no I/O.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Maximum number of keys in the first page of a list, and in each page of an audit.
pub(crate) const PAGE: i64 = 1000;

/// Minimum number of keys in the first page of a list, over a slow connection.
const SMALL_PAGE: i64 = 16;

/// Maximum number of keys in a page. For each page etcd counts the rest of the range, so large ranges need large pages.
/// But the values of a page may be larger than those before, and etcd has all of them in memory.
const MAX_PAGE: i64 = 4 * PAGE;

/// Bytes of a grown page, if its records have the mean size of those in the page before.
const PAGE_BYTES: usize = 2 << 20;

/// Assumed bytes of a record in an answer, apart from its key and value.
const RECORD_OVERHEAD: usize = 32;

/// Divisor of the deadline of a request for the time in which a grown page has to arrive.
const DEADLINE_PART: u32 = 5;

/// Sizes of pages that the lists of a session have found to arrive, or not.
#[derive(Debug)]
pub(crate) struct KnownPages {
    /// Keys in the first page of the next list.
    first: AtomicI64,
    /// A grown page did not arrive, so no further page grows: what lost one may lose each, such as a proxy with a limit
    /// for the time of an answer.
    lost_grown: AtomicBool,
}

impl Default for KnownPages {
    fn default() -> Self {
        Self { first: AtomicI64::new(PAGE), lost_grown: AtomicBool::new(false) }
    }
}

impl KnownPages {
    /// Returns the maximum number of keys in the first page of a list, and in a page of an audit.
    pub(crate) fn first(&self) -> i64 {
        self.first.load(Ordering::Relaxed)
    }

    /// Records that a page with at most this many keys did not arrive: it was too large for the connection, or for a
    /// proxy.
    pub(crate) fn lost(&self, keys: i64) {
        self.first.store((keys.min(PAGE) / 4).max(SMALL_PAGE), Ordering::Relaxed);
    }

    /// Records that a list is complete, whose last page had at most this many keys.
    pub(crate) fn succeeded(&self, keys: i64) {
        self.first.store((keys * 2).min(PAGE), Ordering::Relaxed);
    }

    fn lost_grown(&self) {
        self.lost_grown.store(true, Ordering::Relaxed);
    }
}

/// Number of keys in the pages of one list. They grow only if the list begins with a page of full size: a connection
/// that has recently lost a page may lose large ones for good.
#[derive(Debug)]
pub(crate) struct PageSize<'a> {
    known: &'a KnownPages,
    keys: i64,
    grows: bool,
    /// Time in which a grown page has to arrive.
    time: Duration,
}

impl<'a> PageSize<'a> {
    /// Starts a list by requests with this deadline.
    pub(crate) fn new(known: &'a KnownPages, deadline: Duration) -> Self {
        let keys = known.first();
        let grows = keys >= PAGE && !known.lost_grown.load(Ordering::Relaxed);
        Self { known, keys, grows, time: deadline / DEADLINE_PART }
    }

    /// Returns the maximum number of keys of the next page.
    pub(crate) fn keys(&self) -> i64 {
        self.keys
    }

    /// Begins the request of a page.
    pub(crate) fn request(&self) -> PageRequest<'a> {
        let grown = (self.keys > PAGE).then_some(self.known);
        PageRequest { grown, late: Instant::now() + self.time }
    }

    /// Reduces the pages after one that was too large for an answer. Returns `false` if they cannot be smaller.
    pub(crate) fn reduce(&mut self) -> bool {
        let reducible = self.keys > 1;
        (self.keys, self.grows) = ((self.keys / 8).max(1), false);
        reducible
    }

    /// Ends the growth after a page that did not arrive. Returns `false` if it was not grown.
    pub(crate) fn stop_growing(&mut self) -> bool {
        let was_grown = self.keys > PAGE;
        if was_grown {
            self.known.lost_grown();
            (self.keys, self.grows) = (PAGE, false);
        }
        was_grown
    }

    /// Adapts the pages to one with `count` records whose keys and values have `bytes` bytes, which took this time.
    pub(crate) fn arrived(&mut self, count: usize, bytes: usize, took: Duration) {
        if !self.grows {
            return;
        }
        let bytes = (bytes + count * RECORD_OVERHEAD) as u128;
        let in_time = bytes * self.time.as_micros() / took.as_micros().max(1);
        let fits = in_time.min(PAGE_BYTES as u128) * count as u128 / bytes.max(1);
        self.keys = i64::try_from(fits).unwrap_or(i64::MAX).clamp(PAGE, MAX_PAGE);
    }
}

/// A request of a page. If it is dropped late and without an answer, no further page grows: the caller may not wait for
/// longer at the next time either.
#[derive(Debug)]
pub(crate) struct PageRequest<'a> {
    /// Present for a grown page.
    grown: Option<&'a KnownPages>,
    late: Instant,
}

impl PageRequest<'_> {
    /// Ends with an answer, or with a failure that the list handles.
    pub(crate) fn answered(mut self) {
        self.grown = None;
    }
}

impl Drop for PageRequest<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.grown
            && Instant::now() >= self.late
        {
            known.lost_grown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Pages after one with its full number of records of this size, keys and values included.
    fn next(mut pages: PageSize<'_>, size: usize, millis: u64) -> PageSize<'_> {
        let count = usize::try_from(pages.keys()).unwrap();
        pages.arrived(count, count * size, Duration::from_millis(millis));
        pages
    }

    fn first(known: &KnownPages) -> PageSize<'_> {
        PageSize::new(known, DEADLINE)
    }

    #[test]
    fn pages_grow_to_what_arrives_in_time() {
        let known = KnownPages::default();
        let second = |size, millis| next(first(&known), size, millis).keys();
        assert_eq!([second(96, 0), second(96, 400), second(96, 2000)], [MAX_PAGE, 2500, PAGE]);
        assert_eq!(second(1000, 0), 2032, "2 MiB");
        assert_eq!(second(1 << 20, 10), PAGE, "large values");
        let impatient = PageSize::new(&known, Duration::from_millis(500));
        assert_eq!(next(impatient, 96, 50).keys(), 2000);
        let mut empty = first(&known);
        empty.arrived(0, 0, Duration::ZERO);
        assert_eq!(empty.keys(), PAGE);
    }

    /// The connection was fast for the first bytes only.
    #[test]
    fn grown_pages_shrink_with_the_rate() {
        let known = KnownPages::default();
        let grown = next(first(&known), 96, 10);
        assert_eq!(grown.keys(), MAX_PAGE);
        assert_eq!(next(grown, 96, 2500).keys(), 1600);
    }

    /// Otherwise a list could fail for ever over a connection that loses large answers only.
    #[test]
    fn no_page_grows_after_a_loss_of_a_grown_one() {
        let known = KnownPages::default();
        let mut grown = next(first(&known), 96, 0);
        assert!(grown.stop_growing(), "it is read again");
        assert_eq!((grown.keys(), next(grown, 96, 0).keys()), (PAGE, PAGE));
        known.succeeded(PAGE);
        let mut later = next(first(&known), 96, 0);
        assert_eq!(later.keys(), PAGE);
        assert!(!later.stop_growing());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_gives_up_late_ends_the_growth() {
        let known = KnownPages::default();
        let grows = || next(first(&known), 96, 0).keys() > PAGE;
        let (full, large) = (first(&known), next(first(&known), 96, 0));
        let [of_full, answered, late] = [full.request(), large.request(), large.request()];
        drop(large.request());
        tokio::time::advance(DEADLINE / DEADLINE_PART).await;
        answered.answered();
        drop(of_full);
        assert!(grows());
        drop(late);
        assert!(!grows());
    }

    #[test]
    fn pages_stay_small_after_a_loss() {
        let known = KnownPages::default();
        let first_after = |lost| {
            known.lost(lost);
            known.first()
        };
        assert_eq!([PAGE, MAX_PAGE, 100, 16].map(first_after), [250, 250, 25, SMALL_PAGE]);
        known.lost(PAGE);
        assert_eq!(next(first(&known), 96, 0).keys(), PAGE / 4);
        let second_after = |keys| {
            known.succeeded(keys);
            known.first()
        };
        assert_eq!([250, 500, 1000, 63, 16].map(second_after), [500, 1000, 1000, 126, 32]);
    }

    #[test]
    fn too_large_answers_reduce_pages_to_one_key() {
        let known = KnownPages::default();
        let mut pages = first(&known);
        assert!([125, 15, 1].iter().all(|keys| pages.reduce() && pages.keys() == *keys));
        assert!(!pages.reduce());
        assert_eq!(next(pages, 10, 0).keys(), 1, "it was too large");
    }
}
