//! Options of a directory and its views.

use std::{path::PathBuf, time::Duration};

use crate::runtime::clock::LONGEST;

/// Time for which a watch goes on after the last view of it was dropped, unless said otherwise.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(5);

/// Time for which entries are held whose loss would empty a view, unless said otherwise.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(15);

/// The least time between two publications of a view, unless said otherwise.
pub const DEFAULT_DEBOUNCE: Duration = Duration::from_millis(50);

/// What a view shows when the store lists nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmptyPolicy {
    /// Nobody, once the time to hold has passed.
    #[default]
    Publish,
    /// Those who were lost last, as held entries, until the store lists somebody. Instances that left in order are not
    /// kept.
    Keep,
}

/// Options of a directory. Times above [`LONGEST`] count as that.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DirectoryOptions {
    /// Time for which a watch goes on after the last view of it was dropped. Default: 5 s.
    pub idle: Duration,
    /// Time for which entries whose removal would leave a view empty, and who did not leave in order, stay as
    /// [`Presence::Held`](crate::Presence::Held). Default: 15 s; zero never holds.
    pub hold: Duration,
    /// What a view shows when the store lists nobody. Default: nobody.
    pub empty: EmptyPolicy,
    /// Maximum age of a picture to be picked from. Older, [`PickError::TooOld`](crate::PickError::TooOld) says so and
    /// [`ServiceView::ready`] waits. Default: `None`, any age. Keep it above 10 s, the most of a healthy view; with
    /// etcd before 3.4.25 and 3.5.8 above twice the audit interval.
    pub max_age: Option<Duration>,
    /// The least time between two publications. The first change is published at once. Default: 50 ms.
    pub debounce: Duration,
    /// A directory on disk for the last picture of each service, which is used when the store does not answer at the
    /// start. Written at most once a second, so the last second may be missing. Files are for their user only (0600),
    /// as are directories that have to be made (0700). Default: none.
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a watch goes on after the last view of it was dropped.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Sets how long lost entries are held where their loss would empty a view.
    #[must_use]
    pub fn hold(mut self, hold: Duration) -> Self {
        self.hold = hold;
        self
    }

    /// Sets what a view shows when the store lists nobody.
    #[must_use]
    pub fn empty(mut self, empty: EmptyPolicy) -> Self {
        self.empty = empty;
        self
    }

    /// Sets how old a picture may be to be picked from.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Sets the least time between two publications.
    #[must_use]
    pub fn debounce(mut self, debounce: Duration) -> Self {
        self.debounce = debounce;
        self
    }

    /// Sets where the last picture of each service is kept on disk.
    #[must_use]
    pub fn disk(mut self, directory: impl Into<PathBuf>) -> Self {
        self.disk = Some(directory.into());
        self
    }

    /// The options with times that can be added to a moment.
    pub(super) fn clamped(self) -> Self {
        let Self { idle, hold, empty, max_age, debounce, disk } = self;
        let [idle, hold, debounce] = [idle, hold, debounce].map(|time| time.min(LONGEST));
        Self { idle, hold, empty, max_age: max_age.map(|age| age.min(LONGEST)), debounce, disk }
    }
}
