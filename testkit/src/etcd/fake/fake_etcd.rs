//! Handle of the scripted etcd in a test.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{TaskOwner, backend::MutexExt as _};
use etcd_client::proto::{PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
};
use tonic::{
    Status,
    transport::{Channel, Server},
};

use super::{
    etcd_defects::{ConcealedRevocation, EtcdDefect},
    link::Link,
    misbehavior::{LateWrite, Minority, Misbehaved, Misbehavior},
    records::{KeyChange, Requests},
    services,
    state::FakeState,
    store::{Content, Store},
};

/// Interval at which etcd serves watches that start in the past.
const UNSYNCED: Duration = Duration::from_millis(100);

/// Interval at which etcd looks for expired leases.
const EXPIRY: Duration = Duration::from_millis(500);

/// Content of a fake at one time.
#[derive(Clone, Debug)]
pub struct FakeSnapshot(Content);

/// A scripted etcd. Dropping it ends the server.
#[derive(Debug)]
pub struct FakeEtcd {
    pub(super) shared: Arc<FakeState>,
    /// Server ends of new connections.
    pipes: mpsc::Sender<DuplexStream>,
    channel: Channel,
    tasks: Arc<TaskOwner>,
}

impl FakeEtcd {
    /// Starts the server on the current runtime.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub fn start() -> Self {
        let store = Store { revision: 1, version: "3.5.30".to_owned(), ..Store::default() };
        let shared = Arc::new(FakeState {
            store: Mutex::new(store),
            revision: watch::Sender::new(1),
            frozen: watch::Sender::new(false),
            minority: watch::Sender::new(None),
            renewals_held: watch::Sender::new(false),
            revocations_held: watch::Sender::new(false),
            lease_queries_held: watch::Sender::new(false),
            expiry_rounds: watch::Sender::new(0),
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
                // An error means that the handle was dropped.
                let _ = stop.run_until_cancelled_owned(server.serve_with_incoming(incoming)).await;
            })
            .expect("the caller is in a runtime, and the owner is not stopped yet");
        let channel = Link::new(pipes.clone()).channel();
        Self { shared, pipes, channel, tasks }
    }

    /// Returns a channel, for `Etcd::from_channel`.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns a link for a client with connections of its own.
    pub fn link(&self) -> Link {
        Link::new(self.pipes.clone())
    }

    /// Makes leases without renewals expire, by the clock of the runtime. As in etcd, expired leases are looked for
    /// twice a second, but not while the server is frozen, and each is revoked at a revision of its own. The renewal of
    /// a lease that has expired waits for that, and is refused.
    pub fn expire_leases(&self) {
        self.shared.store().expires = true;
        let (shared, stop) = (Arc::clone(&self.shared), self.tasks.stop_signal());
        let expiring = async move {
            loop {
                tokio::time::sleep(EXPIRY).await;
                shared.thawed().await;
                let expired = shared.store().expired();
                for lease in expired {
                    shared.change(|store| store.has_expired(lease) && store.revoke(lease));
                }
                shared.expiry_rounds.send_modify(|rounds| *rounds += 1);
            }
        };
        // An error means that the server has ended.
        let _ = self.tasks.spawn("leases", async move {
            stop.run_until_cancelled_owned(expiring).await;
        });
    }

    /// Returns all changes so far, including those of compacted revisions.
    pub fn journal(&self) -> Vec<KeyChange> {
        self.shared.store().journal.clone()
    }

    /// Cancels all misbehavior that has not happened yet.
    pub fn cancel_misbehavior(&self) {
        self.shared.store().misbehavior.clear();
    }

    /// Revokes a lease, as another client could. Returns `true` if it existed.
    pub fn revoke(&self, lease: i64) -> bool {
        self.shared.change(|store| store.revoke(lease))
    }

    /// Misbehaves at the next occasion, after the misbehavior that was requested before.
    pub fn misbehave(&self, misbehavior: Misbehavior) {
        self.shared.store().misbehavior.push_back(misbehavior);
    }

    /// Returns the outcome of each late transaction, or its error.
    pub fn late_writes(&self) -> Vec<Result<LateWrite, Status>> {
        self.shared.store().late.clone()
    }

    /// Returns `true` if all requested misbehavior has happened.
    pub fn has_misbehaved(&self) -> bool {
        self.shared.store().misbehavior.is_empty()
    }

    /// Returns the misbehavior that has happened so far, in order.
    pub fn misbehaved(&self) -> Vec<Misbehaved> {
        self.shared.store().misbehaved.clone()
    }

    /// Returns the latest revision.
    pub fn revision(&self) -> i64 {
        self.shared.store().revision
    }

    /// Sets the reported version; the default is 3.5.30.
    pub fn set_version(&self, version: impl Into<String>) {
        self.shared.store().version = version.into();
    }

    /// Delays each message of a watch by `pause` after the previous one, as for a slow client. Messages stay in order.
    pub fn slow_down(&self, pause: Duration) {
        *self.shared.pause.locked() = pause;
    }

    /// Puts a key, as another client could.
    pub fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.shared.change(|store| store.put(key.into(), value.into(), 0));
    }

    /// Puts a key under a lease, as another client would.
    pub fn put_under(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) {
        self.shared.change(|store| store.put(key.into(), value.into(), lease));
    }

    /// Puts several keys in one revision.
    pub fn put_all<K: Into<Vec<u8>>, V: Into<Vec<u8>>>(&self, pairs: impl IntoIterator<Item = (K, V)>) {
        self.shared.change(|store| {
            for (key, value) in pairs {
                store.put(key.into(), value.into(), 0);
            }
        });
    }

    /// Deletes a key, as another client could. Returns `true` if it existed.
    pub fn delete(&self, key: &[u8]) -> bool {
        self.shared.change(|store| store.delete(key).is_some())
    }

    /// Revokes all leases. Their keys are deleted at one revision.
    pub fn revoke_all(&self) {
        self.shared.change(Store::revoke_all);
    }

    /// Compacts the history up to the present revision. Returns `true` if it was not compacted up to there before.
    pub fn compact(&self) -> bool {
        let mut store = self.shared.store();
        let now = store.revision;
        let is_new = store.compacted < now;
        store.compact_to(now);
        is_new
    }

    /// Loses all data, including leases and the revision, and ends the watches.
    pub fn wipe(&self) {
        self.shared.replace(Store { revision: 1, ..Store::default() }.content());
    }

    /// Returns a snapshot of the store.
    pub fn snapshot(&self) -> FakeSnapshot {
        FakeSnapshot(self.shared.store().content())
    }

    /// Restores the content of a snapshot, its revision included, and ends the watches. Connections stay open, as those
    /// to a proxy.
    pub fn restore(&self, snapshot: &FakeSnapshot) {
        self.shared.replace(snapshot.0.clone());
    }

    /// Returns the keys and values under a prefix.
    pub fn under(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let store = self.shared.store();
        let found = store.keys.iter().filter(|(key, _)| key.starts_with(prefix));
        found.map(|(key, pair)| (key.clone(), pair.value.clone())).collect()
    }

    /// Stops answering, until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.shared.frozen.send_replace(true);
    }

    /// Answers again, including the requests received meanwhile.
    pub fn thaw(&self) {
        self.shared.frozen.send_replace(false);
    }

    /// Sets or ends the state without a quorum. Open watches stay open.
    pub fn set_minority(&self, minority: Option<Minority>) {
        self.shared.minority.send_replace(minority);
    }

    /// Answers no renewals until [`release_renewals`](Self::release_renewals), like a member whose leader is frozen.
    pub fn hold_renewals(&self) {
        self.shared.renewals_held.send_replace(true);
    }

    /// Answers renewals again, including those received meanwhile.
    pub fn release_renewals(&self) {
        self.shared.renewals_held.send_replace(false);
    }

    /// Neither revokes leases nor answers revocations until [`release_revocations`](Self::release_revocations).
    pub fn hold_revocations(&self) {
        self.shared.revocations_held.send_replace(true);
    }

    /// Revokes leases again, including those whose revocation was requested meanwhile.
    pub fn release_revocations(&self) {
        self.shared.revocations_held.send_replace(false);
    }

    /// Does not answer requests for the remaining time of leases until
    /// [`release_lease_queries`](Self::release_lease_queries).
    pub fn hold_lease_queries(&self) {
        self.shared.lease_queries_held.send_replace(true);
    }

    /// Answers requests for the remaining time of leases again.
    pub fn release_lease_queries(&self) {
        self.shared.lease_queries_held.send_replace(false);
    }

    /// Denies reads and writes until [`permit_access`](Self::permit_access). Leases need no permission.
    pub fn deny_access(&self) {
        self.shared.store().denies = true;
    }

    /// Permits reads and writes again.
    pub fn permit_access(&self) {
        self.shared.store().denies = false;
    }

    /// Refuses `Status` from now on, as some releases of etcd do to every user but root.
    pub fn hide_version(&self) {
        self.shared.store().hides_version = true;
    }

    /// Serves watches that start in the past 100 ms late, as etcd does. By default they are served at once.
    pub fn delay_unsynced_watches(&self) {
        self.shared.store().unsynced = UNSYNCED;
    }

    /// Returns the number of leases.
    pub fn leases(&self) -> usize {
        self.shared.store().leases.len()
    }

    /// Returns the existing leases.
    pub fn lease_ids(&self) -> Vec<i64> {
        self.shared.store().leases.keys().copied().collect()
    }

    /// Returns the numbers of requests so far.
    pub fn requests(&self) -> Requests {
        self.shared.store().requests.clone()
    }

    /// Returns the number of requests, and of messages of watches, that were delayed so far: by a freeze, by a hold of
    /// their kind, or by [`slow_down`](Self::slow_down).
    pub fn delays(&self) -> usize {
        self.shared.store().delays
    }

    /// Resets the numbers of requests.
    pub fn reset_requests(&self) {
        self.shared.store().requests = Requests::default();
    }

    /// Gives the fake a defect, until [`mend`](Self::mend), and the version of a release that has it.
    pub fn set_defect(&self, defect: EtcdDefect) {
        self.shared.store().set_defect(defect);
    }

    /// Returns the defects that have changed an answer, a message or the store so far.
    pub fn shown_defects(&self) -> BTreeSet<EtcdDefect> {
        self.shared.store().defects.shown()
    }

    /// Returns the revocations so far that a defect concealed.
    pub fn concealed_revocations(&self) -> Vec<ConcealedRevocation> {
        self.shared.store().defects.concealed()
    }

    /// Ends all defects. The version stays.
    pub fn mend(&self) {
        self.shared.store().mend();
    }
}
