//! Selecting an instance: pickers over a view, their policies and data structures, ejection, and the pool of clients.
//! Begin with `picker.rs`.

pub mod alias_table;
pub mod balance;
pub(crate) mod bucket_index;
pub mod ejection;
pub mod picker;
pub mod pool;
