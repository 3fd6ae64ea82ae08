//! Helpers of the tests on the memory backend.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registration, Registry, ServiceRef};
use enlist_memory::MemoryClient;

pub(crate) fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

/// Returns an instance at an address of its own.
pub(crate) fn instance(id: &str) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::new(id, 80).unwrap()]).unwrap()
}

pub(crate) async fn register(client: &MemoryClient, id: &str) -> Registration {
    client.register(&service(), instance(id), RegisterOptions::new()).await.unwrap()
}
