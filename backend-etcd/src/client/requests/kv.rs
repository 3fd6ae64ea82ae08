//! Requests about single keys: reads, guarded puts and guarded deletes.

use std::{future::Future, sync::Arc};

use enlist::{LeaseId, Revision};
use etcd_client::{GetOptions, PutOptions, TxnOp};

use crate::{
    client::{
        connection::request_channel::Clients,
        requests::{
            guarded_write::{Guard, Outcome, Write},
            response::{records, revision_of},
        },
        store_client::StoreClient,
    },
    error::Failure,
    watch::record::Record,
};

/// Outcome of a guarded write.
#[derive(Clone, Debug)]
pub(crate) enum WriteOutcome {
    /// It was applied, at this revision.
    Done(Revision),
    /// The guard did not hold. Contains the key as it is.
    Refused(Option<Record>),
}

impl WriteOutcome {
    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { revision, .. } => Self::Done(revision),
            Outcome::Refused(found) => Self::Refused(found.into_iter().flatten().next()),
        }
    }
}

impl StoreClient {
    /// Reads a key. The read is linearizable.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
        let response = self.control.ask("get", |mut clients| async move { clients.kv.get(key, None).await }).await?;
        let revision = revision_of(&response);
        Ok((records(response).next(), revision))
    }

    /// Puts a key under a guard, in its turn among the writes of the session.
    pub(crate) async fn put(
        &self,
        key: &Arc<[u8]>,
        guard: Guard,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> Result<WriteOutcome, Failure> {
        self.instance_writes.send(put_under(key, guard, value, lease)).await.map(WriteOutcome::of)
    }

    /// As [`put`](Self::put), but fails if its turn does not come within the limit of a request. For users who wait,
    /// and for tasks that others wait for.
    pub(crate) async fn put_in_time(
        &self,
        key: &Arc<[u8]>,
        guard: Guard,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> Result<WriteOutcome, Failure> {
        let write = self.instance_writes.send_within(put_under(key, guard, value, lease), self.control.limit);
        write.await.map(WriteOutcome::of)
    }

    /// As [`put`](Self::put), but not sent if `given_up` completes before.
    pub(crate) async fn put_unless(
        &self,
        key: &Arc<[u8]>,
        guard: Guard,
        value: &[u8],
        lease: Option<LeaseId>,
        given_up: impl Future<Output = ()>,
    ) -> Result<WriteOutcome, Failure> {
        let write = self.instance_writes.send_unless(put_under(key, guard, value, lease), given_up);
        write.await.map(WriteOutcome::of)
    }

    /// Deletes a key under a guard, in its turn among the writes of the session.
    pub(crate) async fn delete(&self, key: &[u8], guard: Guard) -> Result<WriteOutcome, Failure> {
        self.instance_writes.send(delete_under(key, guard)).await.map(WriteOutcome::of)
    }

    /// As [`delete`](Self::delete), but fails if its turn does not come within the limit of a request. For users who
    /// wait, and for tasks that others wait for.
    pub(crate) async fn delete_in_time(&self, key: &[u8], guard: Guard) -> Result<WriteOutcome, Failure> {
        self.instance_writes.send_within(delete_under(key, guard), self.control.limit).await.map(WriteOutcome::of)
    }

    /// As [`delete`](Self::delete), but not sent if `given_up` completes before.
    pub(crate) async fn delete_unless(
        &self,
        key: &[u8],
        guard: Guard,
        given_up: impl Future<Output = ()>,
    ) -> Result<WriteOutcome, Failure> {
        self.instance_writes.send_unless(delete_under(key, guard), given_up).await.map(WriteOutcome::of)
    }

    /// Reads a range, sorted or limited as `options` say.
    pub(crate) async fn range(&self, start: &[u8], options: &GetOptions) -> Result<(Vec<Record>, Revision), Failure> {
        let read = |mut clients: Clients| async move { clients.kv.get(start, Some(options.clone())).await };
        let response = self.control.ask("range", read).await?;
        let revision = revision_of(&response);
        Ok((records(response).collect(), revision))
    }
}

/// Returns a write of one key under a guard.
fn put_under(key: &Arc<[u8]>, guard: Guard, value: &[u8], lease: Option<LeaseId>) -> Write {
    Write::apart(vec![(Arc::clone(key), guard)], vec![put(key, value, lease)], key.len() + value.len())
}

/// Returns a deletion of one key under a guard.
fn delete_under(key: &[u8], guard: Guard) -> Write {
    Write::apart(vec![(key.into(), guard)], vec![TxnOp::delete(key, None)], key.len())
}

/// Returns a put of a key under `lease`.
pub(crate) fn put(key: &[u8], value: &[u8], lease: Option<LeaseId>) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease.map_or(0, LeaseId::get))))
}
