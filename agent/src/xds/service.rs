//! The gRPC service of aggregated discovery. tonic's codec needs more memory for each client: buffers of 8 KiB, one as
//! large as the largest request, and copies of responses. Its server lets 400 KiB of a stream wait in its connection,
//! the default of hyper, and has no option for that.

use std::sync::{Arc, Weak};

use enlist::TaskOwner;
use tokio::sync::mpsc;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, HeaderValue, Request, Response, header},
    metadata::{GRPC_CONTENT_TYPE, MetadataValue},
};

use super::{
    client_stream::ClientStream, delivery::ResponseBody, envoy::EnvoyResources, options::ZonePreference,
    requests::Requests, responses::Responses, status::XdsStatus,
};
use crate::{connections::Peer, security::BearerToken};

/// Paths of the methods: the state of the world, and changes only.
const METHODS: [&str; 2] = [
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
];

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
    /// Responds to a request of a client.
    pub(super) fn respond(&self, request: Request<Body>, peer: Peer) -> Response<Body> {
        let [whole, changes] = METHODS;
        let path = request.uri().path();
        let response = if path == whole {
            self.follow(request, peer)
        } else {
            let advice = if path == changes { "configure the state of the world: `api_type: GRPC`" } else { "" };
            Err(Status::unimplemented(advice))
        };
        response.unwrap_or_else(Status::into_http)
    }

    /// Starts the task of a stream. Returns its responses.
    fn follow(&self, request: Request<Body>, peer: Peer) -> Result<Response<Body>, Status> {
        self.check(request.headers())?;
        let too_many = || Status::resource_exhausted("the agent has as many streams as permitted");
        let client = self.status.clients.enter(Some(peer)).ok_or_else(too_many)?;
        let stream = ClientStream::new(client, &self.status, Arc::clone(&self.envoy), self.zones);
        let requests = Requests::new(request.into_body(), self.status.requests.clone());
        let (sender, responses) = mpsc::channel(RESPONSES);
        let (body, progress) = ResponseBody::tracked(Responses::new(responses));
        let stops = || Status::unavailable("the agent stops");
        let streams = self.streams.upgrade().ok_or_else(stops)?;
        let stop = streams.stop_signal().cancelled_owned();
        let task = Box::new(stream).run(Box::new(requests), sender, progress, stop);
        streams.spawn("xds stream", task).map_err(|_| stops())?;
        let mut response = Response::new(Body::new(body));
        response.headers_mut().insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }

    /// Refuses a request without the token, and compressed ones.
    fn check(&self, headers: &HeaderMap) -> Result<(), Status> {
        let token = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        if self.token.as_ref().is_some_and(|known| !known.admits(token)) {
            return Err(Status::unauthenticated("the token is missing or wrong"));
        }
        if headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            let mut status = Status::unimplemented("compressed requests are not supported");
            status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
            return Err(status);
        }
        Ok(())
    }
}
