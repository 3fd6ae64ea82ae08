//! Parts of requests and responses that all handlers share: the checks before a request is served, its parameters,
//! errors, JSON, the freshness of data, and numbers of responses. Begin with `guard.rs`.

pub(super) mod error;
pub(super) mod freshness;
pub(super) mod guard;
pub(super) mod json;
pub(super) mod parameters;
pub(super) mod responses;
