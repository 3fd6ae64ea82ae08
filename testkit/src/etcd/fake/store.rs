//! Store of the scripted etcd: keys, their history, and leases. `backend-etcd/tests/differential.rs` compares it with a
//! real etcd.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use etcd_client::proto::{PbEvent, PbKeyValue, PbResponseHeader};
use tokio::time::Instant;
use tonic::Status;

use super::{
    etcd_defects::{Defects, EtcdDefect, RevocationCause},
    misbehavior::{LateWrite, Misbehaved, Misbehavior},
    records::{KeyChange, Requests},
};

/// Maximum TTL of a lease in seconds.
const MAX_TTL: i64 = 9_000_000_000;

/// Minimum TTL of a lease in seconds, with etcd's default election timeout of 1 s.
const MIN_TTL: i64 = 2;

/// Ids of leases that the store chooses are greater than this.
const CHOSEN_IDS: i64 = 1_000_000;

pub(super) type Keys = BTreeMap<Vec<u8>, PbKeyValue>;

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) version: String,
    pub(super) revision: i64,
    /// Number of wipes.
    pub(super) wipes: usize,
    pub(super) compacted: i64,
    pub(super) keys: Keys,
    /// Keys at the compacted revision, where the history starts.
    pub(super) base: Keys,
    /// Events from the compacted revision on, with the previous values.
    pub(super) history: VecDeque<PbEvent>,
    /// Number of events before the present request, if it may change the store.
    pub(super) begun: Option<usize>,
    pub(super) leases: BTreeMap<i64, Granted>,
    /// Number of lease ids that the store has chosen. As those of etcd, none is chosen again, not even after a restore.
    pub(super) chosen_ids: i64,
    /// Leases expire.
    pub(super) expires: bool,
    /// All changes.
    pub(super) journal: Vec<KeyChange>,
    pub(super) misbehavior: VecDeque<Misbehavior>,
    /// Misbehavior that has happened.
    pub(super) misbehaved: Vec<Misbehaved>,
    /// Outcomes of late transactions; the error of one that was refused.
    pub(super) late: Vec<Result<LateWrite, Status>>,
    pub(super) requests: Requests,
    /// Number of requests and messages that were delayed.
    pub(super) delays: usize,
    /// Delay of watches that start in the past.
    pub(super) unsynced: Duration,
    /// Reads and transactions are refused.
    pub(super) denies: bool,
    /// `Status` is refused.
    pub(super) hides_version: bool,
    pub(super) defects: Defects,
    pub(super) lagging: Lagging,
}

/// Members that lag, for defects that show them.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    /// Content of the paused member that answers reads.
    pub(super) paused: Option<Content>,
    /// Revision of the member that opens watches.
    pub(super) applied: i64,
}

/// Content of a store: the part that a snapshot of etcd has.
#[derive(Clone, Debug)]
pub(super) struct Content {
    revision: i64,
    compacted: i64,
    keys: Keys,
    base: Keys,
    history: VecDeque<PbEvent>,
    leases: BTreeMap<i64, Granted>,
}

/// A lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    /// Seconds.
    pub(super) ttl: i64,
    /// Time of the grant or of the last renewal.
    renewed: Instant,
}

impl Granted {
    /// Returns the remaining seconds, rounded down.
    fn reported(&self) -> i64 {
        let ttl = Duration::from_secs(self.ttl.unsigned_abs());
        i64::try_from(ttl.saturating_sub(self.renewed.elapsed()).as_secs()).unwrap_or(i64::MAX)
    }

    /// Returns the remaining seconds, rounded up.
    fn remaining(&self) -> i64 {
        let passed = i64::try_from(self.renewed.elapsed().as_secs()).unwrap_or(i64::MAX);
        self.ttl.saturating_sub(passed).max(0)
    }
}

impl Store {
    /// Returns the present content.
    pub(super) fn content(&self) -> Content {
        let Self { revision, compacted, keys, base, history, leases, .. } = self;
        let (keys, base, history, leases) = (keys.clone(), base.clone(), history.clone(), leases.clone());
        Content { revision: *revision, compacted: *compacted, keys, base, history, leases }
    }

    /// Replaces the content, and ends the watches. Leases have their full time again, as after a restart.
    pub(super) fn replace(&mut self, content: Content) {
        let Content { revision, compacted, keys, base, history, mut leases } = content;
        for lease in leases.values_mut() {
            lease.renewed = Instant::now();
        }
        self.wipes += 1;
        (self.revision, self.compacted, self.keys, self.base) = (revision, compacted, keys, base);
        (self.history, self.leases) = (history, leases);
    }

    /// Returns the revision for the header of an answer. A request that has not changed anything yet has the revision
    /// before.
    fn present(&self) -> i64 {
        self.revision - i64::from(self.begun == Some(self.history.len()))
    }

    /// Returns the header of an answer, which etcd always sends. It is an `Option` because the messages have one.
    #[expect(clippy::unnecessary_wraps, reason = "the messages have an optional header")]
    pub(super) fn header(&self) -> Option<PbResponseHeader> {
        Some(PbResponseHeader { cluster_id: 1, member_id: 1, revision: self.present(), raft_term: 1 })
    }

    /// Runs `act` at the next revision. Returns the revision before.
    pub(super) fn at_next_revision<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> (i64, T) {
        let (before, events) = (self.revision, self.history.len());
        self.revision += 1;
        self.begun = Some(events);
        let result = act(self);
        self.begun = None;
        if self.history.len() == events {
            self.revision = before;
        }
        (before, result)
    }

    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>, lease: i64) {
        let old = self.keys.get(&key);
        let pair = PbKeyValue {
            create_revision: old.map_or(self.revision, |old| old.create_revision),
            version: old.map_or(1, |old| old.version + 1),
            mod_revision: self.revision,
            key: key.clone(),
            value,
            lease,
        };
        let prev_kv = self.keys.insert(key, pair.clone());
        self.record(&pair, Some(pair.value.clone()));
        self.history.push_back(PbEvent { r#type: 0, kv: Some(pair), prev_kv });
    }

    /// Deletes a key. Returns its last value.
    pub(super) fn delete(&mut self, key: &[u8]) -> Option<PbKeyValue> {
        let there = self.keys.remove(key);
        if there.is_some() {
            let gone = PbKeyValue { key: key.to_vec(), mod_revision: self.revision, ..PbKeyValue::default() };
            self.record(&gone, None);
            self.history.push_back(PbEvent { r#type: 1, kv: Some(gone), prev_kv: there.clone() });
        }
        there
    }

    /// Adds a change to the journal.
    fn record(&mut self, pair: &PbKeyValue, value: Option<Vec<u8>>) {
        self.journal.push(KeyChange {
            at: Instant::now(),
            revision: pair.mod_revision,
            key: pair.key.clone(),
            value,
            created: pair.create_revision,
            lease: pair.lease,
        });
    }

    /// Renews a lease by a request that `arrived` then. Returns its TTL in seconds, 0 if there is no such lease; `None`
    /// if it has expired, and is not revoked yet.
    pub(super) fn renew(&mut self, lease: i64, arrived: Instant) -> Option<i64> {
        if self.has_expired(lease) {
            return None;
        }
        let Some(found) = self.leases.get_mut(&lease) else { return Some(self.defects.renewed(lease, arrived)) };
        found.renewed = Instant::now();
        Some(found.ttl)
    }

    /// Returns the TTL of a lease and its remaining seconds; `None` if there is no such lease.
    pub(super) fn time_to_live(&self, lease: i64) -> Option<(i64, i64)> {
        let lease = self.leases.get(&lease)?;
        Some((lease.ttl, if self.expires { lease.reported() } else { lease.ttl }))
    }

    /// Returns the expired leases.
    pub(super) fn expired(&self) -> Vec<i64> {
        self.leases.keys().copied().filter(|id| self.has_expired(*id)).collect()
    }

    /// Returns `true` if a lease has expired, and is not revoked yet.
    pub(super) fn has_expired(&self, lease: i64) -> bool {
        self.expires && self.leases.get(&lease).is_some_and(|lease| lease.remaining() == 0)
    }

    pub(super) fn revoke(&mut self, lease: i64) -> bool {
        let cause = if self.has_expired(lease) { RevocationCause::Expiry } else { RevocationCause::Request };
        self.revoke_because(lease, cause)
    }

    pub(super) fn revoke_because(&mut self, lease: i64, cause: RevocationCause) -> bool {
        let removed = self.leases.remove(&lease);
        let known = removed.is_some();
        if let Some(removed) = removed {
            self.defects.note_revoked(lease, removed.ttl, cause);
        }
        let keys: Vec<_> =
            self.keys.values().filter(|pair| known && pair.lease == lease).map(|pair| pair.key.clone()).collect();
        for key in keys {
            self.delete(&key);
        }
        known
    }

    pub(super) fn revoke_all(&mut self) {
        for lease in self.leases.keys().copied().collect::<Vec<_>>() {
            self.revoke(lease);
        }
    }

    /// Grants a lease. Returns its id and its TTL in seconds.
    pub(super) fn grant(&mut self, id: i64, ttl: i64) -> Result<(i64, i64), Status> {
        if ttl > MAX_TTL {
            return Err(Status::out_of_range("etcdserver: too large lease TTL"));
        }
        let id = match id {
            0 => self.choose_id(),
            id if self.leases.contains_key(&id) => {
                return Err(Status::failed_precondition("etcdserver: lease already exists"));
            }
            id => id,
        };
        let ttl = ttl.max(MIN_TTL);
        self.leases.insert(id, Granted { ttl, renewed: Instant::now() });
        self.defects.note_granted(id);
        Ok((id, ttl))
    }

    /// Chooses the id of a lease.
    fn choose_id(&mut self) -> i64 {
        loop {
            self.chosen_ids += 1;
            let id = CHOSEN_IDS + self.chosen_ids;
            if !self.leases.contains_key(&id) {
                return id;
            }
        }
    }

    /// Compacts the history before `revision`.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Status> {
        if revision <= self.compacted {
            return Err(compacted());
        }
        if revision > self.revision {
            return Err(future_revision());
        }
        self.compact_to(revision);
        Ok(())
    }

    /// Compacts the history before `revision`, which must exist.
    pub(super) fn compact_to(&mut self, revision: i64) {
        self.base = self.at(revision).into_owned();
        self.compacted = revision;
        let first = self.first_event(revision);
        self.history.drain(..first);
        let events = self.history.len();
        self.history.retain(|event| !self.defects.forgets(event, revision));
        if self.history.len() < events {
            self.defects.note_shown(EtcdDefect::ForgottenDeletion);
        }
    }

    /// Returns the index of the first event from a revision on.
    fn first_event(&self, revision: i64) -> usize {
        self.history.partition_point(|event| event.kv.as_ref().is_some_and(|pair| pair.mod_revision < revision))
    }

    /// Returns the keys at a revision that is not compacted; 0 stands for the present one.
    pub(super) fn at(&self, revision: i64) -> Cow<'_, Keys> {
        if revision == 0 || revision >= self.revision {
            return Cow::Borrowed(&self.keys);
        }
        let mut keys = self.base.clone();
        let known = self.first_event(self.compacted + 1);
        for event in self.history.range(known..self.first_event(revision + 1)) {
            match &event.kv {
                Some(pair) if event.r#type == 0 => drop(keys.insert(pair.key.clone(), pair.clone())),
                Some(pair) => drop(keys.remove(&pair.key)),
                None => {}
            }
        }
        Cow::Owned(keys)
    }

    /// Refuses a revision that is compacted or in the future.
    pub(super) fn check_revision(&self, revision: i64) -> Result<(), Status> {
        match revision {
            0 => Ok(()),
            revision if revision > self.present() => Err(future_revision()),
            revision if revision < self.compacted => Err(compacted()),
            _ => Ok(()),
        }
    }

    /// Returns the events of a range from `next` on, by revision.
    pub(super) fn events(&self, next: i64, key: &[u8], end: &[u8]) -> Vec<(i64, Vec<PbEvent>)> {
        let mut by_revision: Vec<(i64, Vec<PbEvent>)> = Vec::new();
        for event in self.history.range(self.first_event(next)..) {
            let Some(pair) = &event.kv else { continue };
            if !is_within(&pair.key, key, end) {
                continue;
            }
            match by_revision.last_mut() {
                Some((revision, events)) if *revision == pair.mod_revision => events.push(event.clone()),
                _ => by_revision.push((pair.mod_revision, vec![event.clone()])),
            }
        }
        by_revision
    }
}

pub(super) fn future_revision() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
}

pub(super) fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

pub(super) fn within<'a>(keys: &'a Keys, key: &[u8], end: &[u8]) -> Vec<&'a PbKeyValue> {
    match end {
        [] => keys.get(key).into_iter().collect(),
        [0] => keys.range(key.to_vec()..).map(|(_, pair)| pair).collect(),
        end if key < end => keys.range(key.to_vec()..end.to_vec()).map(|(_, pair)| pair).collect(),
        _ => Vec::new(),
    }
}

pub(super) fn is_within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}
