//! The layouts of other ecosystems: byte-exact by recorded fixtures, and by the conformance suite for the features they
//! carry.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod fixture;
#[path = "support/harness.rs"]
mod harness;

use std::{
    collections::HashMap,
    future::ready,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    Deregistered, Election, Endpoint, Error, FencingToken, Health, Instance, InstanceId, LeaseId, Lock, LockMode,
    LockName, LockOptions, Migration, Namespace, OnDelete, Queues, RegisterOptions, RegistrationState, Registry,
    Resolver, ServiceName, ServiceRef, Side,
    backend::{QueueEntry, QueuePosition, queue_position},
};
use enlist_etcd::{
    ConfigLayout, Dubbo, Etcd, EtcdConcurrency, EtcdNaming, Fireflycore, FireflycoreByLease, GoKit, GoMicro, GoZero,
    Gobase, GobaseLock, KeyRange, Kitex, Kratos, Native, SessionRuntime,
    layout::{
        Decoded, Identity, Layout, LeaseScope, LockLayout, MAX_WRITTEN_BYTES, Part, QueueEntryValue, QueueKind, Skip,
        Writing,
    },
};
use enlist_testkit::{
    EtcdServer, LayoutFeature,
    cases::{Case, all},
    eventually, soon,
};
use fixture::{bytes, cases, text};
use harness::EtcdHarness;
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet};

const ETCD_CONCURRENCY: &str = include_str!("fixtures/etcd-concurrency.json");

/// Number of concurrent cases in this program, each with its own etcd.
static SIDE_BY_SIDE: Semaphore = Semaphore::const_new(20);

/// Runs the cases that need no more than `carries`, and prints the omitted ones.
async fn conform<F>(carries: &'static [LayoutFeature], wanted: impl Fn(&str) -> bool, harness: fn() -> F)
where
    F: Future<Output = EtcdHarness> + Send + 'static,
{
    let fits = |case: &Case<EtcdHarness>| case.needs.iter().all(|need| carries.contains(need));
    let (selected, left_out): (Vec<_>, Vec<_>) =
        all::<EtcdHarness>().into_iter().filter(|case| wanted(case.topic)).partition(fits);
    for case in &left_out {
        println!("left out: {} needs {:?}", case.name, case.needs);
    }
    println!("running {} cases, {} are left out", selected.len(), left_out.len());
    let mut running = JoinSet::new();
    let mut names = HashMap::new();
    for case in selected {
        let task = running.spawn(async move {
            let _permit = SIDE_BY_SIDE.acquire().await.unwrap();
            (case.run)(&harness().await).await;
        });
        names.insert(task.id(), case.name);
    }
    assert!(names.len() >= 20);
    let mut failed = Vec::new();
    while let Some(ended) = running.join_next_with_id().await {
        if let Err(error) = ended {
            failed.push(format!("{}: {error}", names[&error.id()]));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Runs the cases that a layout of instances can carry. Locks have separate layouts.
macro_rules! conforms {
    ($($test:ident: $layout:expr, carries $carries:expr;)+) => {
        $(#[tokio::test]
        async fn $test() {
            const CARRIES: &[LayoutFeature] = &$carries;
            let harness = || {
                EtcdHarness::over(
                    Namespace::default(),
                    CARRIES.to_vec(),
                    Arc::new($layout),
                    Arc::new(Native::default()),
                    // On the test's runtime: the pending requests of a cut client end with the test, not with the
                    // program.
                    |builder| builder.layout($layout).runtime(SessionRuntime::Caller),
                )
            };
            conform(CARRIES, |topic| !["lock", "election"].contains(&topic), harness).await;
        })+
    };
}

/// Layout that requires a protocol in each endpoint. The cases name none, so one is added on encoding and removed on
/// decoding.
#[derive(Debug)]
struct Speaking<L>(L);

fn with_protocol(instance: &Instance, protocol: Option<&str>) -> Instance {
    let endpoints: Vec<_> = instance
        .endpoints()
        .iter()
        .map(|endpoint| {
            let plain = Endpoint::new(endpoint.host(), endpoint.port()).unwrap();
            match protocol {
                Some(protocol) => plain.with_protocol(protocol).unwrap(),
                None => plain,
            }
        })
        .collect();
    let bare = Instance::new(instance.id().clone(), endpoints).unwrap().with_weight(instance.weight());
    let bare = bare.with_version(instance.version().unwrap_or_default()).with_zone(instance.zone().unwrap_or_default());
    let bare = bare.with_health(instance.health());
    instance.metadata().iter().fold(bare, |all, (key, value)| all.with_metadata(key, value))
}

impl<L: Layout> Layout for Speaking<L> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn carries(&self) -> &'static [Part] {
        self.0.carries()
    }

    fn default_weight(&self) -> u32 {
        self.0.default_weight()
    }

    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn lease_scope(&self) -> LeaseScope {
        self.0.lease_scope()
    }

    fn key(&self, service: &ServiceRef, id: &InstanceId, lease: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        self.0.key(service, id, lease)
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        self.0.service_range(service)
    }

    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange> {
        self.0.services_range(namespace)
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        self.0.instance_of(namespace, key)
    }

    fn encode(&self, service: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        self.0.encode(service, &with_protocol(instance, Some("grpc")), writing)
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        let decoded = self.0.decode(service, key, value)?;
        Ok(Decoded { instance: with_protocol(&decoded.instance, None), ..decoded })
    }
}

conforms! {
    kitex_keeps_the_promises_it_carries:
        Speaking(Kitex::default()), carries [LayoutFeature::Id, LayoutFeature::Services];
    kratos_keeps_the_promises_it_carries:
        Speaking(Kratos::default()), carries [LayoutFeature::Id, LayoutFeature::Weight, LayoutFeature::Services];
    fireflycore_keeps_the_promises_it_carries:
        Fireflycore::new("prod").unwrap(), carries [LayoutFeature::Id, LayoutFeature::Weight, LayoutFeature::Services];
    fireflycore_without_environment_keeps_the_promises_it_carries:
        Fireflycore::new("").unwrap(), carries [LayoutFeature::Id, LayoutFeature::Weight, LayoutFeature::Services];
    fireflycore_by_lease_keeps_the_promises_it_carries:
        FireflycoreByLease::new("prod").unwrap(), carries [LayoutFeature::Weight, LayoutFeature::Services];
    go_zero_keeps_the_promises_it_carries: GoZero, carries [];
    etcd_naming_keeps_the_promises_it_carries: EtcdNaming::default(), carries [LayoutFeature::Id];
    go_kit_keeps_the_promises_it_carries: GoKit::default(), carries [LayoutFeature::Id, LayoutFeature::Services];
    go_micro_keeps_the_promises_it_carries: GoMicro, carries [LayoutFeature::Id, LayoutFeature::Services];
    dubbo_keeps_the_promises_it_carries:
        Dubbo, carries [LayoutFeature::Id, LayoutFeature::Weight, LayoutFeature::Services];
    gobase_keeps_the_promises_it_carries:
        Gobase, carries [LayoutFeature::Id, LayoutFeature::Weight, LayoutFeature::Services];
}

/// A fleet moves from kitex's layout to the native one on one etcd: an instance written to both is visible in both,
/// with proportional weights.
#[tokio::test]
async fn a_migration_joins_two_layouts() {
    let server = EtcdServer::start().await;
    let native = Arc::new(Etcd::connect(server.url()).await.unwrap());
    let kitex = Arc::new(Etcd::builder([server.url()]).layout(Kitex::default()).connect().await.unwrap());
    let side = |etcd: &Arc<Etcd>| Side::new(Arc::clone(etcd)).default_weight(etcd.layout().default_weight());
    let both = Migration::new(side(&native)).and(side(&kitex));
    let service = ServiceRef::parse("s").unwrap();
    let instance = |id: &str, port: u16| {
        let endpoint = Endpoint::new("10.0.0.1", port).unwrap().with_protocol("tcp").unwrap();
        Instance::new(InstanceId::parse(id).unwrap(), [endpoint]).unwrap()
    };
    let weights = async |resolver: &dyn Resolver| -> Vec<(String, u32)> {
        let snapshot = soon("resolved", resolver.resolve(&service)).await.unwrap();
        snapshot.entries().map(|entry| (entry.instance().id().to_string(), entry.instance().weight())).collect()
    };
    let moved =
        soon("registered", both.register(&service, instance("moved", 1), RegisterOptions::new())).await.unwrap();
    let old = instance("old", 2).with_weight(20);
    let _old = soon("registered", kitex.register(&service, old, RegisterOptions::new())).await.unwrap();
    assert_eq!(weights(&*kitex).await, [("moved".into(), 10), ("old".into(), 20)]);
    assert_eq!(weights(&*native).await, [("moved".into(), 100)]);
    assert_eq!(weights(&both).await, [("moved".into(), 100), ("old".into(), 200)]);
    soon("updated", moved.update(|update| _ = update.weight(50))).await.unwrap();
    assert_eq!(weights(&*kitex).await[0], ("moved".into(), 5));
    // kitex has no zones, so the instance is registered on neither side.
    let refused = both.register(&service, instance("zoned", 3).with_zone("z"), RegisterOptions::new()).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    soon("deregistered", moved.deregister()).await.unwrap();
    eventually("only the old one is left", || async {
        let left = weights(&both).await;
        if left == [("old".into(), 200)] { Ok(()) } else { Err(left) }
    })
    .await;
}

/// A layout lists what its keys identify. A namespace in front of all other parts of a key cannot be listed.
#[tokio::test]
async fn namespaces_are_listed_where_keys_identify_them() {
    let server = EtcdServer::start().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let unsupported = |error: Option<Error>| matches!(error, Some(Error::Unsupported { .. }));
    let default = Namespace::default();

    let kitex = Etcd::builder([server.url()]).layout(Kitex::default()).connect().await.unwrap();
    assert_eq!(kitex.namespaces().await.unwrap(), []);
    // No instance has such a key.
    raw.put("kitex/registry-etcd/stray", "", None).await.unwrap();
    assert_eq!(kitex.namespaces().await.unwrap(), []);
    let key = kitex.layout().key(&ServiceRef::parse("s").unwrap(), &InstanceId::parse("h:1").unwrap(), None).unwrap();
    raw.put(key, "no instance", None).await.unwrap();
    assert_eq!(kitex.namespaces().await.unwrap(), std::slice::from_ref(&default));
    // A value that cannot be decoded counts, in the read and in the watch.
    let names = kitex.services(&default).await.unwrap();
    let watched = kitex.watch_services(&default).await.unwrap().next().await.unwrap();
    assert_eq!(names.iter().map(ServiceName::as_str).collect::<Vec<_>>(), ["s"]);
    assert_eq!(watched.added, names);
    let elsewhere = Namespace::parse("elsewhere").unwrap();
    assert!(unsupported(kitex.watch_services(&elsewhere).await.err()), "kitex has no namespaces");

    let builder = || Etcd::builder([server.url()]);
    for unlisted in [builder().layout(GoZero), builder().layout(EtcdNaming::default())] {
        let client = unlisted.connect().await.unwrap();
        assert!(unsupported(client.watch_services(&default).await.err()), "{client:?}");
        assert!(unsupported(client.namespaces().await.err()), "{client:?}");
    }
    for listed in [builder().layout(Gobase), builder().layout(Fireflycore::new("prod").unwrap())] {
        let client = listed.connect().await.unwrap();
        assert!(client.watch_services(&default).await.is_ok(), "{client:?}");
        assert!(unsupported(client.namespaces().await.err()), "{client:?}");
    }
}

/// Foreign keys and many instances of a namespace are passed over in pages.
#[tokio::test]
async fn namespaces_are_found_between_other_keys() {
    let server = EtcdServer::start().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let mut expected = Vec::new();
    for number in 0..40 {
        raw.put(format!("enlist/services/foreign-{number:02}"), "", None).await.unwrap();
        raw.put(format!("enlist/services/n-{number:02}/no-instance"), "", None).await.unwrap();
        if number % 2 == 0 {
            for instance in 0..40 {
                raw.put(format!("enlist/services/n-{number:02}/s/{instance}"), "", None).await.unwrap();
            }
            expected.push(Namespace::parse(format!("n-{number:02}")).unwrap());
        }
    }
    raw.put("enlist/services0/other", "", None).await.unwrap();
    assert_eq!(etcd.namespaces().await.unwrap(), expected);
}

/// go-kit and gobase return the stored values of their users unchanged.
#[tokio::test]
async fn what_is_no_instance_is_reachable_as_text() {
    let server = EtcdServer::start().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    for (key, value) in [
        ("/services/foosvc/a", r#"{"any":"thing"}"#),
        ("/services/foosvc/b", "10.0.0.1:80"),
        ("/services/foosvc/v2/c", "deeper"),
        ("/services/foosvc2/d", "another's"),
        ("/default/user/e", r#""{\"name\":\"x\"}""#),
        ("/default/user/f", "plain"),
    ] {
        raw.put(key, value, None).await.unwrap();
    }
    raw.put("/services/foosvc/g", [0xff], None).await.unwrap();
    let texts = async |etcd: Etcd, service: &str| {
        let found = etcd.payloads(&ServiceRef::parse(service).unwrap()).await.unwrap();
        found.into_iter().map(|payload| (payload.key, payload.text)).collect::<Vec<_>>()
    };
    let pair = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    let kit = Etcd::builder([server.url()]).layout(GoKit::default()).connect().await.unwrap();
    assert_eq!(
        texts(kit, "foosvc").await,
        [pair("/services/foosvc/a", r#"{"any":"thing"}"#), pair("/services/foosvc/b", "10.0.0.1:80")]
    );
    let gobase = Etcd::builder([server.url()]).layout(Gobase).connect().await.unwrap();
    assert_eq!(
        texts(gobase, "user").await,
        [pair("/default/user/e", r#"{"name":"x"}"#), pair("/default/user/f", "plain")]
    );
}

/// An eviction requires neither a lease nor a decodable value. Where keys are numbered by lease, the number is the id.
#[tokio::test]
async fn every_listed_key_can_be_evicted() {
    let server = EtcdServer::start().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let service = ServiceRef::parse("s").unwrap();
    let kitex = Etcd::builder([server.url()]).layout(Kitex::default()).connect().await.unwrap();
    let id = InstanceId::parse("a").unwrap();
    raw.put(kitex.layout().key(&service, &id, None).unwrap(), "no instance", None).await.unwrap();
    let refused = kitex.remove(&service, &id).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    let evicted = kitex.evict(&service, &id, None).await.unwrap();
    assert_eq!((evicted.entry, evicted.lease), (None, None));
    let gone = kitex.evict(&service, &id, None).await;
    assert!(matches!(gone, Err(Error::NotRegistered { .. })), "{gone:?}");

    let zero = Etcd::builder([server.url()]).layout(GoZero).connect().await.unwrap();
    let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let registration = soon("registered", zero.register(&service, instance, RegisterOptions::new())).await.unwrap();
    let listed = zero.resolve(&service).await.unwrap();
    let entry = listed.entries().next().unwrap();
    let evicted = zero.evict(&service, entry.instance().id(), Some(entry.modified())).await.unwrap();
    assert_eq!(evicted.entry.as_ref(), Some(&**entry));
    assert_eq!(evicted.lease.map(|lease| lease.get().to_string()).as_deref(), Some(entry.instance().id().as_str()));
    eventually("it is back", || async {
        let found = zero.resolve(&service).await.unwrap();
        if found.entries().any(|entry| entry.created() > evicted.removed) { Ok(()) } else { Err(found) }
    })
    .await;
    soon("deregistered", registration.deregister()).await.unwrap();
}

/// An update that the layout cannot hold is refused at once, and does not affect the restoration of the instance.
#[tokio::test]
async fn an_update_beyond_the_layout_is_refused() {
    let server = EtcdServer::start().await;
    let etcd = Etcd::builder([server.url()]).layout(EtcdNaming::default()).connect().await.unwrap();
    let (service, endpoint) = (ServiceRef::parse("s").unwrap(), Endpoint::parse("10.0.0.1:80").unwrap());
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint]).unwrap();
    let registration = etcd.register(&service, instance.clone(), RegisterOptions::new()).await.unwrap();
    let refused = soon("refused", registration.update(|update| _ = update.weight(7))).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(*registration.instance(), instance);
    let update = registration.update(|update| _ = update.metadata("k", "v"));
    soon("stored", update).await.unwrap();
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    assert_eq!(raw.delete("s/a", None).await.unwrap().deleted(), 1);
    eventually("it is back, with what it could carry", || async {
        let found = etcd.resolve(&service).await.unwrap();
        let back = found.get(instance.id()).is_some_and(|entry| entry.instance().metadata().contains_key("k"));
        if back { Ok(()) } else { Err(found) }
    })
    .await;
}

/// In a layout without health a failing check removes the key, and a passing one creates it again under the same lease.
#[tokio::test]
async fn failing_checks_withdraw_instances_without_health_field() {
    let server = EtcdServer::start().await;
    let etcd = Etcd::builder([server.url()]).layout(EtcdNaming::default()).connect().await.unwrap();
    let (service, endpoint) = (ServiceRef::parse("s").unwrap(), Endpoint::parse("10.0.0.1:80").unwrap());
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint]).unwrap();
    // The withdrawal by the registration itself is no eviction.
    let options = RegisterOptions::new().on_delete(OnDelete::Respect);
    let registration = etcd.register(&service, instance, options).await.unwrap();
    let raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let stored = async || raw.clone().get("s/a", None).await.unwrap().take_kvs().pop();
    let before = stored().await.unwrap();
    let healthy = Arc::new(AtomicBool::new(false));
    let check = {
        let healthy = Arc::clone(&healthy);
        move || ready(if healthy.load(Ordering::SeqCst) { Health::Serving } else { Health::NotServing })
    };
    registration.health_check(Duration::from_millis(50), check).unwrap();
    let withdrawn = async || {
        eventually("it is withdrawn", || async {
            match registration.state() {
                RegistrationState::Withdrawn => Ok(()),
                state => Err(state),
            }
        })
        .await;
        assert!(stored().await.is_none());
    };
    withdrawn().await;
    // An update during the withdrawal is stored when the instance is published again.
    let mut update = pin!(registration.update(|update| _ = update.metadata("k", "v")));
    assert!(futures::poll!(&mut update).is_pending());
    healthy.store(true, Ordering::SeqCst);
    let revision = soon("stored", update).await.unwrap();
    let after = stored().await.unwrap();
    assert!(after.value_str().unwrap().contains(r#""k":"v""#), "{after:?}");
    assert_eq!((after.lease(), after.mod_revision().unsigned_abs()), (before.lease(), revision.get()));
    assert!(after.create_revision() > before.create_revision());
    healthy.store(false, Ordering::SeqCst);
    withdrawn().await;
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert!(stored().await.is_none());
}

/// The largest accepted value is stored, changed, and stored again after its lease was lost.
#[tokio::test]
async fn the_largest_accepted_value_can_be_stored() {
    let server = EtcdServer::start().await;
    let etcd = Etcd::builder([server.url()]).layout(Kitex::default()).connect().await.unwrap();
    let service = ServiceRef::parse("s").unwrap();
    // Six bytes each, in kitex' JSON. The id has the maximum length of a key.
    let id = InstanceId::parse("i".repeat(255)).unwrap();
    let instance = |count: usize| {
        let endpoint = Endpoint::parse("tcp://10.0.0.1:80").unwrap();
        Instance::new(id.clone(), [endpoint]).unwrap().with_weight(10).with_metadata("k", "<".repeat(count))
    };
    let most = (MAX_WRITTEN_BYTES / 6 - 100..MAX_WRITTEN_BYTES / 6)
        .rev()
        .find(|count| etcd.layout().accepts(&service, &instance(*count), None).is_ok());
    let most = most.unwrap();
    let refused = soon("refused", etcd.register(&service, instance(most + 1), RegisterOptions::new())).await;
    assert!(matches!(refused.err(), Some(Error::TooLarge { limit: MAX_WRITTEN_BYTES, .. })));
    let registration =
        soon("registered", etcd.register(&service, instance(most), RegisterOptions::new())).await.unwrap();
    let stored = soon("stored", registration.update(|update| _ = update.weight(11))).await.unwrap();
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let lease = raw.leases().await.unwrap().leases()[0].id();
    raw.lease_revoke(lease).await.unwrap();
    eventually("it is stored again", || async {
        let snapshot = etcd.resolve(&service).await.map_err(|error| error.to_string())?;
        let entry = snapshot.entries().next().filter(|entry| entry.created() > stored);
        entry.map(|_| ()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
}

#[tokio::test]
async fn etcd_concurrency_keeps_the_promises_it_carries() {
    let harness = || {
        let lacks = [LayoutFeature::LockDetails, LayoutFeature::Semaphores];
        let carries = LayoutFeature::ALL.into_iter().filter(|carried| !lacks.contains(carried)).collect();
        EtcdHarness::over(
            Namespace::default(),
            carries,
            Arc::new(Native::default()),
            Arc::new(EtcdConcurrency),
            |builder| builder.lock_layout(EtcdConcurrency).runtime(SessionRuntime::Caller),
        )
    };
    let carries = &[LayoutFeature::Id, LayoutFeature::Locks, LayoutFeature::LockQueue];
    conform(carries, |topic| ["lock", "election"].contains(&topic), harness).await;
}

#[tokio::test]
async fn the_gobase_lock_keeps_the_promises_it_carries() {
    let harness = || {
        let lacks = [LayoutFeature::LockDetails, LayoutFeature::LockQueue, LayoutFeature::Semaphores];
        let carries = LayoutFeature::ALL.into_iter().filter(|carried| !lacks.contains(carried)).collect();
        EtcdHarness::over(Namespace::default(), carries, Arc::new(Native::default()), Arc::new(GobaseLock), |builder| {
            builder.lock_layout(GobaseLock).runtime(SessionRuntime::Caller)
        })
    };
    conform(&[LayoutFeature::Id, LayoutFeature::Locks], |topic| topic == "lock", harness).await;
}

#[tokio::test]
async fn plain_configuration_keeps_the_promises_it_carries() {
    let harness = || {
        let (carries, native) = (LayoutFeature::ALL.to_vec(), Arc::new(Native::default()));
        EtcdHarness::over(Namespace::default(), carries, native.clone(), native, |builder| {
            builder.config_layout(ConfigLayout::plain("/conformance")).runtime(SessionRuntime::Caller)
        })
    };
    conform(&[LayoutFeature::Config], |topic| topic == "config", harness).await;
}

/// An option that gobase does not have is refused before a request is sent.
#[tokio::test]
async fn the_gobase_lock_refuses_what_it_cannot_carry() {
    let builder = Etcd::builder(["http://127.0.0.1:9"]).lock_layout(GobaseLock).runtime(SessionRuntime::Caller);
    let etcd = builder.build().unwrap();
    let name = LockName::parse("l").unwrap();
    let refused = [
        etcd.acquire(&name, LockOptions::new().shared()).await.err(),
        etcd.acquire(&name, LockOptions::new().lock_delay(Duration::from_secs(1))).await.err(),
        etcd.acquire(&name.clone().within(Namespace::parse("team").unwrap()), LockOptions::new()).await.err(),
        etcd.campaign(&name, "me", LockOptions::new()).await.err(),
        etcd.leader(&name).await.err(),
        etcd.observe(&name).await.err(),
        etcd.lock_queues(&Namespace::default()).await.err(),
        etcd.election_queues(&Namespace::default()).await.err(),
        etcd.election_queue(&name).await.err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(Error::Unsupported { .. })), "{error:?}");
    }
}

fn kind_of(kind: &Value) -> QueueKind {
    if kind == "election" { QueueKind::Election } else { QueueKind::Lock }
}

#[test]
fn etcd_concurrency_writes_the_bytes_that_etcd_writes() {
    let fixture: Value = serde_json::from_str(ETCD_CONCURRENCY).unwrap();
    for case in cases(&fixture, "write") {
        let name = LockName::parse(text(case, "lock_name")).unwrap();
        let lease = LeaseId::new(text(case, "lease_id").parse().unwrap());
        let key = EtcdConcurrency.entry(kind_of(&case["kind"]), &name, lease, 7).unwrap();
        assert_eq!(key, text(case, "key").as_bytes());
        let value_text = case["value_utf8"].as_str().unwrap_or_default().to_owned();
        let value = QueueEntryValue { mode: LockMode::Exclusive, text: value_text };
        assert_eq!(EtcdConcurrency.encode(kind_of(&case["kind"]), &value), bytes(case), "{}", text(case, "name"));
    }
}

#[test]
fn etcd_concurrency_decodes_recorded_queues() {
    let fixture: Value = serde_json::from_str(ETCD_CONCURRENCY).unwrap();
    for case in cases(&fixture, "read") {
        let (name, kind) = (LockName::parse(text(case, "lock_name")).unwrap(), kind_of(&case["kind"]));
        let keys = case["keys"].as_array().unwrap();
        let entries: Vec<(&Value, QueueEntry, String)> = keys
            .iter()
            .filter_map(|key| {
                let value = EtcdConcurrency.decode(kind, &name, text(key, "key").as_bytes(), &bytes(key))?;
                let token = FencingToken::new(key["create_revision"].as_u64().unwrap());
                Some((key, QueueEntry { token, mode: value.mode }, value.text))
            })
            .collect();
        let by_token =
            |token| entries.iter().find(|(_, entry, _)| entry.token == token).map(|(key, _, _)| text(key, "key"));
        let (mut holder, mut waits) = (None, HashMap::new());
        for (key, entry, value_text) in &entries {
            match queue_position(entries.iter().map(|(_, entry, _)| *entry), entry.token) {
                QueuePosition::Holder => holder = Some((text(key, "key"), entry.token.get(), value_text.as_str())),
                QueuePosition::Behind(other) => {
                    waits.insert(text(key, "key"), by_token(other).unwrap());
                }
                QueuePosition::Absent => panic!("{key} is in the queue"),
            }
        }
        let expect = &case["expect"];
        let expectation = |field: &str| expect[field].as_str();
        assert_eq!(holder.map(|(key, _, _)| key), expectation("holder"), "{}", text(case, "name"));
        assert_eq!(holder.map(|(_, token, _)| token), expect["fencing_token"].as_u64());
        if let Some((_, _, value_text)) = holder {
            assert_eq!(Some(value_text), expectation("value"));
        }
        let expected = expect["waits_for"].as_object().cloned().unwrap_or_default();
        assert_eq!(waits.len(), expected.len(), "{}", text(case, "name"));
        for (contender, before) in expected {
            assert_eq!(waits.get(contender.as_str()).copied(), before.as_str());
        }
    }
}
