//! All features in a few seconds: register, watch, pick, update, lose a lease, lock.
//!
//! ```text
//! cargo run --example quickstart
//! cargo run --example quickstart --features etcd -- --etcd http://127.0.0.1:2379 [--stay]
//! ```
//!
//! With `--stay` it runs until Ctrl-C and prints every change, so that you can kill etcd meanwhile.

use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};

use enlist::{
    Directory, Endpoint, Event, Instance, InstanceId, LeaseChoice, LockName, LockOptions, PickPolicy, RegisterOptions,
    Registration, ServiceRef, Watcher,
};
use enlist_examples::{Backend, Store, flag};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let store = Store::from_args()?;
    let (greeter, billing) = (ServiceRef::parse("greeter")?, ServiceRef::parse("billing")?);
    let client = store.client().await?;

    println!("1. Three greeters and a billing instance register; each could be a process of its own.");
    let mut watcher = client.watch(&greeter).await?;
    print_change(&mut *watcher).await?;
    let short = RegisterOptions::new().ttl(Duration::from_secs(2));
    let one = register(&store, &greeter, "greeter-1", 8001, 100, short.clone()).await?;
    let two = register(&store, &greeter, "greeter-2", 8002, 300, short.clone()).await?;
    let mortal = short.clone().lease(LeaseChoice::Own);
    let three = register(&store, &greeter, "greeter-3", 8003, 100, mortal).await?;
    let bill = register(&store, &billing, "billing-1", 9001, 100, short).await?;
    until(&mut *watcher, 3).await?;

    println!("2. A client picks by weight: 1000 picks of 100 : 300 : 100.");
    let directory = Directory::new(Arc::clone(&client) as Arc<dyn enlist::Resolver>);
    let view = directory.view(&greeter);
    view.ready().await?;
    show_picks(&view)?;

    println!("3. greeter-2 changes its weight to 0 in place; the others take over.");
    two.update(|update| {
        update.weight(0);
    })
    .await?;
    print_change(&mut *watcher).await?;
    let mut changes = view.changes();
    while changes.next().await?.snapshot.entries().all(|entry| entry.instance().weight() > 0) {}
    show_picks(&view)?;

    println!("4. greeter-3 ends without deregistering; its lease of 2 s expires.");
    three.abandon();
    until(&mut *watcher, 2).await?;

    println!("5. A lock: one client holds it, another waits, and the token increases.");
    lock(&store).await?;

    if flag("--stay") {
        println!("6. Running until Ctrl-C. Kill etcd, wipe it, or revoke a lease: the instances are registered again.");
        tokio::select! {
            ended = stay(&mut *watcher) => ended?,
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
    }

    println!("The end: all instances deregister.");
    for registration in [one, two, bill] {
        let id = registration.instance().id().clone();
        println!("   {id}: {:?}", registration.deregister().await?);
    }
    until(&mut *watcher, 0).await
}

async fn register(
    store: &Store,
    service: &ServiceRef,
    id: &str,
    port: u16,
    weight: u32,
    options: RegisterOptions,
) -> Result<Registration> {
    let endpoint = Endpoint::new("127.0.0.1", port)?.with_protocol("grpc")?;
    let instance = Instance::new(InstanceId::parse(id)?, [endpoint])?.with_weight(weight);
    Ok(store.client().await?.register(service, instance, options).await?)
}

/// Prints one change.
async fn print_change(watcher: &mut dyn Watcher) -> Result<usize> {
    let change = watcher.next().await?;
    for event in &change.events {
        match event {
            Event::Added(entry) => println!("   + {} at revision {}", entry.instance().id(), entry.created()),
            Event::Updated { new, .. } => println!("   ~ {} weighs {}", new.instance().id(), new.instance().weight()),
            Event::Removed(entry) => println!("   - {}", entry.instance().id()),
        }
    }
    if !change.freshness.is_live() {
        println!("   (no connection; the last known {} remain)", change.snapshot.len());
    } else if change.events.is_empty() {
        println!("   ({} known, up to date)", change.snapshot.len());
    }
    Ok(change.snapshot.len())
}

async fn until(watcher: &mut dyn Watcher, count: usize) -> Result {
    while print_change(watcher).await? != count {}
    Ok(())
}

async fn stay(watcher: &mut dyn Watcher) -> Result {
    loop {
        print_change(watcher).await?;
    }
}

fn show_picks(view: &enlist::ServiceView) -> Result {
    let mut picker = view.picker(PickPolicy::Weighted);
    let mut picks = BTreeMap::new();
    for _ in 0..1000 {
        *picks.entry(picker.pick()?.instance().id().to_string()).or_insert(0) += 1;
    }
    println!("   {picks:?}");
    Ok(())
}

async fn lock(store: &Store) -> Result {
    let (first, second): (Arc<dyn Backend>, Arc<dyn Backend>) = (store.client().await?, store.client().await?);
    let name = LockName::parse("nightly-job")?;
    let guard = first.acquire(&name, LockOptions::new()).await?;
    println!("   first holds it with token {}", guard.fencing_token());
    let waiting = second.acquire(&name, LockOptions::new());
    let working = async {
        println!("   second waits while first works");
        tokio::time::sleep(Duration::from_millis(500)).await;
        println!("   first releases: {:?}", guard.release().await?);
        Ok::<_, enlist::Error>(())
    };
    let (next, worked) = tokio::join!(waiting, working);
    worked?;
    let next = next?;
    println!("   second holds it with token {}", next.fencing_token());
    next.release().await?;
    Ok(())
}
