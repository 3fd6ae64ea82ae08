//! The assignment of endpoints to the cluster of a service, from a snapshot.
//!
//! Clients reject a whole assignment for one bad endpoint and then keep their old list, so everything that they check
//! is ensured here: addresses are IP literals and occur once, weights are above zero and their sums fit into 32 bits,
//! localities are unique. Instances that cannot be carried are omitted and counted.
//!
//! gRPC ignores the weights of endpoints, and Envoy those of localities. Both get the right shares from localities by
//! zone and weight: the locality has the weight of its usable instances together, and each endpoint its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use enlist::{Endpoint, Entry, Health, Instance, Presence, Revision, Snapshot};
use envoy_types::pb::{
    envoy::config::{
        core::v3::{
            Address, HealthStatus, Locality, SocketAddress, address::Address as AddressKind,
            socket_address::PortSpecifier,
        },
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as EndpointMessage, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::UInt32Value,
};
use prost::Message as _;

use super::resource::Resource;

/// Maximum bytes of an assignment. gRPC drops responses above 4 MiB without an error.
pub(super) const MAX_ASSIGNMENT_BYTES: usize = 3_500 << 10;

/// Reason for which an assignment does not contain an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Omission {
    /// It has no endpoint with a protocol that the client can use.
    Protocol,
    /// Its only usable endpoints are unix sockets.
    UnixSocket,
    /// Its only usable endpoints have names instead of addresses.
    HostName,
    /// Its weight is 0.
    ZeroWeight,
    /// It is not serving.
    NotServing,
    /// An instance that was created later has the address.
    Duplicate,
}

impl Omission {
    /// All reasons.
    pub(crate) const ALL: [Self; 6] =
        [Self::Protocol, Self::UnixSocket, Self::HostName, Self::ZeroWeight, Self::NotServing, Self::Duplicate];

    /// Returns `true` for an instance that takes no calls on purpose, which is no fault.
    pub(super) fn is_intended(self) -> bool {
        matches!(self, Self::ZeroWeight | Self::NotServing)
    }

    /// Returns the word for the reason in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::UnixSocket => "unix_socket",
            Self::HostName => "host_name",
            Self::ZeroWeight => "zero_weight",
            Self::NotServing => "not_serving",
            Self::Duplicate => "duplicate",
        }
    }
}

/// Number of omitted instances by reason.
pub(crate) type Omissions = BTreeMap<Omission, usize>;

/// An assignment with the number of instances that it does not contain.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    /// The encoded assignment.
    pub(super) resource: Resource,
    /// Number of endpoints that can receive new calls.
    pub(super) callable: usize,
    /// Omitted instances.
    pub(super) omitted: Omissions,
    /// Zones with an instance that receives calls.
    zones: Arc<BTreeSet<String>>,
}

impl Assignment {
    /// Returns the assignment for a client that prefers this zone: instances of other zones have the second priority.
    /// `None` if no instance of the zone receives calls, so that there is nothing to prefer.
    pub(super) fn preferring(&self, zone: &str) -> Option<Resource> {
        if !self.zones.contains(zone) {
            return None;
        }
        let mut message = ClusterLoadAssignment::decode(self.resource.message()).ok()?;
        for locality in &mut message.endpoints {
            let is_preferred = locality.locality.as_ref().is_some_and(|locality| locality.zone == zone);
            locality.priority = u32::from(!is_preferred);
        }
        Some(Resource::new(self.resource.name(), &message))
    }
}

/// An assignment that clients would not receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge {
    /// Its size.
    pub(super) bytes: usize,
    /// Its number of endpoints.
    pub(super) endpoints: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, endpoints } = self;
        write!(f, "the assignment of {endpoints} endpoints has {bytes} bytes, at most {MAX_ASSIGNMENT_BYTES} are sent")
    }
}

impl std::error::Error for TooLarge {}

/// Returns the assignment of a service whose snapshot is known. Without instances it is empty, and calls fail at once.
///
/// # Errors
///
/// [`TooLarge`]: the client keeps the assignment that it has.
pub(super) fn assignment(name: &str, snapshot: &Snapshot) -> Result<Assignment, TooLarge> {
    let (usable, omitted) = usable(snapshot);
    let endpoints = usable.len();
    let message = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: localities(&usable),
        ..ClusterLoadAssignment::default()
    };
    let resource = Resource::new(name, &message);
    let bytes = resource.any().len();
    if bytes > MAX_ASSIGNMENT_BYTES {
        return Err(TooLarge { bytes, endpoints });
    }
    let serving = usable.iter().map(|one| one.entry.instance()).filter(|one| one.health() == Health::Serving);
    let zones = serving.filter_map(Instance::zone).map(str::to_owned).collect();
    let callable = usable.iter().filter(|one| is_callable(health(one.entry))).count();
    Ok(Assignment { resource, callable, omitted, zones: Arc::new(zones) })
}

/// Instance that an assignment contains.
#[derive(Debug)]
struct Usable<'a> {
    address: SocketAddr,
    entry: &'a Entry,
}

/// Returns the instances that an assignment can contain, in the order of their ids.
fn usable(snapshot: &Snapshot) -> (Vec<Usable<'_>>, Omissions) {
    let mut omitted = Omissions::new();
    let mut latest: HashMap<SocketAddr, Revision> = HashMap::new();
    let mut found = Vec::new();
    for entry in snapshot.entries() {
        match address(entry.instance()) {
            Ok(address) => {
                let created = latest.entry(address).or_default();
                *created = entry.created().max(*created);
                found.push(Usable { address, entry });
            }
            Err(omission) => *omitted.entry(omission).or_default() += 1,
        }
    }
    // Of two with one address and one revision, which a transaction can create, the first id is kept.
    found.retain(|usable| {
        let is_latest = latest.get(&usable.address) == Some(&usable.entry.created());
        if is_latest {
            latest.remove(&usable.address);
        } else {
            *omitted.entry(Omission::Duplicate).or_default() += 1;
        }
        is_latest
    });
    (found, omitted)
}

/// Returns the rank of a protocol, the preferred one first; `None` for one that is not used. An `http` endpoint comes
/// last: kratos registers it beside the one for gRPC. Clients learn nothing of TLS from the agent, and would call
/// endpoints with TLS in plain text.
fn rank(protocol: Option<&str>) -> Option<u8> {
    match protocol {
        Some("grpc") => Some(0),
        None => Some(1),
        Some("tcp") => Some(2),
        Some("http") => Some(3),
        Some(_) => None,
    }
}

/// Returns the address of the endpoint of an instance that a client can use. Of several, the [`rank`] decides, and then
/// the order.
fn address(instance: &Instance) -> Result<SocketAddr, Omission> {
    if instance.weight() == 0 {
        return Err(Omission::ZeroWeight);
    }
    if instance.health() == Health::NotServing {
        return Err(Omission::NotServing);
    }
    let literal = |endpoint: &Endpoint| {
        let address: Option<IpAddr> = endpoint.host().parse().ok();
        address.map(|address| SocketAddr::new(address, endpoint.port()))
    };
    let mut omission = Omission::Protocol;
    let mut usable = Vec::new();
    for endpoint in instance.endpoints() {
        if endpoint.is_unix() {
            omission = omission.max(Omission::UnixSocket);
        } else if let Some(rank) = rank(endpoint.protocol()) {
            match literal(endpoint) {
                Some(address) => usable.push((rank, address)),
                None => omission = omission.max(Omission::HostName),
            }
        }
    }
    usable.into_iter().min_by_key(|(rank, _)| *rank).map(|(_, address)| address).ok_or(omission)
}

/// Returns the localities by zone and weight.
fn localities(usable: &[Usable<'_>]) -> Vec<LocalityLbEndpoints> {
    let mut groups: BTreeMap<(&str, u32), Vec<&Usable<'_>>> = BTreeMap::new();
    for one in usable {
        let instance = one.entry.instance();
        groups.entry((instance.zone().unwrap_or_default(), instance.weight())).or_default().push(one);
    }
    let counts: Vec<(u32, usize)> = groups.iter().map(|((_, weight), members)| (*weight, members.len())).collect();
    let shift = shift(&counts);
    groups.into_iter().map(|((zone, weight), members)| locality(zone, weight, shift, &members)).collect()
}

/// Returns the number of instances whose weights count for their locality: those that receive calls, or one if there is
/// none, because clients ignore a locality without weight.
fn share(members: &[&Usable<'_>]) -> usize {
    members.iter().filter(|one| one.entry.instance().health() == Health::Serving).count().max(1)
}

/// Returns the number of bits by which all weights are reduced so that their sum fits into 32 bits. `counts`: weights,
/// and the number of instances that have them. Instances that receive no calls count as well, because grpc-go checks
/// the sum of all endpoints of a locality.
fn shift(counts: &[(u32, usize)]) -> u32 {
    let sum = |shift| -> u64 {
        let weights = counts.iter().map(|(weight, count)| u64::from(scaled(*weight, shift)) * (*count as u64));
        weights.fold(0, u64::saturating_add)
    };
    (0..32).find(|shift| u32::try_from(sum(*shift)).is_ok()).unwrap_or(31)
}

/// Returns a reduced weight, which stays above zero.
fn scaled(weight: u32, shift: u32) -> u32 {
    (weight >> shift).max(1)
}

fn locality(zone: &str, weight: u32, shift: u32, members: &[&Usable<'_>]) -> LocalityLbEndpoints {
    let endpoint_weight = scaled(weight, shift);
    let together = u64::from(endpoint_weight).saturating_mul(share(members) as u64);
    LocalityLbEndpoints {
        // The weight as registered, so that the locality keeps its name when all weights are reduced.
        locality: Some(Locality { region: String::new(), zone: zone.to_owned(), sub_zone: format!("w{weight}") }),
        load_balancing_weight: Some(UInt32Value { value: u32::try_from(together).unwrap_or(u32::MAX) }),
        lb_endpoints: members.iter().map(|member| lb_endpoint(member, endpoint_weight)).collect(),
        ..LocalityLbEndpoints::default()
    }
}

fn lb_endpoint(Usable { address, entry }: &Usable<'_>, weight: u32) -> LbEndpoint {
    let socket = SocketAddress {
        // IPv6 without brackets.
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    let endpoint = EndpointMessage {
        address: Some(Address { address: Some(AddressKind::SocketAddress(socket)) }),
        ..EndpointMessage::default()
    };
    LbEndpoint {
        health_status: health(entry).into(),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    }
}

/// Returns the health that clients receive. Draining endpoints get no new calls. An instance that is held after its
/// loss may be dead: its state is unknown, and clients may try it.
fn health(entry: &Entry) -> HealthStatus {
    match (entry.instance().health(), entry.presence()) {
        (Health::Draining, _) => HealthStatus::Draining,
        (_, Presence::Held) => HealthStatus::Unknown,
        _ => HealthStatus::Healthy,
    }
}

/// Returns `true` if clients make new calls to an endpoint of this health.
fn is_callable(health: HealthStatus) -> bool {
    matches!(health, HealthStatus::Healthy | HealthStatus::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::{Epoch, InstanceId, ServiceRef, backend::SnapshotBuilder};
    use proptest::prelude::*;

    fn instance(id: &str, endpoint: &str) -> Instance {
        Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse(endpoint).unwrap()]).unwrap()
    }

    /// A snapshot of instances, each created at its position.
    fn snapshot(instances: impl IntoIterator<Item = Instance>) -> Snapshot {
        let service = ServiceRef::parse("greeter").unwrap();
        let mut snapshot = SnapshotBuilder::new(service, Revision::new(99), Epoch::default());
        for (instance, created) in instances.into_iter().zip(1..) {
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(created), Revision::new(created))));
        }
        snapshot.build()
    }

    fn assign(snapshot: &Snapshot) -> (ClusterLoadAssignment, Omissions) {
        let assignment = assignment("greeter", snapshot).unwrap();
        let message = ClusterLoadAssignment::decode(assignment.resource.message()).unwrap();
        assert_eq!(message.cluster_name, "greeter");
        let endpoints = message.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
        let callable = endpoints.filter(|endpoint| is_callable(endpoint.health_status())).count();
        assert_eq!(callable, assignment.callable);
        (message, assignment.omitted)
    }

    fn socket(endpoint: &LbEndpoint) -> (String, u32) {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { panic!("an endpoint") };
        let Some(AddressKind::SocketAddress(socket)) = endpoint.address.clone().unwrap().address else {
            panic!("a socket address")
        };
        let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("a port") };
        (socket.address, port)
    }

    fn weight(value: Option<&UInt32Value>) -> u32 {
        value.expect("it has a weight").value
    }

    /// Returns zone, sub-zone, weight and the weights of the endpoints of each locality.
    fn shape(message: &ClusterLoadAssignment) -> Vec<(String, String, u32, Vec<u32>)> {
        let endpoints = |locality: &LocalityLbEndpoints| {
            locality.lb_endpoints.iter().map(|one| weight(one.load_balancing_weight.as_ref())).collect()
        };
        let shape = |one: &LocalityLbEndpoints| {
            let Locality { zone, sub_zone, .. } = one.locality.clone().unwrap();
            (zone, sub_zone, weight(one.load_balancing_weight.as_ref()), endpoints(one))
        };
        message.endpoints.iter().map(shape).collect()
    }

    #[test]
    fn other_zones_than_the_preferred_one_have_the_second_priority() {
        let instances = [
            instance("a", "10.0.0.1:80").with_zone("z1"),
            instance("b", "10.0.0.2:80").with_zone("z1").with_weight(300),
            instance("c", "10.0.0.3:80").with_zone("z2"),
            instance("d", "10.0.0.4:80").with_zone("z3").with_health(Health::Draining),
            instance("e", "10.0.0.5:80"),
        ];
        let assignment = assignment("greeter", &snapshot(instances)).unwrap();
        let preferred = assignment.preferring("z1").unwrap();
        assert_ne!(preferred.version(), assignment.resource.version());
        let message = ClusterLoadAssignment::decode(preferred.message()).unwrap();
        let priority = |one: &LocalityLbEndpoints| (one.locality.clone().unwrap().zone, one.priority);
        let expected = [("", 1), ("z1", 0), ("z1", 0), ("z2", 1), ("z3", 1)];
        assert_eq!(
            message.endpoints.iter().map(priority).collect::<Vec<_>>(),
            expected.map(|(zone, priority)| (zone.to_owned(), priority))
        );
        for zone in ["z3", "z4", ""] {
            assert!(assignment.preferring(zone).is_none(), "{zone} has no instance that receives calls");
        }
    }

    #[test]
    fn instances_of_equal_weight_share_a_locality() {
        let (message, omitted) = assign(&snapshot([
            instance("a", "grpc://10.0.0.1:80").with_zone("z1"),
            instance("b", "10.0.0.2:80").with_zone("z2").with_weight(300),
            instance("c", "http://10.0.0.3:80").with_zone("z1"),
            instance("d", "tcp://10.0.0.4:80"),
        ]));
        let locality = |zone: &str, sub: &str, weight, endpoints: &[u32]| {
            (zone.to_owned(), sub.to_owned(), weight, endpoints.to_vec())
        };
        assert_eq!(
            shape(&message),
            [
                locality("", "w100", 100, &[100]),
                locality("z1", "w100", 200, &[100, 100]),
                locality("z2", "w300", 300, &[300]),
            ]
        );
        assert_eq!(omitted, Omissions::new());
    }

    #[test]
    fn the_health_decides_which_endpoints_get_calls() {
        let (message, omitted) = assign(&snapshot([
            instance("a", "10.0.0.1:80"),
            instance("b", "10.0.0.2:80").with_health(Health::Draining),
            instance("c", "10.0.0.3:80").with_health(Health::NotServing),
            instance("d", "10.0.0.4:80").with_weight(7).with_health(Health::Draining),
        ]));
        let health: Vec<_> =
            message.endpoints.iter().flat_map(|one| &one.lb_endpoints).map(LbEndpoint::health_status).collect();
        assert_eq!(health, [HealthStatus::Draining, HealthStatus::Healthy, HealthStatus::Draining]);
        assert_eq!(omitted, Omissions::from([(Omission::NotServing, 1)]));
        let weights: Vec<_> = shape(&message).into_iter().map(|(_, _, weight, _)| weight).collect();
        assert_eq!(weights, [7, 100], "instances without calls have no share, unless a locality has no others");
    }

    #[test]
    fn an_instance_without_calls_hides_no_other() {
        let (message, omitted) = assign(&snapshot([
            instance("a", "10.0.0.1:80"),
            instance("b", "10.0.0.1:80").with_health(Health::NotServing),
            instance("c", "10.0.0.1:80").with_weight(0),
        ]));
        let endpoints: Vec<_> = message.endpoints.iter().flat_map(|one| &one.lb_endpoints).collect();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].health_status(), HealthStatus::Healthy);
        assert_eq!(omitted, Omissions::from([(Omission::ZeroWeight, 1), (Omission::NotServing, 1)]));
    }

    #[test]
    fn unusable_instances_are_counted_as_omitted() {
        let several = |id: &str, endpoints: &[&str]| {
            let endpoints = endpoints.iter().map(|endpoint| Endpoint::parse(endpoint).unwrap());
            Instance::new(InstanceId::parse(id).unwrap(), endpoints.collect::<Vec<_>>()).unwrap()
        };
        let all = snapshot([
            instance("a", "greeter.example:80"),
            instance("b", "unix:///run/app.sock"),
            instance("c", "10.0.0.3:80").with_weight(0),
            instance("d", "grpcs://10.0.0.4:443"),
            instance("e", "metrics://10.0.0.5:9000"),
            several("f", &["unix:///run/f.sock", "grpcs://10.0.0.6:443", "grpc://name:80", "grpc://10.0.0.6:80"]),
            instance("g", "grpc://[2001:db8::1]:80"),
        ]);
        let (message, omitted) = assign(&all);
        let sockets: Vec<_> = message.endpoints.iter().flat_map(|one| &one.lb_endpoints).map(socket).collect();
        assert_eq!(sockets, [("10.0.0.6".to_owned(), 80), ("2001:db8::1".to_owned(), 80)]);
        let expected =
            [(Omission::Protocol, 2), (Omission::UnixSocket, 1), (Omission::HostName, 1), (Omission::ZeroWeight, 1)];
        assert_eq!(omitted, Omissions::from(expected));
    }

    #[test]
    fn an_endpoint_for_grpc_comes_first() {
        for (endpoints, expected) in [
            (["http://10.0.0.1:1", "grpc://10.0.0.1:2"], 2),
            (["grpc://10.0.0.1:2", "http://10.0.0.1:1"], 2),
            (["http://10.0.0.1:1", "10.0.0.1:2"], 2),
            (["tcp://10.0.0.1:1", "10.0.0.1:2"], 2),
            (["http://10.0.0.1:1", "tcp://10.0.0.1:2"], 2),
            (["tcp://10.0.0.1:2", "http://10.0.0.1:1"], 2),
            (["grpc://10.0.0.1:1", "grpc://10.0.0.1:2"], 1),
            (["grpc://name:1", "http://10.0.0.1:2"], 2),
        ] {
            let parsed = endpoints.map(|endpoint| Endpoint::parse(endpoint).unwrap());
            let instance = Instance::new(InstanceId::parse("a").unwrap(), parsed).unwrap();
            let port = address(&instance).unwrap().port();
            assert_eq!(port, expected, "{endpoints:?}");
        }
    }

    #[test]
    fn of_two_instances_with_one_address_the_later_one_is_kept() {
        let (message, omitted) = assign(&snapshot([
            instance("b", "grpc://10.0.0.1:80").with_weight(1),
            instance("a", "10.0.0.1:80").with_weight(2),
            instance("c", "10.0.0.1:81").with_weight(3),
        ]));
        let names: Vec<_> = shape(&message).into_iter().map(|(_, sub_zone, ..)| sub_zone).collect();
        assert_eq!(names, ["w2", "w3"]);
        assert_eq!(omitted, Omissions::from([(Omission::Duplicate, 1)]));
    }

    #[test]
    fn two_instances_at_one_address_are_one_endpoint() {
        let service = ServiceRef::parse("greeter").unwrap();
        let mut builder = SnapshotBuilder::new(service, Revision::new(9), Epoch::default());
        for id in ["a", "b"] {
            let instance = instance(id, "10.0.0.1:80");
            builder.insert(Arc::new(Entry::new(instance, Revision::new(5), Revision::new(5))));
        }
        let (message, omitted) = assign(&builder.build());
        assert_eq!((message.endpoints[0].lb_endpoints.len(), omitted[&Omission::Duplicate]), (1, 1));
    }

    #[test]
    fn a_service_that_is_known_to_be_empty_has_an_empty_assignment() {
        let (message, omitted) = assign(&snapshot([]));
        assert!(message.endpoints.is_empty() && omitted.is_empty());
    }

    #[test]
    fn equal_instances_have_equal_versions_in_any_order_of_registration() {
        let (one, two) = (instance("a", "10.0.0.1:80"), instance("b", "10.0.0.2:80").with_zone("z"));
        let version = |instances: [&Instance; 2]| {
            let snapshot = snapshot(instances.map(Clone::clone));
            assignment("greeter", &snapshot).unwrap().resource.version()
        };
        assert_eq!(version([&one, &two]), version([&two, &one]), "revisions are not part of the content");
        let heavier = two.clone().with_weight(101);
        assert_ne!(version([&one, &two]), version([&one, &heavier]));
    }

    #[test]
    fn an_assignment_that_clients_would_not_receive_is_refused() {
        let many = |count: u32| {
            let host = |number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number);
            let one = |number| instance(&format!("i{number:06}"), &format!("{}:80", host(number)));
            snapshot((0..count).map(one))
        };
        assert!(assignment("greeter", &many(1000)).is_ok());
        let refused = assignment("greeter", &many(130_000)).unwrap_err();
        assert!(refused.endpoints == 130_000 && refused.bytes > MAX_ASSIGNMENT_BYTES, "{refused:?}");
        assert!(refused.to_string().contains("130000 endpoints"), "{refused}");
    }

    proptest! {
        /// The checks of all tested clients: sums of weights fit, weights are above zero, localities are unique.
        #[test]
        fn weights_pass_the_checks_of_clients(
            weights in proptest::collection::vec((0u8..3, prop_oneof![1u32..200, any::<u32>()]), 0..60),
        ) {
            let of = |(number, (zone, weight)): (usize, (u8, u32))| {
                let endpoint = format!("10.0.0.{number}:80");
                instance(&format!("i{number}"), &endpoint).with_weight(weight.max(1)).with_zone(format!("z{zone}"))
            };
            let (message, _) = assign(&snapshot(weights.into_iter().enumerate().map(of)));
            let shape = shape(&message);
            let total: u64 = shape.iter().map(|(_, _, weight, _)| u64::from(*weight)).sum();
            prop_assert!(u32::try_from(total).is_ok());
            let mut localities: Vec<_> = shape.iter().map(|(zone, sub_zone, ..)| (zone, sub_zone)).collect();
            localities.dedup();
            prop_assert_eq!(localities.len(), shape.len());
            for (_, _, weight, endpoints) in &shape {
                let sum: u64 = endpoints.iter().map(|weight| u64::from(*weight)).sum();
                prop_assert!(*weight > 0 && endpoints.iter().all(|weight| *weight > 0));
                prop_assert_eq!(u64::from(*weight), sum);
            }
        }
    }

    #[test]
    fn large_weights_keep_their_proportion() {
        let (message, _) = assign(&snapshot([
            instance("a", "10.0.0.1:80").with_weight(3_000_000_000),
            instance("b", "10.0.0.2:80").with_weight(1_500_000_000),
            instance("c", "10.0.0.3:80").with_weight(1),
        ]));
        let weights: Vec<_> = shape(&message).into_iter().map(|(_, _, weight, _)| weight).collect();
        assert_eq!(weights, [1, 750_000_000, 1_500_000_000]);
    }
}
