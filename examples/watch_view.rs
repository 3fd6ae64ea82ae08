//! A view that follows a service, also during an outage.
//!
//! ```text
//! cargo run --example watch_view
//! ```

use std::{error::Error, sync::Arc};

use enlist::{Directory, Endpoint, Instance, InstanceId, PickPolicy, RegisterOptions, Registry, ServiceRef};
use enlist_memory::MemoryStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let store = MemoryStore::new();
    let (server, client) = (store.client(), store.client());
    let service = ServiceRef::parse("search")?;
    let instance = Instance::new(InstanceId::parse("search-1")?, [Endpoint::parse("http://10.0.0.1:80")?])?;
    let _registration = server.register(&service, instance, RegisterOptions::new()).await?;

    let directory = Directory::new(Arc::new(client.clone()));
    let view = directory.view(&service);
    println!("known at revision {}: {:?}", view.ready().await?.revision(), view.snapshot());

    // Each task has a picker of its own. A pick takes no lock and sends nothing.
    let mut picker = view.picker(PickPolicy::RoundRobin);
    println!("picked {}", picker.pick()?.instance().endpoints()[0]);

    client.cut();
    // The first change is the present view.
    let mut changes = view.changes();
    while changes.next().await?.freshness.is_live() {}
    println!("cut off: {:?}", view.freshness());
    println!("still picked {}", picker.pick()?.instance().endpoints()[0]);

    client.heal();
    while !changes.next().await?.freshness.is_live() {}
    println!("live again, {:?} old", view.freshness().map(|freshness| freshness.age()));
    Ok(())
}
