//! The store of the fake: keys, their history and leases. It answers as etcd does, which `backend-etcd/tests/differential.rs` holds
//! against a real one.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest,
    PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest,
    PbTxnResponse,
};
use tokio::time::Instant;
use tonic::Status;

use super::{Misbehavior, Requests, Written};

/// Operations of a transaction that etcd takes (its `--max-txn-ops`).
const MAX_OPERATIONS: usize = 128;

/// Seconds that a lease may be granted for.
const MAX_TTL: i64 = 9_000_000_000;

/// Seconds that a lease is granted for at least, with etcd's default election timeout of 1 s.
const MIN_TTL: i64 = 2;

type Keys = BTreeMap<Vec<u8>, PbKeyValue>;

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) version: String,
    pub(super) revision: i64,
    /// Number of times that everything was lost.
    pub(super) wipes: usize,
    pub(super) compacted: i64,
    pub(super) keys: Keys,
    /// The keys as of the compacted revision, from which on there is a history.
    pub(super) base: Keys,
    /// Changes from the compacted revision on, with what was there before each.
    pub(super) history: VecDeque<PbEvent>,
    /// Changes before the present request, while there is one that may change something.
    pub(super) begun: Option<usize>,
    pub(super) leases: BTreeMap<i64, Granted>,
    /// Leases run out.
    pub(super) expires: bool,
    /// Every change.
    pub(super) journal: Vec<Written>,
    pub(super) lies: VecDeque<Misbehavior>,
    /// Outcome of the late transactions: the error of one that was refused.
    pub(super) late: Vec<Result<bool, Status>>,
    pub(super) requests: Requests,
    /// Watches that begin in the past are served this much later.
    pub(super) unsynced: Duration,
    /// Reads and transactions are refused.
    pub(super) denies: bool,
}

/// A lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    /// Seconds.
    pub(super) ttl: i64,
    /// Time at which it was granted or renewed last.
    renewed: Instant,
}

impl Granted {
    /// Seconds that are left, begun ones included.
    fn remaining(&self) -> i64 {
        let passed = i64::try_from(self.renewed.elapsed().as_secs()).unwrap_or(i64::MAX);
        self.ttl.saturating_sub(passed).max(0)
    }
}

impl Store {
    /// The revision of an answer. What has changed nothing yet is still at the revision before.
    fn present(&self) -> i64 {
        self.revision - i64::from(self.begun == Some(self.history.len()))
    }

    /// The header of every answer. etcd always sends one, so it is wrapped as the messages have it.
    #[expect(clippy::unnecessary_wraps, reason = "the messages have an optional header")]
    pub(super) fn header(&self) -> Option<PbResponseHeader> {
        Some(PbResponseHeader { cluster_id: 1, member_id: 1, revision: self.present(), raft_term: 1 })
    }

    /// Runs `act` at the next revision; returns the one before.
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
        self.written(&pair, true);
        self.history.push_back(PbEvent { r#type: 0, kv: Some(pair), prev_kv });
    }

    /// Deletes a key, and returns what it held.
    pub(super) fn delete(&mut self, key: &[u8]) -> Option<PbKeyValue> {
        let there = self.keys.remove(key);
        if there.is_some() {
            let gone = PbKeyValue { key: key.to_vec(), mod_revision: self.revision, ..PbKeyValue::default() };
            self.written(&gone, false);
            self.history.push_back(PbEvent { r#type: 1, kv: Some(gone), prev_kv: there.clone() });
        }
        there
    }

    fn written(&mut self, pair: &PbKeyValue, put: bool) {
        self.journal.push(Written {
            at: Instant::now(),
            revision: pair.mod_revision,
            key: pair.key.clone(),
            value: put.then(|| pair.value.clone()),
            created: pair.create_revision,
            lease: pair.lease,
        });
    }

    /// Renews a lease, and returns its seconds; 0 if there is none.
    pub(super) fn renew(&mut self, lease: i64) -> i64 {
        self.leases.get_mut(&lease).map_or(0, |lease| {
            lease.renewed = Instant::now();
            lease.ttl
        })
    }

    /// Seconds of a lease, and how many of them are left; `None` if there is no such lease.
    pub(super) fn time_to_live(&self, lease: i64) -> Option<(i64, i64)> {
        let lease = self.leases.get(&lease)?;
        Some((lease.ttl, if self.expires { lease.remaining() } else { lease.ttl }))
    }

    /// Revokes the leases that are over.
    pub(super) fn expire(&mut self) {
        let over: Vec<_> = self.leases.iter().filter(|(_, lease)| lease.remaining() == 0).map(|(id, _)| *id).collect();
        for lease in over {
            self.revoke(lease);
        }
    }

    pub(super) fn revoke(&mut self, lease: i64) -> bool {
        let known = self.leases.remove(&lease).is_some();
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

    /// Grants a lease: its identity and its seconds.
    pub(super) fn grant(&mut self, id: i64, ttl: i64) -> Result<(i64, i64), Status> {
        if ttl > MAX_TTL {
            return Err(Status::out_of_range("etcdserver: too large lease TTL"));
        }
        let id = match id {
            0 => 1000 + self.leases.last_key_value().map_or(0, |(id, _)| *id),
            id if self.leases.contains_key(&id) => {
                return Err(Status::failed_precondition("etcdserver: lease already exists"));
            }
            id => id,
        };
        let ttl = ttl.max(MIN_TTL);
        self.leases.insert(id, Granted { ttl, renewed: Instant::now() });
        Ok((id, ttl))
    }

    /// Forgets the history before `revision`.
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

    /// Forgets the history before `revision`, which is a past one or the present one.
    pub(super) fn compact_to(&mut self, revision: i64) {
        self.base = self.at(revision).into_owned();
        self.compacted = revision;
        let first = self.first_event(revision);
        self.history.drain(..first);
    }

    /// Index of the first change from a revision on.
    fn first_event(&self, revision: i64) -> usize {
        self.history.partition_point(|event| event.kv.as_ref().is_some_and(|pair| pair.mod_revision < revision))
    }

    /// The keys as of a revision that is not forgotten; 0 is the present one.
    fn at(&self, revision: i64) -> Cow<'_, Keys> {
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

    /// Refuses a revision that is forgotten, or not there yet.
    fn check_revision(&self, revision: i64) -> Result<(), Status> {
        match revision {
            0 => Ok(()),
            revision if revision > self.present() => Err(future_revision()),
            revision if revision < self.compacted => Err(compacted()),
            _ => Ok(()),
        }
    }

    pub(super) fn range(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        check_key(&request.key)?;
        self.check_revision(request.revision)?;
        let keys = self.at(request.revision);
        let mut pairs = within(&keys, &request.key, &request.range_end);
        let count = i64::try_from(pairs.len()).unwrap_or(i64::MAX);
        if request.count_only {
            return Ok(PbRangeResponse { header: self.header(), kvs: Vec::new(), more: false, count });
        }
        // The count is that of the range, and what is filtered out is left out of the answer only.
        let inside = |revision, least, most| revision >= least && (most == 0 || revision <= most);
        pairs.retain(|pair| inside(pair.create_revision, request.min_create_revision, request.max_create_revision));
        pairs.retain(|pair| inside(pair.mod_revision, request.min_mod_revision, request.max_mod_revision));
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let bounds = [
            request.min_create_revision,
            request.max_create_revision,
            request.min_mod_revision,
            request.max_mod_revision,
        ];
        if request.sort_order == 0 && bounds == [0; 4] {
            // Without an order etcd sorts no more than it reads, whatever is to be sorted by.
            pairs.truncate(limit.saturating_add(1));
        }
        let target = |pair: &&PbKeyValue| match request.sort_target {
            1 => pair.version,
            2 => pair.create_revision,
            3 => pair.mod_revision,
            _ => 0,
        };
        // Both are stable, as etcd's are for the few keys of a test.
        match (request.sort_order, request.sort_target) {
            (2, 0) => pairs.reverse(),
            (2, 4) => pairs.sort_by(|one, other| other.value.cmp(&one.value)),
            (2, _) => pairs.sort_by_key(|pair| Reverse(target(pair))),
            (_, 4) => pairs.sort_by(|one, other| one.value.cmp(&other.value)),
            _ => pairs.sort_by_key(target),
        }
        let more = pairs.len() > limit;
        let value = |pair: &PbKeyValue| if request.keys_only { Vec::new() } else { pair.value.clone() };
        let copy = |pair: &PbKeyValue| PbKeyValue { value: value(pair), ..pair.clone() };
        let kvs = pairs.into_iter().take(limit).map(copy).collect();
        Ok(PbRangeResponse { header: self.header(), kvs, more, count })
    }

    fn check_lease(&self, put: &PbPutRequest) -> Result<(), Status> {
        if put.lease == 0 || self.leases.contains_key(&put.lease) {
            return Ok(());
        }
        Err(Status::not_found("etcdserver: requested lease not found"))
    }

    /// Refuses to keep what is not there.
    fn check_kept(&self, put: &PbPutRequest) -> Result<(), Status> {
        if !(put.ignore_value || put.ignore_lease) || self.keys.contains_key(&put.key) {
            return Ok(());
        }
        Err(Status::invalid_argument("etcdserver: key not found"))
    }

    pub(super) fn put_request(&mut self, put: PbPutRequest) -> Result<PbPutResponse, Status> {
        check_put(&put)?;
        self.check_lease(&put)?;
        self.check_kept(&put)?;
        Ok(self.put_checked(put))
    }

    fn put_checked(&mut self, mut put: PbPutRequest) -> PbPutResponse {
        let before = self.keys.get(&put.key).cloned();
        if let Some(before) = &before {
            if put.ignore_value {
                put.value.clone_from(&before.value);
            }
            if put.ignore_lease {
                put.lease = before.lease;
            }
        }
        self.put(put.key, put.value, put.lease);
        PbPutResponse { header: self.header(), prev_kv: before.filter(|_| put.prev_kv) }
    }

    pub(super) fn delete_request(&mut self, delete: &PbDeleteRequest) -> Result<PbDeleteResponse, Status> {
        check_key(&delete.key)?;
        let found = within(&self.keys, &delete.key, &delete.range_end);
        let keys: Vec<_> = found.into_iter().map(|pair| pair.key.clone()).collect();
        let gone: Vec<_> = keys.iter().filter_map(|key| self.delete(key)).collect();
        let deleted = i64::try_from(gone.len()).unwrap_or(i64::MAX);
        let prev_kvs = if delete.prev_kv { gone } else { Vec::new() };
        Ok(PbDeleteResponse { header: self.header(), deleted, prev_kvs })
    }

    /// Returns `true` if the condition holds for every key that it is about; one that is not there counts as never written.
    fn holds(&self, compare: &PbCompare) -> bool {
        let absent = PbKeyValue::default();
        let mut pairs = within(&self.keys, &compare.key, &compare.range_end);
        if pairs.is_empty() {
            // No value is neither equal nor unequal to another.
            if let Some(PbTargetUnion::Value(_)) = compare.target_union {
                return false;
            }
            pairs.push(&absent);
        }
        pairs.into_iter().all(|pair| is_so(compare, pair))
    }

    pub(super) fn txn(&mut self, txn: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        check_txn(&txn)?;
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let operations = if succeeded { txn.success } else { txn.failure };
        let operations: Vec<_> = operations.into_iter().filter_map(|operation| operation.request).collect();
        // All or nothing, so all is checked before anything is done; writes first.
        for operation in &operations {
            if let PbTxnOpRequest::RequestPut(put) = operation {
                self.check_kept(put)?;
                self.check_lease(put)?;
            }
        }
        for operation in &operations {
            if let PbTxnOpRequest::RequestRange(range) = operation {
                self.check_revision(range.revision)?;
            }
        }
        let mut responses = Vec::new();
        for operation in operations {
            let response = match operation {
                PbTxnOpRequest::RequestRange(range) => PbTxnOpResponse::ResponseRange(self.range(&range)?),
                PbTxnOpRequest::RequestPut(put) => PbTxnOpResponse::ResponsePut(self.put_checked(put)),
                PbTxnOpRequest::RequestDeleteRange(delete) => {
                    PbTxnOpResponse::ResponseDeleteRange(self.delete_request(&delete)?)
                }
                PbTxnOpRequest::RequestTxn(_) => return Err(Status::unimplemented("a transaction in a transaction")),
            };
            responses.push(PbResponseOp { response: Some(response) });
        }
        Ok(PbTxnResponse { header: self.header(), succeeded, responses })
    }

    /// The events of a range from `next` on, by revision.
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

fn future_revision() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
}

fn compacted() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
}

fn check_key(key: &[u8]) -> Result<(), Status> {
    if key.is_empty() { Err(Status::invalid_argument("etcdserver: key is not provided")) } else { Ok(()) }
}

fn check_put(put: &PbPutRequest) -> Result<(), Status> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(Status::invalid_argument("etcdserver: value is provided"));
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Status::invalid_argument("etcdserver: lease is provided"));
    }
    Ok(())
}

/// Refuses what etcd refuses before it looks at a key.
fn check_txn(txn: &PbTxnRequest) -> Result<(), Status> {
    if [txn.compare.len(), txn.success.len(), txn.failure.len()].iter().any(|count| *count > MAX_OPERATIONS) {
        return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
    }
    txn.compare.iter().try_for_each(|compare| check_key(&compare.key))?;
    for operation in txn.success.iter().chain(&txn.failure) {
        match &operation.request {
            Some(PbTxnOpRequest::RequestRange(range)) => check_key(&range.key)?,
            Some(PbTxnOpRequest::RequestPut(put)) => check_put(put)?,
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => check_key(&delete.key)?,
            Some(PbTxnOpRequest::RequestTxn(_)) | None => {}
        }
    }
    check_overlaps(&txn.success)?;
    check_overlaps(&txn.failure)
}

/// Refuses a branch that puts a key twice, or puts and deletes it.
fn check_overlaps(operations: &[etcd_client::proto::PbTxnRequestOp]) -> Result<(), Status> {
    let mut puts: Vec<&[u8]> = Vec::new();
    for operation in operations {
        if let Some(PbTxnOpRequest::RequestPut(put)) = &operation.request {
            puts.push(&put.key);
        }
    }
    let deleted = operations.iter().any(|operation| match &operation.request {
        Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
            puts.iter().any(|key| is_within(key, &delete.key, &delete.range_end))
        }
        _ => false,
    });
    let count = puts.len();
    puts.sort_unstable();
    puts.dedup();
    if deleted || puts.len() < count {
        return Err(Status::invalid_argument("etcdserver: duplicate key given in txn request"));
    }
    Ok(())
}

fn is_so(compare: &PbCompare, pair: &PbKeyValue) -> bool {
    let order = match &compare.target_union {
        Some(PbTargetUnion::CreateRevision(revision)) => pair.create_revision.cmp(revision),
        Some(PbTargetUnion::ModRevision(revision)) => pair.mod_revision.cmp(revision),
        Some(PbTargetUnion::Lease(lease)) => pair.lease.cmp(lease),
        Some(PbTargetUnion::Version(version)) => pair.version.cmp(version),
        Some(PbTargetUnion::Value(value)) => pair.value.cmp(value),
        None => return false,
    };
    match compare.result {
        0 => order.is_eq(),
        1 => order.is_gt(),
        2 => order.is_lt(),
        _ => order.is_ne(),
    }
}

fn within<'a>(keys: &'a Keys, key: &[u8], end: &[u8]) -> Vec<&'a PbKeyValue> {
    match end {
        [] => keys.get(key).into_iter().collect(),
        [0] => keys.range(key.to_vec()..).map(|(_, pair)| pair).collect(),
        end if key < end => keys.range(key.to_vec()..end.to_vec()).map(|(_, pair)| pair).collect(),
        _ => Vec::new(),
    }
}

fn is_within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}
