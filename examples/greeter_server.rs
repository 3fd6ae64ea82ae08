//! How does a tonic server come and go without a client noticing?
//!
//! ```text
//! cargo run --example greeter_server
//! cargo run --example greeter_server --features etcd -- --etcd http://127.0.0.1:2379
//! cargo run --example greeter_server --features etcd -- --etcd 127.0.0.1:2379 --layout kitex --prefix kitex/registry-etcd
//! ```
//!
//! With etcd it serves until Ctrl-C or SIGTERM; run several, and `greeter_client` beside them. With `--layout kitex` it is found by the
//! programs of kitex, if `--prefix` is that of their `registry-etcd`. With the store in memory nobody else could find it, so it stops by
//! itself.

use std::{error::Error, time::Duration};

use enlist::RegisterOptions;
use enlist_examples::{Store, flag, greeter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let backend = Store::from_args()?.client().await?;
    // Its id is its address: kitex, go-kit and etcd's naming know instances by that.
    let (listener, instance) = greeter::bind(None).await?;
    let ends: greeter::Stop = Box::pin(tokio::time::sleep(Duration::from_secs(1)));
    let stop = (!flag("--etcd")).then_some(ends);
    println!("serving as {}", instance.id());
    let report = greeter::serve(&*backend, (listener, instance), RegisterOptions::new(), stop).await?;
    println!("drained: {}, deregistered: {:?}, served: {:?}", report.drained, report.deregistered?, report.served);
    Ok(())
}
