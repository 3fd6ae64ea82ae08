//! A gRPC client that calls any instance of a service.
//!
//! ```text
//! cargo run --example greeter_client
//! cargo run --example greeter_client --features etcd -- --etcd http://127.0.0.1:2379
//! cargo run --example greeter_client --features etcd -- \
//!     --etcd 127.0.0.1:2379 --layout kitex --prefix kitex/registry-etcd
//! ```
//!
//! With etcd, it calls the registered `greeter_server`s once a second until Ctrl-C. With the memory backend, it starts
//! two servers itself and makes ten calls.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{Directory, RegisterOptions, ServiceRef};
use enlist_examples::{
    Store, flag,
    greeter::{self, GreeterClient, HelloRequest},
};
use enlist_grpc::{Channel, RetryPolicy};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (store, stays) = (Store::from_args()?, flag("--etcd"));
    let mut servers = JoinSet::new();
    for id in ["greeter-1", "greeter-2"].iter().filter(|_| !stays) {
        let backend = store.client().await?;
        servers.spawn(async move {
            let bound = greeter::bind(Some(id), None).await?;
            let stop: greeter::Stop = Box::pin(std::future::pending());
            greeter::serve(&*backend, bound, RegisterOptions::new(), Some(stop)).await.map(|_| ())
        });
    }

    let directory = Directory::new(store.client().await? as Arc<dyn enlist::Resolver>);
    let channel = Channel::builder()
        .health_check("greeter.Greeter")
        .retry("/greeter.Greeter/Hello", RetryPolicy::new())
        .wait_for_ready()
        .build(&directory.view(&ServiceRef::parse("greeter")?))?;
    let mut client = GreeterClient::new(channel);
    let (calls, pause) = if stays { (usize::MAX, 1000) } else { (10, 20) };
    for _ in 0..calls {
        match client.hello(HelloRequest { name: "world".to_owned() }).await {
            Ok(reply) => println!("{}: {}", reply.get_ref().from, reply.get_ref().text),
            Err(status) => println!("{status}"),
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}
