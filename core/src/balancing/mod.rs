//! Selection of an instance: pickers over a view, their policies and data structures, ejection, and the pool of
//! clients. Begin with `picker.rs`.

pub(crate) mod alias_table;
pub mod balance;
pub(crate) mod bucket_index;
pub(crate) mod candidate_table;
pub(crate) mod ejection;
pub(crate) mod filter;
pub(crate) mod hash_ring;
pub(crate) mod picker;
pub(crate) mod policy;
pub(crate) mod pool;
