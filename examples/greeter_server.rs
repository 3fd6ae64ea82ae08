//! A tonic server that starts and stops without failed calls.
//!
//! ```text
//! cargo run --example greeter_server
//! cargo run --example greeter_server --features etcd -- --etcd http://127.0.0.1:2379
//! cargo run --example greeter_server --features etcd -- \
//!     --etcd 127.0.0.1:2379 --layout kitex --prefix kitex/registry-etcd
//! ```
//!
//! With etcd, it serves until Ctrl-C or SIGTERM. Run several, and `greeter_client` next to them. With `--layout kitex`,
//! programs of kitex find it, if `--prefix` is that of their `registry-etcd`. With the memory backend, no other process
//! could find it, so it stops by itself.

use std::{error::Error, time::Duration};

use enlist::RegisterOptions;
use enlist_examples::{Store, endpoint_protocol, flag, greeter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let backend = Store::from_args()?.client().await?;
    // The id is the address, because kitex, go-kit and etcd's naming identify instances by it.
    let (listener, instance) = greeter::bind(None, endpoint_protocol()?).await?;
    let ends: greeter::Stop = Box::pin(tokio::time::sleep(Duration::from_secs(1)));
    let stop = (!flag("--etcd")).then_some(ends);
    println!("serving as {}", instance.id());
    let report = greeter::serve(&*backend, (listener, instance), RegisterOptions::new(), stop).await?;
    println!("drained: {}, deregistered: {:?}, served: {:?}", report.drained, report.deregistered?, report.served);
    Ok(())
}
