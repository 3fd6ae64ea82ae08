//! Discovery, as the parts that both backends share: builders of snapshots, the conflating publisher and its watchers,
//! and the sharing of equal values. Begin with `publisher.rs`.

pub(crate) mod interner;
pub(crate) mod proof_writer;
pub(crate) mod publisher;
pub(crate) mod raw_values;
pub(crate) mod service_lists;
pub(crate) mod snapshot_builder;
