//! Names of all metrics. The [`Counters`](crate::Counters) exist in every build. With the feature `metrics` the same
//! numbers, and some times and sizes, go to the recorder of the [`metrics`](https://docs.rs/metrics) facade.
//!
//! | name | kind | counts |
//! |---|---|---|
//! | `enlist_lease_renewals_total` | counter | acknowledged renewals |
//! | `enlist_lease_renewal_seconds` | histogram | from sending a renewal to its acknowledgement |
//! | `enlist_lease_losses_total` | counter | leases that are gone according to the store |
//! | `enlist_registrations_total` | counter | instances put for the first time |
//! | `enlist_reregistrations_total` | counter | instances put again after they were lost |
//! | `enlist_registrations_superseded_total` | counter | times a registration gave way to another one with its id |
//! | `enlist_watch_resumes_total` | counter | watches that went on after the last seen revision |
//! | `enlist_watch_relists_total` | counter | watches that had to list again |
//! | `enlist_watch_checks_total` | counter | checks of a silent watch |
//! | `enlist_watch_events_total` | counter | events applied |
//! | `enlist_watch_repeats_total` | counter | events dropped because they were known or out of order |
//! | `enlist_store_went_back_total` | counter | observed rollbacks of the store |
//! | `enlist_malformed_values_total` | counter | values skipped because they could not be decoded |
//! | `enlist_audits_total` | counter | audits of watched ranges that were finished |
//! | `enlist_audit_repairs_total` | counter | keys that an audit found wrong; 0 in a healthy system |
//! | `enlist_view_instances` | gauge, by `service` | size of a directory's view |
//! | `enlist_view_age_seconds` | gauge, by `service` | time since the view was last proven right |
//! | `enlist_lock_wait_seconds` | histogram | from requesting a lock to holding it |
//! | `enlist_lock_losses_total` | counter | locks that were lost before they were released |
//! | `enlist_config_updates_total` | counter | values of configuration that a typed view took over |
//! | `enlist_config_rejections_total` | counter | states of the store that a typed view rejected |
//!
//! The recorder runs on a separate thread behind a queue of 4,096 samples. A slow recorder loses samples
//! ([`dropped_samples`]), and a panic loses its sample. Neither delays a caller.

pub(crate) mod counters;
pub(crate) mod export;

use std::time::Duration;

#[doc(inline)]
pub use self::export::dropped_samples;
use self::export::{Sample, export};
use crate::model::name::ServiceRef;

/// Reports the size and the age of a view.
pub(crate) fn view(service: &ServiceRef, instances: usize, age: Duration) {
    export(|| Sample::View(service.to_string(), instances, age));
}
