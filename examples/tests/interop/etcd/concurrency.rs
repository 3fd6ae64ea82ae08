//! Locks and elections of etcd's `concurrency` package beside ours, across crashes of their holders, revocations of
//! their leases, and a restart of etcd.

use std::{ops::Deref, time::Duration};

use enlist::{Election, Leadership, Lock, LockGuard, LockName, LockOptions, Loss, Released};
use enlist_etcd::{Etcd, EtcdConcurrency};
use enlist_testkit::{BackgroundTask, EtcdServer, Proxy, eventually, soon};

use crate::{Go, own_etcd, recorded};

/// TTL of those that are waited for.
const SHORT: Duration = Duration::from_secs(5);

/// TTL of ours in the test of its expiry. Ours gives up a tenth before the end of the lease.
const EXPIRING: Duration = Duration::from_secs(25);

/// TTL of those that stay through a restart of etcd, or that notice a revocation before they renew.
const LONG: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Lock,
    Election,
}

/// A lock or a leadership of ours.
enum Held {
    Lock(LockGuard),
    Election(Leadership),
}

impl Deref for Held {
    type Target = LockGuard;

    fn deref(&self) -> &LockGuard {
        match self {
            Self::Lock(guard) => guard,
            Self::Election(leadership) => leadership,
        }
    }
}

impl Held {
    async fn release(self) {
        let released = match self {
            Self::Lock(guard) => guard.release().await,
            Self::Election(leadership) => leadership.resign().await,
        };
        assert_eq!(released.unwrap(), Released::Released);
    }
}

impl Kind {
    fn name(self) -> LockName {
        LockName::parse(match self {
            Self::Lock => "nightly",
            Self::Election => "office",
        })
        .unwrap()
    }

    /// Lets ours wait for it.
    fn ours(self, etcd: &Etcd, ttl: Duration) -> BackgroundTask<Held> {
        let (etcd, options) = (etcd.clone(), LockOptions::new().ttl(ttl));
        BackgroundTask::run(async move {
            match self {
                Self::Lock => Held::Lock(etcd.acquire(&self.name(), options).await.unwrap()),
                Self::Election => Held::Election(etcd.campaign(&self.name(), "rust", options).await.unwrap()),
            }
        })
    }

    /// Lets theirs wait for it.
    fn theirs(self, server: &EtcdServer, ttl: Duration) -> Go {
        let ttl = ttl.as_secs().to_string();
        match self {
            Self::Lock => Go::start(server, "etcd", &["lock", "nightly", &ttl]),
            Self::Election => Go::start(server, "etcd", &["elect", "office", "go", &ttl]),
        }
    }

    /// Waits until theirs has it.
    async fn granted(self, theirs: &mut Go) {
        let line = theirs.line().await;
        let granted = match self {
            Self::Lock => line.starts_with("locked nightly/"),
            Self::Election => line == "leads go",
        };
        assert!(granted, "{self:?}: {line}");
    }

    /// Returns the leases of those that queue for it, the holder first.
    async fn queue(self, server: &EtcdServer) -> Vec<i64> {
        recorded::leases(server, &format!("{}/", self.name().name())).await
    }

    /// Waits until so many queue for it.
    async fn queued(self, server: &EtcdServer, number: usize) -> Vec<i64> {
        eventually("all queue for it", || async {
            let queue = self.queue(server).await;
            if queue.len() == number { Ok(queue) } else { Err(queue) }
        })
        .await
    }
}

async fn connect(url: String) -> Etcd {
    Etcd::builder([url]).lock_layout(EtcdConcurrency).connect().await.unwrap()
}

async fn revoke(server: &EtcdServer, lease: i64) {
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    raw.lease_revoke(lease).await.unwrap();
}

async fn their_crash(kind: Kind) {
    let server = own_etcd().await;
    let etcd = connect(server.url()).await;
    let mut theirs = kind.theirs(&server, SHORT);
    kind.granted(&mut theirs).await;
    let mut ours = kind.ours(&etcd, SHORT);
    let queue = kind.queued(&server, 2).await;
    ours.assert_running();
    drop(theirs);
    let held = ours.done("our turn").await;
    assert!(held.is_held());
    assert_eq!(kind.queue(&server).await, queue[1..], "{kind:?}: only ours is left");
}

/// The lease of a process that has crashed expires.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn ours_follows_their_crashed_holder() {
    tokio::join!(their_crash(Kind::Lock), their_crash(Kind::Election));
}

async fn our_crash(kind: Kind) {
    let server = own_etcd().await;
    let proxy = Proxy::start(server.address()).await.unwrap();
    let held = kind.ours(&connect(proxy.url()).await, EXPIRING).done("the first turn").await;
    let mut theirs = kind.theirs(&server, SHORT);
    let queue = kind.queued(&server, 2).await;
    assert!(theirs.is_silent(), "{kind:?}: ours holds it");
    // Nothing that ours sends arrives from now on, also not its release.
    proxy.cut();
    assert_eq!(soon("the loss", held.lost()).await, Loss::Expired);
    assert!(theirs.is_silent(), "{kind:?}: there is one holder");
    assert_eq!(kind.queue(&server).await, queue, "{kind:?}: ours gives it up before etcd grants it to theirs");
    kind.granted(&mut theirs).await;
    assert!(!held.is_held());
    assert_eq!(kind.queue(&server).await, queue[1..], "{kind:?}: only theirs is left");
}

/// Ours knows the end of its lease before etcd does, although it is cut off.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn theirs_follows_our_crashed_holder() {
    tokio::join!(our_crash(Kind::Lock), our_crash(Kind::Election));
}

async fn revocations(kind: Kind) {
    let server = own_etcd().await;
    let etcd = connect(server.url()).await;
    let mut theirs = kind.theirs(&server, SHORT);
    kind.granted(&mut theirs).await;
    let mut ours = kind.ours(&etcd, LONG);
    let queue = kind.queued(&server, 2).await;
    ours.assert_running();
    revoke(&server, queue[0]).await;
    let held = ours.done("our turn").await;
    assert_eq!(theirs.line().await, "lost", "{kind:?}: theirs notices at its next renewal");
    assert!(held.is_held());
    assert_eq!(kind.queue(&server).await, queue[1..], "{kind:?}: ours is the only holder");

    let mut theirs = kind.theirs(&server, SHORT);
    let queue = kind.queued(&server, 2).await;
    assert!(theirs.is_silent() && held.is_held(), "{kind:?}: ours holds it");
    revoke(&server, queue[0]).await;
    assert_eq!(soon("the loss", held.lost()).await, Loss::KeyGone, "{kind:?}: by its watch");
    kind.granted(&mut theirs).await;
    assert!(!held.is_held());
    assert_eq!(kind.queue(&server).await, queue[1..], "{kind:?}: theirs is the only holder");
}

/// The holder of a revoked lease learns of it afterwards; etcd has one holder at any time.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn a_revoked_holder_is_followed() {
    tokio::join!(revocations(Kind::Lock), revocations(Kind::Election));
}

/// Waits until etcd has so many watches.
async fn watches(server: &EtcdServer, number: u32) {
    eventually("the watches are open", || async {
        let open = server.metric("etcd_debugging_mvcc_watcher_total", |_| true).await;
        if open == Some(number.into()) { Ok(()) } else { Err(open) }
    })
    .await;
}

async fn restarts(kind: Kind) {
    let mut server = own_etcd().await;
    let etcd = connect(server.url()).await;
    let mut theirs = kind.theirs(&server, LONG);
    kind.granted(&mut theirs).await;
    let mut ours = kind.ours(&etcd, LONG);
    let queue = kind.queued(&server, 2).await;
    server.kill().await;
    server.restart().await;
    assert_eq!(kind.queue(&server).await, queue, "{kind:?}: both are as before");
    ours.assert_running();
    assert!(theirs.is_silent(), "{kind:?}: theirs holds it");
    theirs.go_on();
    assert!(["unlocked", "resigned"].contains(&theirs.line().await.as_str()));
    let held = ours.done("our turn").await;

    watches(&server, 1).await;
    theirs.go_on();
    let queue = kind.queued(&server, 2).await;
    // Theirs gives up if a request is under way when etcd ends. A watch of theirs is opened again.
    watches(&server, 2).await;
    server.kill().await;
    server.restart().await;
    assert_eq!(kind.queue(&server).await, queue, "{kind:?}: both are as before");
    assert!(held.is_held(), "{kind:?}: ours holds it");
    assert!(theirs.is_silent(), "{kind:?}: theirs waits");
    soon("released", held.release()).await;
    kind.granted(&mut theirs).await;
}

/// A restart of etcd takes nothing away, and those that wait get their turn after it.
#[tokio::test]
#[ignore = "needs Go: `cargo xtask interop` runs it"]
async fn holders_outlive_a_restart_of_etcd() {
    tokio::join!(restarts(Kind::Lock), restarts(Kind::Election));
}
