//! Behaviour of etcd that clients see and that differs between its releases, on the etcd that the environment names.
//! Each test states the behaviour of every release, and shows that registrations and locks work with all of them.
//! `docs/faults.md` has the sources.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist::{
    Config, ConfigPath, Counter, Error, Expect, Lock, LockGuard, LockName, LockOptions, Moment, Namespace,
    RegisterOptions, Registration, RegistrationState, Registry,
};
use enlist_etcd::{
    Etcd,
    diagnose::{Check, Finding, Status},
};
use enlist_testkit::{BackgroundTask, EtcdServer, eventually, soon};
use etcd_client::{
    Client, ConnectOptions, DowngradeOptions, GetOptions, LeaseGrantOptions, Permission, PermissionType, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, WatchOptions, WatchResponse, WatchStream,
};
use futures::{StreamExt, stream};
use support::{instance, metrics, raw, release::Release, server_with, service};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{RwLock, mpsc},
};

const PASSWORD: &str = "correct-horse-battery";

/// TTL that no slow transaction of these tests outlasts.
const LONG: Duration = Duration::from_secs(60);

/// Reads in a transaction of these tests, at most. etcd refuses requests of 1.5 MiB, which are 65,000 reads.
const MAX_READS: usize = 60_000;

/// Commands that etcd accepts before the first of them is executed.
const MAX_GAP: usize = 5000;

/// First releases that answer requests for progress after the events before (#15220).
const PROGRESS_IN_ORDER: [Release; 2] = [Release(3, 4, 25), Release(3, 5, 8)];

/// Held for writing while a server is kept busy, which needs a processor of its own, and for reading by other tests.
static BUSY: RwLock<()> = RwLock::const_new(());

/// Starts a server, with a feature switched on or off if its release has the feature.
async fn with_feature(release: Release, since: Release, feature: &str) -> EtcdServer {
    let gates = format!("--feature-gates={feature}");
    let mut arguments = vec!["--max-txn-ops=100000"];
    if release >= since {
        arguments.push(&gates);
    }
    server_with(&arguments).await
}

/// A client with an instance and a lock, which must not lose either.
struct User {
    etcd: Etcd,
    registration: Registration,
    guard: LockGuard,
}

impl User {
    async fn new(server: &EtcdServer) -> Self {
        let etcd = Etcd::connect(server.url()).await.unwrap();
        let registration = register(&etcd, "a").await;
        let (name, options) = (LockName::parse("l").unwrap(), LockOptions::new().ttl(LONG));
        let guard = soon("acquired", etcd.acquire(&name, options)).await.unwrap();
        Self { etcd, registration, guard }
    }

    /// Changes its instance, and checks that nothing was lost.
    async fn works(&self) {
        let update = self.registration.update(|update| _ = update.weight(7));
        soon("stored", update).await.unwrap();
        assert!(matches!(self.registration.state(), RegistrationState::Registered { .. }));
        assert!(self.guard.is_held());
        assert_eq!(self.etcd.counters().get(Counter::LeaseLosses), 0);
    }
}

async fn register(etcd: &Etcd, id: &str) -> Registration {
    let options = RegisterOptions::new().ttl(LONG);
    soon("registered", etcd.register(&service(), instance(id), options)).await.unwrap()
}

/// Numbers of commands that the server has committed and executed.
async fn commands(server: &EtcdServer) -> (usize, usize) {
    let text = metrics(server).await;
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        format!("{:.0}", line.trim().parse::<f64>().unwrap()).parse().unwrap()
    };
    (number("etcd_server_proposals_committed_total "), number("etcd_server_proposals_applied_total "))
}

/// A transaction that reads all of `keep_busy`'s keys `reads` times, to sort them by their values.
fn reading(reads: usize) -> Txn {
    let options = GetOptions::new().with_prefix().with_sort(SortTarget::Value, SortOrder::Descend).with_limit(1);
    let mut steps = vec![TxnOp::get("busy/", Some(options)); reads];
    steps.push(TxnOp::put("busy", "x", None));
    Txn::new().and_then(steps)
}

/// Lets the server execute a transaction for about `time`, in which it executes nothing else. Returns once it has
/// begun.
async fn keep_busy(server: &EtcdServer, time: Duration) -> BackgroundTask<()> {
    const KEYS: usize = 1000;
    const SAMPLE: u32 = 200;
    let mut client = raw(server).await;
    for _ in 0..KEYS / 100 {
        let keys = (0..100).map(|_| TxnOp::put(format!("busy/{}", fastrand::u64(..)), "x", None)).collect::<Vec<_>>();
        soon("written", client.txn(Txn::new().and_then(keys))).await.unwrap();
    }
    let mut of_one = Duration::MAX;
    for _ in 0..3 {
        let begun = Moment::now();
        soon("read", client.txn(reading(SAMPLE as usize))).await.unwrap();
        // The others waited for something else.
        of_one = of_one.min(begun.elapsed() / SAMPLE).max(Duration::from_micros(1));
    }
    let reads = usize::try_from(time.as_micros() / of_one.as_micros()).unwrap().clamp(1, MAX_READS);
    println!("{reads} reads for {time:?}");
    let running = BackgroundTask::run(async move {
        // An answer may be the end of etcd's patience; it executes the transaction nevertheless.
        let _ = client.txn(reading(reads)).await;
    });
    eventually("the transaction is executed", || async {
        let (committed, executed) = commands(server).await;
        if committed > executed { Ok(()) } else { Err((committed, executed)) }
    })
    .await;
    running
}

/// Waits until the server has executed everything.
async fn idle(server: &EtcdServer) {
    eventually("nothing is left to execute", || async {
        let (committed, executed) = commands(server).await;
        if committed == executed { Ok(()) } else { Err((committed, executed)) }
    })
    .await;
}

/// Renews a lease while the server is busy. Returns the refusal, if there is one.
async fn renewal_while_busy(server: &EtcdServer) -> Option<String> {
    let user = User::new(server).await;
    let mut client = raw(server).await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let busy = keep_busy(server, Duration::from_secs(4)).await;
    let answer = soon("an answer", client.lease_keep_alive(lease)).await;
    let (committed, executed) = commands(server).await;
    assert!(committed > executed, "the control: it is busy still");
    drop(busy);
    idle(server).await;
    user.works().await;
    answer.err().map(|refusal| refusal.to_string())
}

/// Before 3.7 a renewal waits for the commands before it, for up to a second, and is refused then. Since 3.7 that of a
/// lease that exists waits for none (`FastLeaseKeepAlive`). A refused renewal costs no lease, whose TTL is longer.
#[tokio::test]
async fn renewals_wait_for_commands_before_3_7() {
    const SINCE: Release = Release(3, 7, 0);
    const REFUSED: &str = "waiting for the applied index took too long";
    let _busy = BUSY.write().await;
    let server = server_with(&["--max-txn-ops=100000"]).await;
    let release = Release::of(&server).await;
    let refusal = renewal_while_busy(&server).await;
    println!("{release:?}: {refusal:?}");
    assert_eq!(refusal.is_some_and(|text| text.contains(REFUSED)), release < SINCE, "{release:?}");
    if release >= SINCE {
        let without = with_feature(release, SINCE, "FastLeaseKeepAlive=false").await;
        let refusal = renewal_while_busy(&without).await;
        assert!(refusal.as_ref().is_some_and(|text| text.contains(REFUSED)), "{refusal:?}");
    }
}

/// Keeps the server busy, and writes until it refuses further commands, because it has too many to execute. Both
/// continue in the background. A transaction that ends before so many writes have arrived is followed by a longer one.
async fn overload(server: &EtcdServer) -> [BackgroundTask<()>; 2] {
    for seconds in [5, 10, 20] {
        let busy = keep_busy(server, Duration::from_secs(seconds)).await;
        if let Some(writing) = write_until_refused(server).await {
            return [busy, writing];
        }
        idle(server).await;
    }
    panic!("the server executes the writes faster than they arrive");
}

/// Writes in the background, and waits for the first refusal; `None` if all writes were accepted. After some seconds
/// etcd answers an accepted write with an error, and executes it nevertheless.
async fn write_until_refused(server: &EtcdServer) -> Option<BackgroundTask<()>> {
    let client = raw(server).await;
    let (send, mut refusals) = mpsc::unbounded_channel();
    let writing = BackgroundTask::run(async move {
        let write = |number: usize| {
            let (mut client, send) = (client.clone(), send.clone());
            async move {
                let answer = client.put(format!("load/{number}"), "x", None).await;
                let error = answer.err().map(|error| error.to_string());
                if let Some(refusal) = error.filter(|text| !text.contains("request timed out")) {
                    // The first one is received; the others are not needed.
                    let _ = send.send(refusal);
                }
            }
        };
        stream::iter(0..MAX_GAP + 500).for_each_concurrent(None, write).await;
    });
    let refusal = soon("a refusal", refusals.recv()).await?;
    assert!(refusal.contains("too many requests"), "{refusal}");
    Some(writing)
}

/// Outcome of a revocation while etcd refuses other commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revocation {
    Refused,
    Accepted,
}

/// Revokes a lease while the server refuses other commands. An instance that comes meanwhile is registered afterwards.
async fn revocation_under_overload(server: &EtcdServer) -> Revocation {
    let user = User::new(server).await;
    let mut client = raw(server).await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let begun = Moment::now();
    let load = overload(server).await;
    println!("overloaded after {:?}", begun.elapsed());
    let mut joining = BackgroundTask::run({
        let etcd = user.etcd.clone();
        // A registration has a time limit; a program that wants to start repeats it.
        async move {
            let register = || {
                let (etcd, options) = (etcd.clone(), RegisterOptions::new().ttl(LONG));
                async move { etcd.register(&service(), instance("b"), options).await }
            };
            eventually("the instance that came meanwhile is registered", register).await
        }
    });
    let outcome = revoke(client.clone(), lease).await;
    let (committed, executed) = commands(server).await;
    assert!(committed > executed + MAX_GAP, "the control: it is overloaded still: {committed}, {executed}");
    joining.assert_running();
    drop(load);
    idle(server).await;
    println!("idle after {:?}", begun.elapsed());
    let left = eventually("etcd answers", || {
        let mut client = client.clone();
        async move { client.lease_time_to_live(lease, None).await }
    })
    .await;
    assert_eq!(left.ttl() > 0, outcome == Revocation::Refused, "only an accepted revocation has an effect");
    let joined = joining.done("the instance that came meanwhile").await;
    assert!(matches!(joined.state(), RegistrationState::Registered { .. }));
    user.works().await;
    outcome
}

/// Revokes a lease. A refusal is immediate, so a revocation without an answer after several refused writes is accepted.
async fn revoke(mut client: Client, lease: i64) -> Revocation {
    const WRITES: usize = 50;
    let mut revoking = client.clone();
    let writes = async {
        for _ in 0..WRITES {
            let refusal = client.put("more", "x", None).await.unwrap_err().to_string();
            assert!(refusal.contains("too many requests"), "{refusal}");
        }
    };
    tokio::select! {
        biased;
        answer = revoking.lease_revoke(lease) => {
            let refusal = answer.expect_err("it is too early for an effect").to_string();
            assert!(refusal.contains("too many requests"), "{refusal}");
            Revocation::Refused
        }
        () = writes => Revocation::Accepted,
    }
}

/// etcd refuses commands once more than 5,000 wait to be executed. Since 3.7 revocations, also those of expired leases,
/// can have twice that number (`PriorityRequest`, off by default).
#[tokio::test]
async fn revocations_have_no_priority_by_default() {
    const SINCE: Release = Release(3, 7, 0);
    let _busy = BUSY.write().await;
    let server = server_with(&["--max-txn-ops=100000"]).await;
    let release = Release::of(&server).await;
    assert_eq!(revocation_under_overload(&server).await, Revocation::Refused, "{release:?}");
    if release >= SINCE {
        let with = with_feature(release, SINCE, "PriorityRequest=true").await;
        assert_eq!(revocation_under_overload(&with).await, Revocation::Accepted, "{release:?}");
    }
}

/// Users that may ask a member for its status, where authentication is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Permitted {
    Everyone,
    EveryUser,
    Root,
}

impl Permitted {
    fn in_release(release: Release) -> Self {
        match release {
            Release(3, 4, ..42) | Release(3, 5, ..28) => Self::Everyone,
            Release(3, 4, _) | Release(3, 5, ..32) | Release(3, 6, ..12) => Self::Root,
            _ => Self::EveryUser,
        }
    }
}

/// Starts a server with authentication: `root`, and `user`, who may read and write the keys of registrations.
async fn guarded() -> EtcdServer {
    let server = server_with(&[]).await;
    let mut client = raw(&server).await;
    client.user_add("root", PASSWORD, None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("own").await.unwrap();
    let permission = Permission::new(PermissionType::Readwrite, "enlist/").with_range_end("enlist0");
    client.role_grant_permission("own", permission).await.unwrap();
    client.user_add("user", PASSWORD, None).await.unwrap();
    client.user_grant_role("user", "own").await.unwrap();
    client.auth_enable().await.unwrap();
    server
}

async fn is_shown_the_status(server: &EtcdServer, user: Option<&str>) -> bool {
    let options = user.map(|user| ConnectOptions::new().with_user(user, PASSWORD));
    let mut client = Client::connect([server.url()], options).await.unwrap();
    match soon("an answer", client.status()).await {
        Ok(_) => true,
        Err(refusal) => {
            let text = refusal.to_string();
            assert!(text.contains("permission denied") || text.contains("user name is empty"), "{text}");
            false
        }
    }
}

/// The message of a diagnosis names exactly the releases that this program expects to be for `root` only, and the row
/// of the docs has the same words.
#[test]
fn releases_for_root_are_the_same_everywhere() {
    let text = Finding::VersionHidden { fixed_in: &[] }.to_string();
    let (_, text) = text.split_once("; ").unwrap();
    let named = text.strip_suffix(" show it to root only").unwrap();
    let ranges: Vec<_> = named
        .split([',', ' '])
        .filter(|word| word.starts_with(char::is_numeric))
        .map(Release::parse)
        .collect::<Vec<_>>()
        .chunks_exact(2)
        .map(|range| range[0]..=range[1])
        .collect();
    for release in (4..=8).flat_map(|line| (0..=45).map(move |patch| Release(3, line, patch))) {
        let is_named = ranges.iter().any(|range| range.contains(&release));
        assert_eq!(is_named, Permitted::in_release(release) == Permitted::Root, "{release:?}: {named}");
    }
    let docs = include_str!("../../docs/faults.md");
    assert!(docs.contains(&format!("for `root` only in {named};")), "{named}");
}

/// Deletes a key of the configuration, and returns `true` if its history contains the deletion: the client knows that
/// its member reports progress in order.
async fn reads_deletions(etcd: &Etcd) -> bool {
    let (namespace, path) = (Namespace::default(), ConfigPath::parse("deleted").unwrap());
    soon("written", etcd.put(&namespace, &path, b"1".to_vec(), Expect::Any)).await.unwrap();
    soon("deleted", etcd.delete(&namespace, &path, Expect::Any)).await.unwrap();
    let history = soon("read", etcd.history(&namespace, &path, 10)).await.unwrap();
    history.iter().any(|version| version.value.is_none())
}

/// The status of a member is for everyone, then for `root` only, then for every user. A diagnosis as a user works with
/// all of them; it reports a hidden version. So do registrations and what depends on the version of the member.
#[tokio::test]
async fn the_status_is_for_root_in_some_releases() {
    let _idle = BUSY.read().await;
    let server = guarded().await;
    let release = Release::of(&server).await;
    let permitted = Permitted::in_release(release);
    assert_eq!(is_shown_the_status(&server, None).await, permitted == Permitted::Everyone, "{release:?}");
    assert_eq!(is_shown_the_status(&server, Some("user")).await, permitted < Permitted::Root, "{release:?}");
    assert!(is_shown_the_status(&server, Some("root")).await);

    let builder = Etcd::builder([server.url()]).user("user", PASSWORD.to_owned());
    let mut found = Vec::new();
    let report = |finding| {
        found.push(finding);
        Ok::<_, Error>(())
    };
    soon("a diagnosis", builder.clone().diagnose(&Namespace::default(), report)).await.unwrap();
    let version = found.iter().find(|finding| finding.check() == Check::Version).unwrap();
    assert_eq!(
        matches!(version, Finding::VersionHidden { .. }),
        permitted == Permitted::Root,
        "{release:?}: {version:?}"
    );
    assert!(found.iter().all(|finding| finding.status() != Status::Failed), "{found:#?}");
    let etcd = builder.connect().await.unwrap();
    soon("deregistered", register(&etcd, "a").await.deregister()).await.unwrap();
    assert_eq!(reads_deletions(&etcd).await, release.has(&PROGRESS_IN_ORDER), "{release:?}");
}

/// Sends an empty request to etcd's JSON gateway, without a user.
async fn ask(server: &EtcdServer, path: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// A client learns without a user whether it needs one since 3.7. Before, it needs one for the question; 3.4 does not
/// know the question. A refusal names its cause in all of them, and that is what this library relies on.
#[tokio::test]
async fn user_requirement_is_public_since_3_7() {
    let _idle = BUSY.read().await;
    let server = guarded().await;
    let release = Release::of(&server).await;
    let answer = soon("an answer", ask(&server, "/v3/auth/status")).await;
    assert_eq!(answer.contains("\"enabled\":true"), release >= Release(3, 7, 0), "{release:?}: {answer}");
    assert_eq!(answer.starts_with("HTTP/1.1 404"), release < Release(3, 5, 0), "{release:?}: {answer}");
    let refused = soon("an answer", Etcd::connect(server.url())).await.unwrap_err();
    assert!(matches!(refused, Error::AuthFailed(_)), "{refused:?}");
}

async fn downgrade(client: &mut Client, options: DowngradeOptions) -> Result<(), String> {
    let answer = soon("an answer", client.maintenance_client().downgrade(options)).await;
    answer.map(drop).map_err(|refusal| refusal.to_string())
}

/// Announces or cancels a downgrade. etcd 3.5 does it, and does not answer.
async fn announce(client: &mut Client, release: Release, options: DowngradeOptions) {
    let outcome = downgrade(client, options).await;
    if release < Release(3, 6, 0) {
        let refusal = outcome.unwrap_err();
        assert!(refusal.contains("request timed out"), "{refusal}");
    } else {
        assert_eq!(outcome, Ok(()), "{release:?}");
    }
}

/// Downgrades are announced to the cluster since 3.5, and the status has them since 3.6. Clients continue before,
/// during and after one; the version of the members does not change by it.
#[tokio::test]
async fn an_announced_downgrade_disturbs_no_client() {
    let _idle = BUSY.read().await;
    let server = server_with(&[]).await;
    let (user, mut client) = (User::new(&server).await, raw(&server).await);
    let release = Release::of(&server).await;
    let target = format!("{}.{}.0", release.0, release.1.saturating_sub(1));
    let validated = downgrade(&mut client, DowngradeOptions::Validate(target.clone())).await;
    if release < Release(3, 5, 0) {
        let refusal = validated.unwrap_err();
        assert!(refusal.contains("unknown method"), "{refusal}");
        return user.works().await;
    }
    assert_eq!(validated, Ok(()), "{release:?}");
    let other = downgrade(&mut client, DowngradeOptions::Validate("3.1.0".to_owned())).await.unwrap_err();
    assert!(other.contains("invalid downgrade target version"), "{other}");
    announce(&mut client, release, DowngradeOptions::Enable(target.clone())).await;
    // 3.5 keeps the version of the cluster.
    if release >= Release(3, 6, 0) {
        eventually("the cluster has the lower version", || async {
            let versions = server.versions().await;
            let is_lower = versions.as_ref().is_some_and(|(_, cluster)| *cluster == target);
            if is_lower { Ok(()) } else { Err(versions) }
        })
        .await;
    }
    let status = client.status().await.unwrap();
    let shown = status.downgrade_info().map(|info| (info.enabled(), info.target_version().to_owned()));
    let expected = (release >= Release(3, 6, 0)).then(|| (true, target.clone()));
    assert_eq!(shown, expected, "{release:?}");
    assert_eq!(Release::of(&server).await, release);
    user.works().await;
    announce(&mut client, release, DowngradeOptions::Cancel).await;
    user.works().await;
    soon("deregistered", register(&user.etcd, "b").await.deregister()).await.unwrap();
}

/// Opens a quiet watch over a connection with pings.
async fn watch_with_pings(server: &EtcdServer, interval: Duration) -> WatchStream {
    let options = ConnectOptions::new().with_keep_alive(interval, LONG);
    let mut client = Client::connect([server.url()], Some(options)).await.unwrap();
    let mut watch = client.watch("quiet", None).await.unwrap();
    assert!(soon("it is open", watch.message()).await.unwrap().unwrap().created());
    watch
}

/// Every release closes a connection after the third ping that follows another one within 5 s. The shortest interval
/// that this library accepts is 6 s (`options.md`).
#[tokio::test]
async fn pings_within_five_seconds_close_a_connection() {
    /// Rounds in which three pings, 6 s apart, would be too many if they were counted.
    const ROUNDS: usize = 8;
    let _idle = BUSY.read().await;
    let server = server_with(&[]).await;
    let mut slow = watch_with_pings(&server, Duration::from_secs(6)).await;
    for round in 0..ROUNDS {
        let mut fast = watch_with_pings(&server, Duration::from_secs(1)).await;
        let ended = soon("the connection is closed", fast.message()).await;
        assert!(ended.is_err(), "{round}: {ended:?}");
    }
    raw(&server).await.put("quiet", "x", None).await.unwrap();
    let change = soon("the other one is open", slow.message()).await.unwrap().unwrap();
    assert_eq!(change.events().len(), 1);
}

/// An expired lease keeps its id until its keys are deleted: a grant of the id is refused before, and the expiry does
/// not concern the lease of a later grant. A key that was put under another lease meanwhile stays. This library draws
/// ids at random, so it uses none of them twice.
#[tokio::test]
async fn an_expired_lease_ends_before_a_new_grant() {
    const ID: i64 = 77;
    let _idle = BUSY.read().await;
    let server = server_with(&[]).await;
    let mut client = raw(&server).await;
    let under = |lease| Some(PutOptions::new().with_lease(lease));
    let granted = |id| Some(LeaseGrantOptions::new().with_id(id));
    // Long enough for the requests until it is used for the last time.
    client.lease_grant(5, granted(ID)).await.unwrap();
    client.put("lost", "x", under(ID)).await.unwrap();
    client.put("kept", "x", under(ID)).await.unwrap();
    let next = client.lease_grant(600, None).await.unwrap().id();
    client.put("kept", "y", under(next)).await.unwrap();
    let refused = client.lease_grant(600, granted(ID)).await.unwrap_err().to_string();
    assert!(refused.contains("lease already exists"), "{refused}");
    eventually("the id is free", || {
        let mut client = client.clone();
        async move { client.lease_grant(600, granted(ID)).await }
    })
    .await;
    let count = |mut client: Client, key: &'static str| async move { client.get(key, None).await.unwrap().count() };
    assert_eq!(count(client.clone(), "lost").await, 0, "the keys are deleted first");
    client.put("again", "x", under(ID)).await.unwrap();
    // A later expiry shows that no late part of the former one is left.
    let marker = client.lease_grant(1, None).await.unwrap().id();
    client.put("marker", "x", under(marker)).await.unwrap();
    eventually("the marker expires", || async {
        let left = count(client.clone(), "marker").await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    for key in ["kept", "again"] {
        assert_eq!(count(client.clone(), key).await, 1, "{key}");
    }
}

/// Writes a key. Returns the revision.
async fn put(client: &mut Client, key: &str) -> i64 {
    let answer = soon("written", client.put(key, "x", None)).await.unwrap();
    answer.header().unwrap().revision()
}

async fn next(watch: &mut WatchStream) -> WatchResponse {
    soon("a message of the watch", watch.message()).await.unwrap().unwrap()
}

fn revision(message: &WatchResponse) -> i64 {
    message.header().unwrap().revision()
}

/// A watch on a future revision is silent until that revision in all releases, and receives no older events. A request
/// for its progress is answered with an older revision, until 3.4.38, 3.5.22 and 3.6.2, which do not answer then
/// (#20221). This library watches from revisions that it has seen, so that its requests are answered.
#[tokio::test]
async fn a_watch_on_a_future_revision_waits() {
    const SILENT: [Release; 3] = [Release(3, 4, 38), Release(3, 5, 22), Release(3, 6, 2)];
    let _idle = BUSY.read().await;
    let server = server_with(&[]).await;
    let (user, mut client) = (User::new(&server).await, raw(&server).await);
    let release = Release::of(&server).await;
    let begun = put(&mut client, "k").await;
    let start = begun + 3;
    let mut watch = client.watch("k", Some(WatchOptions::new().with_start_revision(start))).await.unwrap();
    assert!(next(&mut watch).await.created());
    watch.request_progress().await.unwrap();
    // A stream's requests are processed in order, so the request for progress has been processed once this is open.
    watch.watch("other", None).await.unwrap();
    let mut answers = Vec::new();
    let is_answered = !release.has(&SILENT);
    let mut is_open = false;
    while !is_open || (is_answered && answers.is_empty()) {
        let message = next(&mut watch).await;
        is_open |= message.created();
        if !message.created() {
            assert!(message.events().is_empty(), "{message:?}");
            answers.push(revision(&message));
        }
    }
    assert_eq!(answers, if is_answered { vec![begun] } else { Vec::new() }, "{release:?}");
    while put(&mut client, "k").await < start {}
    let message = next(&mut watch).await;
    let received: Vec<_> = message.events().iter().map(|event| event.kv().unwrap().mod_revision()).collect();
    assert_eq!(received, [start], "{message:?}");
    watch.request_progress().await.unwrap();
    let answer = next(&mut watch).await;
    assert_eq!((answer.watch_id(), answer.events().len(), revision(&answer)), (-1, 0, start), "{release:?}");
    user.works().await;
}

/// Starts a server that reports the progress of quiet watches this often. The option is experimental before 3.6, and
/// its environment variable has another name then, too. The name is chosen by the release, because etcd refuses options
/// that it does not know. No other test uses an experimental option.
async fn reporting(release: Release, interval: &str) -> EtcdServer {
    let prefix = if release.has(&[Release(3, 6, 0)]) { "--" } else { "--experimental-" };
    server_with(&[&format!("{prefix}watch-progress-notify-interval={interval}")]).await
}

/// Writes a hundred keys this many times. Returns the last revision.
async fn write_history(client: &mut Client, writes: usize) -> i64 {
    let mut last = 0;
    for number in 0..writes {
        let keys: Vec<_> = (0..100).map(|key| TxnOp::put(format!("history/{key}"), number.to_string(), None)).collect();
        let answer = soon("written", client.txn(Txn::new().and_then(keys))).await.unwrap();
        last = answer.header().unwrap().revision();
    }
    last
}

/// All releases report the progress of a quiet watch that wants it, under the watch's own id. A report comes after all
/// events up to its revision, also for a watch that catches up. This library counts it as a proof.
#[tokio::test]
async fn periodic_progress_follows_the_events_before() {
    const WRITES: usize = 100;
    let _idle = BUSY.read().await;
    let release = Release::of(&server_with(&[]).await).await;
    let server = reporting(release, "100ms").await;
    let (user, mut client) = (User::new(&server).await, raw(&server).await);
    let mut last = write_history(&mut client, WRITES).await;
    let mut unasked = client.watch("history/0", None).await.unwrap();
    assert!(next(&mut unasked).await.created());
    let options = WatchOptions::new().with_prefix().with_start_revision(1).with_progress_notify();
    let mut watch = client.watch("history/", Some(options)).await.unwrap();
    let opened = next(&mut watch).await;
    let (mut received, mut written) = (0, 100 * WRITES);
    for _ in 0..3 {
        let now = put(&mut client, "elsewhere").await;
        loop {
            let message = next(&mut watch).await;
            assert_eq!(message.watch_id(), opened.watch_id(), "{release:?}");
            received += message.events().len();
            if message.events().is_empty() {
                assert!(
                    revision(&message) < last || received == written,
                    "{release:?}: {message:?}, {last}, {received}"
                );
                if revision(&message) >= now {
                    break;
                }
            }
        }
        (last, written) = (put(&mut client, "history/0").await, written + 1);
    }
    let event = next(&mut unasked).await;
    assert_eq!(event.events().len(), 1, "a watch that does not want progress receives none: {event:?}");
    user.works().await;
}

/// Progress on request is reported under the id -1. Releases before 3.4.25 and 3.5.8 can report it before the events
/// that it covers (#15220), later ones only once all watches of the stream have caught up.
#[tokio::test]
async fn requested_progress_can_precede_events_of_old_releases() {
    const WRITES: usize = 100;
    const ATTEMPTS: usize = 20;
    let _idle = BUSY.read().await;
    let server = server_with(&[]).await;
    let (user, mut client) = (User::new(&server).await, raw(&server).await);
    let release = Release::of(&server).await;
    let last = write_history(&mut client, WRITES).await;
    let mut early = 0;
    for _ in 0..ATTEMPTS {
        let options = WatchOptions::new().with_prefix().with_start_revision(1);
        let mut watch = client.watch("history/", Some(options)).await.unwrap();
        assert!(next(&mut watch).await.created());
        let (mut requests, mut messages) = watch.split();
        let mut received = 0;
        let answer = soon("an answer", async {
            loop {
                // A request may be dropped while the watch catches up.
                requests.request_progress().await.unwrap();
                let Ok(message) = tokio::time::timeout(Duration::from_millis(100), messages.message()).await else {
                    continue;
                };
                let message = message.unwrap().unwrap();
                if message.events().is_empty() {
                    return message;
                }
                received += message.events().len();
            }
        })
        .await;
        assert_eq!(answer.watch_id(), -1, "{answer:?}");
        assert!(revision(&answer) >= last, "{answer:?}");
        early += usize::from(received < 100 * WRITES);
    }
    println!("{release:?}: {early} of {ATTEMPTS} reports were early");
    assert_eq!(early > 0, !release.has(&PROGRESS_IN_ORDER), "{release:?}: {early} of {ATTEMPTS}");
    user.works().await;
}
