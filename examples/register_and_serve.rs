//! How does a server come and go without a client noticing? An axum server that registers, serves and leaves in order.
//!
//! ```text
//! cargo run --example register_and_serve
//! ```

use std::{error::Error, time::Duration};

use axum::{Router, routing::get};
use enlist::{Graceful, Instance, InstanceId, RegisterOptions, ServiceRef, advertise};
use enlist_examples::Store;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let backend = Store::from_args()?.client().await?;
    let service = ServiceRef::parse("hello")?;

    // Listen first: a client may call the moment the instance is registered.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (endpoint, chosen) = advertise(listener.local_addr()?)?;
    println!("serving at {endpoint} ({chosen:?})");
    let instance = Instance::new(InstanceId::parse(format!("hello-{}", std::process::id()))?, [endpoint])?;
    let registration = backend.register(&service, instance, RegisterOptions::new()).await?;
    println!("registered: {:?}", registration.state());

    // A real server would stop on a signal; this one stops by itself, so that the example ends.
    let stop = tokio::time::sleep(Duration::from_secs(1));
    let router = Router::new().route("/", get(|| async { "hello" }));
    let report = Graceful::new()
        .propagation(Duration::from_millis(500))
        .deadline(Duration::from_secs(10))
        .run(registration, stop, |finish| {
            let server = axum::serve(listener, router).with_graceful_shutdown(finish.cancelled_owned());
            async { server.await }
        })
        .await;
    println!("drained: {}, deregistered: {:?}, served: {:?}", report.drained, report.deregistered?, report.served);
    Ok(())
}
