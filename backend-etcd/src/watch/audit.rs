//! Audits: comparisons of a replica with etcd, because a watch can lose an event without an error.
//!
//! A range is compared page by page, so that all of it is compared within the interval. A page is one linearizable read
//! of at most a thousand keys without their values: the revision of its last change identifies the value of a key. The
//! number of keys and their newest change would not suffice: they are equal again after the next change.
//!
//! A change without its event is not yet a difference: the comparison waits until the watch has reached the revision of
//! the page, or has been quiet for a while, and leaves out keys that changed in the meantime.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use enlist::{
    Moment, Revision,
    backend::{LONGEST, jitter},
};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

use crate::{
    client::{
        requests::{list::Page, page_size::PAGE},
        store_client::StoreClient,
    },
    error::Failure,
    watch::{record::KeyRange, replica::Replica},
};

/// Time until differences are compared again, so that events can arrive over the watch. It doubles each time.
const EVENT_ARRIVAL_DELAY: Duration = Duration::from_secs(2);

/// Number of comparisons with a quiet watch before a difference counts.
const LOOKS: u32 = 4;

/// Minimum delay of the audit after a reconnection or a failed audit; the maximum is twice as long.
const EARLY_AUDIT_DELAY: Duration = Duration::from_secs(2);

/// Result of a comparison.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    /// Number of keys that differ from etcd, and of keys that changed since the request, so that they may differ.
    Differs {
        wrong: usize,
        moved: usize,
    },
    /// The store's history differs from the history of the replica.
    WentBack,
    /// The page is of a lower revision than the replica was when it was requested.
    LowRead,
}

/// Compares the replica with a page. `moved` contains the keys that the watch has reported since the request.
fn verdict(page: &Page, replica: &Replica, moved: &HashSet<Arc<[u8]>>) -> Verdict {
    if page.revision < page.floor {
        return Verdict::LowRead;
    }
    let reached = replica.revision >= page.revision;
    let (mut wrong, mut unsure) = (0, 0);
    for record in &page.records {
        match replica.get(&record.key) {
            // One history cannot have two latest changes of one key at or before one revision.
            Some(known) if known.modified > record.modified && known.modified <= page.revision => {
                return Verdict::WentBack;
            }
            Some(known) if known.modified >= record.modified => {}
            // Deleted since.
            None if reached && moved.contains(&record.key) => {}
            _ if !reached && moved.contains(&record.key) => unsure += 1,
            _ => wrong += 1,
        }
    }
    let listed: HashSet<&[u8]> = page.records.iter().map(|record| &*record.key).collect();
    let extra = replica.between(&page.from, page.upto.as_deref()).filter(|record| record.modified <= page.revision);
    for record in extra.filter(|record| !listed.contains(&*record.key)) {
        if !reached && moved.contains(&record.key) { unsure += 1 } else { wrong += 1 }
    }
    if wrong + unsure == 0 { Verdict::Right } else { Verdict::Differs { wrong, moved: unsure } }
}

/// Activity of the watch since the last comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// It raised the revision of the replica.
    Advanced,
    Quiet,
}

/// Returns `true` if a difference has to be compared again, because the event that explains it may still arrive.
fn may_arrive(page: &Page, replica: &Replica, look: u32, activity: Activity) -> bool {
    replica.revision < page.revision && (activity == Activity::Advanced || look < LOOKS)
}

/// Returns the time from one page to the next, so that `pages` fit into the interval. It is random, to spread clients.
fn pause(every: Duration, pages: usize) -> Duration {
    let share = every / u32::try_from(pages.max(1)).unwrap_or(u32::MAX);
    share / 2 + jitter(share / 2)
}

/// Returns the number of pages that `keys` fill.
fn pages(keys: usize) -> usize {
    keys / usize::try_from(PAGE).unwrap_or(1) + 1
}

/// The audits of one range.
pub(crate) struct Audit {
    every: Option<Duration>,
    stage: Stage,
    /// Key at which the next page begins; the start of the range if it is empty.
    next: Vec<u8>,
    /// Time at which the first page of this round was requested, if no page since has differed.
    begun: Option<Moment>,
    /// The page is the first one of its round.
    first: bool,
    /// The numbers of keys differ, so the other pages of this round are read without a pause.
    hurried: bool,
    /// Keys that the watch has reported since the request.
    moved: HashSet<Arc<[u8]>>,
}

enum Stage {
    Idle { due: Option<Instant> },
    Asking { answer: BoxFuture<'static, Result<Page, Failure>> },
    Comparing { page: Page, look: u32, due: Instant, at: Revision },
}

/// Consequence of an audit for its owner.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// None yet.
    Pending,
    /// The whole range was compared and does not differ from etcd. With a moment, at which the oldest page was
    /// requested, that is proven.
    Compared(Option<Moment>),
    /// Number of keys that differ from etcd.
    Wrong(usize),
    /// The store's history differs from the history of the replica.
    WentBack,
    /// The store was at a lower revision than the replica before: it went back, or the read was stale.
    LowRead,
}

impl Audit {
    /// Creates audits that compare each key once in `every`; `None` compares nothing.
    pub(crate) fn new(every: Option<Duration>) -> Self {
        let mut audit = Self {
            every: every.map(|every| every.min(LONGEST)),
            stage: Stage::Idle { due: None },
            next: Vec::new(),
            begun: None,
            first: true,
            hurried: false,
            moved: HashSet::new(),
        };
        audit.start_over(0);
        audit
    }

    /// Starts over at the beginning of the range, which has this number of keys, at the regular time.
    pub(crate) fn start_over(&mut self, keys: usize) {
        (self.next, self.begun, self.hurried) = (Vec::new(), None, false);
        self.idle(keys);
    }

    fn idle(&mut self, keys: usize) {
        self.moved = HashSet::new();
        let due = self.every.map(|every| {
            let wait = if self.hurried { Duration::ZERO } else { pause(every, pages(keys)) };
            Instant::now() + wait
        });
        self.stage = Stage::Idle { due };
    }

    /// Starts over at the beginning of the range soon, because an event may have been missed.
    pub(crate) fn soon(&mut self) {
        if let (Some(every), Stage::Idle { due }) = (self.every, &mut self.stage) {
            let wait = EARLY_AUDIT_DELAY.min(every / 2);
            let soon = Instant::now() + wait + jitter(wait);
            *due = Some(due.map_or(soon, |due| due.min(soon)));
            (self.next, self.begun) = (Vec::new(), None);
        }
    }

    /// Drops a pending request, and starts over soon. Between two watches no task polls the request, and it could block
    /// other requests that wait for a token or for the first connection.
    pub(crate) fn interrupt(&mut self, keys: usize) {
        if matches!(self.stage, Stage::Asking { .. }) {
            self.start_over(keys);
            self.soon();
        }
    }

    /// Records that the watch has reported `key`.
    pub(crate) fn moved(&mut self, key: &Arc<[u8]>) {
        if !matches!(self.stage, Stage::Idle { .. }) && **key >= *self.next {
            self.moved.insert(Arc::clone(key));
        }
    }

    /// Waits until [`step`](Self::step) has something to do. Dropping the future loses nothing.
    pub(crate) async fn ready(&mut self) -> Option<Result<Page, Failure>> {
        match &mut self.stage {
            Stage::Idle { due: None } => std::future::pending().await,
            Stage::Idle { due: Some(due) } | Stage::Comparing { due, .. } => {
                tokio::time::sleep_until(*due).await;
                None
            }
            Stage::Asking { answer } => Some(answer.await),
        }
    }

    /// Continues with the result of [`ready`](Self::ready).
    pub(crate) fn step(
        &mut self,
        ready: Option<Result<Page, Failure>>,
        replica: &Replica,
        client: &Arc<StoreClient>,
        range: &KeyRange,
    ) -> Outcome {
        let stage = std::mem::replace(&mut self.stage, Stage::Idle { due: None });
        match (stage, ready) {
            (Stage::Asking { .. }, Some(Ok(page))) => self.look(page, 1, Activity::Quiet, replica),
            (Stage::Comparing { page, look, at, .. }, _) => {
                let (look, activity) =
                    if replica.revision > at { (1, Activity::Advanced) } else { (look + 1, Activity::Quiet) };
                self.look(page, look, activity, replica)
            }
            (Stage::Asking { .. }, Some(Err(failure))) => {
                tracing::debug!(range = %range.describe(), cause = %failure, "audit not answered");
                self.start_over(replica.len());
                self.soon();
                Outcome::Pending
            }
            (Stage::Idle { .. } | Stage::Asking { .. }, _) => {
                self.ask(client, range, replica.revision);
                Outcome::Pending
            }
        }
    }

    fn ask(&mut self, client: &Arc<StoreClient>, range: &KeyRange, floor: Revision) {
        self.moved = HashSet::new();
        self.first = self.next.is_empty();
        if self.first {
            (self.next, self.begun) = (range.start.clone(), Some(Moment::now()));
        }
        let (client, range, from) = (Arc::clone(client), range.clone(), self.next.clone());
        let answer = async move { client.page(&range, from, floor).await };
        self.stage = Stage::Asking { answer: answer.boxed() };
    }

    fn look(&mut self, page: Page, look: u32, activity: Activity, replica: &Replica) -> Outcome {
        match verdict(&page, replica, &self.moved) {
            Verdict::Right => self.turn(&page, replica),
            Verdict::WentBack => Outcome::WentBack,
            Verdict::LowRead => {
                self.start_over(replica.len());
                Outcome::LowRead
            }
            Verdict::Differs { .. } if may_arrive(&page, replica, look, activity) => {
                let due = Instant::now() + EVENT_ARRIVAL_DELAY * 2u32.pow(look.min(LOOKS) - 1);
                self.stage = Stage::Comparing { page, look, due, at: replica.revision };
                Outcome::Pending
            }
            Verdict::Differs { wrong: 0, .. } => {
                // No key is known to be wrong, and nothing is proven either.
                self.begun = None;
                self.turn(&page, replica)
            }
            Verdict::Differs { wrong, .. } => Outcome::Wrong(wrong),
        }
    }

    /// Continues with the next page.
    fn turn(&mut self, page: &Page, replica: &Replica) -> Outcome {
        let Some(last) = &page.upto else {
            let begun = self.begun;
            self.start_over(replica.len());
            return Outcome::Compared(begun);
        };
        self.hurried |= self.first && self.moved.is_empty() && page.count != replica.len();
        self.next = [&**last, &[0]].concat();
        self.idle(replica.len());
        Outcome::Pending
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("every", &self.every).field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use crate::watch::record::Record;
    use enlist::Epoch;

    const SECOND: Duration = Duration::from_secs(1);

    fn wrong(wrong: usize) -> Verdict {
        Verdict::Differs { wrong, moved: 0 }
    }

    fn record(key: &str, modified: u64) -> Record {
        let modified = Revision::new(modified);
        Record { key: key.as_bytes().into(), value: [][..].into(), created: modified, modified, lease: None }
    }

    fn replica(keys: &[(&str, u64)], at: u64) -> Replica {
        let mut known = Replica::new(Revision::default(), Epoch::default());
        let records = keys.iter().map(|(key, modified)| record(key, *modified)).collect();
        known.relist(records, Revision::new(at), Epoch::default());
        known
    }

    fn page(etcd: &[(&str, u64)], revision: u64, floor: u64, upto: Option<&str>) -> Page {
        let records: Vec<_> = etcd.iter().map(|(key, modified)| record(key, *modified)).collect();
        let (count, upto) = (records.len(), upto.map(|key| key.as_bytes().into()));
        let (revision, floor) = (Revision::new(revision), Revision::new(floor));
        Page { from: b"a".to_vec(), upto, records, revision, count, floor }
    }

    fn judge(etcd: &[(&str, u64)], revision: u64, known: &[(&str, u64)], at: u64, moved: &[&str]) -> Verdict {
        let floor = if moved.is_empty() { at } else { 0 };
        let moved = moved.iter().map(|key| key.as_bytes().into()).collect();
        verdict(&page(etcd, revision, floor, None), &replica(known, at), &moved)
    }

    /// Time until the next page of an idle audit.
    fn due(audit: &Audit) -> Option<Duration> {
        match audit.stage {
            Stage::Idle { due } => due.map(|due| due.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }

    fn asking(every: Duration) -> Audit {
        let answer = std::future::pending().boxed();
        Audit { stage: Stage::Asking { answer }, next: b"b".to_vec(), ..Audit::new(Some(every)) }
    }

    #[test]
    fn equal_or_newer_records_of_the_replica_are_right() {
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 3)], 3, &[]), Verdict::Right);
        assert_eq!(judge(&[("a", 3)], 3, &[("a", 3)], 3, &[]), Verdict::Right);
        // The watch was ahead of the answer: a new key, a changed one, a deleted one.
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 3), ("b", 10)], 10, &["b"]), Verdict::Right);
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 10)], 10, &["a"]), Verdict::Right);
        assert_eq!(judge(&[("a", 3)], 9, &[], 10, &["a"]), Verdict::Right);
    }

    #[test]
    fn changes_reported_by_a_lagging_watch_are_undecided() {
        let moved = Verdict::Differs { wrong: 0, moved: 1 };
        assert_eq!(judge(&[("a", 8)], 9, &[("a", 5)], 5, &["a"]), moved);
        assert_eq!(judge(&[("a", 8)], 9, &[], 5, &["a"]), moved, "deleted before it was put again");
        assert_eq!(judge(&[], 9, &[("a", 5)], 5, &["a"]), moved, "put before it was deleted");
        // Once all events have arrived, the same difference is a lost change.
        assert_eq!(judge(&[("a", 8)], 9, &[("a", 5)], 9, &["a"]), wrong(1));
        assert_eq!(judge(&[], 9, &[("a", 5)], 9, &["a"]), wrong(1));
    }

    #[test]
    fn unreported_differences_are_wrong() {
        assert_eq!(judge(&[("a", 3), ("b", 4)], 9, &[("a", 3)], 3, &[]), wrong(1));
        assert_eq!(judge(&[("a", 5)], 9, &[("a", 3)], 3, &[]), wrong(1));
        assert_eq!(judge(&[], 9, &[("a", 3), ("b", 4)], 4, &[]), wrong(2));
        // Number of keys and newest change are equal.
        assert_eq!(judge(&[("a", 5), ("b", 6)], 9, &[("a", 3), ("b", 6)], 6, &[]), wrong(1));
    }

    #[test]
    fn two_histories_differ_from_a_lag() {
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 5)], 5, &[]), Verdict::WentBack);
        assert_eq!(judge(&[], 2, &[("a", 5)], 5, &[]), Verdict::LowRead);
    }

    #[test]
    fn a_page_covers_no_keys_beyond_it() {
        let known = replica(&[("a", 3), ("b", 4), ("c", 5)], 5);
        let moved = HashSet::new();
        assert_eq!(verdict(&page(&[("a", 3), ("b", 4)], 9, 5, Some("b")), &known, &moved), Verdict::Right);
        assert_eq!(verdict(&page(&[("a", 3), ("b", 4)], 9, 5, None), &known, &moved), wrong(1));
        let before = Page { from: b"c".to_vec(), ..page(&[("c", 5)], 9, 5, None) };
        assert_eq!(verdict(&before, &known, &moved), Verdict::Right);
    }

    #[test]
    fn a_difference_counts_once_the_watch_has_reached_the_page_or_is_quiet() {
        let page = page(&[("a", 9)], 9, 0, None);
        let behind = replica(&[("a", 3)], 8);
        assert!(may_arrive(&page, &behind, 1, Activity::Quiet), "it has just been asked for");
        assert!(may_arrive(&page, &behind, LOOKS, Activity::Advanced), "the watch lags, but delivers");
        assert!(!may_arrive(&page, &behind, LOOKS, Activity::Quiet), "nothing more comes");
        assert!(
            !may_arrive(&page, &replica(&[("a", 3)], 9), 1, Activity::Quiet),
            "everything up to there was delivered"
        );
    }

    #[test]
    fn all_pages_fit_into_the_interval() {
        let every = Duration::from_secs(300);
        for keys in [0, 999, 1000, 100_000] {
            let pages = pages(keys);
            let round: Duration = (0..pages).map(|_| pause(every, pages)).sum();
            assert!(round <= every && round >= every / 2, "{keys} keys: {round:?}");
        }
    }

    #[test]
    fn a_last_page_may_be_partly_filled() {
        assert_eq!([0, 999, 1001, 2500].map(pages), [1, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_audit_starts_over_at_the_regular_time() {
        let mut audit = asking(300 * SECOND);
        audit.moved(&b"c"[..].into());
        (audit.begun, audit.hurried) = (Some(Moment::now()), true);
        audit.start_over(0);
        assert!(audit.next.is_empty() && audit.begun.is_none() && !audit.hurried && audit.moved.is_empty());
        assert!(due(&audit).is_some_and(|due| (150 * SECOND..=300 * SECOND).contains(&due)));
        audit.interrupt(0);
        assert!(due(&audit).is_some_and(|due| due >= 150 * SECOND), "nothing was asked");
        assert_eq!(due(&Audit::new(None)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_audit_begins_within_seconds() {
        for (every, earliest) in [(300 * SECOND, 2 * SECOND), (2 * SECOND, SECOND)] {
            let mut audit = Audit { stage: Stage::Idle { due: None }, ..asking(every) };
            audit.soon();
            assert!(due(&audit).is_some_and(|due| (earliest..=2 * earliest).contains(&due)), "{every:?}");
            assert!(audit.next.is_empty());
        }
        let mut audit = asking(300 * SECOND);
        audit.interrupt(0);
        assert!(due(&audit).is_some_and(|due| (2 * SECOND..=4 * SECOND).contains(&due)));
    }

    /// The number of the comparison that is due, and the time until then.
    fn comparison(audit: &Audit) -> Option<(u32, Duration)> {
        match audit.stage {
            Stage::Comparing { look, due, .. } => Some((look, due.saturating_duration_since(Instant::now()))),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn comparisons_with_a_lagging_watch_are_repeated_at_growing_delays() {
        let (mut audit, behind) = (asking(300 * SECOND), replica(&[("a", 3)], 8));
        let mut look = |number, activity| {
            let outcome = audit.look(page(&[("a", 9)], 9, 0, None), number, activity, &behind);
            (matches!(outcome, Outcome::Pending), comparison(&audit).map(|(_, due)| due.as_secs()))
        };
        let delays = [1, 2, 3].map(|number| look(number, Activity::Quiet));
        assert_eq!(delays, [(true, Some(2)), (true, Some(4)), (true, Some(8))]);
        assert_eq!(look(LOOKS + 3, Activity::Advanced), (true, Some(16)));
        let last = audit.look(page(&[("a", 9)], 9, 0, None), LOOKS, Activity::Quiet, &behind);
        assert!(matches!(last, Outcome::Wrong(1)), "{last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_advances_delays_the_decision() {
        let (_fake, etcd) = testing::session();
        let (client, range) = (&etcd.session.client, KeyRange::prefix("a"));
        let mut step = |compared_at: u64| {
            let mut audit = asking(300 * SECOND);
            let (page, at) = (page(&[("a", 9)], 9, 0, None), Revision::new(compared_at));
            audit.stage = Stage::Comparing { page, look: 2, due: Instant::now(), at };
            audit.step(None, &replica(&[("a", 3)], 8), client, &range);
            comparison(&audit).map(|(look, _)| look)
        };
        assert_eq!([7, 8, 9].map(&mut step), [Some(1), Some(3), Some(3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_begins_at_the_first_key() {
        let (_fake, etcd) = testing::session();
        let (client, range) = (&etcd.session.client, KeyRange::prefix("enlist/"));
        let mut audit = Audit::new(Some(SECOND));
        audit.moved.insert(b"x"[..].into());
        assert!(matches!(audit.step(None, &replica(&[], 1), client, &range), Outcome::Pending));
        assert!(matches!(audit.stage, Stage::Asking { .. }));
        assert!(audit.first && audit.moved.is_empty() && audit.begun.is_some());
        assert_eq!(audit.next, b"enlist/");
        (audit.next, audit.begun) = (b"enlist/k".to_vec(), None);
        audit.ask(client, &range, Revision::new(1));
        assert!(!audit.first && audit.begun.is_none(), "another page of the round");
        assert_eq!(audit.next, b"enlist/k");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_page_starts_the_round_over() {
        let (_fake, etcd) = testing::session();
        let mut audit = asking(300 * SECOND);
        let failure = Failure::Final(enlist::Error::Closed);
        let outcome = audit.step(Some(Err(failure)), &replica(&[], 1), &etcd.session.client, &KeyRange::prefix("a"));
        assert!(matches!(outcome, Outcome::Pending));
        assert!(due(&audit).is_some_and(|due| (2 * SECOND..=4 * SECOND).contains(&due)) && audit.next.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn other_numbers_of_keys_hurry_the_round() {
        let known = replica(&[("a", 3), ("b", 4)], 5);
        let equal = || page(&[("a", 3), ("b", 4)], 9, 5, Some("b"));
        let hurried = |first: bool, moved: &[&str], page: &Page| {
            let moved = moved.iter().map(|key| key.as_bytes().into()).collect();
            let mut audit = Audit { first, moved, ..asking(300 * SECOND) };
            assert!(matches!(audit.turn(page, &known), Outcome::Pending));
            assert_eq!(audit.next, b"b\0", "the least key after the last one");
            due(&audit) == Some(Duration::ZERO)
        };
        let other = Page { count: 3, ..equal() };
        assert!(hurried(true, &[], &other));
        assert!(!hurried(true, &[], &equal()) && !hurried(false, &[], &other) && !hurried(true, &["b"], &other));
        let mut audit = Audit { hurried: true, ..asking(300 * SECOND) };
        audit.turn(&equal(), &known);
        assert_eq!(due(&audit), Some(Duration::ZERO), "until the end of the round");
    }

    #[tokio::test(start_paused = true)]
    async fn only_keys_of_the_requested_page_move() {
        let mut audit = asking(SECOND);
        for key in ["a", "b", "c"] {
            audit.moved(&key.as_bytes().into());
        }
        assert_eq!(audit.moved, [b"b"[..].into(), b"c"[..].into()].into());
        audit.idle(0);
        audit.moved(&b"c"[..].into());
        assert!(audit.moved.is_empty());
    }
}
