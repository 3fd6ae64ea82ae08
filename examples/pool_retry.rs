//! Retries of calls over a pool of clients that do not use gRPC.
//!
//! ```text
//! cargo run --example pool_retry
//! cargo run --example pool_retry --features etcd -- --etcd 127.0.0.1:2379 --layout go-kit --prefix /services/
//! ```
//!
//! A call waits until there is an instance, tries another one after a failure, and reports the cause of each failed
//! attempt.

use std::{error::Error, io, sync::Arc, time::Duration};

use enlist::{
    Directory, Instance, PickPolicy, Pool, RegisterOptions, Registration, Retry, ServiceRef, TaskOwner, advertise,
};
use enlist_examples::{Backend, Store};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A client of one instance, created at the first call to it.
struct Bar(String);

impl Bar {
    async fn call(&self) -> io::Result<String> {
        let mut answer = [0; 5];
        TcpStream::connect(&self.0).await?.read_exact(&mut answer).await?;
        Ok(format!("{} from {}", String::from_utf8_lossy(&answer), self.0))
    }
}

#[tokio::main]
async fn main() -> Result {
    let (store, tasks, service) = (Store::from_args()?, TaskOwner::new(), ServiceRef::parse("barsvc")?);
    let server = store.client().await?;
    let view = Directory::new(store.client().await? as Arc<dyn enlist::Resolver>).view(&service);
    let pool = Pool::new(view, |entry| Ok(Bar(entry.instance().endpoints()[0].authority().to_owned())))?;
    let retry = Retry::new(|_: &io::Error| true).attempts(3).deadline(Duration::from_secs(3)).wait_for_ready();
    let call = || pool.call(PickPolicy::RoundRobin, &retry, |bar| async move { bar.call().await });

    // There is no instance yet, so the call waits.
    let (answer, good) = tokio::join!(call(), start(&*server, &tasks, &service, Server::Answering));
    println!("{}", answer?);

    let bad = start(&*server, &tasks, &service, Server::Closing).await?;
    until(&pool, 2).await?;
    for _ in 0..4 {
        println!("{}", call().await?);
    }

    // The remaining instance closes every connection.
    good?.deregister().await?;
    until(&pool, 1).await?;
    let failed = call().await.err().ok_or("no instance can answer")?;
    println!("{failed}");
    for attempt in failed.previous() {
        println!("before: {}: {}", attempt.id, attempt.cause);
    }
    bad.deregister().await?;
    Ok(tasks.stop(Duration::from_secs(5)).await?)
}

/// Waits until the view has this number of instances.
async fn until(pool: &Pool<Bar>, count: usize) -> Result {
    let mut changes = pool.view().changes();
    while changes.next().await?.snapshot.len() != count {}
    Ok(())
}

/// Behaviour of a server.
#[derive(Clone, Copy)]
enum Server {
    /// Answers on every connection.
    Answering,
    /// Closes every connection without an answer.
    Closing,
}

/// Starts a server, and registers it under its address.
async fn start(backend: &dyn Backend, tasks: &TaskOwner, service: &ServiceRef, server: Server) -> Result<Registration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (endpoint, _) = advertise(listener.local_addr()?)?;
    tasks.spawn_until_stopped("server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Server::Answering = server {
                // The client may be gone.
                let _ = stream.write_all(b"hello").await;
            }
        }
    })?;
    Ok(backend.register(service, Instance::at([endpoint])?, RegisterOptions::new()).await?)
}
