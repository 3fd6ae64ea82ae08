//! Heap usage of a view, and allocations of a pick. A program of its own, because counting slows down every allocation.
//!
//! ```text
//! heap sync URL SERVICE    bytes per instance of a view of the service
//! heap pick                allocations of 100,000 picks by each policy
//! ```

use std::{alloc::System, sync::Arc};

use enlist::{Directory, PickPolicy, ServiceRef};
use enlist_bench::{measure::Result, scenarios::pick};
use enlist_etcd::Etcd;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[tokio::main]
async fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["sync", url, service] => sync(url, service).await,
        ["pick"] => picks().await,
        _ => Err("heap sync URL SERVICE | heap pick".into()),
    }
}

async fn sync(url: &str, service: &str) -> Result {
    let etcd = Etcd::connect(url).await?;
    let before = Region::new(COUNTED);
    let view = Directory::new(Arc::new(etcd)).view(&ServiceRef::parse(service)?);
    let instances = view.ready().await?.len();
    // Buffers of the connection and of the last page are freed within a moment.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let change = before.change();
    let kept = change.bytes_allocated - change.bytes_deallocated;
    println!("{}", kept / instances.max(1));
    Ok(())
}

async fn picks() -> Result {
    let view = pick::view(pick::INSTANCES).await?;
    let mut allocations = 0;
    for policy in [PickPolicy::Random, PickPolicy::RoundRobin, PickPolicy::Weighted, PickPolicy::ConsistentHash] {
        let mut picker = view.picker(policy);
        picker.pick()?;
        let round = || {
            let before = Region::new(COUNTED);
            for key in 0..100_000 {
                pick::pick(&mut picker, policy, key);
            }
            before.change().allocations
        };
        // The minimum of several rounds, because background tasks allocate now and then.
        allocations += std::iter::repeat_with(round).take(5).min().unwrap_or(usize::MAX);
    }
    println!("{allocations}");
    Ok(())
}
