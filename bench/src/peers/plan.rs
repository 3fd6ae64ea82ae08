//! Sizes and lengths of a run.

use std::time::Duration;

use crate::report::Bound;

/// Sizes and lengths of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds that count. One more before them does not, in a run that is judged.
    pub(crate) rounds: usize,
    pub(crate) warm_ups: usize,
    /// Sizes of services for `change`.
    pub(crate) changing: &'static [usize],
    /// Changes of a round.
    pub(crate) changes: u32,
    /// Changes of a round for a library that looks every 5 s.
    pub(crate) polled_changes: u32,
    /// Sizes of services for `sync`.
    pub(crate) synced: &'static [usize],
    /// Instances lost in one revision.
    pub(crate) lost: &'static [usize],
    /// Registrations of one process. The target is that of the largest number.
    pub(crate) registered: &'static [usize],
    /// A process at rest.
    pub(crate) rest: Rest,
    /// Contending sessions.
    pub(crate) sessions: &'static [usize],
    /// Length of a round with contention.
    pub(crate) contention: Duration,
    /// Uncontended acquisitions of a round.
    pub(crate) acquisitions: u32,
    /// TTL of candidates, in whole seconds.
    pub(crate) ttl: u32,
    /// Picks of a thread.
    pub(crate) picks: u32,
    /// Calls of a round with empty messages; with large ones a quarter of them.
    pub(crate) calls: u32,
    /// Load of a server for xDS and of events.
    pub(crate) load: Load,
    judged: bool,
}

/// A process at rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Registered instances, and services that they are of. Each service is watched.
    pub(crate) instances: usize,
    pub(crate) services: usize,
    /// Length of a round.
    pub(crate) length: Duration,
    /// Rounds. None warms up.
    pub(crate) rounds: usize,
}

/// Load of a server for xDS and of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) services: usize,
    /// Instances of each service.
    pub(crate) instances: usize,
    /// Clients of xDS, and services that each subscribes to.
    pub(crate) clients: usize,
    pub(crate) subscriptions: usize,
    /// Clients of events that read, and those that do not.
    pub(crate) readers: usize,
    pub(crate) mute: usize,
    /// Changes, 100 per second.
    pub(crate) changes: usize,
}

impl Plan {
    /// A whole run. Targets are judged.
    pub const FULL: Self = Self {
        rounds: 5,
        warm_ups: 1,
        changing: &[100, 1000, 10_000, 100_000],
        changes: 20,
        polled_changes: 1,
        synced: &[1000, 100_000],
        lost: &[10_000, 50_000],
        registered: &[1, 10_000],
        rest: Rest { instances: 10_000, services: 1000, length: Duration::from_secs(30), rounds: 3 },
        sessions: &[2, 5, 10, 50],
        contention: Duration::from_secs(3),
        acquisitions: 300,
        ttl: 5,
        picks: 5_000_000,
        calls: 20_000,
        load: Load {
            services: 200,
            instances: 50,
            clients: 500,
            subscriptions: 5,
            readers: 990,
            mute: 10,
            changes: 2_000,
        },
        judged: true,
    };

    /// A short run, which shows that everything works. Nothing is judged.
    pub const QUICK: Self = Self {
        rounds: 1,
        warm_ups: 0,
        changing: &[100],
        changes: 3,
        polled_changes: 1,
        synced: &[1000],
        lost: &[1000],
        registered: &[1, 200],
        rest: Rest { instances: 200, services: 20, length: Duration::from_secs(2), rounds: 1 },
        sessions: &[2],
        contention: Duration::from_millis(500),
        acquisitions: 30,
        ttl: 2,
        picks: 20_000,
        calls: 1000,
        load: Load { services: 10, instances: 50, clients: 20, subscriptions: 5, readers: 45, mute: 5, changes: 200 },
        judged: false,
    };

    /// Returns the plan with the rounds of a process at rest.
    pub(crate) fn at_rest(&self) -> Self {
        Self { rounds: self.rest.rounds, warm_ups: 0, ..*self }
    }

    /// Returns the plan with one round, for a library whose rounds take minutes and are not judged.
    pub(crate) fn once(&self) -> Self {
        Self { rounds: 1, warm_ups: 0, ..*self }
    }

    /// Returns the bound, if this run is judged.
    pub(crate) fn bound(&self, bound: impl Into<Option<Bound>>) -> Option<Bound> {
        bound.into().filter(|_| self.judged)
    }
}
