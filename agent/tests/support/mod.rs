//! An agent over the memory backend, and a client of xDS that is written by hand.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod authority;
pub(crate) mod hostile;

use std::{net::SocketAddr, sync::Arc};

use enlist::{
    DirectoryOptions, Endpoint, Instance, InstanceId, Namespace, RegisterOptions, Registration, Registry as _,
    ServiceName, ServiceRef, TaskOwner,
};
use enlist_agent::{Agent, AgentBuilder, AgentStatus, XdsOptions};
use enlist_memory::{MemoryClient, MemoryStore};
use enlist_testkit::soon;
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{Locality, Node},
            endpoint::v3::ClusterLoadAssignment,
        },
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Status, Streaming, metadata::MetadataMap, transport::Channel};

pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Bytes that a client takes before it reads.
const WINDOW: u32 = 65_535;

/// A running agent, with a client of the store for itself and one for services.
#[derive(Debug)]
pub(crate) struct TestAgent {
    pub(crate) address: SocketAddr,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) status: AgentStatus,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<()>>,
    tasks: TaskOwner,
}

/// Returns options for a port that the system chooses.
pub(crate) fn local() -> XdsOptions {
    XdsOptions::new().address("127.0.0.1:0".parse().unwrap())
}

impl TestAgent {
    /// Starts an agent with these options.
    pub(crate) async fn start(client: &MemoryClient, options: XdsOptions) -> Self {
        Self::with_directory(client, options, DirectoryOptions::new()).await
    }

    pub(crate) async fn with_directory(
        client: &MemoryClient,
        options: XdsOptions,
        directory: DirectoryOptions,
    ) -> Self {
        Self::of(Agent::builder(Arc::new(client.clone())).xds(options).directory(directory)).await
    }

    /// Starts the agent of a builder.
    pub(crate) async fn of(builder: AgentBuilder) -> Self {
        let agent = builder.bind().await.unwrap();
        let (address, http) = (agent.xds_address(), agent.http_address());
        let (status, tasks) = (agent.status(), TaskOwner::new());
        let ((stop, stopped), (end, ended)) = (oneshot::channel(), oneshot::channel());
        let serve = async move {
            agent.serve(async { _ = stopped.await }).await;
            let _ = end.send(());
        };
        tasks.spawn_until_stopped("agent", serve).unwrap();
        Self { address, http, status, stop: Some(stop), ended: Some(ended), tasks }
    }

    /// Ends the agent without any further step of it.
    pub(crate) async fn kill(mut self) {
        drop(self.tasks);
        let ended = self.ended.take().expect("it is stopped once");
        assert!(soon("the agent ends", ended).await.is_err(), "it ends by itself");
    }

    /// Stops the agent in order.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        let ended = self.ended.take().expect("it is stopped once");
        soon("the agent ends", ended).await.unwrap();
    }
}

/// A store, with a client for services and one for agents.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) memory: MemoryStore,
    pub(crate) services: MemoryClient,
    pub(crate) agents: MemoryClient,
}

impl Store {
    pub(crate) fn new() -> Self {
        let memory = MemoryStore::new();
        Self { services: memory.client(), agents: memory.client(), memory }
    }

    pub(crate) async fn register(&self, service: &str, instance: Instance) -> Registration {
        let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
        let service = ServiceRef::new(Namespace::parse(namespace).unwrap(), ServiceName::parse(name).unwrap());
        self.services.register(&service, instance, RegisterOptions::new()).await.unwrap()
    }
}

pub(crate) fn instance(id: &str, port: u16) -> Instance {
    let endpoint = Endpoint::new("127.0.0.1", port).unwrap();
    Instance::new(InstanceId::parse(id).unwrap(), [endpoint]).unwrap()
}

/// A client with one stream.
#[derive(Debug)]
pub(crate) struct AdsClient {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    zone: &'static str,
}

impl AdsClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().initial_stream_window_size(WINDOW);
        Self::over(channel.connect().await.unwrap()).await.unwrap()
    }

    pub(crate) async fn over(channel: Channel) -> Result<Self, Status> {
        Self::open(channel, MetadataMap::new()).await
    }

    pub(crate) async fn with_token(channel: Channel, token: &str) -> Result<Self, Status> {
        Self::with_header(channel, "authorization", &format!("Bearer {token}")).await
    }

    pub(crate) async fn with_header(channel: Channel, name: &'static str, value: &str) -> Result<Self, Status> {
        let mut metadata = MetadataMap::new();
        metadata.insert(name, value.parse().unwrap());
        Self::open(channel, metadata).await
    }

    async fn open(channel: Channel, metadata: MetadataMap) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        *request.metadata_mut() = metadata;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = soon("a stream", client.stream_aggregated_resources(request)).await?.into_inner();
        Ok(Self { requests, responses, zone: "" })
    }

    /// Ends the requests.
    pub(crate) fn end_requests(&mut self) {
        self.requests = mpsc::channel(1).0;
    }

    /// Puts the client into a zone.
    pub(crate) fn in_zone(mut self, zone: &'static str) -> Self {
        self.zone = zone;
        self
    }

    /// Sends a request of each of these types, and waits for the answer to the stream, which goes on.
    pub(crate) async fn sending(channel: Channel, kinds: &[&str], names: &[&str]) {
        let requests: Vec<_> = kinds.iter().map(|kind| request(kind, names, "", "")).collect();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
        let _ = client.stream_aggregated_resources(requests).await;
    }

    /// Requests names, as a client does that has nothing.
    pub(crate) async fn request(&self, kind: &str, names: &[&str]) {
        self.send(kind, names, "", "").await;
    }

    /// Requests names, as a client does that has resources of this version from an earlier stream.
    pub(crate) async fn resume(&self, kind: &str, names: &[&str], version: &str) {
        self.send(kind, names, version, "").await;
    }

    pub(crate) async fn acknowledge(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.send(&response.type_url, names, &response.version_info, &response.nonce).await;
    }

    pub(crate) async fn reject(&self, response: &DiscoveryResponse, names: &[&str], reason: &str) {
        let mut request = request(&response.type_url, names, "", &response.nonce);
        request.error_detail = Some(rpc::Status { code: 3, message: reason.to_owned(), ..rpc::Status::default() });
        self.requests.send(request).await.unwrap();
    }

    async fn send(&self, kind: &str, names: &[&str], version: &str, nonce: &str) {
        let mut request = request(kind, names, version, nonce);
        if let Some(node) = &mut request.node {
            node.locality = Some(Locality { zone: self.zone.to_owned(), ..Locality::default() });
        }
        self.requests.send(request).await.unwrap();
    }

    /// Returns the next response, which is one of this type.
    pub(crate) async fn next(&mut self, kind: &str) -> DiscoveryResponse {
        let response = soon("a response", self.responses.message()).await.unwrap().expect("the stream goes on");
        assert_eq!(response.type_url, kind, "{response:?}");
        response
    }

    /// Requests an assignment and acknowledges it.
    pub(crate) async fn assignment(&mut self, name: &str) -> Ports {
        self.request(ASSIGNMENT, &[name]).await;
        self.changed(name).await
    }

    /// Awaits the next assignment and acknowledges it.
    pub(crate) async fn changed(&mut self, name: &str) -> Ports {
        let response = self.next(ASSIGNMENT).await;
        self.acknowledge(&response, &[name]).await;
        let (found, ports) = ports(&response);
        assert_eq!(found, name);
        ports
    }

    /// Awaits the end of the stream.
    pub(crate) async fn ended(&mut self) -> Status {
        let end = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok("ended"),
                    Err(status) => return status,
                }
            }
        };
        soon("the stream ends", end).await
    }
}

/// Returns a request of a client whose id and zone have these lengths.
pub(crate) fn request_in_zone(kind: &str, names: &[&str], id: usize, zone: usize) -> DiscoveryRequest {
    let locality = Some(Locality { zone: "z".repeat(zone), ..Locality::default() });
    let node = Some(Node { id: "n".repeat(id), locality, ..Node::default() });
    DiscoveryRequest { node, ..request(kind, names, "", "") }
}

fn request(kind: &str, names: &[&str], version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node { id: "test-1".to_owned(), user_agent_name: "gRPC test".to_owned(), ..Node::default() }),
        type_url: kind.to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        version_info: version.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// Ports of an assignment with their health, in order.
pub(crate) type Ports = Vec<(u32, i32)>;

/// Returns the zones of the one assignment in a response, with their priorities.
pub(crate) fn priorities(response: &DiscoveryResponse) -> Vec<(String, u32)> {
    let [assignment] = &response.resources[..] else { panic!("one assignment per response: {response:?}") };
    let assignment = ClusterLoadAssignment::decode(&assignment.value[..]).unwrap();
    let zone = |locality: &Option<Locality>| locality.clone().unwrap().zone;
    assignment.endpoints.iter().map(|one| (zone(&one.locality), one.priority)).collect()
}

/// Returns the name and the ports of the one assignment in a response.
pub(crate) fn ports(response: &DiscoveryResponse) -> (String, Ports) {
    use envoy_types::pb::envoy::config::{
        core::v3::{address::Address, socket_address::PortSpecifier},
        endpoint::v3::lb_endpoint::HostIdentifier,
    };
    let [assignment] = &response.resources[..] else { panic!("one assignment per response: {response:?}") };
    let assignment = ClusterLoadAssignment::decode(&assignment.value[..]).unwrap();
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let port = |endpoint: &envoy_types::pb::envoy::config::endpoint::v3::LbEndpoint| {
        let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!("{endpoint:?}") };
        let address = host.address.clone().unwrap().address;
        let Some(Address::SocketAddress(socket)) = address else { panic!("{address:?}") };
        let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("{socket:?}") };
        (port, endpoint.health_status)
    };
    let mut ports: Vec<_> = endpoints.map(port).collect();
    ports.sort_unstable();
    (assignment.cluster_name, ports)
}
