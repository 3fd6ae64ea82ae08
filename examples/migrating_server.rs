//! A gRPC server that moves from the layout of a Go library to the native one, in three deployments.
//!
//! ```text
//! cargo run --example migrating_server --features etcd -- --etcd 127.0.0.1:2379 --layout kitex --deployment 1
//! ```
//!
//! It prints when it is registered on all sides that it writes, and the number of instances that it sees, also those of
//! the deployments before and after it. It serves until Ctrl-C or SIGTERM. `docs/guides/moving-a-go-fleet.md` describes
//! the deployments. The memory backend has no layouts, so this needs an etcd.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{Directory, Graceful, Migration, RegisterOptions, ServiceRef, ServiceView, Side};
use enlist_etcd::{Etcd, Native};
use enlist_examples::{Store, endpoint_protocol, greeter, option};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let Store::Etcd(builder) = Store::from_args()? else { return Err("--etcd is missing".into()) };
    let native = Arc::new(builder.clone().layout(Native::default()).connect().await?);
    let old = Arc::new(builder.connect().await?);
    let migration = match option("--deployment")?.as_deref() {
        Some("1") => Migration::new(side(&old)).and(side(&native).read_only()),
        Some("2") => Migration::new(side(&native)).and(side(&old)),
        Some("3") => Migration::new(side(&native)).and(side(&old).read_only()),
        _ => return Err("--deployment is 1, 2 or 3".into()),
    };
    let service = ServiceRef::parse("greeter")?;
    let view = Directory::new(Arc::new(migration.clone())).view(&service);
    let (listener, instance) = greeter::bind(None, endpoint_protocol()?).await?;
    let server = enlist_grpc::serve(listener, greeter::router(instance.id().as_str(), Duration::ZERO))
        .services(["greeter.Greeter"])
        .graceful(Graceful::new().propagation(Duration::from_millis(300)).deadline(Duration::from_secs(10)))
        .on_registered(|_| println!("registered"));
    tokio::select! {
        report = server.register_and_run(&migration, &service, instance, RegisterOptions::new()) => {
            println!("deregistered: {:?}", report?.deregistered?);
            Ok(())
        }
        ended = print_changes(&view) => Ok(ended?),
    }
}

/// One side of the migration. Weights are converted in proportion to the default weights of the layouts.
fn side(etcd: &Arc<Etcd>) -> Side {
    Side::new(Arc::clone(etcd)).default_weight(etcd.layout().default_weight())
}

/// Prints the number of instances after each change.
async fn print_changes(view: &ServiceView) -> Result<(), enlist::Error> {
    let mut changes = view.changes();
    loop {
        println!("sees {}", changes.next().await?.snapshot.len());
    }
}
