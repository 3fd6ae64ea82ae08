//! Monitors of the session's own keys. etcd's watches, not the leases, notify registrations and contenders when their
//! key is deleted or changed.
//!
//! The first keys of a service each have a watch, which starts at the known revision and needs no list. Further keys
//! share the watch of their service, and those of very many services share the watch of the namespace. So ten thousand
//! keys need few watches. A shared watch passes each difference to the monitor of its key.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use enlist::{
    Epoch, Error, Freshness, LeaseId, Revision, ServiceRef, TaskOwner,
    backend::{MutexExt as _, Subscriber},
};
use tokio::sync::watch;

use crate::{
    layout::Layout,
    watch::{
        range_watch::RangeWatches,
        record::{KeyRange, Record},
        replica::{Difference, Replica},
        watch_task::Begin,
    },
};

/// Maximum number of keys of a service with their own watches.
const MAX_OWN_WATCHES: usize = 8;

/// Number of watches from which on all services share the watch of their namespace.
const MAX_SINGLE_MONITORS: usize = 64;

/// Latest state of a key, as reported by a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// No list or event yet.
    Nothing,
    /// At this revision the key had these versions, or was absent.
    At { revision: Revision, epoch: Epoch, found: Option<Versions> },
    /// The watch cannot report the key.
    Unobservable,
}

/// Revisions at which a key was created and changed last, and its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Versions {
    created: Revision,
    modified: Revision,
    lease: Option<LeaseId>,
}

/// Difference of an own key from what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Differs {
    Gone,
    Changed,
    /// The watch cannot report the key.
    Unobservable,
}

/// Compares the state of a key with the write at revision `written`, when the store's epoch was `epoch`.
fn judge(seen: Seen, written: Revision, epoch: Option<Epoch>) -> Option<Differs> {
    match seen {
        Seen::Nothing => None,
        Seen::Unobservable => Some(Differs::Unobservable),
        Seen::At { epoch: now, .. } if epoch.is_some_and(|epoch| epoch != now) => Some(Differs::Changed),
        // A state from before the write does not contain it.
        Seen::At { revision, .. } if revision < written => None,
        Seen::At { found: None, .. } => Some(Differs::Gone),
        Seen::At { found: Some(found), .. } => (found.modified != written).then_some(Differs::Changed),
    }
}

/// Returns `true` if a watch has reported that the key created at `created`, when the store's epoch was `epoch`, no
/// longer exists. After a wipe another client's key can have that revision, but not the same `lease`.
fn is_gone(seen: Seen, created: Revision, lease: Option<LeaseId>, epoch: Option<Epoch>) -> bool {
    let is_own = |found: Versions| found.created == created && (lease.is_none() || found.lease == lease);
    match seen {
        Seen::Nothing | Seen::Unobservable => false,
        Seen::At { found: Some(found), .. } if is_own(found) => false,
        // A state from before the creation does not contain the key, unless it is one of another history.
        Seen::At { revision, epoch: now, .. } => revision >= created || epoch.is_some_and(|epoch| epoch != now),
    }
}

/// Monitor of one own key. Dropping it ends the monitoring.
#[derive(Debug)]
pub(crate) struct KeyMonitor {
    key: Arc<[u8]>,
    /// Distinguishes it from other monitors of the same watch.
    number: u64,
    seen: watch::Receiver<Seen>,
    /// Epoch of the last state.
    epoch: Option<Epoch>,
    /// Revision of the expected write.
    written: Option<Revision>,
    shared_watch: Arc<SharedWatch>,
}

impl KeyMonitor {
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Waits until the key differs from what was written at `written`.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn differs(&mut self, written: Revision) -> Differs {
        self.expect(written);
        loop {
            let (seen, epoch) = self.look();
            if let Some(differs) = judge(seen, written, epoch) {
                return differs;
            }
            if self.seen.changed().await.is_err() {
                return Differs::Unobservable;
            }
        }
    }

    /// Waits until the key that was created at `created`, under `lease` if that is given, is known to be gone. Waits
    /// while the watch cannot report it.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn vanished(&mut self, created: Revision, lease: Option<LeaseId>) {
        self.expect(created);
        loop {
            let (seen, epoch) = self.look();
            if is_gone(seen, created, lease, epoch) {
                return;
            }
            if self.seen.changed().await.is_err() {
                // The session has ended, and the waiting task with it.
                return std::future::pending().await;
            }
        }
    }

    /// Requests a state that is as new as the write at `written`.
    fn expect(&mut self, written: Revision) {
        if self.written != Some(written) {
            self.forget();
            self.written = Some(written);
            self.shared_watch.inner().expect(&self.key, written);
        }
    }

    /// Returns the latest state, and the epoch of the one before.
    fn look(&mut self) -> (Seen, Option<Epoch>) {
        let seen = *self.seen.borrow_and_update();
        let before = self.epoch;
        if let Seen::At { epoch, .. } = seen {
            self.epoch = Some(epoch);
        }
        (seen, before)
    }

    fn forget(&self) {
        if let Some(written) = self.written {
            self.shared_watch.inner().waiting.remove(&(written, Arc::clone(&self.key)));
        }
    }
}

impl Drop for KeyMonitor {
    fn drop(&mut self) {
        self.forget();
        let mut inner = self.shared_watch.inner();
        // A later monitor of the same key may have replaced it.
        if inner.monitors.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            inner.monitors.remove(&self.key);
        }
    }
}

/// One watch and the monitors of the own keys in its range.
#[derive(Debug)]
struct SharedWatch {
    inner: Mutex<Inner>,
    tasks: TaskOwner,
    /// Number of shared watches.
    count: Arc<AtomicUsize>,
    /// Counts the watch of a single key.
    _single: Option<Single>,
}

#[derive(Debug, Default)]
struct Inner {
    monitors: HashMap<Arc<[u8]>, (u64, watch::Sender<Seen>)>,
    /// Number of monitors so far.
    made: u64,
    /// Keys that wait for a replica as new as their write. A key that was deleted before the first replica appears in
    /// no difference.
    waiting: BTreeSet<(Revision, Arc<[u8]>)>,
    latest: Option<Replica>,
    unobservable: bool,
}

impl Inner {
    fn look(&self, key: &[u8]) -> Seen {
        match &self.latest {
            _ if self.unobservable => Seen::Unobservable,
            None => Seen::Nothing,
            Some(replica) => {
                let found = replica.get(key);
                let found = found.map(|&Record { created, modified, lease, .. }| Versions { created, modified, lease });
                Seen::At { revision: replica.revision, epoch: replica.epoch, found }
            }
        }
    }

    /// Notifies the monitor of `key` now, and again once the replica is as new as `written`.
    fn expect(&mut self, key: &Arc<[u8]>, written: Revision) {
        self.notify(key);
        if self.latest.as_ref().is_none_or(|replica| replica.revision < written) {
            self.waiting.insert((written, Arc::clone(key)));
        }
    }

    fn notify(&self, key: &[u8]) {
        if let Some((_, monitor)) = self.monitors.get(key) {
            monitor.send_replace(self.look(key));
        }
    }

    fn notify_all(&self) {
        for key in self.monitors.keys() {
            self.notify(key);
        }
    }

    /// Takes the keys with writes that the replica has reached.
    fn due(&mut self) -> BTreeSet<(Revision, Arc<[u8]>)> {
        let now = self.latest.as_ref().map(|replica| replica.revision).unwrap_or_default();
        let later = self.waiting.split_off(&(now.next(), [][..].into()));
        std::mem::replace(&mut self.waiting, later)
    }
}

impl Drop for SharedWatch {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SharedWatch {
    fn start(
        range_watches: &RangeWatches,
        count: &Arc<AtomicUsize>,
        single: Option<Single>,
        reader: impl FnOnce() -> Result<Subscriber<Replica>, Error>,
    ) -> Result<Arc<Self>, Error> {
        count.fetch_add(1, Ordering::Relaxed);
        let tasks = TaskOwner::on(range_watches.lifecycle().runtime());
        let shared_watch = Self { inner: Mutex::default(), tasks, count: Arc::clone(count), _single: single };
        let shared_watch = Arc::new(shared_watch);
        let reader = reader()?;
        shared_watch.tasks.spawn_until_stopped("own keys", dispatch(Arc::downgrade(&shared_watch), reader))?;
        Ok(shared_watch)
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.locked()
    }

    /// Adds a monitor of `key`. `epoch` is that of the start of the watch, if the watch is for this key only.
    fn monitor(self: Arc<Self>, key: &Arc<[u8]>, epoch: Option<Epoch>) -> KeyMonitor {
        let mut inner = self.inner();
        let (tell, seen) = watch::channel(Seen::Nothing);
        inner.made += 1;
        let number = inner.made;
        inner.monitors.insert(Arc::clone(key), (number, tell));
        drop(inner);
        KeyMonitor { key: Arc::clone(key), number, seen, epoch, written: None, shared_watch: self }
    }
}

/// Passes each difference to the monitor of its key.
async fn dispatch(shared_watch: Weak<SharedWatch>, mut reader: Subscriber<Replica>) {
    loop {
        let read = reader.next().await;
        let Some(shared_watch) = shared_watch.upgrade() else {
            return;
        };
        let mut inner = shared_watch.inner();
        match read {
            Ok(update) => {
                let before = update.before.as_ref().filter(|before| before.epoch == update.value.epoch);
                let differences = update.value.differences(before);
                let changed: Vec<_> = differences.into_iter().map(Difference::into_key).collect();
                // A range that is too large is not kept current, so its keys need watches of their own.
                let unobservable =
                    matches!(update.freshness, Freshness::Stale { cause: Error::RangeTooLarge { .. }, .. });
                let anew = before.is_none() || inner.unobservable || unobservable;
                (inner.latest, inner.unobservable) = (Some(update.value), unobservable);
                if anew {
                    inner.notify_all();
                }
                let due = inner.due();
                for key in changed.iter().chain(due.iter().map(|(_, key)| key)) {
                    inner.notify(key);
                }
            }
            Err(Error::Closed) => return,
            Err(_) => {
                inner.unobservable = true;
                inner.notify_all();
            }
        }
    }
}

/// Monitors of all own keys of a session.
#[derive(Debug)]
pub(crate) struct KeyMonitors {
    range_watches: Arc<RangeWatches>,
    shared: Mutex<HashMap<KeyRange, Weak<SharedWatch>>>,
    single: Arc<Singles>,
    count: Arc<AtomicUsize>,
}

/// Number of own keys of each service with their own watches.
type Singles = Mutex<HashMap<ServiceRef, usize>>;

/// Counts as one of [`Singles`] until it is dropped.
#[derive(Debug)]
struct Single {
    service: ServiceRef,
    all: Arc<Singles>,
}

impl Drop for Single {
    fn drop(&mut self) {
        let mut all = self.all.locked();
        if let Some(count) = all.get_mut(&self.service) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.service);
            }
        }
    }
}

/// Use of shared watches for an own key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The key can be seen through a watch that it shares with others.
    #[default]
    Allowed,
    /// A shared watch could not see the key.
    Never,
}

/// Watch that reports an own key.
#[derive(Debug, PartialEq, Eq)]
enum Share {
    Own,
    Service,
    Namespace,
}

/// Returns the watch of the next own key. `single` keys of its service have their own watches, and the session has
/// `watches` in all.
fn share(single: usize, watches: usize) -> Share {
    match (single, watches) {
        (_, MAX_SINGLE_MONITORS..) => Share::Namespace,
        (..MAX_OWN_WATCHES, _) => Share::Own,
        _ => Share::Service,
    }
}

impl KeyMonitors {
    pub(crate) fn new(range_watches: &Arc<RangeWatches>) -> Self {
        Self {
            range_watches: Arc::clone(range_watches),
            shared: Mutex::default(),
            single: Arc::default(),
            count: Arc::default(),
        }
    }

    /// Watches the key of `record`, which was just written.
    pub(crate) fn watch(
        &self,
        layout: &dyn Layout,
        service: &ServiceRef,
        record: &Record,
        sharing: Sharing,
    ) -> Result<KeyMonitor, Error> {
        let namespace = || layout.services_range(service.namespace()).map_or_else(|| layout.service_range(service), Ok);
        let shared_watch = match self.share(service, sharing) {
            (Share::Own, single) => {
                let known =
                    || self.range_watches.follow_key(&record.key, Some(record.clone()), record.modified, Begin::Known);
                let shared_watch = SharedWatch::start(&self.range_watches, &self.count, single, known)?;
                return Ok(shared_watch.monitor(&record.key, Some(Epoch::default())));
            }
            (Share::Service, _) => self.shared(layout.service_range(service)?)?,
            (Share::Namespace, _) => self.shared(namespace()?)?,
        };
        Ok(shared_watch.monitor(&record.key, None))
    }

    /// Watches the queue entry `record`, which was just created: through a watch of the range `others` if that is
    /// given, else by itself.
    pub(crate) fn queue_entry(&self, others: Option<&KeyRange>, record: Record) -> Result<KeyMonitor, Error> {
        let key = Arc::clone(&record.key);
        if let Some(range) = others {
            return Ok(self.shared(range.clone())?.monitor(&key, None));
        }
        let revision = record.modified;
        let shared_watch = SharedWatch::start(&self.range_watches, &self.count, None, || {
            self.range_watches.follow_key(&key, Some(record), revision, Begin::Known)
        })?;
        Ok(shared_watch.monitor(&key, Some(Epoch::default())))
    }

    /// Returns the watch of the next own key of `service`. If it is a separate one, it counts from then on.
    fn share(&self, service: &ServiceRef, sharing: Sharing) -> (Share, Option<Single>) {
        let mut all = self.single.locked();
        let of_service = all.get(service).copied().unwrap_or_default();
        let share = match sharing {
            Sharing::Never => Share::Own,
            Sharing::Allowed => share(of_service, self.count.load(Ordering::Relaxed)),
        };
        let single = (share == Share::Own).then(|| Single { service: service.clone(), all: Arc::clone(&self.single) });
        if single.is_some() {
            all.insert(service.clone(), of_service + 1);
        }
        (share, single)
    }

    fn shared(&self, range: KeyRange) -> Result<Arc<SharedWatch>, Error> {
        let mut shared = self.shared.locked();
        if let Some(shared_watch) = shared.get(&range).and_then(Weak::upgrade) {
            return Ok(shared_watch);
        }
        shared.retain(|_, shared_watch| shared_watch.strong_count() > 0);
        let shared_watch =
            SharedWatch::start(&self.range_watches, &self.count, None, || self.range_watches.follow(&range))?;
        shared.insert(range, Arc::downgrade(&shared_watch));
        Ok(shared_watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use std::time::Duration;

    use enlist::{Endpoint, Instance, InstanceId, RegisterOptions, Registry, backend::Publisher};
    use futures::FutureExt as _;

    /// A key is watched once it is this old.
    const UNWATCHED: Duration = Duration::from_millis(500);

    fn at(revision: u64, modified: Option<u64>) -> Seen {
        let revision = Revision::new(revision);
        let (created, lease) = (Revision::new(3), Some(LeaseId::new(7)));
        let found = modified.map(|modified| Versions { created, modified: Revision::new(modified), lease });
        Seen::At { revision, epoch: Epoch::default(), found }
    }

    #[test]
    fn only_a_state_from_after_the_write_counts() {
        let judge = |seen| judge(seen, Revision::new(5), Some(Epoch::default()));
        assert_eq!(judge(Seen::Nothing), None);
        assert_eq!(judge(at(4, None)), None);
        assert_eq!(judge(at(4, Some(3))), None);
        assert_eq!(judge(at(5, Some(5))), None);
        assert_eq!(judge(at(9, Some(5))), None);
        assert_eq!(judge(at(6, Some(6))), Some(Differs::Changed));
        assert_eq!(judge(at(5, None)), Some(Differs::Gone));
        assert_eq!(judge(at(6, None)), Some(Differs::Gone));
        assert_eq!(judge(Seen::Unobservable), Some(Differs::Unobservable));
        let other = Seen::At { revision: Revision::new(1), epoch: Epoch::default().next(), found: None };
        assert_eq!(judge(other), Some(Differs::Changed));
    }

    #[test]
    fn an_entry_is_gone_when_a_later_replica_or_another_history_lacks_it() {
        let under = |seen, created, lease| is_gone(seen, Revision::new(created), lease, Some(Epoch::default()));
        let gone = |seen, created| under(seen, created, None);
        assert!(!gone(Seen::Nothing, 3) && !gone(Seen::Unobservable, 3));
        assert!(!gone(at(2, None), 3), "from before");
        assert!(!gone(at(5, Some(4)), 3) && !gone(at(9, Some(9)), 3), "written again");
        assert!(gone(at(3, None), 3) && gone(at(9, Some(9)), 4), "deleted, created anew");
        assert_eq!([7, 8].map(|lease| under(at(5, Some(4)), 3, Some(LeaseId::new(lease)))), [false, true]);
        let other = Seen::At { revision: Revision::new(1), epoch: Epoch::default().next(), found: None };
        assert!(gone(other, 3));
    }

    fn replica(keys: &[(&str, u64)], revision: u64) -> Replica {
        let record = |(key, modified): &(&str, u64)| {
            let modified = Revision::new(*modified);
            Record { key: key.as_bytes().into(), value: Vec::new(), created: modified, modified, lease: None }
        };
        let mut replica = Replica::new(Revision::default(), Epoch::default());
        replica.relist(keys.iter().map(record).collect(), Revision::new(revision), Epoch::default());
        replica
    }

    fn shared_watch() -> Arc<SharedWatch> {
        let count = Arc::new(AtomicUsize::new(1));
        Arc::new(SharedWatch { inner: Mutex::default(), tasks: TaskOwner::new(), count, _single: None })
    }

    fn monitor(shared_watch: &Arc<SharedWatch>, key: &str) -> KeyMonitor {
        Arc::clone(shared_watch).monitor(&key.as_bytes().into(), None)
    }

    /// Passes what is published to the monitors.
    fn follow(shared_watch: &Arc<SharedWatch>, publisher: &Publisher<Replica>) {
        let task = dispatch(Arc::downgrade(shared_watch), publisher.reader(Arc::new(())));
        shared_watch.tasks.spawn_until_stopped("own keys", task).unwrap();
    }

    /// Takes the notification of a monitor, if there is one.
    fn notified(monitor: &mut KeyMonitor) -> Option<Seen> {
        monitor.seen.has_changed().unwrap().then(|| *monitor.seen.borrow_and_update())
    }

    /// Waits for the notification of a monitor.
    async fn passed_on(monitor: &mut KeyMonitor) -> Seen {
        enlist_testkit::soon("a notification", monitor.seen.changed()).await.unwrap();
        *monitor.seen.borrow_and_update()
    }

    #[tokio::test]
    async fn a_difference_is_passed_to_the_monitor_of_its_key() {
        let (shared_watch, publisher) = (shared_watch(), Publisher::new());
        let (mut a, mut b) = (monitor(&shared_watch, "a"), monitor(&shared_watch, "b"));
        assert_eq!((a.key(), b.key()), (&b"a"[..], &b"b"[..]));
        follow(&shared_watch, &publisher);
        publisher.advance(replica(&[("a", 3)], 3));
        assert!(matches!(passed_on(&mut a).await, Seen::At { found: Some(_), .. }), "the first replica, for all");
        assert!(matches!(notified(&mut b), Some(Seen::At { found: None, .. })));
        publisher.advance(replica(&[("a", 3), ("b", 4)], 4));
        assert!(matches!(passed_on(&mut b).await, Seen::At { found: Some(_), .. }));
        assert_eq!(notified(&mut a), None, "it has not changed");
        let mut restored = replica(&[("a", 3), ("b", 4)], 4);
        restored.epoch = restored.epoch.next();
        publisher.advance(restored.clone());
        passed_on(&mut b).await;
        assert!(notified(&mut a).is_some(), "another history, for all");
        let cause = Error::RangeTooLarge { range: "a range".to_owned(), limit: 1, unit: enlist::RangeUnit::Keys };
        publisher.publish_stale(restored.clone(), enlist::Moment::now(), cause);
        assert_eq!(passed_on(&mut b).await, Seen::Unobservable);
        assert_eq!(notified(&mut a), Some(Seen::Unobservable));
        publisher.advance(restored);
        assert!(matches!(passed_on(&mut b).await, Seen::At { .. }));
        assert!(matches!(notified(&mut a), Some(Seen::At { .. })), "observable again");
    }

    #[tokio::test]
    async fn a_refused_watch_reports_no_key() {
        let (shared_watch, publisher) = (shared_watch(), Publisher::new());
        let mut a = monitor(&shared_watch, "a");
        follow(&shared_watch, &publisher);
        publisher.refuse(Error::StorageFull);
        assert_eq!(passed_on(&mut a).await, Seen::Unobservable);
    }

    #[tokio::test]
    async fn a_key_that_was_never_seen_vanishes_with_a_later_replica() {
        let (shared_watch, publisher) = (shared_watch(), Publisher::new());
        let mut a = monitor(&shared_watch, "a");
        follow(&shared_watch, &publisher);
        publisher.advance(replica(&[("b", 2)], 2));
        passed_on(&mut a).await;
        assert_eq!(a.vanished(Revision::new(5), None).now_or_never(), None, "the replica is older than the key");
        publisher.advance(replica(&[("b", 2), ("c", 5)], 5));
        enlist_testkit::soon("gone", a.vanished(Revision::new(5), None)).await;
        assert!(shared_watch.inner().waiting.is_empty());
    }

    #[test]
    fn a_monitor_waits_for_a_replica_as_new_as_its_write() {
        let shared_watch = shared_watch();
        let waiting = |written: u64, at: Option<u64>| {
            shared_watch.inner().latest = at.map(|at| replica(&[], at));
            let mut a = monitor(&shared_watch, "a");
            a.expect(Revision::new(written));
            let waits = shared_watch.inner().waiting.len();
            let state = notified(&mut a);
            drop(a);
            assert!(shared_watch.inner().waiting.is_empty(), "forgotten with its monitor");
            (waits, state.is_some())
        };
        assert_eq!(waiting(5, None), (1, true));
        assert_eq!([4, 5, 6].map(|at| waiting(5, Some(at))), [(1, true), (0, true), (0, true)]);
        let mut a = monitor(&shared_watch, "a");
        a.expect(Revision::new(7));
        notified(&mut a);
        a.expect(Revision::new(7));
        assert_eq!(notified(&mut a), None, "the same write");
        a.expect(Revision::new(8));
        assert_eq!(shared_watch.inner().waiting, [(Revision::new(8), b"a"[..].into())].into());
    }

    #[test]
    fn a_monitor_leaves_its_successor_alone() {
        let shared_watch = shared_watch();
        let (former, successor) = (monitor(&shared_watch, "a"), monitor(&shared_watch, "a"));
        drop(former);
        assert_eq!(shared_watch.inner().monitors.len(), 1);
        drop(successor);
        assert!(shared_watch.inner().monitors.is_empty());
    }

    /// A process that registers instances of ever new services.
    #[tokio::test(start_paused = true)]
    async fn what_is_kept_of_a_service_goes_with_its_last_registration() {
        let (_fake, etcd) = testing::session();
        for round in 0..20 {
            let mut registrations = Vec::new();
            // So many that some have a watch of their own, and some share one.
            for number in 0..MAX_OWN_WATCHES + 2 {
                let id = InstanceId::parse(format!("i{number}")).unwrap();
                let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
                let service = ServiceRef::parse(format!("svc{round}")).unwrap();
                let registering = etcd.register(&service, instance, RegisterOptions::new());
                registrations.push(enlist_testkit::soon("registered", registering).await.unwrap());
            }
            tokio::time::sleep(UNWATCHED * 4).await;
            let key_monitors = &etcd.session.registration.key_monitors;
            assert_eq!(key_monitors.single.lock().unwrap().len(), 1, "services in round {round}");
            assert_eq!(key_monitors.count.load(Ordering::Relaxed), MAX_OWN_WATCHES + 1, "watches in round {round}");
            for registration in registrations {
                enlist_testkit::soon("deregistered", registration.deregister()).await.unwrap();
            }
        }
        assert!(etcd.session.registration.key_monitors.single.lock().unwrap().is_empty());
        assert_eq!(etcd.session.registration.key_monitors.count.load(Ordering::Relaxed), 0);
    }

    /// The statement of `docs/scale.md` about a process that registers under very many services.
    #[tokio::test(start_paused = true)]
    async fn beyond_so_many_watches_the_rest_share_that_of_their_namespace() {
        let (_fake, etcd) = testing::session();
        let mut registrations = Vec::new();
        for number in 0..MAX_SINGLE_MONITORS + 20 {
            let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]);
            let service = ServiceRef::parse(format!("svc{number}")).unwrap();
            let registering = etcd.register(&service, instance.unwrap(), RegisterOptions::new());
            registrations.push(enlist_testkit::soon("registered", registering).await.unwrap());
            // One after the other, so that each finds the existing watches.
            tokio::time::sleep(UNWATCHED * 2).await;
        }
        let key_monitors = &etcd.session.registration.key_monitors;
        assert_eq!(key_monitors.count.load(Ordering::Relaxed), MAX_SINGLE_MONITORS + 1);
        let shared: Vec<_> = key_monitors.shared.lock().unwrap().keys().cloned().collect();
        assert_eq!(shared, [KeyRange::prefix("enlist/services/default/")]);
    }

    #[tokio::test]
    async fn ended_shared_watches_are_forgotten() {
        let (_fake, etcd) = testing::session();
        let key_monitors = &etcd.session.registration.key_monitors;
        let shared = |prefix: &str| key_monitors.shared(KeyRange::prefix(prefix)).unwrap();
        let (ended, kept) = (shared("a/"), shared("b/"));
        drop(ended);
        let _third = shared("c/");
        assert_eq!(key_monitors.shared.lock().unwrap().len(), 2);
        assert!(Arc::ptr_eq(&shared("b/"), &kept), "one watch for all keys of a range");
    }

    #[test]
    fn own_watches_of_a_service_are_counted() {
        let (all, service) = (Arc::new(Singles::default()), ServiceRef::parse("svc").unwrap());
        all.lock().unwrap().insert(service.clone(), 2);
        let single = || Single { service: service.clone(), all: Arc::clone(&all) };
        drop(single());
        assert_eq!(all.lock().unwrap().get(&service), Some(&1));
        drop(single());
        assert!(all.lock().unwrap().is_empty());
    }

    #[test]
    fn many_own_keys_are_few_watches() {
        assert_eq!(share(0, 0), Share::Own);
        assert_eq!(share(MAX_OWN_WATCHES, MAX_OWN_WATCHES), Share::Service);
        assert_eq!(share(0, MAX_SINGLE_MONITORS), Share::Namespace);
    }
}
