//! Two versions of the format of stored values on one etcd: the former one without a `term`, recorded from its
//! programs, and the present one. `docs/upgrading.md` states the guarantees while both run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use enlist::{
    Deregistered, Election, Endpoint, Error, Instance, InstanceId, LeaseChoice, Lock, LockOptions, Moment, Owner,
    RegisterOptions, Registration, RegistrationState, Registry, Resolver, Revision, Semaphore, SemaphoreOptions,
    ServiceRef,
};
use enlist_etcd::Etcd;
use enlist_testkit::{BackgroundTask, EtcdServer, eventually, soon};
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Permission, PutOptions, Txn, TxnOp};
use serde::Deserialize;
use serde_json::Value;
use support::{PREFIX, TTL, enable_authentication, instance, lock_name, options, raw, register_with, server, service};

/// Returns the recorded key and value; `kind` is `instances` or `entries`.
fn recorded(kind: &str, name: &str) -> (String, String) {
    let all: Value = serde_json::from_str(include_str!("fixtures/native-before-term.json")).unwrap();
    let text = |field: &str| all[kind][name][field].as_str().unwrap().to_owned();
    (text("key"), text("value"))
}

/// The fields of an instance, decoded by the rules of the former version: unknown ones are ignored, absent ones have
/// their defaults.
#[derive(Debug, Deserialize, PartialEq)]
struct Formerly {
    v: u64,
    id: String,
    endpoints: Vec<String>,
    weight: u32,
    version: Option<String>,
    zone: Option<String>,
    health: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    owner: Option<String>,
}

impl Formerly {
    /// Returns the value of this instance in the former version.
    fn of(instance: &Instance, owner: Option<&str>) -> Self {
        Self {
            v: 1,
            id: instance.id().to_string(),
            endpoints: instance.endpoints().iter().map(ToString::to_string).collect(),
            weight: instance.weight(),
            version: instance.version().map(str::to_owned),
            zone: instance.zone().map(str::to_owned),
            health: instance.health().as_str().to_owned(),
            metadata: instance.metadata().clone(),
            owner: owner.map(str::to_owned),
        }
    }
}

/// A program of the former version: its stored values, under a lease that is renewed.
struct Former {
    raw: etcd_client::Client,
    lease: i64,
    _renewed: (Etcd, Registration),
}

impl Former {
    async fn start(server: &EtcdServer) -> Self {
        let etcd = Etcd::connect(server.url()).await.unwrap();
        let id = format!("{:08x}", fastrand::u32(..));
        let (own, apart) = (options().lease(LeaseChoice::Own), ServiceRef::parse("apart").unwrap());
        let registration = soon("registered", etcd.register(&apart, instance(&id), own)).await.unwrap();
        let mut raw = raw(server).await;
        let lease = only(&mut raw, &format!("enlist/services/default/apart/{id}")).await.lease();
        Self { raw, lease, _renewed: (etcd, registration) }
    }

    /// Stores a recorded value, and returns its key.
    async fn store(&mut self, kind: &str, name: &str) -> String {
        let (key, value) = recorded(kind, name);
        let key = key.replace("{lease}", &format!("{:016x}", self.lease));
        let lease = if name == "fixed" { 0 } else { self.lease };
        self.raw.put(key.as_str(), value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
        key
    }

    /// Replaces an instance of the same owner, as the former version does: with its own fields, followed by those
    /// unknown to it.
    async fn replace(&mut self, name: &str) {
        let (key, value) = recorded("instances", name);
        let found = only(&mut self.raw, &key).await;
        let term: Value = serde_json::from_slice(found.value()).unwrap();
        let value = format!("{},\"term\":{}}}", value.strip_suffix('}').unwrap(), term["term"]);
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, found.mod_revision());
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease)));
        assert!(self.raw.txn(Txn::new().when([unchanged]).and_then([put])).await.unwrap().succeeded());
    }

    async fn leave(&mut self, key: &str) {
        self.raw.delete(key, None).await.unwrap();
    }
}

async fn under(raw: &mut etcd_client::Client, prefix: &str) -> Vec<KeyValue> {
    raw.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap().take_kvs()
}

async fn only(raw: &mut etcd_client::Client, prefix: &str) -> KeyValue {
    let mut found = under(raw, prefix).await;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn term(record: &KeyValue) -> Option<u64> {
    let value: Value = serde_json::from_slice(record.value()).unwrap();
    value["term"].as_u64()
}

/// Returns the recorded instance `leased`, under another id.
fn alike(id: &str) -> Instance {
    let endpoints = ["grpc://10.0.0.1:8080", "unix:///run/a"].map(|endpoint| Endpoint::parse(endpoint).unwrap());
    let instance = Instance::new(InstanceId::parse(id).unwrap(), endpoints).unwrap();
    instance.with_weight(7).with_version("1.4.2").with_zone("eu-1a").with_metadata("team", "blue")
}

async fn in_state(registration: &Registration, what: &str, fits: impl Fn(&RegistrationState) -> bool) {
    eventually(what, || async {
        let state = registration.state();
        if fits(&state) { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test]
async fn instances_of_both_versions_are_read_by_both() {
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    for name in ["leased", "plain", "fixed"] {
        former.store("instances", name).await;
    }
    let with_owner = options().owner("blue");
    let _present = soon("registered", etcd.register(&service(), alike("present"), with_owner)).await.unwrap();
    etcd.publish(&service(), instance("kept")).await.unwrap();

    let read = etcd.resolve(&service()).await.unwrap();
    let ids: Vec<_> = read.entries().map(|entry| entry.instance().id().as_str()).collect();
    assert_eq!(ids, ["fixed", "kept", "leased", "plain", "present"]);
    assert_eq!(*read.get(alike("leased").id()).unwrap().instance(), alike("leased"));
    for record in under(&mut former.raw, PREFIX).await {
        let formerly: Formerly = serde_json::from_slice(record.value()).unwrap();
        let present = read.get(&InstanceId::parse(&formerly.id).unwrap()).unwrap();
        let owner = ["leased", "present"].contains(&formerly.id.as_str()).then_some("blue");
        assert_eq!(formerly, Formerly::of(present.instance(), owner));
    }

    // The bytes are the same except for the term.
    let stored = only(&mut former.raw, &format!("{PREFIX}present")).await;
    let value = String::from_utf8(stored.value().to_vec()).unwrap();
    let (value, term) = value.rsplit_once(",\"term\":").unwrap();
    assert!(term.strip_suffix('}').unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(format!("{value}}}").replace("present", "leased"), recorded("instances", "leased").1);
}

#[tokio::test]
async fn fixed_instances_of_former_versions_are_replaced() {
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    let key = former.store("instances", "fixed").await;
    etcd.publish(&service(), instance("fixed").with_weight(7)).await.unwrap();
    let stored = only(&mut former.raw, &key).await;
    assert_eq!((term(&stored), stored.lease(), stored.version()), (None, 0, 2), "one write, without a term or a lease");
    former.store("instances", "fixed").await;
    etcd.remove(&service(), instance("fixed").id()).await.unwrap();
    assert!(under(&mut former.raw, &key).await.is_empty());
}

#[tokio::test]
async fn a_live_former_instance_is_kept_from_others() {
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    former.store("instances", "leased").await;
    let refused = soon("refused", etcd.register(&service(), alike("leased"), options().owner("green"))).await;
    assert!(
        matches!(&refused, Err(Error::AlreadyRegistered { owner: Owner::Other, .. })),
        "it is registered by another owner: {refused:?}"
    );
}

#[tokio::test]
async fn a_leftover_of_former_versions_is_taken_over() {
    let server = server().await;
    let (mut raw, etcd) = (raw(&server).await, Etcd::connect(server.url()).await.unwrap());
    let lease = raw.lease_grant(60, None).await.unwrap().id();
    let (key, value) = recorded("instances", "leased");
    raw.put(key.as_str(), value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
    // The same owner takes over at once, in the order of the terms; a value without a term counts as zero.
    let successor = register_with(&etcd, "leased", RegisterOptions::new().owner("blue")).await;
    let stored = only(&mut raw, &key).await;
    assert!(stored.version() == 2 && stored.lease() != lease && term(&stored) > Some(0), "{stored:?}");
    assert_eq!(successor.deregister().await.unwrap(), Deregistered::Removed);
}

/// A program of the former version replaces any value of its owner, repeatedly, and preserves the unknown term. A
/// present one recognizes its own term in a foreign value, and yields, so that the two do not overwrite each other for
/// ever.
#[tokio::test]
async fn a_live_former_registration_of_one_owner_stands() {
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    let key = former.store("instances", "leased").await;
    let present = register_with(&etcd, "leased", RegisterOptions::new().owner("blue")).await;
    let drawn = term(&only(&mut former.raw, &key).await);
    assert!(drawn > Some(0), "it took the key over at once: {drawn:?}");

    former.replace("leased").await;
    in_state(&present, "it gives way", |state| matches!(state, RegistrationState::Superseded { .. })).await;
    assert!(matches!(present.update(|update| _ = update.weight(1)).await, Err(Error::NotOwner { .. })));
    former.replace("leased").await;
    let stored = only(&mut former.raw, &key).await;
    assert_eq!((stored.version(), stored.lease()), (4, former.lease), "nobody else has written since it gave way");

    let before = Revision::new(u64::try_from(stored.mod_revision()).unwrap());
    former.leave(&key).await;
    let back =
        |state: &RegistrationState| matches!(state, RegistrationState::Registered { revision } if *revision > before);
    in_state(&present, "it is back", back).await;
    assert_eq!(term(&only(&mut former.raw, &key).await), drawn, "it keeps its term");

    // A restarted program of the former version takes over in the same way.
    former.replace("leased").await;
    in_state(&present, "it gives way again", |state| matches!(state, RegistrationState::Superseded { .. })).await;
    assert_eq!(present.deregister().await.unwrap(), Deregistered::AlreadyGone);
    assert_eq!(only(&mut former.raw, &key).await.lease(), former.lease, "its key is left alone");
}

fn short() -> LockOptions {
    LockOptions::new().ttl(TTL)
}

/// Waits for `count` entries in a queue, and returns them, oldest first.
async fn queue(raw: &mut etcd_client::Client, prefix: &str, count: usize) -> Vec<KeyValue> {
    let mut entries = eventually(&format!("{count} in the queue"), || {
        let mut raw = raw.clone();
        async move {
            let entries = under(&mut raw, prefix).await;
            if entries.len() == count { Ok(entries) } else { Err(entries.len()) }
        }
    })
    .await;
    entries.sort_by_key(KeyValue::create_revision);
    entries
}

/// Returns the value of an entry without the name of its process, after a check that the key has the former version's
/// format.
fn entry(record: &KeyValue) -> String {
    let (_, suffix) = record.key_str().unwrap().rsplit_once('/').unwrap();
    let (lease, number) = suffix.split_once('-').unwrap();
    assert!(lease == format!("{:016x}", record.lease()) && number.len() == 16, "{suffix}");
    let value = record.value_str().unwrap();
    match value.split_once("\"holder\":\"") {
        Some((before, _)) => format!("{before}\"holder\":\"\"}}"),
        None => value.to_owned(),
    }
}

#[tokio::test]
async fn locks_of_both_versions_exclude_each_other() {
    const QUEUE: &str = "enlist/locks/default/l/";
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    let held = former.store("entries", "exclusive").await;
    assert!(soon("tried", etcd.try_acquire(&lock_name(), short())).await.unwrap().is_none());
    assert!(soon("tried", etcd.try_acquire(&lock_name(), short().shared())).await.unwrap().is_none());
    let mut waiting = BackgroundTask::run({
        let etcd = etcd.clone();
        async move { etcd.acquire(&lock_name(), short().lock_delay(TTL)).await.unwrap() }
    });
    let entries = queue(&mut former.raw, QUEUE, 2).await;
    assert_eq!(entry(&entries[1]), entry(&entries[0]), "the former version reads it as one of its own");
    former.leave(&held).await;
    let guard = waiting.done("its turn").await;
    // The mark of its `lock_delay` has another prefix, and an entry of the former version waits behind it.
    former.store("entries", "exclusive").await;
    let entries = queue(&mut former.raw, QUEUE, 2).await;
    assert_eq!(entries[1].key_str().unwrap(), held);
    assert_eq!(guard.fencing_token().get(), u64::try_from(entries[0].create_revision()).unwrap());
    guard.release().await.unwrap();
    assert_eq!(queue(&mut former.raw, QUEUE, 1).await[0].key_str().unwrap(), held);
    former.leave(&held).await;

    former.store("entries", "shared").await;
    let reader =
        soon("tried", etcd.try_acquire(&lock_name(), short().shared())).await.unwrap().expect("readers share it");
    let entries = queue(&mut former.raw, QUEUE, 2).await;
    assert_eq!(entry(&entries[1]), entry(&entries[0]));
    assert!(soon("tried", etcd.try_acquire(&lock_name(), short())).await.unwrap().is_none());
    reader.release().await.unwrap();
}

/// A holder of the former version leaves no mark, so only contenders that waited behind it can distinguish a crash from
/// a release.
#[tokio::test]
async fn waiting_contenders_observe_a_former_holders_delay() {
    const DELAY: Duration = Duration::from_secs(2);
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    former.store("entries", "exclusive").await;
    let mut waiting = BackgroundTask::run({
        let etcd = etcd.clone();
        async move { etcd.acquire(&lock_name(), short().lock_delay(DELAY)).await.unwrap() }
    });
    queue(&mut former.raw, "enlist/locks/default/l/", 2).await;
    let crashed = Moment::now();
    former.raw.lease_revoke(former.lease).await.unwrap();
    let guard = waiting.done("its turn").await;
    assert!(crashed.elapsed() >= DELAY, "{:?}", crashed.elapsed());
    guard.release().await.unwrap();

    let mut former = Former::start(&server).await;
    former.store("entries", "exclusive").await;
    former.raw.lease_revoke(former.lease).await.unwrap();
    let guard = soon("tried", etcd.try_acquire(&lock_name(), short().lock_delay(DELAY))).await.unwrap();
    assert!(guard.is_some(), "it came later");
}

/// A role for the former version does not include the marks.
#[tokio::test]
async fn former_roles_suffice_except_for_lock_delays() {
    let server = server().await;
    let mut raw = raw(&server).await;
    enable_authentication(&mut raw, &["enlist/services/", "enlist/locks/", "enlist/elections/"]).await;
    let etcd = Etcd::builder([server.url()]).user("u", "p".to_owned()).connect().await.unwrap();
    let _registration = register_with(&etcd, "i", RegisterOptions::new()).await;
    etcd.publish(&service(), instance("fixed")).await.unwrap();
    let guard = soon("acquired", etcd.acquire(&lock_name(), short())).await.unwrap();
    guard.release().await.unwrap();
    let leadership = soon("elected", etcd.campaign(&lock_name(), "v", short())).await.unwrap();
    leadership.resign().await.unwrap();

    let delayed = || short().lock_delay(TTL);
    let refused = soon("refused", etcd.acquire(&lock_name(), delayed())).await.unwrap_err();
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused:?}");
    let as_root = Some(etcd_client::ConnectOptions::new().with_user("root", "p"));
    let mut root = etcd_client::Client::connect([server.url()], as_root).await.unwrap();
    for range in ["enlist/lock-marks/", "enlist/election-marks/"] {
        root.role_grant_permission("r", Permission::read_write(range).with_prefix()).await.unwrap();
    }
    let guard = soon("acquired", etcd.acquire(&lock_name(), delayed())).await.unwrap();
    guard.release().await.unwrap();
    let leadership = soon("elected", etcd.campaign(&lock_name(), "v", delayed())).await.unwrap();
    leadership.resign().await.unwrap();

    let permit = || SemaphoreOptions::new().ttl(TTL).permits_if_unset(1);
    let refused = soon("refused", etcd.acquire_permits(&lock_name(), permit())).await.unwrap_err();
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused:?}");
    root.role_grant_permission("r", Permission::read_write("enlist/semaphore").with_prefix()).await.unwrap();
    let guard = soon("granted", etcd.acquire_permits(&lock_name(), permit())).await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn candidates_of_both_versions_exclude_each_other() {
    let server = server().await;
    let (mut former, etcd) = (Former::start(&server).await, Etcd::connect(server.url()).await.unwrap());
    let leading = former.store("entries", "election").await;
    assert_eq!(etcd.leader(&lock_name()).await.unwrap().unwrap().value, "10.0.0.1:9000");
    let mut campaigning = BackgroundTask::run({
        let etcd = etcd.clone();
        async move { etcd.campaign(&lock_name(), "10.0.0.2:9000", short()).await.unwrap() }
    });
    let entries = queue(&mut former.raw, "enlist/elections/default/l/", 2).await;
    assert_eq!(entry(&entries[1]), entry(&entries[0]).replace("10.0.0.1", "10.0.0.2"));
    former.leave(&leading).await;
    let leadership = campaigning.done("its turn").await;
    former.store("entries", "election").await;
    assert_eq!(etcd.leader(&lock_name()).await.unwrap().unwrap().value, "10.0.0.2:9000");
    leadership.resign().await.unwrap();
    assert_eq!(etcd.leader(&lock_name()).await.unwrap().unwrap().value, "10.0.0.1:9000");
}
