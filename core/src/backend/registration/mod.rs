//! A registration, as the parts that both backends share: the desired state and its driver, the flow of the task, the
//! decision of each comparison with the store, and the claims of keys within a process. Begin with `reconcile.rs`.

pub(crate) mod departures;
pub(crate) mod desired_state;
pub(crate) mod key_claims;
pub(crate) mod observation;
pub(crate) mod raw_cell;
pub mod reconcile;
pub(crate) mod registration_driver;
pub mod registration_flow;
pub(crate) mod registry_results;
