//! Changes of etcd's security settings while clients run: authentication is required, certificates are replaced.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "support/authority.rs"]
mod authority;
mod support;

use std::time::Duration;

use authority::Authority;
use enlist::{Counter, Error, Lock, LockName, LockOptions, Moment, Registration, Resolver, Watcher};
use enlist_etcd::Etcd;
use enlist_testkit::{EtcdServer, Provider, Proxy, ServerOptions, eventually, soon};
use support::{PREFIX, Renewal, TTL, listed, metrics, raw, register, renew_without_permission, server, service};

const PASSWORD: &str = "correct-horse-battery";

/// Maximum number of refusals of a client without a user, whose lease has a TTL of 5 s, within 16 s. Until the TTL has
/// passed, renewals are repeated after 0.4 s and more, apart from the first few; then they and the other requests are
/// repeated after 10 s and more. Without the slow pace there were 33.
const MAX_REFUSALS: u64 = 20;

/// Waits until a watcher shows an instance with this weight; no instance is removed meanwhile.
async fn shows(watcher: &mut Box<dyn Watcher>, id: &str, weight: u32) {
    let shown = async {
        loop {
            let change = watcher.next().await.unwrap();
            assert!(
                !change.events.iter().any(|event| matches!(event, enlist::Event::Removed(_))),
                "{:?}",
                change.events
            );
            let mut instances = change.snapshot.entries().map(|entry| entry.instance());
            if instances.any(|instance| instance.id().as_str() == id && instance.weight() == weight) {
                return;
            }
        }
    };
    soon("the change is seen", shown).await;
}

/// Waits until a watcher shows that an instance has gone.
async fn goes(watcher: &mut Box<dyn Watcher>, id: &str) {
    let gone = async {
        loop {
            let change = watcher.next().await.unwrap();
            if change.snapshot.entries().all(|entry| entry.instance().id().as_str() != id) {
                return;
            }
        }
    };
    soon("the loss is seen", gone).await;
}

/// Number of requests that etcd has refused, because they were not authenticated or not permitted.
async fn refusals(server: &EtcdServer) -> u64 {
    let text = metrics(server).await;
    let handled = text.lines().filter(|line| line.starts_with("grpc_server_handled_total"));
    let codes = ["InvalidArgument", "Unauthenticated", "PermissionDenied"];
    let refused = handled.filter(|line| codes.iter().any(|code| line.contains(&format!("grpc_code=\"{code}\""))));
    refused.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Auth is switched on while clients run. A client with a user, which was not needed before, continues. A client
/// without a user is refused, at a slow pace; its open watches need no user, and it continues once auth is off. Its
/// instance stays where etcd lets any client renew; elsewhere its lease expires, and the instance is back once auth is
/// off. Control: a request without a user is refused.
#[tokio::test]
async fn auth_is_switched_on_under_running_clients() {
    let server = server().await;
    let known = Etcd::builder([server.url()]).user("root", PASSWORD.to_owned()).connect().await.unwrap();
    let unknown = Etcd::connect(server.url()).await.unwrap();
    let (a, b) = (register(&known, "a").await, register(&unknown, "b").await);
    let mut watchers = [known.watch(&service()).await.unwrap(), unknown.watch(&service()).await.unwrap()];
    for watcher in &mut watchers {
        soon("a list", watcher.next()).await.unwrap();
    }
    let name = LockName::parse("l").unwrap();
    let guard = soon("acquired", known.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap();

    let mut root = raw(&server).await;
    let lease = root.get(format!("{PREFIX}a"), None).await.unwrap().kvs()[0].lease();
    root.user_add("root", PASSWORD, None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();
    assert!(raw(&server).await.get("x", None).await.is_err(), "it is switched on");
    let renewal = renew_without_permission(&server, &mut raw(&server).await, lease).await;

    works(&a, &mut watchers[0], 2).await;
    shows(&mut watchers[1], "a", 2).await;
    let mut late = known.watch(&service()).await.unwrap();
    assert_eq!(soon("a list", late.next()).await.unwrap().snapshot.len(), 2);
    let refused = soon("an answer", unknown.resolve(&service())).await.unwrap_err();
    assert!(matches!(refused, Error::AuthFailed(_)), "{refused:?}");
    let update = b.update(|update| {
        update.weight(3);
    });
    let refused = soon("an answer", update).await.unwrap_err();
    assert!(matches!(refused, Error::AuthFailed(_)), "{refused:?}");
    // Longer than the TTL of leases without renewals, and than the slow pace.
    let (before, begun) = (refusals(&server).await, Moment::now());
    enlist::backend::sleep_until_elapsed(begun, 3 * TTL + Duration::from_secs(1)).await;
    let (refused, seconds) = (refusals(&server).await - before, begun.elapsed().as_secs());
    println!("{refused} refusals in {seconds} s");
    assert!((1..=MAX_REFUSALS).contains(&refused), "{refused} refusals in {seconds} s");
    let lost = match renewal {
        Renewal::Unchecked => 0,
        Renewal::Refused => {
            goes(&mut watchers[0], "b").await;
            1
        }
    };
    assert_eq!(listed(&known, 2 - lost).await.get(a.instance().id()).map(|entry| entry.instance().weight()), Some(2));
    assert!(guard.is_held());
    assert_eq!(known.counters().get(Counter::LeaseLosses), 0);
    // A client without a user is refused even after its lease has expired, and notices the loss only once it is
    // admitted.
    assert_eq!(unknown.counters().get(Counter::LeaseLosses), 0);

    let options = etcd_client::ConnectOptions::new().with_user("root", PASSWORD);
    let mut root = etcd_client::Client::connect([server.url()], Some(options)).await.unwrap();
    root.auth_disable().await.unwrap();
    shows(&mut watchers[0], "b", 3).await;
    assert_eq!(unknown.counters().get(Counter::LeaseLosses), lost as u64);
    soon("released", guard.release()).await.unwrap();
    soon("deregistered", a.deregister()).await.unwrap();
    soon("deregistered", b.deregister()).await.unwrap();
}

/// Ends the open connections; new ones are possible afterwards.
async fn end_connections(proxy: &Proxy) {
    proxy.cut();
    eventually("all connections have ended", || async {
        let open = proxy.connections().into_iter().filter(|connection| !connection.ended).count();
        if open == 0 { Ok(()) } else { Err(open) }
    })
    .await;
    proxy.heal();
}

/// Changes an instance and sees the change.
async fn works(registration: &Registration, watcher: &mut Box<dyn Watcher>, weight: u32) {
    let update = registration.update(move |update| {
        update.weight(weight);
    });
    soon("stored", update).await.unwrap();
    shows(watcher, registration.instance().id().as_str(), weight).await;
}

/// An authority is replaced by another one, with the certificates of the server and of its clients, on disk and file by
/// file, while connections end. A client with the paths of the files reads them at each dial. Control: a client with a
/// copy of the former files is refused.
#[tokio::test]
async fn certificates_are_replaced_under_running_clients() {
    let (mine, next) = (Authority::new(), Authority::new());
    let (mut both, copy) = (std::fs::read(mine.path("ca.pem")).unwrap(), Authority::new());
    both.extend(std::fs::read(next.path("ca.pem")).unwrap());
    std::fs::write(mine.path("trusted.pem"), &both).unwrap();
    for name in ["server", "client"] {
        mine.sign(name);
        next.sign(name);
    }
    for name in ["ca.pem", "client.pem", "client.key"] {
        std::fs::copy(mine.path(name), copy.path(name)).unwrap();
    }
    let options = ServerOptions::new().tls().arguments([
        format!("--cert-file={}", mine.path("server.pem")),
        format!("--key-file={}", mine.path("server.key")),
        format!("--trusted-ca-file={}", mine.path("trusted.pem")),
        "--client-cert-auth".to_owned(),
    ]);
    let server = EtcdServer::start_with(Provider::Process, options).await;
    let port: u16 = server.tls_url().rsplit_once(':').unwrap().1.parse().unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap();
    let client = |files: &Authority| {
        let builder = Etcd::builder([format!("https://{}", proxy.address())]).ca_certificate(files.path("ca.pem"));
        builder.client_certificate(files.path("client.pem"), files.path("client.key"))
    };
    let etcd = client(&mine).connect().await.unwrap();
    let former = client(&copy).connect().await.unwrap();
    let a = register(&etcd, "a").await;
    let mut watcher = etcd.watch(&service()).await.unwrap();
    soon("a list", watcher.next()).await.unwrap();

    // The certificate is replaced before its key, as when two files are copied one after the other: no dial succeeds in
    // between.
    let replace = |name: &str| {
        std::fs::copy(next.path(name), mine.path(name)).unwrap();
    };
    replace("client.pem");
    end_connections(&proxy).await;
    let refused = soon("an answer", etcd.resolve(&service())).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
    replace("client.key");
    works(&a, &mut watcher, 2).await;
    // etcd reads its files at each handshake as well. Until the authority is replaced, no client trusts its
    // certificate.
    replace("server.pem");
    replace("server.key");
    end_connections(&proxy).await;
    let refused = soon("an answer", etcd.resolve(&service())).await.unwrap_err();
    assert!(format!("{refused:?}").to_lowercase().contains("certificate"), "{refused:?}");
    replace("ca.pem");
    works(&a, &mut watcher, 3).await;
    assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
    let refused = eventually("the former files are refused", || async {
        if let Err(refused) = former.resolve(&service()).await {
            return Ok(refused);
        }
        // The connection existed before the replacement.
        end_connections(&proxy).await;
        Err("it is served")
    })
    .await;
    assert!(format!("{refused:?}").to_lowercase().contains("certificate"), "{refused:?}");
}
