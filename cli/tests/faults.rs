//! `register` and `lock` when etcd, the program or the process itself fails.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use enlist::Moment;
use enlist_testkit::{EtcdServer, eventually};
use etcd_client::GetOptions;
use support::{Running, enlist, is_alive, raw, run, server};

const KEY: &str = "enlist/services/default/svc/a";

/// Waits until the number of keys under a prefix is `count`.
async fn has_keys(server: &EtcdServer, key: &str, count: i64) {
    eventually(&format!("{key} has {count} keys"), || async {
        // The server may be unavailable for a moment.
        let asked = async {
            etcd_client::Client::connect([server.url()], None)
                .await?
                .get(key, Some(GetOptions::new().with_prefix()))
                .await
        };
        let now = tokio::time::timeout(Duration::from_secs(1), asked).await;
        match now {
            Ok(Ok(found)) if found.count() == count => Ok(()),
            other => Err(format!("{:?}", other.map(|found| found.map(|found| found.count())))),
        }
    })
    .await;
}

fn register(server: &EtcdServer, more: &[&str]) -> Command {
    let base = ["register", "svc", "10.0.0.1:80", "--id", "a", "--ttl", "2s"];
    enlist(server, base.iter().chain(more))
}

async fn revoke_all(server: &EtcdServer) {
    let mut raw = raw(server).await;
    for lease in raw.leases().await.unwrap().leases().to_vec() {
        raw.lease_revoke(lease.id()).await.unwrap();
    }
}

/// Reads the process ids that a script wrote.
async fn pids(file: &Path, count: usize) -> Vec<u32> {
    eventually("the processes run", || async {
        let text = fs::read_to_string(file).unwrap_or_default();
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if pids.len() == count { Ok(pids) } else { Err(text) }
    })
    .await
}

async fn ended(pids: &[u32]) {
    eventually("none of the group is left", || async {
        let left: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Script of a shell that writes its own process id and that of a child, and waits.
fn family(file: &Path) -> String {
    format!("echo $$ >> {0}; sleep 1000 & echo $! >> {0}; wait", file.display())
}

#[tokio::test]
async fn register_survives_every_fault() {
    let mut server = server().await;
    let mut running = Running::start(register(&server, &[]));
    running.says("registered").await;
    has_keys(&server, KEY, 1).await;
    revoke_all(&server).await;
    running.says("reregistering").await;
    running.says("registered").await;
    has_keys(&server, KEY, 1).await;
    server.kill().await;
    running.says("suspect").await;
    server.restart().await;
    running.says("registered").await;
    has_keys(&server, KEY, 1).await;
    server.wipe().await;
    running.says("registered").await;
    has_keys(&server, KEY, 1).await;
    let asked = Moment::now();
    running.signal("-TERM");
    running.says("deregistered: removed").await;
    // Not by the end of the lease, and not after the 3 s for which a write under way is awaited.
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(running.code().await, Some(143));
    has_keys(&server, KEY, 0).await;
}

#[tokio::test]
async fn register_ends_with_its_program() {
    let server = server().await;
    let script = ["--", "sh", "-c", "echo \"id $ENLIST_INSTANCE_ID\"; exit 7"];
    let done = run(register(&server, &script)).await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(7), "id a\n"), "{done:?}");
    assert!(done.stderr.contains("deregistered"), "{}", done.stderr);
    has_keys(&server, KEY, 0).await;
    let killed = run(register(&server, &["--", "sh", "-c", "kill -9 $$"])).await;
    assert_eq!(killed.code, Some(128 + 9));
    // Signals are forwarded to the program; USR1 ends nothing.
    let traps = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = Running::start(register(&server, &["--", "sh", "-c", traps]));
    running.says("ready").await;
    running.warns("registered").await;
    running.signal("-USR1");
    running.says("usr1").await;
    running.signal("-TERM");
    // The instance is removed first.
    running.warns("deregistered: removed").await;
    running.says("term").await;
    assert_eq!(running.code().await, Some(3));
}

#[tokio::test]
async fn a_refused_id_ends_the_program() {
    let server = server().await;
    let mut first = Running::start(register(&server, &["--ttl", "60s"]));
    first.says("registered").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    // The lease of the present instance is observed for a third of its TTL before it counts as alive.
    let mut second = Running::start(enlist(
        &server,
        ["register", "svc", "10.0.0.2:80", "--id", "a", "--ttl", "2s", "--", "sh", "-c", &family(&file)],
    ));
    let family = pids(&file, 2).await;
    second.warns("already registered").await;
    assert_eq!(second.code().await, Some(1));
    ended(&family).await;
    has_keys(&server, KEY, 1).await;
}

/// A program that cannot be started leaves neither a lock nor an instance.
#[tokio::test]
async fn a_command_that_cannot_be_started_leaves_nothing() {
    let server = server().await;
    let locked = run(enlist(&server, ["lock", "l", "--ttl", "1h", "--", "/nonexistent"])).await;
    assert_eq!(locked.code, Some(127), "{locked:?}");
    let registered = run(register(&server, &["--ttl", "1h", "--", "/nonexistent"])).await;
    assert_eq!(registered.code, Some(127), "{registered:?}");
    let mut raw = raw(&server).await;
    let left = raw.get("enlist/", Some(GetOptions::new().with_prefix())).await.unwrap();
    let left: Vec<_> = left.kvs().iter().map(|pair| pair.key_str().unwrap().to_owned()).collect();
    assert_eq!(left, Vec::<String>::new(), "{locked:?} {registered:?}");
    assert_eq!(raw.leases().await.unwrap().leases().len(), 0);
}

/// Without a program, the loss of the lock is reported.
#[tokio::test]
async fn a_lock_without_a_command_tells_its_loss() {
    let server = server().await;
    let mut running = Running::start(enlist(&server, ["lock", "l"]));
    running.says("acquired").await;
    revoke_all(&server).await;
    running.says("lost: ").await;
    assert_eq!(running.code().await, Some(124));
}

/// At any end, the whole group of the program ends, and the lock is free.
#[tokio::test]
async fn no_process_of_the_command_is_left_behind() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let lock = |file: &Path, more: &[&str]| {
        let base = ["lock", "l", "--ttl", "5s"];
        let script = family(file);
        let command = ["--", "sh", "-c", script.as_str()];
        enlist(&server, base.iter().chain(more).chain(&command))
    };
    // A signal.
    let file = directory.path().join("signal");
    let mut running = Running::start(lock(&file, &[]));
    let family = pids(&file, 2).await;
    running.signal("-TERM");
    assert_eq!(running.code().await, Some(143));
    ended(&family).await;
    // The end of the program, which leaves a child behind.
    let file = directory.path().join("end");
    let script = format!("sleep 1000 & echo $! >> {}", file.display());
    let done = run(enlist(&server, ["lock", "l", "--", "sh", "-c", &script])).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    ended(&pids(&file, 1).await).await;
    // SIGKILL of the holder: the reaper ends the group long before the lease expires.
    let file = directory.path().join("kill");
    let mut running = Running::start(lock(&file, &["--ttl", "60s"]));
    let family = pids(&file, 2).await;
    running.signal("-KILL");
    assert_eq!(running.code().await, Some(-9));
    ended(&family).await;
}

#[tokio::test]
async fn a_lost_lock_ends_its_command() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("revoked");
    let script = family(&file);
    let mut running = Running::start(enlist(&server, ["lock", "l", "--ttl", "5s", "--", "sh", "-c", &script]));
    running.warns("acquired").await;
    let family = pids(&file, 2).await;
    revoke_all(&server).await;
    running.warns("lost").await;
    running.warns("stopped").await;
    assert_eq!(running.code().await, Some(124));
    ended(&family).await;

    // A program that ignores SIGTERM is killed after its grace, which exceeds what is left of the lease and is not the
    // default.
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running =
        Running::start(enlist(&server, ["lock", "l", "--ttl", "5s", "--grace", "6s", "--", "sh", "-c", stubborn]));
    running.says("ready").await;
    let begun = Moment::now();
    revoke_all(&server).await;
    running.warns("lost").await;
    let stopped = running.warns("stopped").await;
    assert_eq!(running.code().await, Some(124));
    assert!((Duration::from_secs(6)..Duration::from_secs(10)).contains(&begun.elapsed()), "{stopped}");
}

/// After the end of etcd the lock expires, and the program ends before the lease can expire, for any grace.
#[tokio::test]
async fn an_expired_lock_ends_its_program_in_time() {
    let mut server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let alive = directory.path().join("alive");
    // The time of its last sign of life is its own: a busy machine may report its end later.
    let stubborn = format!("trap '' TERM; echo ready; while :; do touch {}; sleep 0.05; done", alive.display());
    let mut running =
        Running::start(enlist(&server, ["lock", "l", "--ttl", "5s", "--grace", "1h", "--", "sh", "-c", &stubborn]));
    running.says("ready").await;
    let begun = SystemTime::now();
    server.kill().await;
    running.warns("no renewal was acknowledged in time").await;
    running.warns("stopped").await;
    assert_eq!(running.code().await, Some(124));
    let lived = fs::metadata(&alive).unwrap().modified().unwrap().duration_since(begun).unwrap();
    assert!(lived < Duration::from_secs(5), "{lived:?}");
}

/// The holder is frozen, but its program is not: the reaper ends the program before another contender can acquire the
/// lock.
#[tokio::test]
async fn a_frozen_holders_command_ends_before_another_begins() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("frozen");
    let script = family(&file);
    let mut frozen = Running::start(enlist(&server, ["lock", "l", "--ttl", "3s", "--", "sh", "-c", &script]));
    let family = pids(&file, 2).await;
    frozen.signal("-STOP");
    let mut next = Running::start(enlist(&server, ["lock", "l", "--ttl", "3s"]));
    next.says("acquired").await;
    let left: Vec<_> = family.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(left.is_empty(), "{left:?} still run");
    frozen.signal("-CONT");
    assert_eq!(frozen.code().await, Some(124));
    assert_eq!(next.child.try_wait().unwrap(), None);
}

#[tokio::test]
async fn a_held_lock_is_not_acquired() {
    let server = server().await;
    let mut holder = Running::start(enlist(&server, ["lock", "l"]));
    holder.says("acquired").await;
    let tried = run(enlist(&server, ["lock", "l", "--try", "--", "echo", "never"])).await;
    assert_eq!((tried.code, tried.stdout.as_str()), (Some(123), ""), "{tried:?}");
    let waited = run(enlist(&server, ["lock", "l", "--wait", "200ms", "--", "echo", "never"])).await;
    assert_eq!((waited.code, waited.stdout.as_str()), (Some(123), ""), "{waited:?}");
    let mut next = Running::start(enlist(&server, ["lock", "l", "--", "sh", "-c", "echo token $ENLIST_FENCING_TOKEN"]));
    let line = "enlist/locks/default/l/";
    let client = raw(&server).await;
    eventually("it waits", || async {
        let options = GetOptions::new().with_prefix().with_count_only();
        let now = client.clone().get(line, Some(options)).await.unwrap().count();
        if now == 2 { Ok(()) } else { Err(now) }
    })
    .await;
    // Ctrl-C during the wait removes the queue entry.
    let mut gone = Running::start(enlist(&server, ["lock", "l"]));
    eventually("so does another", || async {
        let options = GetOptions::new().with_prefix().with_count_only();
        let now = client.clone().get(line, Some(options)).await.unwrap().count();
        if now == 3 { Ok(()) } else { Err(now) }
    })
    .await;
    gone.signal("-INT");
    assert_eq!(gone.code().await, Some(130));
    holder.signal("-TERM");
    assert_eq!(holder.code().await, Some(143));
    next.says("token ").await;
    assert_eq!(next.code().await, Some(0));
    has_keys(&server, line, 0).await;
}
