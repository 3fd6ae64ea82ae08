//! The example of go-kit's `sd/etcdv3`. See `docs/coming-from.md`.

use std::{error::Error, io, sync::Arc, time::Duration};

use enlist::{
    Directory, Endpoint, Entry, Instance, OnConflict, PickPolicy, Pool, RegisterOptions, Registry, Retry, ServiceRef,
};
use enlist_etcd::{Etcd, GoKit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A client of one instance, which `barFactory` makes in Go.
struct Bar {
    authority: String,
    path: String,
}

impl Bar {
    /// The factory gets the instance; in Go it gets the value, such as `http://1.2.3.4:8080/v1`.
    fn new(entry: &Entry) -> Self {
        let instance = entry.instance();
        let path = instance.metadata().get("path").map_or("/", String::as_str).to_owned();
        Self { authority: instance.endpoints()[0].authority().to_owned(), path }
    }

    async fn get(&self) -> io::Result<String> {
        let Self { authority, path } = self;
        let mut stream = TcpStream::connect(authority).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

async fn call_bar(etcd: Etcd) -> Result<String, Box<dyn Error + Send + Sync>> {
    // instancer, err := NewInstancer(client, "/services/barsvc", logger), which has read the list when it returns
    let view = Directory::new(Arc::new(etcd)).view(&ServiceRef::parse("barsvc")?);
    view.ready().await?;

    // endpointer := sd.NewEndpointer(instancer, barFactory, logger)
    let pool = Pool::new(view, |entry| Ok(Bar::new(entry)))?;

    // balancer := lb.NewRoundRobin(endpointer)
    // retry := lb.Retry(3, 3*time.Second, balancer)
    let retry = Retry::new(|_: &io::Error| true).attempts(3).deadline(Duration::from_secs(3));

    // _, err = retry(ctx, req)
    Ok(pool.call(PickPolicy::RoundRobin, &retry, |bar| async move { bar.get().await }).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // client, err := NewClient(ctx, []string{etcdServer}, ClientOptions{DialTimeout: …, DialKeepAlive: …})
    let builder = Etcd::from_env()?.layout(GoKit::with_prefix("/services/")?);
    let etcd = builder.connect_timeout(Duration::from_secs(3)).connect().await?;

    // registrar := NewRegistrar(client, Service{Key: "/services/foosvc/1.2.3.4:8080", Value: "http://1.2.3.4:8080"},
    // logger) registrar.Register()
    let instance = Instance::at([Endpoint::parse("http://1.2.3.4:8080")?])?;
    // Go's put has no condition: a restart replaces what the process left before.
    let options = RegisterOptions::new().ttl(Duration::from_secs(10)).on_conflict(OnConflict::TakeOver);
    let registration = etcd.register(&ServiceRef::parse("foosvc")?, instance, options).await?;

    // defer registrar.Deregister(): also if the call fails
    let answer = call_bar(etcd).await;
    registration.deregister().await?;
    println!("{}", answer?);
    Ok(())
}
