//! A process that picks once from etcd and ends: the cost of a command or a function that is started per request.
//!
//! ```text
//! cold ours URL SERVICE    connect, view, pick
//! cold raw URL SERVICE     connect, read the range, take one
//! ```

use std::sync::Arc;

use enlist::{Directory, PickPolicy, ServiceRef};
use enlist_bench::{measure::Result, world::range};
use enlist_etcd::Etcd;
use etcd_client::{Client, GetOptions};

#[tokio::main]
async fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [side, url, service] = &arguments[..] else {
        return Err("cold ours|raw URL SERVICE".into());
    };
    let service = ServiceRef::parse(service)?;
    let picked = if side == "ours" { ours(url, &service).await? } else { raw(url, &service).await? };
    println!("{picked}");
    // Neither side cleans up.
    std::process::exit(0);
}

async fn ours(url: &str, service: &ServiceRef) -> Result<String> {
    // Neither side checks the connection before its first request.
    let etcd = Etcd::builder([url]).build()?;
    let view = Directory::new(Arc::new(etcd)).view(service);
    view.ready().await?;
    Ok(view.picker(PickPolicy::RoundRobin).pick()?.instance().id().to_string())
}

async fn raw(url: &str, service: &ServiceRef) -> Result<String> {
    let mut client = Client::connect([url], None).await?;
    let (start, end) = range(service)?;
    let listed = client.get(start, Some(GetOptions::new().with_range(end))).await?;
    let one = listed.kvs().first().ok_or("no instance is stored")?;
    Ok(one.value_str()?.to_owned())
}
