//! A relay between clients of xDS and an agent. It can spoil assignments, as no agent does.

use std::{
    future::ready,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use enlist::TaskOwner;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use futures::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server, server::TcpIncoming},
};

use crate::support::ASSIGNMENT;

/// A relay. Dropping it ends its listener; connections end with their client or the agent.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    spoils: Arc<AtomicBool>,
    _tasks: TaskOwner,
}

impl Relay {
    /// Starts a relay to the agent at an address.
    pub(crate) async fn start(agent: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (spoils, tasks) = (Arc::default(), TaskOwner::new());
        let service = AggregatedDiscoveryServiceServer::new(Forward { agent, spoils: Arc::clone(&spoils) });
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        tasks.spawn_until_stopped("relay", async { drop(serving.await) }).unwrap();
        Self { address, spoils, _tasks: tasks }
    }

    /// Spoils all further assignments.
    pub(crate) fn spoil(&self) {
        self.spoils.store(true, SeqCst);
    }

    /// Passes all further assignments on as they are.
    pub(crate) fn heal(&self) {
        self.spoils.store(false, SeqCst);
    }
}

struct Forward {
    agent: SocketAddr,
    spoils: Arc<AtomicBool>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Forward {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Responses<DiscoveryResponse>>, Status> {
        let endpoint = Channel::from_shared(format!("http://{}", self.agent)).unwrap();
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let requests = request.into_inner().filter_map(|request| ready(request.ok()));
        let mut agent = AggregatedDiscoveryServiceClient::new(channel);
        let responses = agent.stream_aggregated_resources(requests).await?.into_inner();
        let spoils = Arc::clone(&self.spoils);
        let passed_on = responses.map(move |response| {
            response.map(|mut response| {
                if spoils.load(SeqCst) && response.type_url == ASSIGNMENT {
                    // The beginning of a field that is missing.
                    response.resources.iter_mut().for_each(|resource| resource.value = vec![0xff]);
                }
                response
            })
        });
        Ok(Response::new(Box::pin(passed_on)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses<DeltaDiscoveryResponse>>, Status> {
        Err(Status::unimplemented("the state of the world only"))
    }
}
