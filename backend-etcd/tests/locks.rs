//! Lock behaviour specific to a real etcd: handover in one transaction, conditions for transactions, `etcdctl` in the
//! same queue, a frozen holder and its fence, a thousand contenders.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use enlist::{
    Election, Error, Fence, FencingToken, Lock, LockGuard, LockName, LockOptions, Loss, Moment, Queues, Released,
    TaskOwner,
    backend::{contender::Grant, lock_guard},
};
use enlist_etcd::{Etcd, EtcdConcurrency, GobaseLock, SessionRuntime, lock_condition};
use enlist_testkit::{BackgroundTask, Direction, EtcdCluster, EtcdServer, Mode, Proxy, eventually, soon};
use etcd_client::{Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use support::{CHILD, LOCK_QUEUE, TTL, in_background, lock_name, no_lease_is_left, pass, raw, server};
use tokio::{sync::mpsc, task::JoinSet};

/// Number of clients that contend.
const SESSIONS: usize = 20;

fn short() -> LockOptions {
    LockOptions::new().ttl(TTL)
}

async fn acquire(etcd: &Etcd) -> LockGuard {
    soon("acquired", etcd.acquire(&lock_name(), short())).await.unwrap()
}

/// A contender that runs beside the test.
fn contend(etcd: &Etcd, name: LockName, options: LockOptions) -> BackgroundTask<LockGuard> {
    let etcd = etcd.clone();
    BackgroundTask::run(async move { etcd.acquire(&name, options).await.unwrap() })
}

/// Sends the requests of gobase's `etcd.Lock(key, ttl)` without the renewals. Returns the lease that keeps the lock, or
/// `None` if the lock is taken.
async fn gobase_lock(raw: &mut etcd_client::Client, key: &str, ttl: i64) -> Option<i64> {
    let lease = raw.lease_grant(ttl, None).await.unwrap().id();
    let absent = Compare::create_revision(key, CompareOp::Equal, 0);
    let put = TxnOp::put(key, "占用", Some(PutOptions::new().with_lease(lease)));
    let txn = Txn::new().when([absent]).and_then([put]).or_else([TxnOp::get(key, None)]);
    raw.txn(txn).await.unwrap().succeeded().then_some(lease)
}

/// gobase's requests and this crate's locks exclude each other, in both directions. `interop` tests the same with Go.
#[tokio::test]
async fn gobase_locks_exclude_ours() {
    const KEY: &str = "/locks/nightly";
    let server = server().await;
    let (one, two) = (
        Etcd::builder([server.url()]).lock_layout(GobaseLock).connect().await.unwrap(),
        Etcd::builder([server.url()]).lock_layout(GobaseLock).connect().await.unwrap(),
    );
    let (mut raw, job) = (raw(&server).await, LockName::parse(KEY).unwrap());
    // This crate holds, on gobase's key and with its value.
    let ours = soon("acquired", one.acquire(&job, short())).await.unwrap();
    let held = raw.get(KEY, None).await.unwrap();
    assert_eq!(held.kvs()[0].value(), [0xe5, 0x8d, 0xa0, 0xe7, 0x94, 0xa8]);
    assert!(gobase_lock(&mut raw, KEY, 60).await.is_none());
    assert!(two.try_acquire(&job, short()).await.unwrap().is_none());
    assert_eq!(two.lock_queue(&job).await.unwrap().holders()[0].token, ours.fencing_token());
    let mut tokens = vec![ours.fencing_token()];
    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::Released);
    // gobase holds, and both of this crate's contenders wait until it deletes its key.
    gobase_lock(&mut raw, KEY, 60).await.expect("it is free");
    let mut waiting = JoinSet::new();
    for etcd in [one.clone(), two.clone()] {
        let job = job.clone();
        waiting.spawn(async move { etcd.acquire(&job, short()).await.unwrap() });
    }
    assert!(one.try_acquire(&job, short()).await.unwrap().is_none());
    assert!(waiting.try_join_next().is_none());
    raw.delete(KEY, None).await.unwrap();
    for _ in 0..2 {
        let guard = soon("the turn of one", waiting.join_next()).await.unwrap().unwrap();
        assert!(guard.is_held());
        assert!(gobase_lock(&mut raw, KEY, 60).await.is_none());
        tokens.push(guard.fencing_token());
        soon("released", guard.release()).await.unwrap();
    }
    assert!(tokens.is_sorted_by(|before, after| before < after), "{tokens:?}");
    // gobase crashes: its lease expires.
    gobase_lock(&mut raw, KEY, 2).await.expect("it is free");
    let ours = soon("acquired", two.acquire(&job, short())).await.unwrap();
    // gobase identifies its key by name only. A gobase client that has lost the lock without noticing deletes this
    // holder's key, which is a loss.
    raw.delete(KEY, None).await.unwrap();
    assert_eq!(soon("the loss", ours.lost()).await, Loss::KeyGone);
    gobase_lock(&mut raw, KEY, 60).await.expect("it is free");
    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::AlreadyLost);
    assert_eq!(raw.get(KEY, None).await.unwrap().kvs().len(), 1, "the lock of gobase stays");
}

/// `etcdctl` and Go's package leave no mark, so a crash cannot be distinguished from a release.
#[tokio::test]
async fn a_layout_without_marks_refuses_lock_delays() {
    let builder = Etcd::builder(["http://127.0.0.1:9"]).lock_layout(EtcdConcurrency).runtime(SessionRuntime::Caller);
    let etcd = builder.build().unwrap();
    let refused = etcd.acquire(&lock_name(), short().lock_delay(TTL)).await.unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
    let refused = etcd.campaign(&lock_name(), "v", short().lock_delay(TTL)).await.unwrap_err();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
}

/// A queue entry that is created long after its acquisition was given up, when the connection that buffers the request
/// resumes. It is removed on sight and blocks no contender. etcd may execute such a request or drop it with its stream;
/// this is a race, so there are several rounds.
#[tokio::test]
async fn a_queue_entry_from_frozen_connections_is_removed() {
    let server = server().await;
    let proxies = [Proxy::start(server.address()).await.unwrap(), Proxy::start(server.address()).await.unwrap()];
    let urls = proxies.iter().map(Proxy::url);
    let etcd = Etcd::builder(urls).request_timeout(Duration::from_secs(1)).connect().await.unwrap();
    let mut raw_client = raw(&server).await;
    let watched = Some(WatchOptions::new().with_prefix().with_start_revision(1));
    let mut events = raw_client.watch(LOCK_QUEUE, watched).await.unwrap();
    let long = || LockOptions::new().ttl(Duration::from_secs(60));
    let other = |round: usize| LockName::parse(format!("other{round}")).unwrap();
    let mut held = Vec::new();
    for round in 0..20 {
        // The lease of the late queue entry lives for as long as this lock is held.
        held.push(soon("acquired", etcd.acquire(&other(round), long())).await.unwrap());
        let before: Vec<usize> = proxies.iter().map(|proxy| proxy.connections().len()).collect();
        for proxy in &proxies {
            proxy.set(Mode::BlackHole(Direction::ToServer));
        }
        let given_up = etcd.acquire(&lock_name(), long().deadline(Duration::from_millis(300))).await;
        assert!(matches!(given_up, Err(Error::Timeout { .. })), "{given_up:?}");
        let (frozen, healthy) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        eventually("its connection is given up", || async {
            let now: Vec<usize> = proxies.iter().map(|proxy| proxy.connections().len()).collect();
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
        proxies[healthy].heal();
        // New requests are answered over the healthy connection, and so was the search for the queue entry.
        let _probe = soon("acquired", etcd.acquire(&LockName::parse("probe").unwrap(), long())).await.unwrap();
        proxies[frozen].heal();
        let marker = format!("{LOCK_QUEUE}marker{round}");
        eventually("what lay in the frozen connections has arrived", || async {
            let connections = proxies[frozen].connections();
            let open = connections.iter().take(before[frozen]).filter(|connection| !connection.ended).count();
            if open <= 1 { Ok(()) } else { Err(open) }
        })
        .await;
        raw_client.put(&*marker, "", None).await.unwrap();
        let mut late = None;
        let before_marker = async {
            loop {
                for event in events.message().await.unwrap().unwrap().events() {
                    let pair = event.kv().unwrap();
                    match event.event_type() {
                        EventType::Put if pair.key() == marker.as_bytes() => return,
                        EventType::Put if pair.lease() != 0 => late = Some(pair.key().to_vec()),
                        _ => {}
                    }
                }
            }
        };
        soon("all that happened before the marker", before_marker).await;
        let Some(late) = late else { continue };
        eventually("the late entry is removed", || async {
            let found = raw_client.clone().get(late.clone(), None).await.unwrap();
            if found.count() == 0 { Ok(()) } else { Err(found) }
        })
        .await;
        let stranger = Etcd::connect(server.url()).await.unwrap();
        let _theirs = soon("acquired", stranger.acquire(&lock_name(), long())).await.unwrap();
        return;
    }
    panic!("in no round was the late creation done");
}

/// Waits until `count` keys are below `prefix`. Returns the number of requests that this took.
async fn wait_for_queue(server: &EtcdServer, prefix: &str, count: usize) -> u32 {
    let (raw, requests) = (raw(server).await, AtomicU32::new(0));
    eventually(&format!("{count} are in the queue"), || async {
        requests.fetch_add(1, Ordering::Relaxed);
        let options = GetOptions::new().with_prefix().with_count_only();
        let now = raw.clone().get(prefix, Some(options)).await.unwrap().count();
        if usize::try_from(now) == Ok(count) { Ok(()) } else { Err(now) }
    })
    .await;
    requests.into_inner()
}

#[tokio::test]
async fn a_local_handover_takes_one_transaction() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let first = acquire(&etcd).await;
    let mut next = contend(&etcd, lock_name(), short());
    wait_for_queue(&server, LOCK_QUEUE, 2).await;
    let mut events = raw(&server).await.watch(LOCK_QUEUE, Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert_eq!(soon("released", first.release()).await.unwrap(), Released::Released);
    let next = next.done("its turn").await;
    // The first message only confirms that the watch is open.
    let mut message = soon("created", events.message()).await.unwrap().unwrap();
    while message.events().is_empty() {
        message = soon("the events", events.message()).await.unwrap().unwrap();
    }
    let seen: Vec<_> = message
        .events()
        .iter()
        .map(|event| (event.event_type(), event.kv().unwrap().mod_revision(), event.kv().unwrap().create_revision()))
        .collect();
    let [(EventType::Delete, left, _), (EventType::Put, confirmed, created)] = seen[..] else {
        panic!("one goes and the other is confirmed: {seen:?}");
    };
    assert_eq!(left, confirmed, "in one revision");
    assert_eq!(u64::try_from(created).unwrap(), next.fencing_token().get());
    // The handover wrote nothing else.
    let now = raw(&server).await.get("\0", None).await.unwrap().header().unwrap().revision();
    assert_eq!(now, confirmed);
    assert!(next.is_held());
}

/// Every key that was ever in a queue makes each read of the queue more expensive, until the history is compacted.
#[tokio::test]
async fn keys_of_locks_are_used_again() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_start_revision(1);
    let mut events = raw(&server).await.watch(LOCK_QUEUE, Some(options)).await.unwrap();
    for _ in 0..20 {
        assert_eq!(soon("released", acquire(&etcd).await.release()).await.unwrap(), Released::Released);
    }
    let (held, other) = (acquire(&etcd).await, contend(&etcd, lock_name(), short()));
    wait_for_queue(&server, LOCK_QUEUE, 2).await;
    let (mut keys, mut seen) = (BTreeSet::new(), 0);
    while seen < 42 {
        let message = soon("the events", events.message()).await.unwrap().unwrap();
        seen += message.events().len();
        keys.extend(message.events().iter().map(|event| event.kv().unwrap().key().to_vec()));
    }
    assert_eq!(keys.len(), 2, "as many as were in the queue at a time");
    drop((held, other));
}

/// Several readers wait for the same writer: the release of the writer confirms one, the others see the deletion.
#[tokio::test]
async fn all_readers_behind_a_local_writer_proceed() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let writer = acquire(&etcd).await;
    let readers: Vec<_> = (0..5).map(|_| contend(&etcd, lock_name(), short().shared())).collect();
    wait_for_queue(&server, LOCK_QUEUE, 6).await;
    let mut last = contend(&etcd, lock_name(), short());
    wait_for_queue(&server, LOCK_QUEUE, 7).await;
    soon("released", writer.release()).await.unwrap();
    let mut guards = Vec::new();
    for mut reader in readers {
        guards.push(reader.done("its turn").await);
    }
    assert!(guards.iter().all(LockGuard::is_held));
    last.assert_running();
    for guard in guards {
        assert_eq!(soon("released", guard.release()).await.unwrap(), Released::Released);
    }
    assert!(last.done("its turn").await.is_held());
}

#[tokio::test]
async fn a_user_transaction_is_bound_to_the_lock() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let guard = acquire(&etcd).await;
    let mut raw = raw(&server).await;
    let write = |value: &'static str| {
        Txn::new().when([lock_condition(&guard).unwrap()]).and_then([TxnOp::put("result", value, None)])
    };
    assert!(raw.txn(write("held")).await.unwrap().succeeded());
    raw.delete(LOCK_QUEUE, Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    assert!(!raw.txn(write("lost")).await.unwrap().succeeded());
    assert_eq!(raw.get("result", None).await.unwrap().kvs()[0].value(), b"held");
    // A guard of another backend.
    let grant = Grant { sent: Moment::now(), ttl: TTL, token: FencingToken::new(1), source: Arc::new(()) };
    let (foreign, _driver) = lock_guard(lock_name(), grant);
    assert!(matches!(lock_condition(&foreign), Err(Error::Unsupported { .. })));
}

#[tokio::test]
async fn a_lock_with_its_own_lease_leaves_none() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let own = soon("acquired", etcd.acquire(&lock_name(), short().own_lease())).await.unwrap();
    let mut raw = raw(&server).await;
    let lease = raw.leases().await.unwrap().leases()[0].id();
    let other = LockName::parse("other").unwrap();
    let shared = soon("acquired", etcd.acquire(&other, short())).await.unwrap();
    raw.lease_revoke(lease).await.unwrap();
    assert!(matches!(soon("lost", own.lost()).await, Loss::LeaseGone | Loss::KeyGone));
    assert!(shared.is_held());
    assert_eq!(soon("released", own.release()).await.unwrap(), Released::AlreadyLost);
    let again = soon("acquired", etcd.acquire(&lock_name(), short().own_lease())).await.unwrap();
    soon("released", again.release()).await.unwrap();
    drop(shared);
    etcd.close().await.unwrap();
    no_lease_is_left(&server).await;
}

/// Reads the output of the real `etcdctl`, line by line.
struct Etcdctl {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Etcdctl {
    fn start(server: &EtcdServer, arguments: &[&str]) -> Self {
        let mut command = Command::new(etcdctl());
        command.args(["--endpoints", &server.url()]).args(arguments).env("ETCDCTL_API", "3");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        soon("etcdctl says something", self.lines.recv()).await.expect("etcdctl ended")
    }

    fn is_silent(&mut self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// Sends the signal of Ctrl-C, on which etcdctl releases the lock.
    fn interrupt(mut self) {
        signal(&self.child, "-INT");
        self.child.wait().unwrap();
    }
}

impl Drop for Etcdctl {
    fn drop(&mut self) {
        // An error means that the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A candidate's value that cannot be stored is not retried for ever.
#[tokio::test]
async fn a_candidate_with_an_oversized_value_is_refused() {
    let server = server().await;
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let large = "\"".repeat(800_000);
    let refused = soon("refused", etcd.campaign(&lock_name(), &large, short())).await.err();
    assert!(matches!(refused, Some(Error::TooLarge { .. })), "{refused:?}");
    let leadership = soon("elected", etcd.campaign(&lock_name(), "small", short())).await.unwrap();
    let refused = soon("refused", leadership.proclaim(&large)).await.err();
    assert!(matches!(refused, Some(Error::TooLarge { .. })), "{refused:?}");
    assert!(leadership.is_held());
    soon("stored", leadership.proclaim("other")).await.unwrap();
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// The real `etcdctl`: from the environment, beside the etcd of the tests, or on the `PATH`.
fn etcdctl() -> PathBuf {
    let given = std::env::var_os("ENLIST_ETCDCTL_BIN").map(PathBuf::from);
    let sibling = std::env::var_os("ENLIST_ETCD_BIN").map(|etcd| PathBuf::from(etcd).with_file_name("etcdctl"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("etcdctl"));
    given.into_iter().chain(sibling.into_iter().chain(on_path).filter(|path| path.is_file())).next().expect(
        "these tests need the real `etcdctl` (Debian and Ubuntu: `apt-get install etcd-client`), on the PATH or \
         given by ENLIST_ETCDCTL_BIN",
    )
}

#[tokio::test]
async fn etcdctl_lock_shares_our_queue() {
    let server = server().await;
    let etcd = Etcd::builder([server.url()]).lock_layout(EtcdConcurrency).connect().await.unwrap();
    let job = LockName::parse("nightly").unwrap();
    let ours = soon("acquired", etcd.acquire(&job, short())).await.unwrap();
    let mut theirs = Etcdctl::start(&server, &["lock", "nightly"]);
    wait_for_queue(&server, "nightly/", 2).await;
    let mut next = contend(&etcd, job.clone(), short());
    wait_for_queue(&server, "nightly/", 3).await;
    let mut last = Etcdctl::start(&server, &["lock", "nightly"]);
    wait_for_queue(&server, "nightly/", 4).await;
    assert!(theirs.is_silent());
    next.assert_running();
    assert!(etcd.try_acquire(&job, short()).await.unwrap().is_none());

    assert_eq!(soon("released", ours.release()).await.unwrap(), Released::Released);
    assert!(theirs.line().await.starts_with("nightly/"), "it prints the key that it holds");
    assert!(last.is_silent());
    next.assert_running();
    theirs.interrupt();
    let ours = next.done("its turn").await;
    assert!(ours.is_held() && last.is_silent());
    soon("released", ours.release()).await.unwrap();
    assert!(last.line().await.starts_with("nightly/"));
    // A holder is killed: its lease expires after etcdctl's TTL of 10 s.
    let mut next = contend(&etcd, job, short());
    wait_for_queue(&server, "nightly/", 2).await;
    signal(&last.child, "-KILL");
    assert!(next.done("its turn").await.is_held());
}

#[tokio::test]
async fn etcdctl_elect_shares_our_queue() {
    let server = server().await;
    let etcd = Etcd::builder([server.url()]).lock_layout(EtcdConcurrency).connect().await.unwrap();
    let office = LockName::parse("office").unwrap();
    let mut observer = etcd.observe(&office).await.unwrap();
    let ours = soon("elected", etcd.campaign(&office, "ours", short())).await.unwrap();
    let mut listener = Etcdctl::start(&server, &["elect", "--listen", "office"]);
    assert!(listener.line().await.starts_with("office/"));
    assert_eq!(listener.line().await, "ours");
    soon("proclaimed", ours.proclaim("still ours")).await.unwrap();
    assert!(listener.line().await.starts_with("office/"));
    assert_eq!(listener.line().await, "still ours");

    let mut theirs = Etcdctl::start(&server, &["elect", "office", "theirs"]);
    wait_for_queue(&server, "office/", 2).await;
    assert!(theirs.is_silent());
    soon("resigned", ours.resign()).await.unwrap();
    assert!(theirs.line().await.starts_with("office/"));
    assert_eq!(theirs.line().await, "theirs");
    let leads = |wanted: &'static str| {
        eventually("the leader is known", move || {
            let (etcd, office) = (etcd.clone(), office.clone());
            async move {
                let now = etcd.leader(&office).await.unwrap().map(|leader| leader.value);
                if now.as_deref() == Some(wanted) { Ok(()) } else { Err(now) }
            }
        })
    };
    leads("theirs").await;
    while soon("observed", observer.next()).await.unwrap().leader.is_none_or(|leader| leader.value != "theirs") {}
    theirs.interrupt();
}

/// Number that is read and written over the network, with or without a fence.
struct Resource {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// Reaction of the resource to a token that was overtaken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fencing {
    #[default]
    None,
    Refuses,
}

#[derive(Default)]
struct State {
    fence: Fence,
    fencing: Fencing,
    value: u64,
    /// Number of accepted writes.
    accepted: u64,
}

impl State {
    fn answer(&mut self, request: &str) -> String {
        let mut words = request.split(' ');
        let (verb, token) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
        if let Err(overtaken) = self.fence.admit(FencingToken::new(token))
            && self.fencing == Fencing::Refuses
        {
            return overtaken.to_string();
        }
        if verb == "write" {
            self.value = words.next().unwrap().parse().unwrap();
            self.accepted += 1;
        }
        self.value.to_string()
    }
}

impl Resource {
    fn start(fencing: Fencing) -> Self {
        let state = Arc::new(Mutex::new(State { fencing, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || {
                    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    for line in lines.map_while(Result::ok) {
                        let answer = shared.lock().unwrap().answer(&line);
                        writeln!(stream, "{answer}").unwrap();
                    }
                });
            }
        });
        Self { address, state }
    }
}

/// Sends a request to the resource and returns its response.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

/// The holder as a separate process: it reads, waits for a line of input, and writes even if the lock is lost.
#[tokio::test]
#[ignore = "no test of its own: another test runs it as a process of its own"]
async fn child() {
    let task = std::env::var(CHILD).expect("started by another test");
    let (url, address) = task.split_once(' ').unwrap();
    let address = address.parse().unwrap();
    let etcd = Etcd::connect(url).await.unwrap();
    let guard = etcd.acquire(&lock_name(), LockOptions::new().ttl(Duration::from_secs(2))).await.unwrap();
    let token = guard.fencing_token();
    let value: u64 = ask(address, &format!("read {token}")).parse().unwrap();
    eprintln!("child: read");
    // Blocks this thread, as a pause of the process does; the session has its own thread.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let held = guard.is_held();
    let answer = ask(address, &format!("write {token} {}", value + 1));
    eprintln!("child: held {held}");
    eprintln!("child: {answer}");
}

/// Returns the output of the frozen holder after it woke, and the resource's final state: value and accepted writes.
async fn frozen_holder(fencing: Fencing) -> (String, String, u64, u64) {
    const WRITES: u64 = 10;
    let server = server().await;
    let resource = Resource::start(fencing);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--ignored", "--nocapture"]);
    command.env(CHILD, format!("{} {}", server.url(), resource.address));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (send, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let ours =
            stderr.lines().map_while(Result::ok).filter_map(|line| line.strip_prefix("child: ").map(str::to_owned));
        ours.for_each(|line| drop(send.send(line)));
    });
    assert_eq!(soon("it has read", lines.recv()).await.unwrap(), "read");
    signal(&child, "-STOP");
    let stopped = Moment::now();

    // Its successor works in the meantime.
    let etcd = Etcd::connect(server.url()).await.unwrap();
    let guard = acquire(&etcd).await;
    let token = guard.fencing_token();
    for _ in 0..WRITES {
        let value: u64 = ask(resource.address, &format!("read {token}")).parse().unwrap();
        assert!(guard.is_held());
        ask(resource.address, &format!("write {token} {}", value + 1));
    }
    // Three times its TTL in all; its input is ready when it wakes.
    pass(Duration::from_secs(6).saturating_sub(stopped.elapsed())).await;
    writeln!(child.stdin.take().unwrap()).unwrap();
    signal(&child, "-CONT");
    let held = soon("it woke", lines.recv()).await.unwrap();
    let answer = soon("it wrote", lines.recv()).await.unwrap();
    child.wait().unwrap();
    let state = resource.state.lock().unwrap();
    (held, answer, state.value, state.accepted)
}

#[tokio::test]
async fn a_frozen_holder_learns_its_loss_on_wake() {
    let (held, answer, value, accepted) = frozen_holder(Fencing::Refuses).await;
    assert_eq!(held, "held false", "the first check after the thaw");
    assert!(answer.contains("was overtaken by"), "{answer}");
    assert_eq!((value, accepted), (10, 10), "the counter is exact");
    // The control: without the fence the same late write is accepted, and the ten updates are lost.
    let (held, answer, value, accepted) = frozen_holder(Fencing::None).await;
    assert_eq!((held.as_str(), answer.as_str()), ("held false", "1"));
    assert_eq!((value, accepted), (1, 11), "updates are lost");
}

/// etcd's counters so far: requests, and events sent to watchers.
async fn work(server: &EtcdServer) -> (f64, f64) {
    let metrics = support::metrics(server).await;
    let sum = |name: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    (sum("grpc_server_started_total"), sum("etcd_debugging_mvcc_events_total"))
}

/// Queues this many contenders from twenty sessions for one lock; a tenth is killed and a tenth is cancelled while
/// waiting. Returns etcd's number of requests and events per contender.
async fn contest(contenders: u16) -> (f64, f64) {
    let each = f64::from(contenders);
    let contenders = usize::from(contenders);
    let server = server().await;
    let holder = Etcd::connect(server.url()).await.unwrap();
    let first = acquire(&holder).await;
    // Killed: the runtime of their sessions is shut down without notice.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let url = server.url();
        sessions.push(if number < SESSIONS / 10 {
            let connect = async move { Etcd::builder([url]).runtime(SessionRuntime::Caller).connect().await.unwrap() };
            doomed.spawn(connect).await.unwrap()
        } else {
            Etcd::connect(url).await.unwrap()
        });
    }
    let granted = Arc::new(Mutex::new(Vec::new()));
    let busy = Arc::new(AtomicBool::new(false));
    let (mut waiting, mut cancelled) = (JoinSet::new(), JoinSet::new());
    for number in 0..contenders {
        let (session, granted, busy) = (sessions[number % SESSIONS].clone(), Arc::clone(&granted), Arc::clone(&busy));
        let contender = async move {
            let guard = session.acquire(&lock_name(), short()).await.unwrap();
            assert!(!busy.swap(true, Ordering::SeqCst), "somebody else is inside");
            granted.lock().unwrap().push(guard.fencing_token());
            tokio::task::yield_now().await;
            assert!(guard.is_held());
            busy.store(false, Ordering::SeqCst);
            assert_eq!(guard.release().await.unwrap(), Released::Released);
        };
        match number % SESSIONS {
            0 | 1 => drop(doomed.spawn(contender)),
            2 | 3 => drop(cancelled.spawn(contender)),
            _ => drop(waiting.spawn(contender)),
        }
    }
    let mut own = wait_for_queue(&server, LOCK_QUEUE, contenders + 1).await;
    cancelled.abort_all();
    doomed.shutdown_background();
    let (killed, stayed) = (contenders / 10, waiting.len());
    own += wait_for_queue(&server, LOCK_QUEUE, 1 + contenders - contenders / 10).await;
    soon("released", first.release()).await.unwrap();
    let all = async { while waiting.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("each gets its turn");
    let granted = granted.lock().unwrap().clone();
    assert!(granted.is_sorted(), "first come, first served");
    let once: BTreeSet<_> = granted.iter().collect();
    assert_eq!((granted.len(), once.len()), (stayed, stayed), "{killed} were killed and as many cancelled");
    own += wait_for_queue(&server, LOCK_QUEUE, 0).await;
    let (requests, events) = work(&server).await;
    drop(sessions);
    holder.close().await.unwrap();
    no_lease_is_left(&server).await;
    let (requests, events) = ((requests - f64::from(own)) / each, events / each);
    println!("{contenders} contenders: {requests:.1} requests and {events:.1} events each");
    (requests, events)
}

/// Row 25.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_contenders_are_served_in_order() {
    let (few_requests, few_events) = contest(200).await;
    let (requests, events) = contest(1000).await;
    // Up to five requests to join the queue, to watch the predecessor and read it, to read or confirm at the turn, and
    // to leave, of which some are for several entries; and those of the sessions. A session receives three changes of
    // each of its queue entries, and a waiting contender receives two of its predecessor's.
    for (requests, events) in [(few_requests, few_events), (requests, events)] {
        assert!(requests <= 5.0, "{requests} requests per contender");
        assert!(events <= 5.5, "{events} events per contender");
    }
}

/// Row 4 for locks: the leader freezes and thaws. At both times the holder either keeps the lock or notices the loss at
/// once, and no write gets past the fence.
#[tokio::test]
async fn a_frozen_etcd_leader_costs_no_lock() {
    let cluster = EtcdCluster::start().await;
    let state = Arc::new(Mutex::new(State { fencing: Fencing::Refuses, ..State::default() }));
    let tasks = TaskOwner::new();
    let refused = Arc::new(Mutex::new(0));
    for _ in 0..3 {
        let etcd = Etcd::builder(cluster.urls()).connect().await.unwrap();
        let (state, refused) = (Arc::clone(&state), Arc::clone(&refused));
        in_background(&tasks, async move {
            loop {
                let Ok(guard) = etcd.acquire(&lock_name(), short()).await else { continue };
                let token = guard.fencing_token();
                // Long enough that the lock is held at every fault.
                for _ in 0..20 {
                    if !guard.is_held() {
                        break;
                    }
                    let read = state.lock().unwrap().answer(&format!("read {token}"));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let written = read.parse::<u64>().map(|value| format!("write {token} {}", value + 1));
                    let answer = written.map(|write| state.lock().unwrap().answer(&write));
                    if !answer.is_ok_and(|answer| answer.parse::<u64>().is_ok()) {
                        *refused.lock().unwrap() += 1;
                    }
                }
                let _ = guard.release().await;
            }
        });
    }
    let accepted = || state.lock().unwrap().accepted;
    let works = async |what: &str| {
        let before = accepted();
        eventually(what, || async { if accepted() > before + 20 { Ok(()) } else { Err(accepted()) } }).await;
    };
    works("they work").await;
    let leader = cluster.leader().await;
    cluster.member(leader).pause().await;
    pass(2 * TTL).await;
    works("they work without the leader").await;
    cluster.member(leader).resume().await;
    pass(2 * TTL).await;
    works("they work after the thaw").await;
    drop(tasks);
    let state = state.lock().unwrap();
    println!("{} updates, {} refused by the fence", state.accepted, refused.lock().unwrap());
    assert_eq!(state.value, state.accepted, "no update is lost");
}
