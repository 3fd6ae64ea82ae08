//! A gRPC service `greeter`, and its server.

use std::{error::Error, future::Future, pin::Pin, time::Duration};

use enlist::{Graceful, Instance, InstanceId, RegisterOptions, ServiceRef, Shutdown, advertise};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

pub use self::protocol::{
    HelloReply, HelloRequest,
    greeter_client::GreeterClient,
    greeter_server::{Greeter, GreeterServer},
};
use crate::Backend;

mod protocol {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::pedantic,
        reason = "generated"
    )]

    tonic::include_proto!("greeter");
}

/// Service of one instance, which answers after a delay.
#[derive(Debug)]
struct Greeting {
    from: String,
    thinks: Duration,
}

#[tonic::async_trait]
impl Greeter for Greeting {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        if !self.thinks.is_zero() {
            tokio::time::sleep(self.thinks).await;
        }
        let text = format!("hello, {}", request.into_inner().name);
        Ok(Response::new(HelloReply { text, from: self.from.clone() }))
    }
}

/// Returns a router with a greeter that answers after `thinks`.
pub fn router(from: impl Into<String>, thinks: Duration) -> tonic::transport::server::Router {
    let greeting = Greeting { from: from.into(), thinks };
    tonic::transport::Server::builder().add_service(GreeterServer::new(greeting))
}

/// Future that ends a server, instead of SIGTERM or Ctrl-C.
pub type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Returns a listener at a free port, and the instance at its address. Without an `id` the id is the address, as
/// layouts with keys by address expect. With a `protocol`, the endpoint names it.
///
/// # Errors
///
/// If no port is free, or the id or the protocol is invalid.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing behind.
pub async fn bind(
    id: Option<&str>,
    protocol: Option<&str>,
) -> Result<(TcpListener, Instance), Box<dyn Error + Send + Sync>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (mut endpoint, _) = advertise(listener.local_addr()?)?;
    if let Some(protocol) = protocol {
        endpoint = endpoint.with_protocol(protocol)?;
    }
    let instance = match id {
        Some(id) => Instance::new(InstanceId::parse(id)?, [endpoint])?,
        None => Instance::at([endpoint])?,
    };
    Ok((listener, instance))
}

/// Runs this instance of `greeter` until `stop`, or until SIGTERM or Ctrl-C without it, and leaves in order.
///
/// # Errors
///
/// If the instance cannot be registered.
///
/// # Cancel safety
///
/// Dropping the future drops the server and withdraws the registration in the background.
pub async fn serve(
    backend: &dyn Backend,
    (listener, instance): (TcpListener, Instance),
    options: RegisterOptions,
    stop: Option<Stop>,
) -> Result<Shutdown<Result<(), tonic::transport::Error>>, Box<dyn Error + Send + Sync>> {
    let mut server = enlist_grpc::serve(listener, router(instance.id().as_str(), Duration::from_millis(2)))
        .services(["greeter.Greeter"])
        .graceful(Graceful::new().propagation(Duration::from_millis(300)).deadline(Duration::from_secs(10)));
    if let Some(stop) = stop {
        server = server.until(stop);
    }
    Ok(server.register_and_run(backend, &ServiceRef::parse("greeter")?, instance, options).await?)
}
