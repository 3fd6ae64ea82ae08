//! A scripted etcd in this process: truthful by itself, and lying on demand in ways that no real server can be made to.
//!
//! It speaks etcd's protocol through the server traits of `etcd-client`, over an in-memory pipe, so that a paused clock
//! works. Its store keeps revisions, leases and history; leases never run out by themselves. What it cannot do it refuses.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use enlist::TaskOwner;
use etcd_client::proto::{
    PbEvent, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbTxnRequest, PbTxnResponse,
    PbWatchResponse, PbWatchServer,
};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::{
    Status,
    metadata::MetadataMap,
    transport::{Channel, Server},
};

mod link;
mod services;
mod store;

pub use link::Link;
use store::Store;

/// Bytes in flight per direction of a pipe.
const PIPE: usize = 1 << 20;

/// Interval at which etcd serves watches that begin in the past.
const UNSYNCED: Duration = Duration::from_millis(100);

/// Interval at which etcd looks for leases that are over.
const EXPIRY: Duration = Duration::from_millis(500);

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Time at which it was made.
    pub at: Instant,
    /// Its revision.
    pub revision: i64,
    /// The key.
    pub key: Vec<u8>,
    /// What the key holds since; `None` if it was deleted.
    pub value: Option<Vec<u8>>,
    /// Revision at which the key was created; 0 if it was deleted.
    pub created: i64,
    /// Lease that keeps the key; 0 is none.
    pub lease: i64,
}

/// What the next message of a watch, or the next renewal, is to be instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehavior {
    /// The changes of one revision are never told.
    Lose,
    /// They are told twice.
    Twice,
    /// They are told again and again: so many more times.
    Again(u32),
    /// After them come the same changes as of a revision before the last: time seems to run backwards.
    Backwards,
    /// A progress notice with their revision comes before them.
    EarlyProgress,
    /// Their type is one that does not exist.
    UnknownType,
    /// Before them comes an answer to a request for progress that nobody made, with their revision, as from etcd before 3.4.25 and
    /// 3.5.8.
    EarlyAnswer,
    /// They claim a revision that is a thousand ahead.
    Future,
    /// Their message has no revision in its header.
    NoRevision,
    /// Their message has events without a key.
    NoKey,
    /// The watch falls silent: no events, and no signs of life.
    Silence,
    /// The next watch that is opened is refused inside the stream, with this reason.
    Refuse(&'static str),
    /// The next watch that is opened is there only this much later.
    LateWatch(Duration),
    /// The next transaction is done, and answered, only this much later, whether or not its caller still waits then, as by a
    /// member that is frozen meanwhile. [`FakeEtcd::late_writes`] tells what became of it.
    LateTxn(Duration),
    /// The next renewal says that the lease is gone, though it is not.
    LeaseGone,
    /// The next list with values is refused.
    NoList,
}

impl Misbehavior {
    /// Returns `true` if it is about what a watch tells that is open.
    fn is_of_events(&self) -> bool {
        !matches!(self, Self::Refuse(_) | Self::LateWatch(_) | Self::LateTxn(_) | Self::LeaseGone | Self::NoList)
    }
}

/// Behaviour of a member without a quorum. Either way it answers serializable reads of those that do not want it to know a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Minority {
    /// It knows that there is no leader, and refuses.
    Leaderless,
    /// It does not know that yet, and does not answer.
    Silent,
}

/// Number of requests of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requests {
    /// Reads.
    pub ranges: usize,
    /// Those of them that are for keys without values.
    pub keys_only: usize,
    /// Those of them that any member may answer by itself.
    pub serializable: usize,
    /// Transactions and puts.
    pub txns: usize,
    /// Grants of leases.
    pub grants: usize,
    /// Renewals.
    pub renewals: usize,
    /// Questions for what is left of a lease, or for its keys.
    pub lease_questions: usize,
    /// Watches that were opened.
    pub watches: usize,
    /// Questions for its version.
    pub versions: usize,
    /// Tokens handed out.
    pub tokens: usize,
    /// Reads and transactions that were refused for want of a permission.
    pub denied: usize,
    /// Time at which each transaction came.
    pub txn_times: Vec<Instant>,
}

/// The fake. Dropping it ends it.
#[derive(Debug)]
pub struct FakeEtcd {
    shared: Arc<Shared>,
    /// Members that are dialled.
    pipes: mpsc::Sender<DuplexStream>,
    channel: Channel,
    tasks: Arc<TaskOwner>,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// The latest revision.
    revision: watch::Sender<i64>,
    frozen: watch::Sender<bool>,
    /// It is one of a minority.
    minority: watch::Sender<Option<Minority>>,
    /// Renewals are not answered.
    renewals_held: watch::Sender<bool>,
    /// Leases are not revoked.
    revocations_held: watch::Sender<bool>,
    /// Questions for what is left of a lease are not answered.
    lease_questions_held: watch::Sender<bool>,
    /// Time for which a watch rests after each message.
    pause: Mutex<Duration>,
}

impl FakeEtcd {
    /// Starts it on the current runtime.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub fn start() -> Self {
        let store = Store { revision: 1, version: "3.5.30".to_owned(), ..Store::default() };
        let shared = Arc::new(Shared {
            store: Mutex::new(store),
            revision: watch::Sender::new(1),
            frozen: watch::Sender::new(false),
            minority: watch::Sender::new(None),
            renewals_held: watch::Sender::new(false),
            revocations_held: watch::Sender::new(false),
            lease_questions_held: watch::Sender::new(false),
            pause: Mutex::default(),
        });
        let (pipes, mut incoming) = mpsc::channel::<DuplexStream>(16);
        let tasks = Arc::new(TaskOwner::on(tokio::runtime::Handle::current()));
        let stop = tasks.stop_signal();
        let service = services::Service { shared: Arc::clone(&shared), tasks: Arc::default() };
        let server = Server::builder()
            .add_service(PbKvServer::new(service.clone()))
            .add_service(PbLeaseServer::new(service.clone()))
            .add_service(PbMaintenanceServer::new(service.clone()))
            .add_service(PbWatchServer::new(service))
            .add_service(services::Auth(Arc::clone(&shared)));
        let incoming =
            futures::stream::poll_fn(move |cx| incoming.poll_recv(cx).map(|pipe| pipe.map(Ok::<_, std::io::Error>)));
        tasks
            .spawn("fake etcd", async move {
                // An error means that the fake was dropped.
                let _ = stop.run_until_cancelled_owned(server.serve_with_incoming(incoming)).await;
            })
            .expect("the caller is in a runtime, and nobody has stopped the owner");
        let channel = Link::new(pipes.clone()).channel();
        Self { shared, pipes, channel, tasks }
    }

    /// A channel to it, for `Etcd::from_channel`.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A way to it for a client that shares its connections with no other.
    pub fn link(&self) -> Link {
        Link::new(self.pipes.clone())
    }

    /// Makes leases run out that are not renewed, by the clock of the runtime and as etcd does: those that are over are looked for
    /// twice a second, though not while it is frozen.
    pub fn expire_leases(&self) {
        self.shared.store().expires = true;
        let (shared, stop) = (Arc::clone(&self.shared), self.tasks.stop_signal());
        let expiring = async move {
            loop {
                tokio::time::sleep(EXPIRY).await;
                shared.awake().await;
                shared.change(Store::expire);
            }
        };
        // An error means that the fake has ended.
        let _ = self.tasks.spawn("leases", async move {
            stop.run_until_cancelled_owned(expiring).await;
        });
    }

    /// Every change so far, those of forgotten revisions included.
    pub fn journal(&self) -> Vec<Written> {
        self.shared.store().journal.clone()
    }

    /// Tells no lie any more.
    pub fn be_honest(&self) {
        self.shared.store().lies.clear();
    }

    /// Revokes a lease, as somebody else would.
    pub fn revoke(&self, lease: i64) {
        self.shared.change(|store| store.revoke(lease));
    }

    /// Tells this lie at the next occasion, after those that were asked for before.
    pub fn lie(&self, lie: Misbehavior) {
        self.shared.store().lies.push_back(lie);
    }

    /// Outcome of each transaction that came late: whether its guards held, or why it was refused.
    pub fn late_writes(&self) -> Vec<Result<bool, Status>> {
        self.shared.store().late.clone()
    }

    /// Returns `true` if all lies have been told.
    pub fn told_all(&self) -> bool {
        self.shared.store().lies.is_empty()
    }

    /// The latest revision.
    pub fn revision(&self) -> i64 {
        self.shared.store().revision
    }

    /// Says that it is another version; 3.5.30 unless said otherwise.
    pub fn set_version(&self, version: impl Into<String>) {
        self.shared.store().version = version.into();
    }

    /// Makes watches rest this long after each message, as those of a client that cannot keep up: what they tell is in order, and
    /// later and later if there is more to tell.
    pub fn slow_down(&self, pause: Duration) {
        *self.shared.pause.lock().unwrap_or_else(PoisonError::into_inner) = pause;
    }

    /// Puts a key, as somebody else would.
    pub fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.shared.change(|store| store.put(key.into(), value.into(), 0));
    }

    /// Puts several keys in one revision.
    pub fn put_all<K: Into<Vec<u8>>, V: Into<Vec<u8>>>(&self, pairs: impl IntoIterator<Item = (K, V)>) {
        self.shared.change(|store| {
            for (key, value) in pairs {
                store.put(key.into(), value.into(), 0);
            }
        });
    }

    /// Deletes a key, as somebody else would.
    pub fn delete(&self, key: &[u8]) {
        self.shared.change(|store| {
            store.delete(key);
        });
    }

    /// Revokes all leases: their keys go in one revision.
    pub fn revoke_all(&self) {
        self.shared.change(Store::revoke_all);
    }

    /// Forgets the history up to now.
    pub fn compact(&self) {
        let mut store = self.shared.store();
        let now = store.revision;
        store.compact_to(now);
    }

    /// Loses everything, leases and revision included, and ends the watches.
    pub fn wipe(&self) {
        let mut store = self.shared.store();
        let (lies, requests) = (std::mem::take(&mut store.lies), std::mem::take(&mut store.requests));
        let (journal, expires) = (std::mem::take(&mut store.journal), store.expires);
        let version = std::mem::take(&mut store.version);
        *store = Store {
            revision: 1,
            wipes: store.wipes + 1,
            version,
            lies,
            requests,
            journal,
            expires,
            ..Store::default()
        };
        drop(store);
        self.shared.revision.send_replace(1);
    }

    /// The keys and values under a prefix.
    pub fn under(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let store = self.shared.store();
        let found = store.keys.iter().filter(|(key, _)| key.starts_with(prefix));
        found.map(|(key, pair)| (key.clone(), pair.value.clone())).collect()
    }

    /// Answers nothing, until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.shared.frozen.send_replace(true);
    }

    /// Answers again, also what was asked meanwhile.
    pub fn thaw(&self) {
        self.shared.frozen.send_replace(false);
    }

    /// Loses the quorum, or has it again. Watches that are open stay open.
    pub fn set_minority(&self, minority: Option<Minority>) {
        self.shared.minority.send_replace(minority);
    }

    /// Answers no renewals while `held`, as a member does whose leader is frozen.
    pub fn hold_renewals(&self, held: bool) {
        self.shared.renewals_held.send_replace(held);
    }

    /// Revokes no lease while `held`, and does not answer who asks for that.
    pub fn hold_revocations(&self, held: bool) {
        self.shared.revocations_held.send_replace(held);
    }

    /// Does not tell what is left of leases while `held`.
    pub fn hold_lease_questions(&self, held: bool) {
        self.shared.lease_questions_held.send_replace(held);
    }

    /// Takes the permission to read and write away, or gives it back. Leases need none.
    pub fn set_denied(&self, denied: bool) {
        self.shared.store().denies = denied;
    }

    /// Serves watches that begin in the past 100 ms later, which is how often etcd does. Without this at once.
    pub fn delay_unsynced_watches(&self) {
        self.shared.store().unsynced = UNSYNCED;
    }

    /// Number of leases.
    pub fn leases(&self) -> usize {
        self.shared.store().leases.len()
    }

    /// The leases that there are.
    pub fn lease_ids(&self) -> Vec<i64> {
        self.shared.store().leases.keys().copied().collect()
    }

    /// Requests so far.
    pub fn requests(&self) -> Requests {
        self.shared.store().requests.clone()
    }

    /// Starts counting anew.
    pub fn forget_requests(&self) {
        self.shared.store().requests = Requests::default();
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is not frozen.
    async fn awake(&self) {
        // The sender lives as long as this, so waiting cannot fail.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
    }

    /// Waits for the quorum, unless the request does without one; refuses it where there is no leader.
    async fn quorum(&self, metadata: &MetadataMap, serializable: bool) -> Result<(), Status> {
        let mut minority = self.minority.subscribe();
        let now = *minority.borrow_and_update();
        match now {
            Some(Minority::Leaderless) if metadata.contains_key("hasleader") || !serializable => {
                Err(Status::unavailable("etcdserver: no leader"))
            }
            Some(Minority::Silent) if !serializable => {
                // The sender lives as long as this, so waiting cannot fail.
                let _ = minority.wait_for(Option::is_none).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Makes changes that share one revision.
    fn change<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let (before, result) = store.at_next_revision(act);
        let now = store.revision;
        drop(store);
        if now != before {
            self.revision.send_replace(now);
        }
        result
    }

    fn check_permission(&self) -> Result<(), Status> {
        let mut store = self.store();
        if !store.denies {
            return Ok(());
        }
        store.requests.denied += 1;
        Err(Status::permission_denied("etcdserver: permission denied"))
    }

    fn txn(&self, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        self.check_permission()?;
        {
            let mut store = self.store();
            store.requests.txns += 1;
            store.requests.txn_times.push(Instant::now());
        }
        self.change(|store| store.txn(request))
    }

    /// Takes the next lie, if it is one of `these`.
    fn lie(&self, these: impl Fn(&Misbehavior) -> bool) -> Option<Misbehavior> {
        let mut store = self.store();
        if store.lies.front().is_some_and(these) { store.lies.pop_front() } else { None }
    }
}

fn message(header: Option<PbResponseHeader>, events: Vec<PbEvent>) -> PbWatchResponse {
    PbWatchResponse { header, events, ..PbWatchResponse::default() }
}

/// The messages of one revision, under a lie. It is returned: after some the stream falls silent.
fn told(
    lie: Option<Misbehavior>,
    header: Option<PbResponseHeader>,
    revision: i64,
    events: Vec<PbEvent>,
) -> (Vec<PbWatchResponse>, Option<Misbehavior>) {
    let truth = message(header, events.clone());
    let at = |revision| header.map(|header| PbResponseHeader { revision, ..header });
    let altered = |alter: fn(&mut PbEvent)| {
        let mut events = events.clone();
        events.iter_mut().for_each(alter);
        vec![message(header, events)]
    };
    let messages = match lie {
        None
        | Some(
            Misbehavior::Refuse(_)
            | Misbehavior::LateWatch(_)
            | Misbehavior::LateTxn(_)
            | Misbehavior::LeaseGone
            | Misbehavior::NoList,
        ) => vec![truth],
        Some(Misbehavior::Lose | Misbehavior::Silence) => Vec::new(),
        Some(Misbehavior::Twice) => vec![truth.clone(), truth],
        Some(Misbehavior::Again(times)) => vec![truth; times as usize + 1],
        Some(Misbehavior::Backwards) => {
            let earlier = altered(|event| {
                if let Some(pair) = &mut event.kv {
                    (pair.mod_revision, pair.value) = (1, b"from the past".to_vec());
                }
            });
            std::iter::once(truth).chain(earlier).collect()
        }
        Some(Misbehavior::EarlyProgress) => vec![message(at(revision), Vec::new()), truth],
        Some(Misbehavior::EarlyAnswer) => {
            let answer = PbWatchResponse { watch_id: -1, ..message(at(revision), Vec::new()) };
            vec![answer, truth]
        }
        Some(Misbehavior::UnknownType) => altered(|event| event.r#type = 9),
        Some(Misbehavior::NoKey) => altered(|event| event.kv = None),
        Some(Misbehavior::Future) => altered(|event| {
            if let Some(pair) = &mut event.kv {
                pair.mod_revision += 1000;
            }
        }),
        Some(Misbehavior::NoRevision) => vec![message(at(0), events)],
    };
    (messages, lie)
}
