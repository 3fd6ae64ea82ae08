// Fuzz targets: every decoder of keys and values, by name. `fuzz/` runs them with libFuzzer, `tests/fuzzed.rs` for a
// bounded time on the stable toolchain.

use enlist::{Endpoint, Health, Instance, InstanceId, LeaseId, LockName, Namespace, ServiceName, ServiceRef};
use enlist_etcd::{
    Dubbo, EtcdConcurrency, EtcdNaming, Fireflycore, FireflycoreByLease, GoKit, GoMicro, GoZero, Gobase, Kitex, Kratos,
    Native,
    layout::{Identity, Layout, LockLayout, QueueKind, Skip, Writing},
};

/// Name of each target, with the namespace and the service of its fixture.
pub(crate) const TARGETS: &[(&str, &str, &str)] = &[
    ("native", "default", "s"),
    ("etcd-naming", "default", "foo/bar/my-service"),
    ("kitex", "default", "echo"),
    ("kratos", "default", "helloworld"),
    ("go-kit", "default", "foosvc"),
    ("go-micro", "default", "greeter"),
    ("go-zero", "default", "user.rpc"),
    ("dubbo-application", "default", "greet-app"),
    ("gobase", "prod", "user"),
    ("fireflycore-v0.3.1", "default", "auth"),
    ("fireflycore-v0.2.9", "firefly", "auth"),
    ("etcd-concurrency", "default", "l"),
    ("native-locks", "default", "l"),
    ("names", "default", "s"),
];

fn layout(target: &str) -> Option<Box<dyn Layout>> {
    Some(match target {
        "native" => Box::new(Native::default()),
        "etcd-naming" => Box::new(EtcdNaming::default()),
        "kitex" => Box::new(Kitex::default()),
        "kratos" => Box::new(Kratos::default()),
        "go-kit" => Box::new(GoKit::default()),
        "go-micro" => Box::new(GoMicro),
        "go-zero" => Box::new(GoZero),
        "dubbo-application" => Box::new(Dubbo),
        "gobase" => Box::new(Gobase),
        "fireflycore-v0.3.1" => Box::new(Fireflycore::new("prod").ok()?),
        "fireflycore-v0.2.9" => Box::new(FireflycoreByLease::new("prod").ok()?),
        _ => return None,
    })
}

/// Returns the layout with options that make it decode more values.
fn with_options(target: &str) -> Option<Box<dyn Layout>> {
    (target == "etcd-naming").then(|| Box::new(EtcdNaming::default().typed_metadata().default_port(80)) as _)
}

fn service(namespace: &str, name: &str) -> Option<ServiceRef> {
    Some(ServiceRef::new(Namespace::parse(namespace).ok()?, ServiceName::parse(name).ok()?))
}

/// Runs a target on `data`: a byte with the length of the key's suffix, that suffix, the value. Returns `true` if the
/// input was decoded.
pub(crate) fn run(target: &str, data: &[u8]) -> bool {
    let Some((_, namespace, name)) = TARGETS.iter().find(|(known, _, _)| *known == target) else {
        panic!("no target {target}");
    };
    let Some((&split, rest)) = data.split_first() else { return false };
    let (tail, value) = rest.split_at(usize::from(split).min(rest.len()));
    match target {
        "etcd-concurrency" => locks(&EtcdConcurrency, tail, value),
        "native-locks" => locks(&Native::default(), tail, value),
        "names" => names(value),
        _ => {
            let (Some(layout), Some(service)) = (layout(target), service(namespace, name)) else {
                panic!("{target} is a layout");
            };
            let with_options = with_options(target).is_some_and(|layout| instances(&*layout, &service, tail, value));
            instances(&*layout, &service, tail, value) || with_options
        }
    }
}

fn instances(layout: &dyn Layout, service: &ServiceRef, tail: &[u8], value: &[u8]) -> bool {
    let range = layout.service_range(service).expect("a name that it carries");
    let key = [range.bounds().0, tail].concat();
    let named = layout.service_of(service.namespace(), &key);
    let _ = layout.instance_of(service.namespace(), &key);
    let read = layout.decode(service, &key, value);
    // The previous value does not affect the result.
    assert_eq!(layout.decode_like(&another(), service, &key, value), read, "{}", layout.name());
    let Ok(read) = read else { return false };
    assert_eq!(named.as_ref(), Some(service.name()), "{}", layout.name());
    // No other service contains the key.
    for other in ["t", "s2", "foosvc2", "auth2", "helloworld2", "a/b"] {
        let other = ServiceRef::new(service.namespace().clone(), ServiceName::parse(other).expect("a name"));
        if layout.service_range(&other).is_ok() {
            assert_eq!(layout.decode(&other, &key, value), Err(Skip::Foreign), "{}: {other}", layout.name());
        }
    }
    // An instance that can be encoded again is decoded without a difference.
    let writing = Writing { owner: read.owner.as_deref(), lease: Some(LeaseId::new(7)), ..Writing::default() };
    let (Ok(key), Ok(value)) = (
        layout.key(service, read.instance.id(), Some(LeaseId::new(7))),
        layout.encode(service, &read.instance, &writing),
    ) else {
        return true;
    };
    let again = layout.decode(service, &key, &value).expect("what is written is read");
    let comparable = |instance: &Instance| {
        let endpoints: Vec<String> =
            instance.endpoints().iter().map(|endpoint| endpoint.authority().to_owned()).collect();
        let id = (layout.identity() == Identity::Id).then(|| instance.id().clone());
        (id, endpoints, instance.weight(), instance.version().map(str::to_owned), instance.metadata().clone())
    };
    assert_eq!(comparable(&again.instance), comparable(&read.instance), "{}", layout.name());
    true
}

/// Returns an instance with every field set.
fn another() -> Instance {
    let (id, endpoint) = (InstanceId::parse("another"), Endpoint::parse("grpc://h:1"));
    let instance = Instance::new(id.expect("a name"), [endpoint.expect("an address")]).expect("an endpoint");
    let instance = instance.with_weight(7).with_health(Health::Draining).with_version("1").with_zone("z");
    instance.with_metadata("a", "1").with_metadata("b", "2")
}

fn locks(layout: &dyn LockLayout, tail: &[u8], value: &[u8]) -> bool {
    let name = LockName::parse("l").expect("a name");
    let mut read = false;
    for kind in [QueueKind::Lock, QueueKind::Election] {
        let range = layout.queue(kind, &name).expect("a name that it carries");
        let key = [range.bounds().0, tail].concat();
        let Some(entry) = layout.decode(kind, &name, &key, value) else { continue };
        read = true;
        let written = layout.encode(kind, &entry);
        assert!(layout.decode(kind, &name, &key, &written).is_some(), "what is written is read");
        let other = LockName::parse("l2").expect("a name");
        assert_eq!(layout.decode(kind, &other, &key, value), None, "it is in no other queue");
    }
    read
}

fn names(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let (name, endpoint) = (ServiceName::parse(text), Endpoint::parse(text));
    if let Ok(endpoint) = &endpoint {
        assert_eq!(Endpoint::parse(endpoint.to_string()).ok().as_ref(), Some(endpoint));
    }
    name.is_ok() || endpoint.is_ok()
}
