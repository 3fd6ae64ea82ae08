//! The functions of the documentation of etcd's `naming` package, and a mutex of `concurrency`. See
//! `docs/coming-from.md`.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{
    Directory, Endpoint, Instance, InstanceId, Lock, LockName, LockOptions, RegisterOptions, Registry, ServiceRef,
};
use enlist_etcd::{Etcd, EtcdConcurrency, EtcdNaming};
use enlist_examples::greeter::{GreeterClient, HelloRequest};
use enlist_grpc::{BalancePolicy, Channel};
use tonic::Request;

/// em.AddEndpoint(ctx, service+"/"+addr, endpoints.Endpoint{Addr: addr})
async fn etcd_add(etcd: &Etcd, service: &ServiceRef, addr: &str) -> Result<(), enlist::Error> {
    etcd.publish(service, Instance::at([Endpoint::parse(addr)?])?).await?;
    Ok(())
}

/// grpc.Dial("etcd:///"+service, grpc.WithResolvers(etcdResolver))
fn etcd_dial(etcd: &Etcd, service: &ServiceRef) -> Result<Channel, enlist::Error> {
    let view = Directory::new(Arc::new(etcd.clone())).view(service);
    // As with `round_robin` in the service config; without one grpc-go picks the first.
    Channel::builder().balance(BalancePolicy::RoundRobin).build(&view)
}

/// em.DeleteEndpoint(ctx, service+"/"+addr), whatever lease keeps it.
async fn etcd_delete(etcd: &Etcd, service: &ServiceRef, addr: &str) -> Result<(), enlist::Error> {
    etcd.evict(service, &InstanceId::parse(addr)?, None).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let builder = Etcd::from_env()?.layout(EtcdNaming::default()).lock_layout(EtcdConcurrency);
    let etcd = builder.connect().await?;
    // grpc-go sends this name as `:authority`, which Rust servers refuse if it has a `/`.
    let service = ServiceRef::parse("my-service")?;

    etcd_add(&etcd, &service, "127.0.0.1:8080").await?;

    // em.AddEndpoint(ctx, service+"/"+addr, endpoints.Endpoint{Addr: addr}, clientv3.WithLease(lid))
    let lease = etcd.grant_lease(Duration::from_secs(30)).await?;
    let instance = Instance::at([Endpoint::parse("127.0.0.1:8081")?])?;
    let registration = etcd.register(&service, instance, RegisterOptions::new().lease(&lease)).await?;

    let mut client = GreeterClient::new(etcd_dial(&etcd, &service)?);
    let mut request = Request::new(HelloRequest { name: "world".to_owned() });
    request.set_timeout(Duration::from_secs(3));
    match client.hello(request).await {
        Ok(reply) => println!("{}", reply.get_ref().text),
        Err(status) => println!("{status}"),
    }

    // s, err := concurrency.NewSession(c); m := concurrency.NewMutex(s, "jobs/nightly"); m.Lock(ctx); m.Unlock(ctx)
    let guard = etcd.acquire(&LockName::parse("jobs/nightly")?, LockOptions::new()).await?;
    println!("held with token {}", guard.fencing_token());
    guard.release().await?;

    etcd_delete(&etcd, &service, "127.0.0.1:8080").await?;
    registration.deregister().await?;
    lease.revoke().await?;
    Ok(())
}
