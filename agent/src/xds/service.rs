//! The gRPC service of aggregated discovery. `envoy-types` has a generated one, whose buffers are of tonic's default
//! size: 16 KiB for each client, which is idle most of the time.

use std::{
    convert::Infallible,
    future::{self, Ready},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use enlist::TaskOwner;
use envoy_types::pb::envoy::service::discovery::v3::{
    DiscoveryRequest, DiscoveryResponse, aggregated_discovery_service_server::SERVICE_NAME,
};
use futures::Stream;
use tokio::sync::mpsc;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{BufferSettings, Codec},
    codegen::{self, http},
    metadata::MetadataValue,
    server::{Grpc, NamedService, StreamingService},
};
use tonic_prost::ProstCodec;

use super::{
    client_stream::{ClientStream, QueuedResponse},
    delivery::{Progress, TrackedResponses},
    envoy::EnvoyResources,
    options::ZonePreference,
    requests::AccountedRequests,
    status::XdsStatus,
};
use crate::security::BearerToken;

/// Paths of the methods: the state of the world, and changes only.
const METHODS: [&str; 2] = [
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
];

/// Bytes of the buffers of a client, one for requests and one for responses, at first. Each grows to the size of its
/// largest message.
const BUFFER_BYTES: usize = 1 << 10;

/// Bytes of responses after which they are sent. There are rarely two at a time.
const YIELD_BYTES: usize = 32 << 10;

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
    fn follow(&self, request: Request<Streaming<DiscoveryRequest>>) -> Result<Response<ResponseStream>, Status> {
        self.check_token(&request)?;
        let untracked = || Status::internal("the progress of the client is not known");
        let progress = request.extensions().get::<Progress>().cloned().ok_or_else(untracked)?;
        let too_many = || Status::resource_exhausted("the agent has as many streams as permitted");
        let client = self.status.clients.enter(request.extensions().get().cloned()).ok_or_else(too_many)?;
        let (envoy, assignments) = (Arc::clone(&self.envoy), Arc::clone(&self.status.assignments));
        let stream = ClientStream::new(client, assignments, envoy, Arc::clone(&self.status.names), self.zones);
        let (sender, responses) = mpsc::channel(RESPONSES);
        let stops = || Status::unavailable("the agent stops");
        let streams = self.streams.upgrade().ok_or_else(stops)?;
        let stop = streams.stop_signal();
        let task = stream.run(request.into_inner(), sender, progress, async move { stop.cancelled().await });
        streams.spawn("xds stream", task).map_err(|_| stops())?;
        Ok(Response::new(ResponseStream(responses)))
    }

    fn check_token(&self, request: &Request<Streaming<DiscoveryRequest>>) -> Result<(), Status> {
        let header = request.metadata().get("authorization").map(MetadataValue::as_bytes);
        match &self.token {
            Some(token) if !token.admits(header) => Err(Status::unauthenticated("the token is missing or wrong")),
            Some(_) | None => Ok(()),
        }
    }
}

impl codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let [whole, changes] = METHODS;
            let path = request.uri().path();
            if path == whole {
                let max = service.status.requests.max();
                let mut grpc = Grpc::new(SmallBuffers).apply_max_message_size_config(Some(max), None);
                return Ok(grpc.streaming(service, request).await);
            }
            let advice = if path == changes { "configure the state of the world: `api_type: GRPC`" } else { "" };
            Ok(Status::unimplemented(advice).into_http())
        })
    }
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

impl StreamingService<DiscoveryRequest> for Service {
    type Response = DiscoveryResponse;
    type ResponseStream = ResponseStream;
    type Future = Ready<Result<Response<ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        future::ready(self.follow(request))
    }
}

/// Responses to a client.
#[derive(Debug)]
pub(super) struct ResponseStream(mpsc::Receiver<QueuedResponse>);

impl Stream for ResponseStream {
    type Item = Result<DiscoveryResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|response| response.map(|response| *response))
    }
}

/// Codec with [`BUFFER_BYTES`].
#[derive(Clone, Copy, Debug)]
struct SmallBuffers;

impl Codec for SmallBuffers {
    type Encode = DiscoveryResponse;
    type Decode = DiscoveryRequest;
    type Encoder = <ProstCodec<DiscoveryResponse, DiscoveryRequest> as Codec>::Encoder;
    type Decoder = <ProstCodec<DiscoveryResponse, DiscoveryRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<DiscoveryResponse, DiscoveryRequest>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<DiscoveryResponse, DiscoveryRequest>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
