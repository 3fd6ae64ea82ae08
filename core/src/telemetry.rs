//! What can be counted and measured: counters that are always there, and with the feature `metrics` the same numbers,
//! and some times and sizes, sent to the recorder of the [`metrics`](https://docs.rs/metrics) facade.
//!
//! | name | kind | counts |
//! |---|---|---|
//! | `enlist_lease_renewals_total` | counter | acknowledged renewals |
//! | `enlist_lease_renewal_seconds` | histogram | from sending a renewal to its acknowledgement |
//! | `enlist_lease_losses_total` | counter | leases that the store said were gone |
//! | `enlist_registrations_total` | counter | instances put for the first time |
//! | `enlist_reregistrations_total` | counter | instances put again after they were lost |
//! | `enlist_registrations_superseded_total` | counter | times a registration gave way to another one with its id |
//! | `enlist_watch_resumes_total` | counter | watches that went on after the last seen revision |
//! | `enlist_watch_relists_total` | counter | watches that had to list again |
//! | `enlist_watch_checks_total` | counter | times a silent watch was asked for a sign of life |
//! | `enlist_watch_events_total` | counter | events applied |
//! | `enlist_watch_repeats_total` | counter | events dropped because they were known or out of order |
//! | `enlist_store_went_back_total` | counter | times the store was seen going back |
//! | `enlist_malformed_values_total` | counter | values skipped because they could not be decoded |
//! | `enlist_audits_total` | counter | audits of watched ranges that were finished |
//! | `enlist_audit_repairs_total` | counter | keys that an audit found wrong; 0 in a healthy system |
//! | `enlist_view_instances` | gauge, by `service` | size of a directory's view |
//! | `enlist_view_age_seconds` | gauge, by `service` | time since the view was last proven right |
//! | `enlist_lock_wait_seconds` | histogram | from asking for a lock to holding it |
//! | `enlist_lock_losses_total` | counter | locks that were lost before they were released |
//!
//! The recorder runs on a thread of its own behind a queue of 4,096 samples. One that is slow costs samples
//! ([`dropped_samples`]), one that panics costs its sample; neither delays anything.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Counter {
            $($(#[$doc])* $variant,)+
        }

        impl Counter {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name under which it is exported.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counters! {
    /// Acknowledged renewals.
    Renewals = "enlist_lease_renewals_total",
    /// Leases that the store said were gone.
    LeaseLosses = "enlist_lease_losses_total",
    /// Instances put for the first time.
    Registrations = "enlist_registrations_total",
    /// Instances put again after they were lost.
    Reregistrations = "enlist_reregistrations_total",
    /// Times a registration gave way to another one with its id.
    Superseded = "enlist_registrations_superseded_total",
    /// Watches that went on after the last seen revision.
    WatchResumes = "enlist_watch_resumes_total",
    /// Watches that had to list again.
    WatchRelists = "enlist_watch_relists_total",
    /// Times a silent watch was asked for a sign of life.
    WatchChecks = "enlist_watch_checks_total",
    /// Events applied.
    WatchEvents = "enlist_watch_events_total",
    /// Events dropped because they were known or out of order.
    WatchRepeats = "enlist_watch_repeats_total",
    /// Times the store was seen going back.
    StoreWentBack = "enlist_store_went_back_total",
    /// Values skipped because they could not be decoded.
    MalformedValues = "enlist_malformed_values_total",
    /// Audits of watched ranges that were finished.
    Audits = "enlist_audits_total",
    /// Keys that an audit found wrong.
    AuditRepairs = "enlist_audit_repairs_total",
    /// Locks that were lost before they were released.
    LockLosses = "enlist_lock_losses_total",
}

/// The counters of one client. Reading and counting take no lock.
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }
}

impl Counters {
    /// Number of times that `counter` was counted.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// For backends: counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// For backends: counts several.
    pub fn add(&self, counter: Counter, several: u64) {
        if several > 0 {
            self.0[counter as usize].fetch_add(several, Ordering::Relaxed);
            export(|| Sample::Count(counter.name(), several));
        }
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Counter::ALL.iter().map(|counter| (counter.name(), self.get(*counter)))).finish()
    }
}

/// A time that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timer {
    /// From sending a renewal to its acknowledgement.
    Renewal,
    /// From asking for a lock to holding it.
    LockWait,
}

/// For backends: reports a measured time. Without the feature `metrics` it does nothing.
pub fn measured(timer: Timer, time: Duration) {
    let name = match timer {
        Timer::Renewal => "enlist_lease_renewal_seconds",
        Timer::LockWait => "enlist_lock_wait_seconds",
    };
    export(|| Sample::Time(name, time));
}

/// Reports the size and the age of a view.
pub(crate) fn view(service: &crate::ServiceRef, instances: usize, age: Duration) {
    export(|| Sample::View(service.to_string(), instances, age));
}

/// Sample for the recorder.
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "read where the feature `metrics` is on"))]
enum Sample {
    Count(&'static str, u64),
    Time(&'static str, Duration),
    View(String, usize, Duration),
}

#[cfg(not(feature = "metrics"))]
fn export(_: impl FnOnce() -> Sample) {}

/// Number of samples that were dropped because the recorder did not keep up. Always 0 without the feature `metrics`.
pub fn dropped_samples() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

#[cfg(feature = "metrics")]
use exporter::export;

#[cfg(feature = "metrics")]
mod exporter {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            LazyLock,
            atomic::Ordering,
            mpsc::{SyncSender, sync_channel},
        },
    };

    use super::{DROPPED, Sample};

    /// Number of samples that may wait for the recorder.
    const QUEUE: usize = 4096;

    /// The queue to the thread that calls the recorder; `None` if there is no thread. It lives as long as the process,
    /// as the recorder does.
    static EXPORTER: LazyLock<Option<SyncSender<Sample>>> = LazyLock::new(|| {
        let (queue, samples) = sync_channel::<Sample>(QUEUE);
        let run = move || {
            for sample in samples {
                if catch_unwind(AssertUnwindSafe(|| record(sample))).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new().name("enlist-metrics".to_owned()).spawn(run).ok().map(|_| queue)
    });

    pub(super) fn export(sample: impl FnOnce() -> Sample) {
        let sent = EXPORTER.as_ref().is_some_and(|queue| queue.try_send(sample()).is_ok());
        if !sent {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn record(sample: Sample) {
        match sample {
            Sample::Count(name, several) => metrics::counter!(name).increment(several),
            Sample::Time(name, time) => metrics::histogram!(name).record(time),
            Sample::View(service, instances, age) => {
                // No view comes near 2^52 instances, up to where this is exact.
                #[expect(clippy::cast_precision_loss, reason = "exact up to 2^52")]
                metrics::gauge!("enlist_view_instances", "service" => service.clone()).set(instances as f64);
                metrics::gauge!("enlist_view_age_seconds", "service" => service).set(age.as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_apart_and_have_names_of_their_own() {
        let counters = Counters::default();
        counters.add(Counter::WatchEvents, 3);
        counters.count(Counter::LockLosses);
        assert_eq!((counters.get(Counter::WatchEvents), counters.get(Counter::LockLosses)), (3, 1));
        assert_eq!(Counter::ALL.iter().map(|counter| counters.get(*counter)).sum::<u64>(), 4);
        let names: std::collections::BTreeSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
    }
}
