//! A simulated client of xDS: one connection with one stream, as gRPC has.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use envoy_types::pb::envoy::{
    config::{
        core::v3::{Node, address::Address},
        endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
    },
    service::discovery::v3::{
        DiscoveryRequest, DiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use futures::stream;
use prost::Message;
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

use super::changes::{Changes, number};
use crate::measure::Result;

const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Types of resources, in the order in which clients request them.
const TYPES: [&str; 4] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    ASSIGNMENT,
];

/// Requests that wait for the connection.
const REQUESTS: usize = 16;

/// Follows services, and acknowledges each response. Sends to `ready` once it has all assignments.
pub(super) async fn follow(port: u16, services: Vec<String>, changes: Arc<Changes>, ready: mpsc::Sender<()>) -> Result {
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect().await?;
    let (requests, waiting) = mpsc::channel(REQUESTS);
    for kind in TYPES {
        requests.send(request(kind, &services, None)).await?;
    }
    let waiting = stream::unfold(waiting, |mut waiting| async move { Some((waiting.recv().await?, waiting)) });
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.stream_aggregated_resources(waiting).await?.into_inner();
    let (mut known, mut ready) = (HashMap::<String, HashSet<usize>>::new(), Some(ready));
    while let Some(response) = responses.message().await? {
        requests.send(request(&response.type_url, &services, Some(&response))).await?;
        if response.type_url != ASSIGNMENT {
            continue;
        }
        for resource in &response.resources {
            let assignment = ClusterLoadAssignment::decode(&*resource.value)?;
            changes.seen(numbers(&assignment), known.entry(assignment.cluster_name.clone()).or_default());
        }
        if known.len() == services.len()
            && let Some(ready) = ready.take()
        {
            ready.send(()).await?;
        }
    }
    Err("the server has ended the stream".into())
}

/// Returns a request of names, as an acknowledgement if there is a response.
fn request(kind: &str, names: &[String], response: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    let (version, nonce) =
        response.map(|response| (response.version_info.clone(), response.nonce.clone())).unwrap_or_default();
    DiscoveryRequest {
        node: Some(Node { id: "bench".to_owned(), user_agent_name: "gRPC bench".to_owned(), ..Node::default() }),
        type_url: kind.to_owned(),
        resource_names: names.to_vec(),
        version_info: version,
        response_nonce: nonce,
        ..DiscoveryRequest::default()
    }
}

/// Returns the numbers of the changes that gave the instances of an assignment their addresses.
fn numbers(assignment: &ClusterLoadAssignment) -> impl Iterator<Item = usize> {
    assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints).filter_map(|endpoint| {
        let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { return None };
        let Some(Address::SocketAddress(socket)) = &host.address.as_ref()?.address else { return None };
        number(&socket.address)
    })
}
