//! Locks, next to the same protocol in plain calls, as Go's `concurrency.Mutex` makes them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{Counter, Lock, LockName, LockOptions, Moment, TaskOwner};
use enlist_etcd::Etcd;
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    WatchOptions,
};
use futures::future::join_all;
use tokio::task::JoinSet;

use crate::{
    measure::{Result, Spread, in_turns},
    report::{Bound, Report},
    world::World,
};

/// Number of acquisitions in a round without contention.
const ALONE: u32 = 300;

/// Length of a round with contention.
const CONTEND: Duration = Duration::from_secs(3);

/// Maximum time until each contender has held the lock once.
const LIMIT: Duration = Duration::from_secs(60);

/// Number of contending sessions for immediate handovers, and the minimum ratio to the rate of Go's protocol while
/// other clients write.
const FEW: [(usize, f64); 3] = [(2, 5.0), (5, 3.0), (10, 2.0)];

/// Number of puts per second of the other clients.
const OTHERS: u32 = 500;

pub(crate) async fn alone(report: &mut Report) -> Result {
    let world = World::start().await;
    let (ours, raw) = (world.ours().await?, world.raw().await?);
    let name = LockName::parse("alone")?;
    let lease = raw.lease_client().grant(60, None).await?.id();
    let turns = in_turns(
        15,
        || async {
            let begun = Moment::now();
            for _ in 0..ALONE {
                ours.acquire(&name, LockOptions::new()).await?.release().await?;
            }
            Ok(f64::from(ALONE) / begun.elapsed().as_secs_f64())
        },
        || async {
            let mut client = raw.kv_client();
            let begun = Moment::now();
            for _ in 0..ALONE {
                let absent = Compare::create_revision("alone/key", CompareOp::Equal, 0);
                let put = TxnOp::put("alone/key", "", Some(PutOptions::new().with_lease(lease)));
                let entered = client.txn(Txn::new().when([absent]).and_then([put])).await?;
                let token = entered.header().ok_or("no header")?.revision();
                let mine = Compare::create_revision("alone/key", CompareOp::Equal, token);
                let delete = TxnOp::delete("alone/key", None);
                client.txn(Txn::new().when([mine]).and_then([delete])).await?;
            }
            Ok(f64::from(ALONE) / begun.elapsed().as_secs_f64())
        },
    )
    .await?;
    let case = "acquire and release, beside two plain transactions";
    report.turns("lock", case, "per s", &turns, Some(Bound::AtLeast(0.85)));
    Ok(())
}

/// Clients that put keys of their own. Dropping them ends their tasks.
#[derive(Debug)]
pub(crate) struct Others {
    puts: Arc<AtomicU64>,
    _tasks: TaskOwner,
}

impl Others {
    /// Number of clients. Each waits for its put.
    const WRITERS: u32 = 10;

    pub(crate) async fn start(world: &World) -> Result<Self> {
        let (puts, tasks) = (Arc::<AtomicU64>::default(), TaskOwner::new());
        for number in 0..Self::WRITERS {
            let (mut client, puts) = (world.raw().await?.kv_client(), Arc::clone(&puts));
            tasks.spawn_until_stopped("others", async move {
                let mut due = tokio::time::interval(Duration::from_secs(1) * Self::WRITERS / OTHERS);
                loop {
                    due.tick().await;
                    puts.fetch_add(1, Ordering::Relaxed);
                    // A failed put is not repeated.
                    let _ = client.put(format!("others/{number}"), "value", None).await;
                }
            })?;
        }
        Ok(Self { puts, _tasks: tasks })
    }

    /// Returns the number of puts so far.
    pub(crate) fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }
}

/// A lock with few contenders, each in a session of its own.
async fn few(report: &mut Report, world: &World) -> Result {
    for busy in [false, true] {
        let others = if busy { Some(Others::start(world).await?) } else { None };
        let meanwhile = if busy { format!(", {OTHERS} puts/s") } else { String::new() };
        let puts = || others.as_ref().map_or(0, Others::puts);
        for (count, at_least) in FEW {
            let clients = clients(world, count).await?;
            let sessions = sessions(world, count).await?;
            let requests = std::cell::RefCell::new(Vec::new());
            let turns = in_turns(
                3,
                || async {
                    let grants = contend(world, &clients, count, puts).await?;
                    requests.borrow_mut().push(grants.requests);
                    Ok(grants.per_second)
                },
                || async { Ok(plain(world, &sessions).await?.per_second) },
            )
            .await?;
            let case = format!("{count} sessions{meanwhile}, beside Go's protocol");
            report.turns("contended", case, "per s", &turns, busy.then_some(Bound::AtLeast(at_least)));
            let case = format!("requests per grant, {count} sessions{meanwhile}");
            let requests = Spread::of(requests.into_inner());
            report.number("contended", case, "", requests, Some(Bound::AtMost(5.0)));
            close(clients).await;
        }
    }
    Ok(())
}

pub(crate) async fn contended(report: &mut Report) -> Result {
    let world = World::start().await;
    few(report, &world).await?;
    let one = world.ours().await?;
    let clients = clients(&world, 50).await?;
    let sessions = sessions(&world, 50).await?;
    let turns = in_turns(
        5,
        || async { Ok(ours(&world, &clients, 50).await?.per_second) },
        || async { Ok(plain(&world, &sessions).await?.per_second) },
    )
    .await?;
    let case = "50 contenders in 50 sessions, beside Go's protocol in plain calls";
    report.turns("contended", case, "per s", &turns, Some(Bound::AtLeast(1.0)));
    let turns = in_turns(
        5,
        || async { Ok(ours(&world, std::slice::from_ref(&one), 50).await?.per_second) },
        || async { Ok(plain(&world, &sessions).await?.per_second) },
    )
    .await?;
    let case = "50 contenders in one session, beside the same 50 in 50";
    report.turns("contended", case, "per s", &turns, Some(Bound::AtLeast(3.0)));
    drop((clients, sessions));

    let mut requests = Vec::new();
    for contenders in [50, 200, 1000] {
        let clients = self::clients(&world, contenders).await?;
        let grants = ours(&world, &clients, contenders).await?;
        let case = format!("requests per grant, {contenders} contenders in as many sessions");
        report.number("contended", case, "", Spread::exactly(grants.requests), None);
        requests.push(grants.requests);
        close(clients).await;
    }
    if let [few, .., many] = requests[..] {
        // A tolerance of a tenth for requests that belong to no grant.
        let case = "requests per grant, 1,000 contenders beside 50";
        report.number("contended", case, "×", Spread::exactly(many / few), Some(Bound::AtMost(1.1)));
    }
    Ok(())
}

/// Handovers of a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grants {
    pub(crate) per_second: f64,
    /// Messages to etcd per handover, without renewals and probes of silent watches.
    pub(crate) requests: f64,
}

/// Creates clients with one session each.
pub(crate) async fn clients(world: &World, count: usize) -> Result<Vec<Etcd>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(world.ours().await?);
    }
    Ok(clients)
}

/// Closes the sessions.
pub(crate) async fn close(clients: Vec<Etcd>) {
    join_all(clients.iter().map(Etcd::close)).await;
}

/// Runs `contenders` tasks, spread over the clients, which acquire the same lock repeatedly.
pub(crate) async fn ours(world: &World, clients: &[Etcd], contenders: usize) -> Result<Grants> {
    contend(world, clients, contenders, || 0).await
}

/// As [`ours`], while other clients write; `others` counts their requests.
async fn contend(world: &World, clients: &[Etcd], contenders: usize, others: impl Fn() -> u64) -> Result<Grants> {
    let name = LockName::parse("contended")?;
    let counted = Arc::new(Counted::default());
    let contend = |client: Etcd| {
        let (counted, name) = (Arc::clone(&counted), name.clone());
        async move {
            while counted.goes_on() {
                let guard = client.acquire(&name, LockOptions::new()).await?;
                counted.count();
                guard.release().await?;
            }
            Result::Ok(())
        }
    };
    let mut running: JoinSet<_> =
        (0..contenders).map(|number| contend(clients[number % clients.len()].clone())).collect();
    let checks = || clients.iter().map(|client| client.counters().get(Counter::WatchChecks)).sum::<u64>() + others();
    let grants = counted.measure(world, contenders, checks).await?;
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(grants)
}

#[derive(Debug, Default)]
struct Counted {
    grants: AtomicU64,
    over: AtomicBool,
}

impl Counted {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.grants.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts grants for a while, after each contender has held the lock once, so that their first queue entries do not
    /// count. `checks` returns the number of requests so far that belong to no grant.
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    async fn measure(&self, world: &World, contenders: usize, checks: impl Fn() -> u64) -> Result<Grants> {
        let begun = Moment::now();
        while self.grants.load(Ordering::Relaxed) < contenders as u64 {
            if begun.elapsed() > LIMIT {
                return Err("the contenders do not get the lock".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let granted = || self.grants.load(Ordering::Relaxed);
        // These depend on the time, not on the number of contenders.
        let requests = async || Result::Ok(world.requests().await? - checks() as f64);
        let (begun, grants_before, requests_before) = (Moment::now(), granted(), requests().await?);
        tokio::time::sleep(CONTEND).await;
        let (time, grants, requests) =
            (begun.elapsed(), granted() - grants_before, requests().await? - requests_before);
        self.over.store(true, Ordering::Relaxed);
        let grants = grants as f64;
        Ok(Grants { per_second: grants / time.as_secs_f64(), requests: requests / grants.max(1.0) })
    }
}

/// A session as in Go's client: a connection and a lease.
pub(crate) struct Session {
    client: Client,
    lease: i64,
}

/// Creates this number of sessions.
pub(crate) async fn sessions(world: &World, count: usize) -> Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        let client = world.raw().await?;
        let lease = client.lease_client().grant(600, None).await?.id();
        sessions.push(Session { client, lease });
    }
    Ok(sessions)
}

/// Runs one task per session, which acquires the same lock repeatedly.
pub(crate) async fn plain(world: &World, sessions: &[Session]) -> Result<Grants> {
    let counted = Arc::new(Counted::default());
    let contend = |session: &Session| {
        let (counted, client, lease) = (Arc::clone(&counted), session.client.clone(), session.lease);
        async move {
            let mutex = GoMutex { client, lease, key: format!("plain/{lease:x}").into_bytes() };
            while counted.goes_on() {
                mutex.lock().await?;
                counted.count();
                mutex.unlock().await?;
            }
            Result::Ok(())
        }
    };
    let mut running: JoinSet<_> = sessions.iter().map(contend).collect();
    let grants = counted.measure(world, sessions.len(), || 0).await?;
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(grants)
}

/// `concurrency.Mutex` of etcd's Go client (client/v3/concurrency/mutex.go and key.go), call by call.
struct GoMutex {
    client: Client,
    lease: i64,
    key: Vec<u8>,
}

impl GoMutex {
    async fn lock(&self) -> Result {
        let mut kv = self.client.kv_client();
        let absent = Compare::create_revision(&self.key[..], CompareOp::Equal, 0);
        let put = TxnOp::put(&self.key[..], "", Some(PutOptions::new().with_lease(self.lease)));
        let get = TxnOp::get(&self.key[..], None);
        let first = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
        let owner = || TxnOp::get("plain/", Some(first.clone()));
        let entered = Txn::new().when([absent]).and_then([put, owner()]).or_else([get, owner()]);
        let entered = kv.txn(entered).await?;
        let revision = entered.header().ok_or("no header")?.revision();
        let own = if entered.succeeded() { revision } else { return Err("the key was there".into()) };
        let owner = entered.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(get) => get.kvs().first().map(etcd_client::KeyValue::create_revision),
            _ => None,
        });
        if owner.is_none_or(|owner| owner == own) {
            return Ok(());
        }
        self.wait(own).await?;
        // Since 3.4.11 the client checks its own key.
        if kv.get(&self.key[..], None).await?.kvs().is_empty() { Err("the session ended".into()) } else { Ok(()) }
    }

    /// Waits for the deletion of all keys that were created earlier, the last of them first.
    async fn wait(&self, own: i64) -> Result {
        let mut kv = self.client.kv_client();
        loop {
            let last = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(1)
                .with_max_create_revision(own - 1);
            let before = kv.get("plain/", Some(last)).await?;
            let Some(pair) = before.kvs().first() else {
                return Ok(());
            };
            let from = before.header().ok_or("no header")?.revision();
            let options = WatchOptions::new().with_start_revision(from);
            let mut watch = self.client.watch_client().watch(pair.key(), Some(options)).await?;
            'deleted: loop {
                let message = watch.message().await?.ok_or("the watch ended")?;
                if message.events().iter().any(|event| event.event_type() == EventType::Delete) {
                    break 'deleted;
                }
            }
        }
    }

    async fn unlock(&self) -> Result {
        self.client.kv_client().delete(&self.key[..], None).await?;
        Ok(())
    }
}
