//! The gRPC service of aggregated discovery. `envoy-types` has a generated one, whose buffers are of tonic's default
//! size: 16 KiB for each client, which is idle most of the time. The requests are decoded by tonic, see
//! [`responses`](super::responses) for the other direction.

use std::{
    convert::Infallible,
    future::{self, Ready},
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use enlist::TaskOwner;
use envoy_types::pb::envoy::service::discovery::v3::{
    DiscoveryRequest, aggregated_discovery_service_server::SERVICE_NAME,
};
use tokio::sync::mpsc;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::BufferSettings,
    codegen::{self, http},
    metadata::{GRPC_CONTENT_TYPE, MetadataValue},
    server::NamedService,
};
use tonic_prost::ProstCodec;

use super::{
    client_stream::ClientStream,
    delivery::{Progress, TrackedResponses},
    envoy::EnvoyResources,
    options::ZonePreference,
    requests::AccountedRequests,
    responses::Responses,
    status::XdsStatus,
};
use crate::security::BearerToken;

/// Paths of the methods: the state of the world, and changes only.
const METHODS: [&str; 2] = [
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
];

/// Bytes of the buffer for requests of a client at first. It grows to the size of the largest one.
const BUFFER_BYTES: usize = 256;

/// Responses that wait for a client to take them. Later ones are made when it does.
const RESPONSES: usize = 1;

/// The service of aggregated discovery.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) status: XdsStatus,
    pub(super) envoy: Arc<EnvoyResources>,
    pub(super) token: Option<BearerToken>,
    pub(super) zones: ZonePreference,
    /// Weak, because each connection has a clone of the service: the streams end with the server.
    pub(super) streams: Weak<TaskOwner>,
}

impl Service {
    /// Returns the service with limits for what a client sends, and for what it does not take.
    pub(super) fn limited(self) -> TrackedResponses<AccountedRequests<Self>> {
        let requests = self.status.requests.clone();
        TrackedResponses::new(AccountedRequests::new(self, requests))
    }

    /// Starts the task of a stream. Returns its responses.
    fn follow(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        self.check(request.headers())?;
        let untracked = || Status::internal("the progress of the client is not known");
        let progress = request.extensions().get::<Progress>().cloned().ok_or_else(untracked)?;
        let too_many = || Status::resource_exhausted("the agent has as many streams as permitted");
        let client = self.status.clients.enter(request.extensions().get().cloned()).ok_or_else(too_many)?;
        let stream = ClientStream::new(client, &self.status, Arc::clone(&self.envoy), self.zones);
        let (sender, responses) = mpsc::channel(RESPONSES);
        let stops = || Status::unavailable("the agent stops");
        let streams = self.streams.upgrade().ok_or_else(stops)?;
        let stop = streams.stop_signal();
        let requests = Box::new(self.requests(request.into_body()));
        let task = Box::new(stream).run(requests, sender, progress, async move { stop.cancelled().await });
        streams.spawn("xds stream", task).map_err(|_| stops())?;
        let mut response = http::Response::new(Body::new(Responses::new(responses)));
        response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }

    /// Refuses a request without the token, and compressed ones.
    fn check(&self, headers: &http::HeaderMap) -> Result<(), Status> {
        let header = headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
        if self.token.as_ref().is_some_and(|token| !token.admits(header)) {
            return Err(Status::unauthenticated("the token is missing or wrong"));
        }
        if headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            let mut status = Status::unimplemented("compressed requests are not supported");
            status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
            return Err(status);
        }
        Ok(())
    }

    fn requests(&self, body: Body) -> Streaming<DiscoveryRequest> {
        type RequestCodec = ProstCodec<DiscoveryRequest, DiscoveryRequest>;
        // The second number is for encoders.
        let decoder = RequestCodec::raw_decoder(BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES));
        Streaming::new_request(decoder, body, None, Some(self.status.requests.max()))
    }
}

impl codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let [whole, changes] = METHODS;
        let path = request.uri().path();
        let answer = if path == whole {
            self.follow(request)
        } else {
            let advice = if path == changes { "configure the state of the world: `api_type: GRPC`" } else { "" };
            Err(Status::unimplemented(advice))
        };
        future::ready(Ok(answer.unwrap_or_else(Status::into_http)))
    }
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}
