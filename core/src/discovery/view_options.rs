//! Options of a directory and its views.

use std::{path::PathBuf, time::Duration};

use crate::runtime::clock::LONGEST;

/// Default time for which a watch continues after its last view was dropped.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(5);

/// Default grace period for entries whose unannounced loss would leave a view without an instance that takes calls.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(15);

/// Default minimum time between two publications of a view.
pub const DEFAULT_DEBOUNCE: Duration = Duration::from_millis(50);

/// Content of a view when the store lists no instance that takes calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmptyPolicy {
    /// List of the store, once the grace period has passed.
    #[default]
    Publish,
    /// Also the instances that took calls and were lost last, as held entries, until the store lists one that takes
    /// calls. Departed instances are not kept.
    Keep,
}

/// Options of a directory. Durations above [`LONGEST`] are reduced to it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DirectoryOptions {
    /// Time for which a watch continues after its last view was dropped. Default: 5 s.
    pub idle: Duration,
    /// Grace period for entries whose unannounced loss would leave a view without an instance that takes calls (is
    /// serving, with a weight above 0): they stay as [`Presence::Held`](crate::Presence::Held). An update, such as that
    /// of a health check, begins no grace period. Default: 15 s; zero disables it.
    pub hold: Duration,
    /// Content of a view when the store lists no instance that takes calls. Default: what is listed.
    pub empty: EmptyPolicy,
    /// Maximum age of a snapshot for picks. With an older one, a pick fails with
    /// [`PickError::TooOld`](crate::PickError::TooOld), and [`ServiceView::ready`](crate::ServiceView::ready) waits.
    /// Default: `None`, any age. Keep it above 10 s, the maximum age of a healthy view; with etcd before 3.4.25 and
    /// 3.5.8, above twice the audit interval.
    pub max_age: Option<Duration>,
    /// Minimum time between two publications. The first change is published at once. Default: 50 ms.
    pub debounce: Duration,
    /// Directory on disk for the latest snapshot of each service. It is read if the store does not answer at the start,
    /// and written at most once a second, so the last second can be missing. Only the user can read the files (0600)
    /// and the directories that are created (0700). Default: none.
    pub disk: Option<PathBuf>,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            idle: DEFAULT_IDLE,
            hold: DEFAULT_HOLD,
            empty: EmptyPolicy::default(),
            max_age: None,
            debounce: DEFAULT_DEBOUNCE,
            disk: None,
        }
    }
}

impl DirectoryOptions {
    /// Options with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time for which a watch continues after its last view was dropped.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Sets the grace period for entries whose unannounced loss would leave a view without an instance that takes
    /// calls.
    #[must_use]
    pub fn hold(mut self, hold: Duration) -> Self {
        self.hold = hold;
        self
    }

    /// Sets the content of a view when the store lists no instance that takes calls.
    #[must_use]
    pub fn empty(mut self, empty: EmptyPolicy) -> Self {
        self.empty = empty;
        self
    }

    /// Sets the maximum age of a snapshot for picks.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Sets the minimum time between two publications.
    #[must_use]
    pub fn debounce(mut self, debounce: Duration) -> Self {
        self.debounce = debounce;
        self
    }

    /// Sets the directory on disk for the latest snapshot of each service.
    #[must_use]
    pub fn disk(mut self, directory: impl Into<PathBuf>) -> Self {
        self.disk = Some(directory.into());
        self
    }

    /// Returns the options with durations that can be added to a moment.
    pub(super) fn clamped(self) -> Self {
        let Self { idle, hold, empty, max_age, debounce, disk } = self;
        let [idle, hold, debounce] = [idle, hold, debounce].map(|time| time.min(LONGEST));
        Self { idle, hold, empty, max_age: max_age.map(|age| age.min(LONGEST)), debounce, disk }
    }
}
