//! Counting and measuring, see [`telemetry`](crate::telemetry).

use std::time::Duration;

use crate::telemetry::{
    counters::{Counter, Counters},
    export::{Sample, export},
};

/// Increments `counter` by one.
pub fn count(counters: &Counters, counter: Counter) {
    counters.add(counter, 1);
}

/// Increments `counter` by `several`.
pub fn count_several(counters: &Counters, counter: Counter, several: u64) {
    counters.add(counter, several);
}

/// Measured duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timer {
    /// From sending a renewal to its acknowledgement.
    Renewal,
    /// From requesting a lock to holding it.
    LockWait,
}

/// Reports a measured time. Without the feature `metrics` it does nothing.
pub fn measured(timer: Timer, time: Duration) {
    let name = match timer {
        Timer::Renewal => "enlist_lease_renewal_seconds",
        Timer::LockWait => "enlist_lock_wait_seconds",
    };
    export(|| Sample::Time(name, time));
}
