//! Helpers of the tests on the memory backend.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registration, Registry, ServiceRef};
use enlist_memory::MemoryClient;

pub(crate) fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

pub(crate) fn instance(id: &str) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap()
}

pub(crate) async fn register(client: &MemoryClient, id: &str) -> Registration {
    client.register(&service(), instance(id), RegisterOptions::new()).await.unwrap()
}
