//! Real faults on real etcd: a killed server, wiped data, revoked leases, a lost member, a program that starves its
//! runtime.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{sync::mpsc, time::Duration};

use enlist::Lock;
use enlist::{LeaseChoice, LockName, LockOptions, Moment, RegisterOptions, Registry, Resolver, Snapshot};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{Proxy, eventually, soon};
use support::{TTL, instance, listed, mostly_within, register_with as register, server as own_server, service};

#[tokio::test]
async fn an_etcd_restart_keeps_every_instance() {
    let mut server = own_server().await;
    let (etcd, other) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let _shared = register(&etcd, "shared", RegisterOptions::new()).await;
    let _own = register(&etcd, "own", RegisterOptions::new().lease(LeaseChoice::Own)).await;
    let before = other.resolve(&service()).await.unwrap();
    let mut watcher = other.watch(&service()).await.unwrap();
    assert_eq!(soon("a list", watcher.next()).await.unwrap().snapshot.len(), 2);
    server.kill().await;
    server.restart().await;
    let after = listed(&other, 2).await;
    let entries = |snapshot: &Snapshot| snapshot.entries().cloned().collect::<Vec<_>>();
    assert_eq!(entries(&after), entries(&before), "the old leases were renewed, nothing was registered anew");
    // A later change is seen, and nothing was removed before it.
    let _third = register(&etcd, "third", RegisterOptions::new()).await;
    loop {
        let change = soon("a change", watcher.next()).await.unwrap();
        assert!(change.snapshot.len() >= 2);
        if change.snapshot.len() == 3 {
            break;
        }
    }
}

#[tokio::test]
async fn a_wiped_etcd_gets_every_instance_again() {
    let mut server = own_server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let _shared = register(&etcd, "shared", RegisterOptions::new()).await;
    let _own = register(&etcd, "own", RegisterOptions::new().lease(LeaseChoice::Own)).await;
    server.wipe().await;
    listed(&Etcd::connect(server.url()).await.unwrap(), 2).await;
}

#[tokio::test]
async fn a_revoked_lease_is_replaced_within_two_seconds() {
    let server = own_server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let _a = register(&etcd, "a", RegisterOptions::new()).await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    mostly_within(Duration::from_secs(2), async || {
        let before = etcd.resolve(&service()).await.unwrap();
        let lease = raw.leases().await.unwrap().leases()[0].id();
        let revoked = Moment::now();
        raw.lease_revoke(lease).await.unwrap();
        let anew = listed(&etcd, 1).await;
        let absent = revoked.elapsed();
        assert!(anew.entries().next().unwrap().created() > before.revision());
        absent
    })
    .await;
}

#[tokio::test]
async fn another_member_replaces_a_stopped_one() {
    let server = own_server().await;
    // Two proxies to one server stand for two members.
    let (first, second) =
        (Proxy::start(server.address()).await.unwrap(), Proxy::start(server.address()).await.unwrap());
    let urls = [&first, &second].map(|proxy| format!("http://{}", proxy.address()));
    let etcd = Etcd::builder(urls).connect().await.unwrap();
    let _a = register(&etcd, "a", RegisterOptions::new()).await;
    let guard =
        soon("acquired", etcd.acquire(&LockName::parse("l").unwrap(), LockOptions::new().ttl(TTL))).await.unwrap();
    let before = etcd.resolve(&service()).await.unwrap();
    for (gone, there) in [(&first, &second), (&second, &first)] {
        there.heal();
        gone.cut();
        let calls = async {
            for _ in 0..20 {
                etcd.resolve(&service()).await?;
            }
            Ok::<_, enlist::Error>(())
        };
        // The call that detects the dead connection may fail; after it the other member answers.
        let _ = etcd.resolve(&service()).await;
        soon("answered", calls).await.unwrap();
        // Longer than the TTL.
        let clock = etcd.acquire(&LockName::parse("clock").unwrap(), LockOptions::new().ttl(TTL)).await.unwrap();
        let aged = async {
            let begun = Moment::now();
            eventually("a TTL has passed", || async {
                if begun.elapsed() > TTL { Ok(()) } else { Err(begun.elapsed()) }
            })
            .await;
        };
        aged.await;
        assert!(clock.is_held() && guard.is_held());
    }
    let after = etcd.resolve(&service()).await.unwrap();
    assert_eq!(
        after.entries().map(|entry| entry.created()).collect::<Vec<_>>(),
        before.entries().map(|entry| entry.created()).collect::<Vec<_>>()
    );
}

/// The runtime of this test has one thread, which is blocked for longer than the leases live.
#[tokio::test(flavor = "current_thread")]
async fn a_starved_runtime_loses_neither_instance_nor_lock() {
    let server = own_server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let short = Duration::from_secs(2);
    let instance = instance("a");
    let options = RegisterOptions::new().ttl(short);
    let _a = soon("registered", etcd.register(&service(), instance, options)).await.unwrap();
    let guard =
        soon("acquired", etcd.acquire(&LockName::parse("l").unwrap(), LockOptions::new().ttl(short))).await.unwrap();
    let before = etcd.resolve(&service()).await.unwrap();
    let (_keep, never) = mpsc::channel::<()>();
    assert!(never.recv_timeout(short * 3).is_err());
    assert!(guard.is_held());
    let after = etcd.resolve(&service()).await.unwrap();
    assert_eq!(after.entries().next().unwrap().created(), before.entries().next().unwrap().created());
}

#[tokio::test]
async fn a_client_built_before_etcd_starts_recovers() {
    let mut server = own_server().await;
    server.kill().await;
    let etcd = Etcd::builder([server.url()]).build().unwrap();
    let failed = Etcd::builder([server.url()]).connect().await.unwrap_err();
    let message = format!("{failed}: {}", std::error::Error::source(&failed).unwrap());
    assert!(message.contains(&server.address().to_string()), "the message names what was tried: {message}");
    let options = RegisterOptions::new().start(enlist::Start::Background);
    let _a = register(&etcd, "a", options).await;
    let mut watcher = etcd.watch(&service()).await.unwrap();
    server.restart().await;
    listed(&etcd, 1).await;
    while soon("a change", watcher.next()).await.unwrap().snapshot.is_empty() {}
}

#[tokio::test]
async fn thousands_of_instances_are_listed_by_pages() {
    const COUNT: usize = 3000;
    let server = own_server().await;
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let lease = raw.lease_grant(600, None).await.unwrap().id();
    // Enough instances that their removal takes more than one message.
    let filler = "x".repeat(2000);
    for chunk in (0..COUNT).collect::<Vec<_>>().chunks(100) {
        let puts: Vec<_> = chunk
            .iter()
            .map(|number| {
                let id = format!("{number:06}");
                let value = format!(r#"{{"v":1,"id":"{id}","endpoints":["h:1"],"metadata":{{"f":"{filler}"}}}}"#);
                let options = etcd_client::PutOptions::new().with_lease(lease);
                etcd_client::TxnOp::put(format!("enlist/services/default/svc/{id}"), value, Some(options))
            })
            .collect();
        raw.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
    }
    let etcd = Etcd::connect(server.url()).await.unwrap();
    assert_eq!(etcd.resolve(&service()).await.unwrap().len(), COUNT);
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let first = soon("a list", watcher.next()).await.unwrap();
    assert_eq!(first.snapshot.len(), COUNT);
    raw.lease_revoke(lease).await.unwrap();
    let gone = soon("the removal", watcher.next()).await.unwrap();
    assert_eq!((gone.snapshot.len(), gone.events.len()), (0, COUNT), "one revision is one change");
}

#[tokio::test]
async fn a_channel_of_the_caller_serves_as_well() {
    let server = own_server().await;
    let channel = tonic::transport::Endpoint::from_shared(server.url()).unwrap().connect_lazy();
    let etcd = Etcd::from_channel(channel).runtime(SessionRuntime::Caller).build().unwrap();
    let a = register(&etcd, "a", RegisterOptions::new()).await;
    let mut watcher = etcd.watch(&service()).await.unwrap();
    assert_eq!(soon("a list", watcher.next()).await.unwrap().snapshot.len(), 1);
    soon("deregistered", a.deregister()).await.unwrap();
    etcd.close().await.unwrap();
}

#[tokio::test]
async fn garbage_under_the_prefix_has_no_effect() {
    let server = own_server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let _a = register(&etcd, "a", RegisterOptions::new()).await;
    let mut watcher = etcd.watch(&service()).await.unwrap();
    assert_eq!(soon("a list", watcher.next()).await.unwrap().snapshot.len(), 1);
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let root = "enlist/services/default/svc";
    for (key, value) in [
        (format!("{root}/empty"), Vec::new()),
        (format!("{root}/cut"), b"{\"v\":1,\"id\":".to_vec()),
        (format!("{root}/deep"), b"[".repeat(100_000)),
        (format!("{root}/huge"), vec![b'x'; 1_400_000]),
        (format!("{root}/sub/key"), b"{}".to_vec()),
        (format!("{root}/"), b"{}".to_vec()),
    ] {
        raw.put(key, value, None).await.unwrap();
    }
    raw.put([root.as_bytes(), b"/\xff\xfe"].concat(), b"\xff".to_vec(), None).await.unwrap();
    let _b = register(&etcd, "b", RegisterOptions::new()).await;
    let change = soon("a change", watcher.next()).await.unwrap();
    assert_eq!((change.snapshot.len(), change.events.len()), (2, 1));
    assert_eq!(etcd.resolve(&service()).await.unwrap().len(), 2);
    let name = LockName::parse("l").unwrap();
    raw.put("enlist/locks/default/l/somebody", "else", None).await.unwrap();
    let guard = soon("acquired", etcd.acquire(&name, LockOptions::new())).await.unwrap();
    assert!(guard.is_held());
}
