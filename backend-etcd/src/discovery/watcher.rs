//! The `Resolver` of the backend: snapshots of services, decoded from replicas of their ranges.
//!
//! A watcher decodes when it is read, not on the session's thread, and only the differences.

mod departure;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, ptr,
    sync::Arc,
};

use async_trait::async_trait;
use enlist::{
    Change, Entry, Error, Freshness, Health, LeaseId, Namespace, Resolver, Revision, ServiceName, ServiceRef,
    ServicesWatcher, Snapshot, Watcher,
    backend::{Interner, ProofLimit, SnapshotBuilder, Subscriber, Update},
};
use foldhash::fast::RandomState;

use self::departure::{Deletion, DeletionCause, History, LeaseReads, Undecided};
use crate::{
    client::store_client::StoreClient,
    discovery::context::DiscoveryContext,
    etcd::Etcd,
    layout::{Identity, Layout, Skip},
    watch::{
        malformed::MalformedValues,
        partial_list::{ListedPages, PartialListReader},
        record::Record,
        replica::{Difference, Replica},
    },
};

#[async_trait]
impl Resolver for Etcd {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.session.check_open()?;
        let range = self.session.discovery.layout.service_range(service)?;
        let listed = self.session.discovery.client.list(&range).await;
        let (records, revision) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let mut replica = Replica::new(revision, enlist::Epoch::default());
        replica.relist(records, revision, enlist::Epoch::default());
        let mut projection = self.projection(service);
        Ok(projection.follow(None, &replica))
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        let range = self.session.discovery.layout.service_range(service)?;
        let (reader, pages) = self.session.discovery.range_watches.view_by_pages(&range)?;
        let projection = self.projection(service);
        let client = Arc::clone(&self.session.discovery.client);
        let (lease_reads, seen, limit) = (None, None, ProofLimit::default());
        let pages = Some(pages);
        Ok(Box::new(EtcdWatcher { reader, pages, projection, client, lease_reads, seen, limit, live: true }))
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.list_services(namespace).await
    }

    async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        self.follow_services(namespace)
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.list_namespaces().await
    }
}

/// Content of one key of a service, as text. `Debug` does not show the text, which may contain an owner token.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Payload {
    /// The key. Bytes that are no text are replaced.
    pub key: String,
    /// The value; in the layout of gobase the content of its JSON string.
    pub text: String,
    /// Revision of the last change.
    pub modified: Revision,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, text, modified } = self;
        let mut shown = f.debug_struct("Payload");
        shown.field("key", key).field("bytes", &text.len()).field("modified", modified).finish()
    }
}

impl Etcd {
    /// Returns the values under the keys of `service`, as text, from one linearizable read.
    ///
    /// Values that are no instances are included, because go-kit and gobase let their users store any text. Values that
    /// are no text are left out.
    ///
    /// # Errors
    ///
    /// As [`Resolver::resolve`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn payloads(&self, service: &ServiceRef) -> Result<Vec<Payload>, Error> {
        self.session.check_open()?;
        let layout = &self.session.discovery.layout;
        let range = layout.service_range(service)?;
        let listed = self.session.discovery.client.list(&range).await;
        let (records, _) = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let own = |record: &&Record| layout.decode(service, &record.key, &record.value) != Err(Skip::Foreign);
        let payload = |record: &Record| {
            let key = String::from_utf8_lossy(&record.key).into_owned();
            Some(Payload { key, text: layout.text(&record.value)?, modified: record.modified })
        };
        Ok(records.iter().filter(own).filter_map(payload).collect())
    }

    fn projection(&self, service: &ServiceRef) -> Projection {
        let DiscoveryContext { layout, malformed, .. } = &self.session.discovery;
        Projection::new(service.clone(), Arc::clone(layout), Arc::clone(malformed))
    }
}

#[derive(Debug)]
struct EtcdWatcher {
    reader: Subscriber<Replica>,
    /// Pages of the first list, until a state is known.
    pages: Option<PartialListReader>,
    projection: Projection,
    client: Arc<StoreClient>,
    /// Reads of leases that the latest change waits for.
    lease_reads: Option<LeaseReads>,
    /// The state returned last.
    seen: Option<Snapshot>,
    /// Limit of its proofs, set once a later state waits for leases.
    limit: ProofLimit,
    live: bool,
}

impl EtcdWatcher {
    /// Waits for an update of the replica. Decodes the pages of the first list that arrive before.
    async fn update(&mut self) -> Result<Update<Replica>, Error> {
        let Self { reader, pages, projection, .. } = self;
        let Some(listing) = pages else { return reader.next().await };
        let update = loop {
            tokio::select! {
                // The whole list makes further pages of it obsolete.
                biased;
                update = reader.next() => break update?,
                listed = listing.next() => projection.prepare(listed),
            }
        };
        projection.forget_failed(listing.failed());
        *pages = None;
        Ok(update)
    }

    /// Returns the latest state and its freshness. `None`: leases have to be read first.
    async fn latest_state(&mut self) -> Result<Option<(Snapshot, Freshness)>, Error> {
        if let Some(reads) = &mut self.lease_reads {
            let alive = reads.alive().await;
            let freshness = reads.freshness.clone();
            self.lease_reads = None;
            return Ok(self.projection.decide(&alive).map(|snapshot| (snapshot, freshness)));
        }
        let Update { value, before, freshness, proven_before, .. } = self.update().await?;
        let snapshot = self.projection.follow(before.as_ref(), &value);
        let leases = self.projection.undecided();
        if leases.is_empty() {
            return Ok(Some((snapshot, freshness)));
        }
        self.limit.set(proven_before);
        self.lease_reads = Some(LeaseReads::new(&self.client, leases, freshness));
        Ok(None)
    }
}

#[async_trait]
impl Watcher for EtcdWatcher {
    async fn next(&mut self) -> Result<Change, Error> {
        loop {
            let Some((snapshot, freshness)) = self.latest_state().await? else { continue };
            let events = match &self.seen {
                None => snapshot.as_added(),
                Some(seen) => snapshot.diff(seen),
            };
            // A change of a key that is not an instance is not reported.
            let new_history = self.seen.as_ref().is_none_or(|seen| seen.epoch() != snapshot.epoch());
            if new_history || !events.is_empty() || self.live != freshness.is_live() {
                self.live = freshness.is_live();
                self.seen = Some(snapshot.clone());
                self.limit = ProofLimit::default();
                let freshness = self.limit.of(freshness);
                return Ok(Change { snapshot, events, freshness });
            }
            self.limit.clear();
        }
    }
}

/// Keys of one instance, oldest first.
type KeysOfInstance = BTreeSet<(Revision, Arc<[u8]>)>;

/// Pages of the first list that are decoded already.
#[derive(Debug)]
struct Prepared {
    /// Number of lists that had failed before.
    failed: u64,
    pages: Replica,
}

/// Converts replicas of a service's range into snapshots, in time proportional to the differences.
#[derive(Debug)]
pub(crate) struct Projection {
    service: ServiceRef,
    layout: Arc<dyn Layout>,
    malformed: Arc<MalformedValues>,
    /// Instance under each key.
    by_key: HashMap<Arc<[u8]>, Arc<Entry>, RandomState>,
    /// In layouts with one key per lease: the keys of one instance, by its endpoints, oldest first.
    keys_by_endpoint: BTreeMap<String, KeysOfInstance>,
    snapshot: Option<SnapshotBuilder>,
    /// Deleted instances whose leases decide between a removal and a loss.
    undecided: Undecided,
    prepared: Option<Prepared>,
    interner: Interner,
    /// Entry that was decoded last. The next one is likely to be similar.
    last: Option<Arc<Entry>>,
}

impl Projection {
    pub(crate) fn new(service: ServiceRef, layout: Arc<dyn Layout>, malformed: Arc<MalformedValues>) -> Self {
        Self {
            service,
            layout,
            malformed,
            by_key: HashMap::default(),
            keys_by_endpoint: BTreeMap::new(),
            snapshot: None,
            undecided: Undecided::default(),
            prepared: None,
            interner: Interner::default(),
            last: None,
        }
    }

    /// Decodes the pages of a list that has not ended, before the first replica.
    fn prepare(&mut self, ListedPages { failed, pages }: ListedPages) {
        self.forget_failed(failed);
        if let Some(pages) = pages {
            let before = self.prepared.take();
            let snapshot = self.apply(before.as_ref().map(|before| &before.pages), &pages);
            (self.snapshot, self.prepared) = (Some(snapshot), Some(Prepared { failed, pages }));
        }
    }

    /// Forgets the pages that are decoded, if their list has failed: that number of lists has. Keys may have
    /// disappeared before the next list, and none of the instances was shown.
    fn forget_failed(&mut self, failed: u64) {
        if self.prepared.as_ref().is_some_and(|prepared| prepared.failed != failed) {
            *self = Self::new(self.service.clone(), Arc::clone(&self.layout), Arc::clone(&self.malformed));
        }
    }

    /// Returns the snapshot of `replica`. `before`: the replica of the previous call.
    pub(crate) fn follow(&mut self, before: Option<&Replica>, replica: &Replica) -> Snapshot {
        let prepared = self.prepared.take();
        let snapshot = self.apply(before.or(prepared.as_ref().map(|prepared| &prepared.pages)), replica);
        self.snapshot.insert(snapshot).build()
    }

    /// Applies the differences from `before`.
    fn apply(&mut self, before: Option<&Replica>, replica: &Replica) -> SnapshotBuilder {
        let empty = || SnapshotBuilder::new(self.service.clone(), replica.revision, replica.epoch);
        let mut snapshot = self.snapshot.take().unwrap_or_else(empty);
        let differences = replica.differences(before);
        if before.is_none() {
            self.by_key.reserve(differences.len());
        }
        for difference in differences {
            match difference {
                Difference::Present(record) => match self.decode(record) {
                    Some(entry) => self.put(&mut snapshot, &record.key, entry),
                    None => self.drop_key(&mut snapshot, &record.key),
                },
                Difference::Gone(key) => {
                    let gone = self.deletion(before, replica, key);
                    self.drop_key(&mut snapshot, key);
                    let Some(gone) = gone.filter(|gone| snapshot.snapshot().get(&gone.id).is_none()) else { continue };
                    match gone.cause {
                        DeletionCause::Removed => snapshot.depart(&gone.id),
                        // No view holds an instance that took no calls.
                        _ if !gone.took_calls => {}
                        DeletionCause::RemovedIfAlive(lease) => self.undecided.add(gone.id, lease),
                        DeletionCause::Lost => self.undecided.forget(),
                    }
                }
            }
        }
        snapshot.advance(replica.revision, replica.epoch);
        snapshot
    }

    /// Returns the leases to read. None while an instance takes calls: nothing depends on them.
    fn undecided(&self) -> Vec<LeaseId> {
        let has_callable = || self.snapshot.as_ref().is_none_or(|snapshot| snapshot.snapshot().has_callable());
        if self.undecided.is_empty() || has_callable() { Vec::new() } else { self.undecided.leases() }
    }

    /// Notes which of the leases that were read are `alive`. Returns the latest snapshot.
    fn decide(&mut self, alive: &[LeaseId]) -> Option<Snapshot> {
        let snapshot = self.snapshot.as_mut()?;
        for id in self.undecided.decide(alive) {
            if snapshot.snapshot().get(&id).is_none() {
                snapshot.depart(&id);
            }
        }
        Some(snapshot.build())
    }

    /// Returns the instance of a deleted key.
    fn deletion(&mut self, before: Option<&Replica>, replica: &Replica, key: &Arc<[u8]>) -> Option<Deletion> {
        let last = replica.tombstone(key);
        let decoded = last.and_then(|record| self.decode(record));
        let seen = self.by_key.get(key)?;
        let id = seen.instance().id().clone();
        let took_calls = seen.instance().takes_calls();
        if decoded.as_ref().unwrap_or(seen).instance().health() == Health::Draining {
            return Some(Deletion { id, cause: DeletionCause::Removed, took_calls });
        }
        let is_same = before.is_some_and(|before| match last {
            // The watch reported the deletion.
            Some(_) => before.epoch == replica.epoch,
            None => replica.has_deleted_since(before),
        });
        let history = if is_same { History::Same } else { History::Restored };
        let cause = DeletionCause::of(last.or_else(|| before?.get(key)), history);
        Some(Deletion { id, cause, took_calls })
    }

    fn decode(&mut self, record: &Record) -> Option<Arc<Entry>> {
        let Self { layout, service, last, .. } = self;
        let decoded = match last {
            Some(last) => layout.decode_like(last.instance(), service, &record.key, &record.value),
            None => layout.decode(service, &record.key, &record.value),
        };
        match decoded {
            Ok(mut decoded) => {
                self.interner.share(&mut decoded.instance);
                let entry = Arc::new(record.entry(decoded.instance));
                self.last = Some(Arc::clone(&entry));
                Some(entry)
            }
            Err(Skip::Foreign) => None,
            Err(Skip::Malformed(reason)) => {
                self.malformed.report(&self.service, record, &reason);
                None
            }
        }
    }

    fn put(&mut self, snapshot: &mut SnapshotBuilder, key: &Arc<[u8]>, entry: Arc<Entry>) {
        if self.layout.identity() == Identity::Id {
            let before = self.by_key.insert(Arc::clone(key), Arc::clone(&entry));
            if let Some(before) = before.filter(|before| before.instance().id() != entry.instance().id()) {
                hide(snapshot, &before);
            }
            snapshot.insert(entry);
            return;
        }
        self.drop_key(snapshot, key);
        let keys = self.keys_by_endpoint.entry(endpoints_text(&entry)).or_default();
        let newest = keys.last().cloned();
        keys.insert((entry.created(), Arc::clone(key)));
        self.by_key.insert(Arc::clone(key), Arc::clone(&entry));
        match newest {
            Some((created, _)) if created > entry.created() => return,
            Some((_, older)) => {
                if let Some(older) = self.by_key.get(&older) {
                    snapshot.remove(older.instance().id());
                }
            }
            None => {}
        }
        snapshot.insert(entry);
    }

    fn drop_key(&mut self, snapshot: &mut SnapshotBuilder, key: &Arc<[u8]>) {
        let Some(entry) = self.by_key.remove(key) else {
            return;
        };
        hide(snapshot, &entry);
        if self.layout.identity() == Identity::Lease {
            let endpoints = endpoints_text(&entry);
            if let Some(keys) = self.keys_by_endpoint.get_mut(&endpoints) {
                keys.remove(&(entry.created(), Arc::clone(key)));
                match keys.last().and_then(|(_, key)| self.by_key.get(key)) {
                    Some(next) => snapshot.insert(Arc::clone(next)),
                    None => {
                        self.keys_by_endpoint.remove(&endpoints);
                    }
                }
            }
        }
    }
}

/// Removes an entry from a snapshot, unless a later one of another key is shown instead: in some layouts the values
/// have the ids, so two keys may have the same one.
fn hide(snapshot: &mut SnapshotBuilder, entry: &Arc<Entry>) {
    let id = entry.instance().id();
    if snapshot.snapshot().get(id).is_some_and(|shown| ptr::eq(shown, Arc::as_ptr(entry))) {
        snapshot.remove(id);
    }
}

/// Returns the text that identifies an instance in a layout with one key per lease: its endpoints.
fn endpoints_text(entry: &Entry) -> String {
    let endpoints = entry.instance().endpoints().iter().map(ToString::to_string);
    endpoints.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout::{go_zero::GoZero, kratos::Kratos, native::Native},
        watch::replica::KeyEvent,
    };
    use enlist::Epoch;

    fn put(key: &str, value: &str, revision: u64) -> KeyEvent {
        let revision = Revision::new(revision);
        KeyEvent::Put(Record {
            key: key.as_bytes().into(),
            value: value.as_bytes().into(),
            created: revision,
            modified: revision,
            lease: Some(LeaseId::new(1)),
        })
    }

    fn delete(key: &str, revision: u64) -> KeyEvent {
        KeyEvent::Delete { key: key.as_bytes().into(), revision: Revision::new(revision) }
    }

    fn ids(snapshot: &Snapshot) -> Vec<String> {
        snapshot.entries().map(|entry| entry.instance().id().to_string()).collect()
    }

    struct Following {
        projection: Projection,
        replica: Replica,
    }

    impl Following {
        fn new(layout: impl Layout) -> Self {
            let service = ServiceRef::parse("s").unwrap();
            let replica = Replica::new(Revision::default(), Epoch::default());
            Self { projection: Projection::new(service, Arc::new(layout), Arc::default()), replica }
        }

        fn after(&mut self, event: KeyEvent) -> Vec<String> {
            let before = self.replica.clone();
            self.replica.apply(vec![event]);
            ids(&self.projection.follow(Some(&before), &self.replica))
        }
    }

    fn kratos(id: &str) -> String {
        format!(r#"{{"id":"{id}","name":"s","endpoints":["grpc://h:1"]}}"#)
    }

    /// Instances as a list has them, or its first pages. `a=b` is the instance `b` under the key of `a`.
    fn listed(ids: &[&str]) -> Replica {
        let record = |text: &&str| {
            let (key, id) = text.split_once('=').unwrap_or((text, text));
            let KeyEvent::Put(record) = put(&format!("/microservices/s/{key}"), &kratos(id), 1) else {
                unreachable!("it is a put");
            };
            record
        };
        let mut replica = Replica::new(Revision::default(), Epoch::default());
        replica.add_page(ids.iter().map(record).collect(), Revision::new(9));
        replica
    }

    fn pages(failed: u64, ids: &[&str]) -> ListedPages {
        ListedPages { failed, pages: Some(listed(ids)) }
    }

    #[test]
    fn pages_of_a_list_are_decoded_once() {
        let mut projection = Following::new(Kratos::default()).projection;
        projection.prepare(pages(2, &["a", "b"]));
        let decoded: Vec<_> = projection.by_key.values().cloned().collect();
        projection.prepare(pages(2, &["a", "b", "c"]));
        projection.forget_failed(2);
        let snapshot = projection.follow(None, &listed(&["a", "b", "c", "d"]));
        let all = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!((ids(&snapshot), snapshot.revision()), (all, Revision::new(9)));
        let is_kept = |entry: &Arc<Entry>| projection.by_key.values().any(|kept| Arc::ptr_eq(kept, entry));
        assert!(decoded.len() == 2 && decoded.iter().all(is_kept));
    }

    /// Its id moves to another key, before the value of the former one changes.
    #[test]
    fn an_instance_stays_at_its_new_key() {
        for (event, expected) in [
            (put("/microservices/s/k5", &kratos("y"), 3), &["x", "y"][..]),
            (put("/microservices/s/k5", "malformed", 3), &["x"]),
            (delete("/microservices/s/k5", 3), &["x"]),
        ] {
            let mut following = Following::new(Kratos::default());
            following.after(put("/microservices/s/k5", &kratos("x"), 1));
            following.after(put("/microservices/s/k1", &kratos("x"), 2));
            assert_eq!(following.after(event), expected);
        }
    }

    /// Values of this layout have the id, so that another key may have it in the next list.
    #[test]
    fn pages_of_a_failed_list_leave_no_trace() {
        for (first, next) in [(&["a", "b"][..], &["b"][..]), (&["k5=x"], &["k1=x", "k5=y"]), (&["a"], &[])] {
            let mut projection = Following::new(Kratos::default()).projection;
            projection.prepare(pages(0, first));
            projection.prepare(ListedPages { failed: 1, pages: None });
            assert!(projection.by_key.is_empty() && projection.snapshot.is_none());
            projection.prepare(pages(0, first));
            projection.forget_failed(1);
            let mut found = ids(&projection.follow(None, &listed(next)));
            found.sort_unstable();
            let expected: Vec<_> = next.iter().map(|text| text.split_once('=').map_or(*text, |(_, id)| id)).collect();
            assert_eq!(found, expected, "{first:?} {next:?}");
        }
    }

    #[test]
    fn a_payload_is_not_shown_as_it_may_hold_an_owner_token() {
        let payload = Payload { key: "k".into(), text: "s3cret".into(), modified: Revision::new(1) };
        let shown = format!("{payload:?}");
        assert!(!shown.contains("s3cret") && shown.contains('k'), "{shown}");
    }

    #[test]
    fn a_malformed_value_takes_only_its_own_instance_away() {
        let mut following = Following::new(Native::default());
        let value = |id: &str| format!(r#"{{"v":1,"id":"{id}","endpoints":["h:1"]}}"#);
        let key = |id: &str| format!("enlist/services/default/s/{id}");
        assert_eq!(following.after(put(&key("a"), &value("a"), 1)), ["a"]);
        assert_eq!(following.after(put(&key("b"), &value("b"), 2)), ["a", "b"]);
        assert_eq!(following.after(put(&key("a"), "garbage", 3)), ["b"]);
        assert_eq!(following.after(put(&key("c/d"), &value("c"), 4)), ["b"]);
        assert_eq!(following.after(put(&key("a"), &value("a"), 5)), ["a", "b"]);
    }

    #[test]
    fn leases_are_read_once_no_instance_takes_calls() {
        let mut following = Following::new(Native::default());
        let key = |id: &str| format!("enlist/services/default/s/{id}");
        for (id, health, revision) in [("a", "serving", 1), ("b", "serving", 2), ("c", "draining", 3)] {
            let value = format!(r#"{{"v":1,"id":"{id}","endpoints":["h:1"],"health":"{health}"}}"#);
            following.after(put(&key(id), &value, revision));
        }
        assert_eq!(following.after(delete(&key("a"), 4)), ["b", "c"]);
        assert_eq!(following.projection.undecided(), []);
        assert_eq!(following.after(delete(&key("b"), 5)), ["c"]);
        assert_eq!(following.projection.undecided(), [LeaseId::new(1)]);
        following.projection.decide(&[]);
        following.after(put(&key("d"), r#"{"v":1,"id":"d","endpoints":["h:1"],"health":"not_serving"}"#, 6));
        assert_eq!(following.after(delete(&key("d"), 7)), ["c"]);
        assert_eq!(following.projection.undecided(), [], "it took no calls");
    }

    #[test]
    fn an_update_right_before_a_deletion_is_not_shown() {
        let mut following = Following::new(Native::default());
        let key = "enlist/services/default/s/a";
        let value = |health: &str| format!(r#"{{"v":1,"id":"a","endpoints":["h:1"],"health":"{health}"}}"#);
        following.after(put(key, &value("serving"), 1));
        let before = following.replica.clone();
        following.replica.apply(vec![put(key, &value("not_serving"), 2), delete(key, 3)]);
        following.projection.follow(Some(&before), &following.replica);
        assert_eq!(following.projection.undecided(), [LeaseId::new(1)], "views lose an instance that took calls");
    }

    #[test]
    fn two_keys_with_one_address_are_one_instance_and_the_newest_counts() {
        let mut following = Following::new(GoZero);
        assert_eq!(following.after(put("s/1", "h:1", 1)), ["1"]);
        assert_eq!(following.after(put("s/2", "h:1", 2)), ["2"]);
        assert_eq!(following.after(put("s/3", "h:3", 3)), ["2", "3"]);
        assert_eq!(following.after(delete("s/2", 4)), ["1", "3"]);
        assert_eq!(following.after(delete("s/1", 5)), ["3"]);
    }
}
