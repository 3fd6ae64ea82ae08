//! Reads over HTTP: services and namespaces from shared views, locks and elections from the store, clients of xDS and
//! limits from the agent itself, and its health. Begin with `services.rs`; `objects.rs` has the JSON of instances.

pub(super) mod cache;
pub(super) mod clients;
pub(super) mod health;
pub(super) mod limits;
pub(super) mod objects;
pub(super) mod openapi;
pub(super) mod queues;
pub(super) mod readiness;
pub(super) mod services;
