//! Requests to the store: about keys, ranges and queue entries, and the batcher of guarded writes. Begin with `kv.rs`.

pub(crate) mod guarded_write;
pub(crate) mod kv;
pub(crate) mod limits;
pub(crate) mod list;
pub(crate) mod page_size;
pub(crate) mod queue_requests;
pub(crate) mod response;
pub(crate) mod write_batcher;
pub(crate) mod write_proofs;
