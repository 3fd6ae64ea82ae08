//! State of the task behind the views of a service, and its transitions.
//!
//! The transitions do no I/O and read no clock: [`view_task`](super::view_task) passes the time and performs the due
//! steps.

use std::time::Duration;

use tokio::time::Instant;

use super::{freshness::Freshness, mass_loss::MassLossProtection, snapshot::Snapshot, view_options::DirectoryOptions};
use crate::{error::Error, runtime::clock::Moment};

/// Time for which a view waits for the store before it reads the snapshot on disk.
const DISK_READ_DELAY: Duration = Duration::from_secs(1);

/// The current time: tokio's for timers, and the moment for ages, which count suspension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    instant: Instant,
    moment: Moment,
}

impl Now {
    /// Reads the clocks.
    pub(super) fn read() -> Self {
        Self { instant: Instant::now(), moment: Moment::now() }
    }
}

/// State of the task behind the views of one service.
#[derive(Debug)]
pub(super) enum ViewState {
    /// The store has not listed the service. A snapshot from disk may be shown meanwhile.
    Unlisted {
        disk: DiskRead,
        /// Reason for which the service is not listed yet, if there is one.
        cause: Option<Error>,
    },
    /// The store has listed the service.
    Listed(Box<Listed>),
}

/// Read of the snapshot on disk, at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskRead {
    /// Due at this time, unless the store lists the service before.
    Due(Instant),
    /// Done, or not wanted.
    Done,
}

/// Latest list of the store.
#[derive(Debug)]
pub(super) struct Listed {
    snapshot: Snapshot,
    freshness: Freshness,
    backing: Backing,
    protection: MassLossProtection,
    pending: Pending,
    /// Time of the last publication.
    published: Option<Instant>,
}

/// Evidence for the lists so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// No list was live. Such a list is not written to disk.
    Unproven,
    /// A list was live.
    Proven,
}

/// Changes since the last publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Change,
}

/// A step of the task that is due.
#[derive(Debug)]
pub(super) enum Step {
    /// Publishes the snapshot, and writes it to disk if it is proven.
    Publish { snapshot: Snapshot, freshness: Freshness, backing: Backing },
    /// Shows the snapshot on disk, as stale because of `cause`.
    ReadDisk { cause: Option<Error> },
}

impl ViewState {
    /// State of a task that starts now.
    pub(super) fn new(options: &DirectoryOptions, now: Now) -> Self {
        let disk = options.disk.as_ref().map_or(DiskRead::Done, |_| DiskRead::Due(now.instant + DISK_READ_DELAY));
        Self::Unlisted { disk, cause: None }
    }

    /// Changes to the state after the store listed `snapshot`.
    pub(super) fn list(&mut self, snapshot: Snapshot, freshness: Freshness, options: &DirectoryOptions, now: Now) {
        if let Self::Unlisted { .. } = self {
            *self = Self::Listed(Box::new(Listed {
                snapshot: Snapshot::empty(snapshot.service().clone(), snapshot.revision(), snapshot.epoch()),
                freshness: freshness.clone(),
                backing: Backing::Unproven,
                protection: MassLossProtection::new(options.hold, options.empty),
                pending: Pending::Change,
                published: None,
            }));
        }
        if let Self::Listed(listed) = self {
            listed.list(snapshot, freshness, now);
        }
    }

    /// Changes to the state after a failure of the watch.
    pub(super) fn fail(&mut self, error: Error, now: Now) {
        match self {
            Self::Listed(listed) => {
                listed.freshness = Freshness::Stale { proven: listed.freshness.proven(), cause: error };
                listed.pending = Pending::Change;
            }
            Self::Unlisted { disk, cause } => {
                // An answer is no longer expected.
                if let DiskRead::Due(_) = disk {
                    *disk = DiskRead::Due(now.instant);
                }
                *cause = Some(error);
            }
        }
    }

    /// Time of the next step, if there is no news from the store; `None` if no step will be due.
    pub(super) fn next_step(&self, debounce: Duration, now: Now) -> Option<Instant> {
        match self {
            Self::Unlisted { disk: DiskRead::Due(due), .. } => Some(*due),
            Self::Unlisted { disk: DiskRead::Done, .. } => None,
            Self::Listed(listed) => listed.next_publication(debounce, now),
        }
    }

    /// Returns the step that is due, and changes to the state after it.
    pub(super) fn step(&mut self, debounce: Duration, now: Now) -> Option<Step> {
        match self {
            Self::Unlisted { disk, cause } => match *disk {
                DiskRead::Due(due) if due <= now.instant => {
                    *disk = DiskRead::Done;
                    Some(Step::ReadDisk { cause: cause.clone() })
                }
                _ => None,
            },
            Self::Listed(listed) => listed.publication(debounce, now),
        }
    }
}

impl Listed {
    fn list(&mut self, snapshot: Snapshot, freshness: Freshness, now: Now) {
        // A restarted watch lists everything again.
        let events = snapshot.diff(&self.snapshot);
        self.protection.observe(&events, &snapshot, now.moment);
        if freshness.is_live() {
            self.backing = Backing::Proven;
        }
        (self.snapshot, self.freshness, self.pending) = (snapshot, freshness, Pending::Change);
    }

    fn next_publication(&self, debounce: Duration, now: Now) -> Option<Instant> {
        let earliest = self.published.map_or(now.instant, |published| published + debounce);
        let change = (self.pending == Pending::Change).then_some(earliest);
        let hold = self.protection.expires_in(&self.snapshot, now.moment);
        let hold = hold.map(|remaining| earliest.max(now.instant + remaining));
        change.into_iter().chain(hold).min()
    }

    fn publication(&mut self, debounce: Duration, now: Now) -> Option<Step> {
        if self.protection.expires_in(&self.snapshot, now.moment).is_some_and(|remaining| remaining.is_zero()) {
            self.pending = Pending::Change;
        }
        let is_early = |published: Instant| now.instant.saturating_duration_since(published) < debounce;
        if self.pending == Pending::Nothing || self.published.is_some_and(is_early) {
            return None;
        }
        (self.pending, self.published) = (Pending::Nothing, Some(now.instant));
        let snapshot = self.protection.shown(&self.snapshot, now.moment);
        Some(Step::Publish { snapshot, freshness: self.freshness.clone(), backing: self.backing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, Entry, Epoch, Instance, InstanceId, Proof, Revision, ServiceRef};
    use std::sync::Arc;

    const DEBOUNCE: Duration = Duration::from_millis(50);

    fn snapshot(ids: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(1), Epoch::default());
        for id in ids {
            let instance = Instance::new(InstanceId::parse(*id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        }
        snapshot
    }

    fn live() -> Freshness {
        Freshness::Live { proof: Proof::new(Moment::now()) }
    }

    fn stale() -> Freshness {
        Freshness::Stale { proven: Moment::now(), cause: Error::Closed }
    }

    fn options() -> DirectoryOptions {
        DirectoryOptions::new().disk("views")
    }

    fn started() -> ViewState {
        ViewState::new(&options(), Now::read())
    }

    fn list(state: &mut ViewState, ids: &[&str], freshness: Freshness) {
        state.list(snapshot(ids), freshness, &options(), Now::read());
    }

    /// Number of instances that the step publishes, the evidence, and `true` for a live publication.
    fn published(state: &mut ViewState) -> Option<(usize, Backing, bool)> {
        match state.step(DEBOUNCE, Now::read())? {
            Step::Publish { snapshot, freshness, backing } => Some((snapshot.len(), backing, freshness.is_live())),
            Step::ReadDisk { .. } => panic!("nothing to read"),
        }
    }

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_list_is_published_at_once_and_the_next_one_after_the_debounce() {
        let mut state = started();
        list(&mut state, &["a"], live());
        assert_eq!(published(&mut state), Some((1, Backing::Proven, true)));
        list(&mut state, &["a", "b"], live());
        assert_eq!(published(&mut state), None);
        assert_eq!(state.next_step(DEBOUNCE, Now::read()), Some(Instant::now() + DEBOUNCE));
        pass(DEBOUNCE).await;
        assert_eq!(published(&mut state), Some((2, Backing::Proven, true)));
        assert_eq!(state.next_step(DEBOUNCE, Now::read()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_disk_is_read_once_and_only_while_nothing_is_listed() {
        let mut state = started();
        assert!(state.step(DEBOUNCE, Now::read()).is_none());
        pass(DISK_READ_DELAY).await;
        assert!(matches!(state.step(DEBOUNCE, Now::read()), Some(Step::ReadDisk { cause: None })));
        assert!(state.step(DEBOUNCE, Now::read()).is_none());
        let mut state = started();
        list(&mut state, &["a"], live());
        pass(DISK_READ_DELAY).await;
        assert!(published(&mut state).is_some());
        assert!(state.step(DEBOUNCE, Now::read()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_before_the_first_list_makes_the_read_due() {
        let mut state = started();
        state.fail(Error::Closed, Now::read());
        let step = state.step(DEBOUNCE, Now::read());
        assert!(matches!(step, Some(Step::ReadDisk { cause: Some(Error::Closed) })), "{step:?}");
        let mut without_disk = ViewState::new(&DirectoryOptions::new(), Now::read());
        without_disk.fail(Error::Closed, Now::read());
        assert!(without_disk.step(DEBOUNCE, Now::read()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_after_a_list_is_published_as_stale() {
        let mut state = started();
        list(&mut state, &["a"], live());
        assert!(published(&mut state).is_some());
        pass(DEBOUNCE).await;
        state.fail(Error::Closed, Now::read());
        assert_eq!(published(&mut state), Some((1, Backing::Proven, false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_proven_once_one_was_live() {
        let mut state = started();
        for (freshness, backing) in
            [(stale(), Backing::Unproven), (live(), Backing::Proven), (stale(), Backing::Proven)]
        {
            list(&mut state, &["a"], freshness);
            assert_eq!(published(&mut state).map(|(_, backing, _)| backing), Some(backing));
            pass(DEBOUNCE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_hold_is_published() {
        let mut state = started();
        list(&mut state, &["a"], live());
        assert!(published(&mut state).is_some());
        pass(DEBOUNCE).await;
        list(&mut state, &[], live());
        assert_eq!(published(&mut state), Some((1, Backing::Proven, true)), "held");
        let hold = options().hold;
        // The boot-time clock, which counts for a hold, is not paused.
        let due = state.next_step(DEBOUNCE, Now::read()).unwrap() - Instant::now();
        assert!(due <= hold && due > hold / 2, "{due:?}");
        pass(hold).await;
        assert_eq!(published(&mut state), Some((0, Backing::Proven, true)));
        assert_eq!(state.next_step(DEBOUNCE, Now::read()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_that_ends_within_the_debounce_waits() {
        let mut state = started();
        let hold = options().hold;
        let earlier = Now { instant: Instant::now(), moment: Moment::ago(hold) };
        state.list(snapshot(&["a"]), live(), &options(), earlier);
        assert!(state.step(DEBOUNCE, earlier).is_some());
        pass(DEBOUNCE).await;
        let earlier = Now { instant: Instant::now(), moment: earlier.moment };
        state.list(snapshot(&[]), live(), &options(), earlier);
        assert!(state.step(DEBOUNCE, earlier).is_some(), "held");
        let now = Now::read();
        assert!(state.step(DEBOUNCE, now).is_none());
        assert_eq!(state.next_step(DEBOUNCE, now), Some(earlier.instant + DEBOUNCE), "not at once, again and again");
    }
}
