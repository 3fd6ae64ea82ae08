//! Unit tests of your own code against the memory backend, with a paused clock: hours pass in milliseconds.
//!
//! ```text
//! cargo test --example unit_test
//! ```

use std::{error::Error, sync::Arc};

use enlist::{Resolver, ServiceRef};
use enlist_memory::MemoryStore;

/// The code under test: it depends on a trait, not on a store.
async fn describe(resolver: Arc<dyn Resolver>, service: &ServiceRef) -> Result<String, enlist::Error> {
    Ok(match resolver.resolve(service).await?.len() {
        0 => format!("{service} is down"),
        count => format!("{service} has {count}"),
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let service = ServiceRef::parse("search")?;
    println!("{}", describe(Arc::new(MemoryStore::new().client()), &service).await?);
    println!("the tests of this file run with `cargo test --example unit_test`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_crashed_service_is_down_after_an_hour() {
        let (store, service) = (MemoryStore::new(), ServiceRef::parse("search").unwrap());
        let (server, client) = (store.client(), Arc::new(store.client()));
        let instance = Instance::new(InstanceId::parse("s").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let _registration = server.register(&service, instance, RegisterOptions::new()).await.unwrap();
        assert_eq!(describe(client.clone(), &service).await.unwrap(), "default/search has 1");
        server.crash().await.unwrap();
        // A sleep stops at each timer in between and runs the tasks behind it. `tokio::time::advance` jumps: when it
        // returns, no task has run, and states, freshness and views are as before.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(describe(client, &service).await.unwrap(), "default/search is down");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_an_error_not_an_absence() {
        let client = MemoryStore::new().client();
        client.cut();
        assert!(describe(Arc::new(client), &ServiceRef::parse("search").unwrap()).await.is_err());
    }
}
