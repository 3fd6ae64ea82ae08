//! The server of the README of kitex's `registry-etcd`, with its retry configuration. See `docs/coming-from.md`.

use std::{error::Error, time::Duration};

use enlist::{BackoffPolicy, Instance, OnConflict, RegisterOptions, ServiceRef, advertise};
use enlist_etcd::{Etcd, Kitex};
use enlist_examples::greeter;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // r, err := etcd.NewEtcdRegistryWithRetry([]string{"127.0.0.1:2379"}, retryConfig)
    let etcd = Etcd::from_env()?.layout(Kitex::default()).connect().await?;

    // retry.NewRetryConfig(WithMaxAttemptTimes(10), WithObserveDelay(20*time.Second), WithRetryDelay(5*time.Second))
    let options = RegisterOptions::new()
        .ttl(Duration::from_secs(60))
        // Go replaces at once what a crashed process left under its address.
        .on_conflict(OnConflict::TakeOver)
        .max_attempts(10)
        .audit(Some(Duration::from_secs(20)))
        .backoff(BackoffPolicy::fixed(Duration::from_secs(5))?);

    // A free port; kitex listens at 8888 by default. The address is that of the listener, or KITEX_IP_TO_REGISTRY,
    // which is ENLIST_ADVERTISE here.
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let (endpoint, _) = advertise(listener.local_addr()?)?;
    println!("serving at {endpoint}");
    // The weight is kitex's default, 10.
    let instance = Instance::at([endpoint])?.with_weight(etcd.layout().default_weight());

    // server := echo.NewServer(new(EchoImpl), server.WithServerBasicInfo(… "echo"), server.WithRegistry(r));
    // server.Run()
    let (router, service) = (greeter::router("echo", Duration::ZERO), ServiceRef::parse("echo")?);
    let report = enlist_grpc::serve(listener, router).register_and_run(&etcd, &service, instance, options).await?;
    println!("deregistered: {:?}", report.deregistered?);
    Ok(())
}
