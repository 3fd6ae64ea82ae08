//! Helpers of the fault tests.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub(crate) mod between;
pub(crate) mod logged;
pub(crate) mod recorder;
pub(crate) mod release;
pub(crate) mod scripted;

use std::{future::Future, time::Duration};

use enlist::{
    Endpoint, Instance, InstanceId, LockName, Moment, RegisterOptions, Registration, RegistrationState, Registry,
    Resolver, ServiceRef, Snapshot, TaskOwner, backend::sleep_until_elapsed,
};
use enlist_etcd::Etcd;
use enlist_testkit::{EtcdServer, Provider, ServerOptions, eventually, soon};
use release::Release;

pub(crate) const TTL: Duration = Duration::from_secs(5);

/// Prefix of the instances' keys.
pub(crate) const PREFIX: &str = "enlist/services/default/svc/";

/// Prefix of the queue entries of the lock [`lock_name`].
pub(crate) const LOCK_QUEUE: &str = "enlist/locks/default/l/";

/// Variable with the task of a child process that is this program itself.
pub(crate) const CHILD: &str = "ENLIST_TEST_CHILD";

pub(crate) fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

pub(crate) fn instance(id: &str) -> Instance {
    Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap()
}

pub(crate) fn lock_name() -> LockName {
    LockName::parse("l").unwrap()
}

pub(crate) fn options() -> RegisterOptions {
    RegisterOptions::new().ttl(TTL)
}

/// Starts a server. These tests stop theirs, so they start one even if the environment offers one.
pub(crate) async fn server_with(arguments: &[&str]) -> EtcdServer {
    EtcdServer::start_with(Provider::own(), ServerOptions::new().arguments(arguments.iter().copied())).await
}

pub(crate) async fn server() -> EtcdServer {
    server_with(&[]).await
}

pub(crate) async fn raw(server: &EtcdServer) -> etcd_client::Client {
    etcd_client::Client::connect([server.url()], None).await.unwrap()
}

/// Number of leases in the store.
pub(crate) async fn leases(server: &EtcdServer) -> usize {
    raw(server).await.leases().await.unwrap().leases().len()
}

/// Waits until the store has no lease: the longest has run out.
pub(crate) async fn no_lease_is_left(server: &EtcdServer) {
    eventually("no lease is left", || async {
        match leases(server).await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
}

/// Creates the users `root` and `u`, of which `u` may use only these ranges, and enables authentication. The password
/// of both is `p`.
pub(crate) async fn enable_authentication(raw: &mut etcd_client::Client, ranges: &[&str]) {
    for (user, role) in [("root", "root"), ("u", "r")] {
        raw.user_add(user, "p", None).await.unwrap();
        raw.role_add(role).await.unwrap();
        raw.user_grant_role(user, role).await.unwrap();
    }
    for range in ranges {
        let permission = etcd_client::Permission::read_write(*range).with_prefix();
        raw.role_grant_permission("r", permission).await.unwrap();
    }
    raw.auth_enable().await.unwrap();
}

/// Outcome of a renewal by a client without write permission for the keys of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Any client may renew any lease.
    Unchecked,
    /// A renewal requires write permission for the lease's keys.
    Refused,
}

impl Renewal {
    /// Returns the outcome in a release; CVE-2026-33413 made it a refusal.
    fn in_release(release: Release) -> Self {
        let refused = release.has(&[Release(3, 4, 42), Release(3, 5, 28), Release(3, 6, 9)]);
        if refused { Self::Refused } else { Self::Unchecked }
    }
}

/// Renews a lease with keys that the client may not write, and checks that its outcome is the one of the release.
pub(crate) async fn renew_without_permission(
    server: &EtcdServer,
    client: &mut etcd_client::Client,
    lease: i64,
) -> Renewal {
    let renewal = match client.lease_keep_alive(lease).await {
        Ok(_) => Renewal::Unchecked,
        Err(refused) => {
            let text = refused.to_string();
            assert!(text.contains("permission denied") || text.contains("user name is empty"), "{text}");
            Renewal::Refused
        }
    };
    let release = Release::of(server).await;
    assert_eq!(renewal, Renewal::in_release(release), "{release:?}");
    renewal
}

/// Returns etcd's metrics, as text.
pub(crate) async fn metrics(server: &EtcdServer) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

pub(crate) async fn register(etcd: &Etcd, id: &str) -> Registration {
    register_with(etcd, id, RegisterOptions::new()).await
}

pub(crate) async fn register_with(etcd: &Etcd, id: &str, options: RegisterOptions) -> Registration {
    soon("registered", etcd.register(&service(), instance(id), options.ttl(TTL))).await.unwrap()
}

pub(crate) async fn register_many(etcd: &Etcd, count: usize) -> Vec<Registration> {
    let mut registrations = Vec::new();
    for id in 0..count {
        registrations.push(register(etcd, &format!("i{id}")).await);
    }
    registrations
}

pub(crate) fn is_registered(state: &RegistrationState) -> bool {
    matches!(state, RegistrationState::Registered { .. })
}

/// Waits for a state that satisfies `fits`.
pub(crate) async fn state(registration: &Registration, fits: impl Fn(&RegistrationState) -> bool) -> RegistrationState {
    eventually("the state", || async {
        let now = registration.state();
        if fits(&now) { Ok(now) } else { Err(now) }
    })
    .await
}

pub(crate) async fn listed(etcd: &Etcd, count: usize) -> Snapshot {
    eventually("all are listed", || async {
        match etcd.resolve(&service()).await {
            Ok(snapshot) if snapshot.len() == count => Ok(snapshot),
            other => Err(other),
        }
    })
    .await
}

/// Lets real time pass, for faults that have to last. No assertion depends on its length alone.
pub(crate) async fn pass(time: Duration) {
    sleep_until_elapsed(Moment::now(), time).await;
}

/// Measures up to three times. Two times have to be below the limit: on a busy machine, a single answer may be late.
pub(crate) async fn mostly_within(limit: Duration, mut measured: impl AsyncFnMut() -> Duration) {
    let mut times = Vec::new();
    while times.len() < 3 {
        times.push(measured().await);
        if times.iter().filter(|time| **time < limit).count() == 2 {
            return;
        }
    }
    panic!("these have to be below {limit:?}: {times:?}");
}

/// Runs a task in the background of the test until the owner is dropped.
pub(crate) fn in_background(tasks: &TaskOwner, task: impl Future<Output = ()> + Send + 'static) {
    let stop = tasks.stop_signal();
    let run = async move {
        stop.run_until_cancelled_owned(task).await;
    };
    tasks.spawn("in the background", run).unwrap();
}

/// Random numbers from a repeatable seed: `ENLIST_SEED`, or a new one. The seed is printed, and shown when the test
/// fails.
pub(crate) fn seed() -> fastrand::Rng {
    let given = std::env::var("ENLIST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("repeat with ENLIST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
