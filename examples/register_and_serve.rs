//! An axum server that starts and stops without failed calls: it registers, takes more calls once it is warm, and
//! leaves in order.
//!
//! ```text
//! cargo run --example register_and_serve
//! ```

use std::{error::Error, future::IntoFuture, time::Duration};

use axum::{Router, routing::get};
use enlist::{Graceful, Instance, InstanceHandle, InstanceId, RegisterOptions, ServiceRef, advertise};
use enlist_examples::Store;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let backend = Store::from_args()?.client().await?;
    let service = ServiceRef::parse("hello")?;

    // Listen first: a client may call as soon as the instance is registered.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (endpoint, chosen) = advertise(listener.local_addr()?)?;
    println!("serving at {endpoint} ({chosen:?})");
    // A tenth of the usual share of calls while the server warms up.
    let instance = Instance::new(InstanceId::parse("hello-1")?, [endpoint])?.with_weight(10);
    // Id and owner are equal after a restart, so that the key of a crashed predecessor is taken over at once.
    let options = RegisterOptions::new().owner("hello-1");
    let register = backend.register(&service, instance, options);

    // A real server would stop on a signal. This one stops by itself, so that the example ends.
    let stop = tokio::time::sleep(Duration::from_secs(1));
    let router = Router::new().route("/", get(|| async { "hello" }));
    let report = Graceful::new()
        .propagation(Duration::from_millis(500))
        .deadline(Duration::from_secs(10))
        .register_and_run(register, stop, |finish, instance| async move {
            println!("registered: {:?}", instance.state());
            let serving = axum::serve(listener, router).with_graceful_shutdown(finish.cancelled_owned());
            let (ended, warm) = tokio::join!(serving.into_future(), warm_up(instance));
            ended.and(warm.map_err(std::io::Error::other))
        })
        .await?;
    println!("drained: {}, deregistered: {:?}, served: {:?}", report.drained, report.deregistered?, report.served);
    Ok(())
}

/// Fills the caches, and then requests the usual share of calls.
async fn warm_up(instance: InstanceHandle) -> Result<(), enlist::Error> {
    tokio::time::sleep(Duration::from_millis(300)).await;
    let revision = instance.update(|update| _ = update.weight(100)).await?;
    println!("warm: full weight since revision {revision}");
    Ok(())
}
