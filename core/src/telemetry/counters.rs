//! Counters of a client.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::export::{Sample, export};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// Kind of counted event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Counter {
            $($(#[$doc])* $variant,)+
        }

        impl Counter {
            /// All counters.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Name of the exported metric.
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
    /// Leases that are gone according to the store.
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
    /// Checks of a silent watch.
    WatchChecks = "enlist_watch_checks_total",
    /// Events applied.
    WatchEvents = "enlist_watch_events_total",
    /// Events dropped because they were known or out of order.
    WatchRepeats = "enlist_watch_repeats_total",
    /// Observed rollbacks of the store.
    StoreWentBack = "enlist_store_went_back_total",
    /// Values skipped because they could not be decoded.
    MalformedValues = "enlist_malformed_values_total",
    /// Audits of watched ranges that were finished.
    Audits = "enlist_audits_total",
    /// Keys that an audit found wrong.
    AuditRepairs = "enlist_audit_repairs_total",
    /// Locks that were lost before they were released.
    LockLosses = "enlist_lock_losses_total",
    /// Values of configuration that a typed view took over.
    ConfigUpdates = "enlist_config_updates_total",
    /// States of the store that a typed view rejected, because a value did not parse or was not valid.
    ConfigRejections = "enlist_config_rejections_total",
}

/// The counters of one client. Reading and counting take no lock.
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }
}

impl Counters {
    /// Value of `counter`.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// Increments `counter` by `several`.
    pub(crate) fn add(&self, counter: Counter, several: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_apart_and_have_names_of_their_own() {
        let counters = Counters::default();
        counters.add(Counter::WatchEvents, 3);
        counters.add(Counter::LockLosses, 1);
        assert_eq!((counters.get(Counter::WatchEvents), counters.get(Counter::LockLosses)), (3, 1));
        assert_eq!(Counter::ALL.iter().map(|counter| counters.get(*counter)).sum::<u64>(), 4);
        let names: std::collections::BTreeSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
    }
}
