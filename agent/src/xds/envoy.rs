//! Resources for Envoy, which requests all listeners and clusters: those of the configuration. A listener that gRPC
//! clients use has no address, so Envoy needs its own.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{Address, SocketAddress, address::Address as AddressKind, socket_address::PortSpecifier},
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType as FilterConfig},
            route::v3::{
                RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
                retry_policy::{
                    RetryHostPredicate, RetryPriority, retry_host_predicate::ConfigType as PredicateConfig,
                    retry_priority::ConfigType as PriorityConfig,
                },
                route::Action,
                route_action::ClusterSpecifier,
                route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier, http_filter::ConfigType,
                },
            },
            retry::{
                host::previous_hosts::v3::PreviousHostsPredicate,
                priority::previous_priorities::v3::PreviousPrioritiesConfig,
            },
        },
    },
    google::protobuf::{self, UInt32Value},
};

use super::{
    resource::{Resource, ResourceType, any},
    resources, target,
};
use crate::error::AgentError;

/// Number of times for which a call that was not sent is tried again.
const RETRIES: u32 = 5;

/// Number of attempts after which other zones are tried, if the client prefers its own. A single dead instance moves no
/// call to another zone, and an attempt may take a second.
const ATTEMPTS_IN_ZONE: i32 = 3;

/// Number of times for which another host is chosen if one was tried before.
const HOST_SELECTIONS: i64 = 10;

/// A listener of Envoy: an address on Envoy's host, and the services to which its calls go.
#[derive(Clone, Debug)]
pub struct EnvoyListener {
    name: String,
    address: SocketAddr,
    /// Prefixes of paths, with names of services.
    routes: Vec<(String, String)>,
}

impl EnvoyListener {
    /// Creates a listener without routes. Each listener needs a name of its own.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        Self { name: name.into(), address, routes: Vec::new() }
    }

    /// Adds a route: calls of paths that begin with `prefix`, such as `/` or `/hello.Greeter/`, go to this service,
    /// which is named as in `xds:///NAME`. Of several that match, the first one is used.
    #[must_use]
    pub fn route(mut self, prefix: impl Into<String>, service: impl Into<String>) -> Self {
        self.routes.push((prefix.into(), service.into()));
        self
    }

    fn check(&self) -> Result<(), AgentError> {
        let fault = if self.name.is_empty() {
            "it has no name"
        } else if self.routes.is_empty() {
            "it has no route"
        } else if self.routes.iter().any(|(prefix, _)| !prefix.starts_with('/')) {
            "a route does not begin with `/`"
        } else if self.routes.iter().any(|(_, service)| target::services(service).is_empty()) {
            "a route has a name that no service can have"
        } else {
            return Ok(());
        };
        Err(AgentError::InvalidListener { listener: self.name.clone(), reason: fault })
    }

    fn resource(&self) -> Resource {
        let router = HttpFilter {
            name: "router".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any(&Router::default()))),
            ..HttpFilter::default()
        };
        let manager = HttpConnectionManager {
            stat_prefix: self.name.clone(),
            route_specifier: Some(RouteSpecifier::RouteConfig(self.route_configuration())),
            http_filters: vec![router],
            ..HttpConnectionManager::default()
        };
        let filter = Filter {
            name: "http_connection_manager".to_owned(),
            config_type: Some(FilterConfig::TypedConfig(any(&manager))),
        };
        let socket = SocketAddress {
            address: self.address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(self.address.port().into())),
            ..SocketAddress::default()
        };
        let listener = Listener {
            name: self.name.clone(),
            address: Some(Address { address: Some(AddressKind::SocketAddress(socket)) }),
            filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
            ..Listener::default()
        };
        Resource::new(&self.name, &listener)
    }

    /// Returns the routes, which are a part of the listener: as a resource of its own they could have the name of a
    /// service.
    fn route_configuration(&self) -> RouteConfiguration {
        let route = |(prefix, service): &(String, String)| {
            let action = RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(service.clone())),
                // None: Envoy's default of 15 s would cut streams.
                timeout: Some(protobuf::Duration::default()),
                retry_policy: Some(retry_policy()),
                ..RouteAction::default()
            };
            let path =
                RouteMatch { path_specifier: Some(PathSpecifier::Prefix(prefix.clone())), ..RouteMatch::default() };
            Route { r#match: Some(path), action: Some(Action::Route(action)), ..Route::default() }
        };
        let host = VirtualHost {
            name: self.name.clone(),
            domains: vec!["*".to_owned()],
            routes: self.routes.iter().map(route).collect(),
            ..VirtualHost::default()
        };
        RouteConfiguration { name: self.name.clone(), virtual_hosts: vec![host], ..RouteConfiguration::default() }
    }
}

/// Returns the policy by which calls that have not been sent are tried on other hosts. Envoy connects when a call needs
/// it, where gRPC uses connections that exist: an instance that is dead, and still registered or held, would fail its
/// share of the calls.
fn retry_policy() -> RetryPolicy {
    let others = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(PredicateConfig::TypedConfig(any(&PreviousHostsPredicate::default()))),
    };
    let zones = RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(PriorityConfig::TypedConfig(any(&PreviousPrioritiesConfig {
            update_frequency: ATTEMPTS_IN_ZONE,
        }))),
    };
    RetryPolicy {
        retry_on: "connect-failure,refused-stream".to_owned(),
        num_retries: Some(UInt32Value { value: RETRIES }),
        retry_priority: Some(zones),
        retry_host_predicate: vec![others],
        host_selection_retry_max_attempts: HOST_SELECTIONS,
        ..RetryPolicy::default()
    }
}

/// Resources for clients that request all listeners and clusters.
#[derive(Clone, Debug)]
pub(super) struct EnvoyResources {
    listeners: Vec<Resource>,
    clusters: Vec<Resource>,
    connect_timeout: Duration,
}

impl EnvoyResources {
    /// Creates the resources of these listeners: themselves, and one cluster per service.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidListener`].
    pub(super) fn new(listeners: &[EnvoyListener], connect_timeout: Duration) -> Result<Self, AgentError> {
        let mut names = HashSet::new();
        for listener in listeners {
            listener.check()?;
            if !names.insert(&listener.name) {
                let (listener, reason) = (listener.name.clone(), "another listener has the name");
                return Err(AgentError::InvalidListener { listener, reason });
            }
        }
        let services: BTreeSet<_> = listeners.iter().flat_map(|one| &one.routes).map(|(_, service)| service).collect();
        let listeners = listeners.iter().map(EnvoyListener::resource).collect();
        let clusters = services.into_iter().map(|service| resources::cluster(service, connect_timeout)).collect();
        Ok(Self { listeners, clusters, connect_timeout })
    }

    /// Returns the cluster of a service.
    pub(super) fn cluster(&self, name: &str) -> Resource {
        resources::cluster(name, self.connect_timeout)
    }

    /// Returns all listeners or clusters; `None` without a configured listener, so that no client deletes what it has.
    pub(super) fn all(&self, kind: ResourceType) -> Option<Vec<Resource>> {
        let all = match kind {
            ResourceType::Listener => &self.listeners,
            ResourceType::Cluster => &self.clusters,
            ResourceType::Assignment | ResourceType::Route => return None,
        };
        Some(all.clone()).filter(|all| !all.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn listener(name: &str) -> EnvoyListener {
        EnvoyListener::new(name, "127.0.0.1:10000".parse().unwrap())
    }

    #[test]
    fn a_listener_has_its_routes_with_clusters() {
        let edge = listener("edge").route("/a.A/", "a").route("/b.B/", "team/b");
        let all = EnvoyResources::new(&[edge, listener("other").route("/", "a")], Duration::from_secs(1)).unwrap();
        let clusters = all.all(ResourceType::Cluster).unwrap();
        assert_eq!(clusters.iter().map(Resource::name).collect::<Vec<_>>(), ["a", "team/b"]);
        let listeners = all.all(ResourceType::Listener).unwrap();
        assert_eq!(listeners.iter().map(Resource::name).collect::<Vec<_>>(), ["edge", "other"]);
        let edge = Listener::decode(listeners[0].message()).unwrap();
        assert!(edge.address.is_some() && edge.api_listener.is_none());
        let Some(FilterConfig::TypedConfig(manager)) = &edge.filter_chains[0].filters[0].config_type else {
            panic!("a filter")
        };
        let manager = HttpConnectionManager::decode(&manager.value[..]).unwrap();
        assert_eq!(manager.stat_prefix, "edge", "Envoy rejects a manager without one");
        let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier else { panic!("routes") };
        let routes = &routes.virtual_hosts[0].routes;
        let Some(Action::Route(action)) = &routes[1].action else { panic!("a route") };
        assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster("team/b".to_owned())));
        let retries = action.retry_policy.as_ref().unwrap();
        assert_eq!(retries.retry_on, "connect-failure,refused-stream", "only of what was not sent");
        assert_eq!(
            (retries.num_retries, retries.retry_host_predicate.len()),
            (Some(UInt32Value { value: RETRIES }), 1)
        );
        let Some(PriorityConfig::TypedConfig(zones)) = &retries.retry_priority.as_ref().unwrap().config_type else {
            panic!("zones")
        };
        let zones = PreviousPrioritiesConfig::decode(&zones.value[..]).unwrap();
        assert_eq!(zones.update_frequency, ATTEMPTS_IN_ZONE);
        assert_eq!(routes.len(), 2);
    }

    #[test]
    fn without_a_configured_listener_nothing_is_sent() {
        let none = EnvoyResources::new(&[], Duration::from_secs(1)).unwrap();
        assert!(ResourceType::ALL.into_iter().all(|kind| none.all(kind).is_none()));
    }

    #[test]
    fn faulty_listeners_are_refused() {
        for (listeners, expected) in [
            (vec![listener("").route("/", "a")], "it has no name"),
            (vec![listener("edge")], "it has no route"),
            (vec![listener("edge").route("a", "a")], "a route does not begin with `/`"),
            (vec![listener("edge").route("/", "/a")], "a route has a name that no service can have"),
            (vec![listener("edge").route("/", "a"), listener("edge").route("/", "b")], "another listener has the name"),
        ] {
            let Err(AgentError::InvalidListener { reason, .. }) =
                EnvoyResources::new(&listeners, Duration::from_secs(1))
            else {
                panic!("{expected}")
            };
            assert_eq!(reason, expected);
        }
    }
}
