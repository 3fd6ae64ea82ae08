//! Layouts of a user that panic: only the operations that need them fail.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{
    Counter, Deregistered, Election, Endpoint, Error, Instance, InstanceId, LeaseId, Lock, LockMode, LockName,
    LockOptions, Namespace, RegisterOptions, Registration, Registry, Released, Resolver, ServiceName, ServiceRef,
};
use enlist_etcd::{
    Etcd, KeyRange, Native, SessionRuntime,
    layout::{Decoded, Identity, Layout, LeaseScope, LockLayout, Part, QueueEntryValue, QueueKind, Skip, Writing},
};
use enlist_testkit::{FakeEtcd, soon};

use crate::support::{is_registered, scripted::builder, service, state};

/// Names of the methods that panic.
#[derive(Clone, Debug, Default)]
struct Moods(Arc<Mutex<Vec<&'static str>>>);

impl Moods {
    fn set(&self, methods: &[&'static str]) {
        *self.0.lock().unwrap() = methods.to_vec();
    }

    fn check(&self, method: &str) {
        let panics = self.0.lock().unwrap().contains(&method);
        assert!(!panics, "on purpose");
    }
}

/// The native layouts, with methods that panic if their names are set.
#[derive(Debug, Default)]
struct Moody {
    native: Native,
    moods: Moods,
}

impl Layout for Moody {
    fn name(&self) -> &'static str {
        self.moods.check("name");
        "moody"
    }

    fn carries(&self) -> &'static [Part] {
        self.native.carries()
    }

    fn identity(&self) -> Identity {
        self.native.identity()
    }

    fn lease_scope(&self) -> LeaseScope {
        Layout::lease_scope(&self.native)
    }

    fn key(&self, service: &ServiceRef, id: &InstanceId, lease: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        self.moods.check("key");
        self.native.key(service, id, lease)
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        self.moods.check("service_range");
        self.native.service_range(service)
    }

    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange> {
        self.moods.check("services_range");
        self.native.services_range(namespace)
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        self.moods.check("instance_of");
        self.native.instance_of(namespace, key)
    }

    fn namespaces_range(&self) -> Option<KeyRange> {
        self.moods.check("namespaces_range");
        self.native.namespaces_range()
    }

    fn namespace_of(&self, key: &[u8]) -> Option<Namespace> {
        self.moods.check("namespace_of");
        self.native.namespace_of(key)
    }

    fn encode(&self, service: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        self.moods.check("encode");
        Layout::encode(&self.native, service, instance, writing)
    }

    fn accepts(&self, service: &ServiceRef, instance: &Instance, owner: Option<&str>) -> Result<(), Error> {
        self.moods.check("accepts");
        self.native.accepts(service, instance, owner)
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        self.moods.check("decode");
        assert!(!key.ends_with(b"bad"), "on purpose");
        Layout::decode(&self.native, service, key, value)
    }

    fn term(&self, value: &[u8]) -> Option<u64> {
        self.moods.check("term");
        self.native.term(value)
    }
}

impl LockLayout for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn lease_scope(&self) -> LeaseScope {
        LockLayout::lease_scope(&self.native)
    }

    fn carries_modes(&self) -> bool {
        self.native.carries_modes()
    }

    fn queue(&self, kind: QueueKind, name: &LockName) -> Result<KeyRange, Error> {
        self.moods.check("queue");
        self.native.queue(kind, name)
    }

    fn entry(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Result<Vec<u8>, Error> {
        self.moods.check("entry");
        self.native.entry(kind, name, lease, nonce)
    }

    fn marks(&self, kind: QueueKind, name: &LockName) -> Option<KeyRange> {
        self.moods.check("marks");
        self.native.marks(kind, name)
    }

    fn mark(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Option<Vec<u8>> {
        self.moods.check("mark");
        self.native.mark(kind, name, lease, nonce)
    }

    fn decode_mark(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<LockMode> {
        self.moods.check("decode_mark");
        self.native.decode_mark(kind, name, key, value)
    }

    fn encode(&self, kind: QueueKind, value: &QueueEntryValue) -> Vec<u8> {
        self.moods.check("encode");
        LockLayout::encode(&self.native, kind, value)
    }

    fn decode(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<QueueEntryValue> {
        self.moods.check("decode");
        LockLayout::decode(&self.native, kind, name, key, value)
    }
}

fn client(fake: &FakeEtcd, moods: &Moods) -> Etcd {
    let layout = || Moody { native: Native::default(), moods: moods.clone() };
    let builder = builder(fake);
    builder.layout(layout()).lock_layout(layout()).build().unwrap()
}

async fn try_register(etcd: &Etcd, id: &str) -> Result<Registration, Error> {
    let instance = Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let options = RegisterOptions::new().audit(Some(Duration::from_secs(5)));
    soon("registered or refused", etcd.register(&service(), instance, options)).await
}

#[track_caller]
fn assert_refused<T>(method: &str, outcome: Result<T, Error>) {
    let error = outcome.err();
    assert!(matches!(error, Some(Error::Unsupported { .. })), "{method}: {error:?}");
    let text = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(text.contains("moody") && text.contains("on purpose"), "{method}: {text}");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_layout_fails_only_its_callers() {
    let (fake, moods) = (FakeEtcd::start(), Moods::default());
    let etcd = client(&fake, &moods);
    let other = try_register(&etcd, "other").await.unwrap();
    let a = try_register(&etcd, "a").await.unwrap();
    let mut watcher = etcd.watch(&service()).await.unwrap();
    assert_eq!(soon("a list", watcher.next()).await.unwrap().snapshot.len(), 2);
    for method in ["encode", "accepts", "key"] {
        moods.set(&[method]);
        assert_refused(method, try_register(&etcd, "new").await.map(drop));
    }
    for method in ["accepts", "encode"] {
        moods.set(&[method]);
        assert_refused(method, soon("refused", a.update(|update| _ = update.weight(7))).await);
        moods.set(&[]);
        state(&a, is_registered).await;
    }
    for method in ["service_range", "services_range"] {
        moods.set(&[method]);
        assert!(etcd.watch(&service()).await.and(etcd.services(&Namespace::default()).await.map(drop)).is_err());
    }
    for method in ["services_range", "namespaces_range"] {
        moods.set(&[method]);
        let opened = etcd.watch_services(&Namespace::default()).await.map(drop);
        assert!(opened.and(etcd.namespaces().await.map(drop)).is_err(), "{method}");
    }
    // The keys are read repeatedly.
    moods.set(&["key", "encode", "decode", "term", "instance_of", "namespace_of"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    state(&a, is_registered).await;
    assert!(etcd.services(&Namespace::default()).await.unwrap().is_empty());
    assert!(etcd.namespaces().await.unwrap().is_empty());
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
    moods.set(&[]);
    fake.put("enlist/services/default/svc/bad", r#"{"v":1,"id":"bad","endpoints":["h:1"]}"#);
    fake.put("enlist/services/default/svc/good", r#"{"v":1,"id":"good","endpoints":["h:1"]}"#);
    let shown = async {
        loop {
            let ids: Vec<_> = watcher
                .next()
                .await
                .unwrap()
                .snapshot
                .entries()
                .map(|entry| entry.instance().id().to_string())
                .collect();
            if ids == ["good", "other"] {
                return;
            }
        }
    };
    soon("the others are shown", shown).await;
    assert!(etcd.counters().get(Counter::MalformedValues) > 0);
    state(&other, is_registered).await;
    etcd.close().await.expect("no task has panicked");
}

#[tokio::test(start_paused = true)]
async fn a_layout_that_panics_when_described_is_refused() {
    let moods = Moods::default();
    moods.set(&["name"]);
    let builder = Etcd::builder(["http://127.0.0.1:9"]).runtime(SessionRuntime::Caller);
    let refused = builder.layout(Moody { moods, ..Moody::default() }).build().err();
    assert!(matches!(refused, Some(Error::InvalidConfig { field: "layout", .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_lock_layout_fails_only_its_callers() {
    let (fake, moods) = (FakeEtcd::start(), Moods::default());
    let etcd = client(&fake, &moods);
    let name = |text: &str| LockName::parse(text).unwrap();
    let options = || LockOptions::new().lock_delay(Duration::from_secs(1));
    let held = soon("acquired", etcd.acquire(&name("other"), options())).await.unwrap();
    let leadership = soon("elected", etcd.campaign(&name("other"), "me", options())).await.unwrap();
    for method in ["entry", "mark", "queue", "encode"] {
        moods.set(&[method]);
        assert_refused(method, soon("refused", etcd.acquire(&name("l"), options())).await.map(drop));
    }
    moods.set(&["encode"]);
    assert_refused("encode", soon("refused", leadership.proclaim("you")).await);
    // A contender that cannot decode a key counts it as a queue entry, and does not consider its own key deleted.
    moods.set(&["decode", "decode_mark"]);
    let taken = soon("acquired", etcd.acquire(&name("l"), options())).await.unwrap();
    assert!(etcd.try_acquire(&name("l"), LockOptions::new()).await.unwrap().is_none());
    assert_eq!(soon("released", taken.release()).await.unwrap(), Released::Released);
    moods.set(&[]);
    assert!(held.is_held() && leadership.is_held());
    soon("proclaimed", leadership.proclaim("you")).await.unwrap();
    assert_eq!(etcd.leader(&name("other")).await.unwrap().unwrap().value, "you");
    let lines = fake.under(b"enlist/locks/").len();
    assert_eq!(lines, 1, "only the one that is held");
    etcd.close().await.expect("no task has panicked");
}
