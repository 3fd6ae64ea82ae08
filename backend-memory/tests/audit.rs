//! Repair by audits of changes without an event. The defect here is a registration that does not notice a deletion.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::Duration;

use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, Resolver, ServiceRef};
use enlist_memory::{DeliberateDefect, MemoryClient, MemoryStore};

/// Registers an instance and deletes it by hand. Returns `true` if it is back after an hour.
async fn comes_back(options: RegisterOptions) -> bool {
    let store = MemoryStore::with_defect(DeliberateDefect::NeverReregisters);
    let (client, service): (MemoryClient, _) = (store.client(), ServiceRef::parse("svc").unwrap());
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    let _a = client.register(&service, instance, options).await.unwrap();
    assert!(store.delete(&service, &InstanceId::parse("a").unwrap()));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    !client.resolve(&service).await.unwrap().is_empty()
}

#[tokio::test(start_paused = true)]
async fn the_next_audit_repairs_an_unnoticed_deletion() {
    assert!(comes_back(RegisterOptions::new()).await);
    assert!(comes_back(RegisterOptions::new().audit(Some(Duration::from_secs(60)))).await);
    assert!(!comes_back(RegisterOptions::new().audit(None)).await, "without audits the defect shows");
}
