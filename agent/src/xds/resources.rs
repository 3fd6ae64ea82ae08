//! Listener, routes and cluster of a service. They depend on its name only, so they are answered before anything is
//! known about its instances: a client waits 15 s for one that is missing, and an empty assignment fails calls at once.
//!
//! All resources of a service have the name that the client requested. Clusters and assignments are the same for gRPC
//! and for Envoy; gRPC ignores what only Envoy uses.

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                AggregatedConfigSource, ApiVersion, ConfigSource, Http2ProtocolOptions,
                config_source::ConfigSourceSpecifier,
            },
            listener::v3::{ApiListener, Listener},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                    http_filter::ConfigType,
                },
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::{self, UInt32Value},
};

use super::resource::{Resource, any};

/// Key of the options of connections to the endpoints of a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Maximum number of calls to a cluster that Envoy retries at a time: as many as it has under way by default.
const CONCURRENT_RETRIES: u32 = 1024;

/// Returns the listener of a service for gRPC clients, which refers to its routes.
pub(super) fn api_listener(name: &str) -> Resource {
    // Without a filter, clients reject the listener.
    let router = HttpFilter {
        name: "router".to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    let reference = Rds { route_config_name: name.to_owned(), config_source: Some(aggregated()) };
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(reference)),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    let api_listener = Some(ApiListener { api_listener: Some(any(&manager)) });
    Resource::new(name, &Listener { name: name.to_owned(), api_listener, ..Listener::default() })
}

/// Returns the routes of a service: all methods go to its cluster.
pub(super) fn routes(name: &str) -> Resource {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(name.to_owned())),
        // None: Envoy's default of 15 s would cut streams.
        timeout: Some(protobuf::Duration::default()),
        ..RouteAction::default()
    };
    let path = RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    let route = Route { r#match: Some(path), action: Some(Action::Route(action)), ..Route::default() };
    let host = VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let virtual_hosts = vec![host];
    Resource::new(name, &RouteConfiguration { name: name.to_owned(), virtual_hosts, ..RouteConfiguration::default() })
}

/// Returns the cluster of a service, whose endpoints are in the assignment of the same name.
pub(super) fn cluster(name: &str, connect_timeout: Duration) -> Resource {
    // Otherwise Envoy uses HTTP/1.1.
    let http2 = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
        })),
        ..HttpProtocolOptions::default()
    };
    // Otherwise Envoy also calls draining endpoints once fewer than half are healthy.
    let no_panic = CommonLbConfig { healthy_panic_threshold: Some(Percent::default()), ..CommonLbConfig::default() };
    // Otherwise Envoy retries three calls at a time only.
    let thresholds =
        Thresholds { max_retries: Some(UInt32Value { value: CONCURRENT_RETRIES }), ..Thresholds::default() };
    let eds = EdsClusterConfig { eds_config: Some(aggregated()), ..EdsClusterConfig::default() };
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(eds),
        common_lb_config: Some(no_panic),
        connect_timeout: Some(protobuf(connect_timeout)),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }),
        typed_extension_protocol_options: HashMap::from([(HTTP_OPTIONS.to_owned(), any(&http2))]),
        ..Cluster::default()
    };
    Resource::new(name, &cluster)
}

/// Converts a duration.
fn protobuf(time: Duration) -> protobuf::Duration {
    let nanos = i32::try_from(time.subsec_nanos()).unwrap_or_default();
    protobuf::Duration { seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), nanos }
}

/// Returns the source of a resource that is sent on the same stream.
fn aggregated() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::resource::{ResourceType, type_url};
    use envoy_types::pb::google::protobuf::Any;
    use prost::{Message, Name};

    fn decoded<M: Message + Name + Default>(resource: &Resource) -> M {
        assert_eq!(Any::decode(&resource.any()[..]).unwrap().type_url, type_url::<M>());
        M::decode(resource.message()).unwrap()
    }

    #[test]
    fn the_resources_of_a_service_refer_to_each_other_by_its_name() {
        let name = "team/greeter";
        let listener: Listener = decoded(&api_listener(name));
        assert_eq!(listener.name, name);
        let manager = listener.api_listener.unwrap().api_listener.unwrap();
        let manager = HttpConnectionManager::decode(&manager.value[..]).unwrap();
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("it refers to its routes") };
        assert_eq!((rds.route_config_name.as_str(), rds.config_source), (name, Some(aggregated())));
        assert_eq!(manager.http_filters.len(), 1);

        let routes: RouteConfiguration = decoded(&routes(name));
        let [host] = &routes.virtual_hosts[..] else { panic!("one host") };
        assert_eq!((routes.name.as_str(), host.domains.as_slice()), (name, &["*".to_owned()][..]));
        let Some(Action::Route(action)) = &host.routes[0].action else { panic!("a route") };
        assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster(name.to_owned())));
        assert_eq!(action.timeout, Some(protobuf::Duration::default()), "no timeout, which is not the default");

        let cluster: Cluster = decoded(&cluster(name, Duration::from_millis(1_500)));
        assert_eq!(cluster.name, name);
        assert_eq!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(3)));
        assert_eq!(cluster.eds_cluster_config.unwrap().eds_config, Some(aggregated()));
        assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold, Some(Percent { value: 0.0 }));
        assert_eq!(cluster.connect_timeout, Some(protobuf::Duration { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(cluster.lb_policy, 0, "clients accept the default only");
        let options = &cluster.typed_extension_protocol_options[HTTP_OPTIONS];
        assert_eq!(options.type_url, type_url::<HttpProtocolOptions>());
    }

    #[test]
    fn a_resource_has_one_version_per_content() {
        for (make, kind) in [
            (api_listener as fn(&str) -> Resource, ResourceType::Listener),
            (routes, ResourceType::Route),
            (|name: &str| cluster(name, Duration::from_secs(1)), ResourceType::Cluster),
        ] {
            let resource = make("a");
            let any = Any::decode(&resource.any()[..]).unwrap();
            assert_eq!((resource.name(), any.type_url.as_str()), ("a", kind.url()));
            assert_eq!(resource.version(), make("a").version());
            assert_ne!(resource.version(), make("b").version());
        }
    }
}
