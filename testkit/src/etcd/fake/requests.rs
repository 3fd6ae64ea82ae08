//! Requests to the store of the scripted etcd: reads, writes and transactions, with the checks that etcd makes.

use std::cmp::Reverse;

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeRequest,
    PbRangeResponse, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp,
    PbTxnResponse,
};
use tonic::Status;

use super::store::{Store, is_within, within};

/// Maximum number of operations in a transaction (`--max-txn-ops` of etcd).
const MAX_OPERATIONS: usize = 128;

impl Store {
    pub(super) fn range(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        check_key(&request.key)?;
        self.check_revision(request.revision)?;
        let keys = self.at(request.revision);
        let mut pairs = within(&keys, &request.key, &request.range_end);
        let count = i64::try_from(pairs.len()).unwrap_or(i64::MAX);
        if request.count_only {
            return Ok(PbRangeResponse { header: self.header(), kvs: Vec::new(), more: false, count });
        }
        // The count includes pairs that the bounds filter out.
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
            // Without an order, etcd sorts only the pairs that it reads.
            pairs.truncate(limit.saturating_add(1));
        }
        let target = |pair: &&PbKeyValue| match request.sort_target {
            1 => pair.version,
            2 => pair.create_revision,
            3 => pair.mod_revision,
            _ => 0,
        };
        // Both sorts are stable, as those of etcd are for few keys.
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

    /// Refuses to keep the value or the lease of a key that does not exist.
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

    /// Returns `true` if the condition holds for all keys of its range. An absent key counts as never written.
    fn holds(&self, compare: &PbCompare) -> bool {
        let absent = PbKeyValue::default();
        let mut pairs = within(&self.keys, &compare.key, &compare.range_end);
        if pairs.is_empty() {
            // An absent value is neither equal nor unequal to another.
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
        // A transaction is atomic, so all operations are checked before the first one is applied; writes first.
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
                PbTxnOpRequest::RequestTxn(_) => return Err(nested()),
            };
            responses.push(PbResponseOp { response: Some(response) });
        }
        Ok(PbTxnResponse { header: self.header(), succeeded, responses })
    }
}

fn nested() -> Status {
    Status::unimplemented("a transaction in a transaction")
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

/// Makes the checks that etcd makes before it reads a key.
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
            Some(PbTxnOpRequest::RequestTxn(_)) => return Err(nested()),
            None => {}
        }
    }
    check_overlaps(&txn.success)?;
    check_overlaps(&txn.failure)
}

/// Refuses a branch that puts a key twice, or puts and deletes it.
fn check_overlaps(operations: &[PbTxnRequestOp]) -> Result<(), Status> {
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
