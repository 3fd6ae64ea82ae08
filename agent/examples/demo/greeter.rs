//! A gRPC server without generated code: the method takes and returns a `google.protobuf.StringValue`, which is the
//! message of [`String`].

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

/// Path of the method.
pub(crate) const SAY_HELLO: &str = "/hello.Greeter/SayHello";

/// A server that greets under its own name.
#[derive(Clone, Debug)]
pub(crate) struct Greeter(Arc<str>);

impl Greeter {
    /// Creates a server with this name.
    pub(crate) fn new(name: &str) -> Self {
        Self(name.into())
    }
}

impl NamedService for Greeter {
    const NAME: &'static str = "hello.Greeter";
}

impl UnaryService<String> for Greeter {
    type Response = String;
    type Future = BoxFuture<Response<String>, Status>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let greeting = format!("hello {}, this is {}", request.into_inner(), self.0);
        Box::pin(async move { Ok(Response::new(greeting)) })
    }
}

impl Service<http::Request<Body>> for Greeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let greeter = self.clone();
        Box::pin(async move {
            if request.uri().path() != SAY_HELLO {
                return Ok(Status::unimplemented("the only method is SayHello").into_http());
            }
            Ok(Grpc::new(ProstCodec::<String, String>::default()).unary(greeter, request).await)
        })
    }
}
