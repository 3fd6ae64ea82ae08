//! Records that the scripted etcd keeps for tests: changes of keys and counts of requests.

use tokio::time::Instant;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyChange {
    /// Time of the change.
    pub at: Instant,
    /// Revision of the change.
    pub revision: i64,
    /// Key.
    pub key: Vec<u8>,
    /// Value after the change; `None` for a deletion.
    pub value: Option<Vec<u8>>,
    /// Revision of the key's creation; 0 for a deletion.
    pub created: i64,
    /// Lease of the key; 0 for none.
    pub lease: i64,
}

/// Numbers of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requests {
    /// Reads.
    pub ranges: usize,
    /// Reads of keys without values.
    pub keys_only: usize,
    /// Serializable reads.
    pub serializable: usize,
    /// Transactions and puts.
    pub txns: usize,
    /// Deletions outside transactions.
    pub deletions: usize,
    /// Compactions.
    pub compactions: usize,
    /// Grants of leases.
    pub grants: usize,
    /// Renewals.
    pub renewals: usize,
    /// Revocations of leases.
    pub revocations: usize,
    /// Requests for the remaining time or the keys of a lease.
    pub lease_questions: usize,
    /// Watches.
    pub watches: usize,
    /// Requests for the progress of a watch.
    pub progress: usize,
    /// Requests for the version.
    pub versions: usize,
    /// Authentication tokens.
    pub tokens: usize,
    /// Reads and transactions that were denied.
    pub denied: usize,
    /// Arrival time of each transaction.
    pub txn_times: Vec<Instant>,
}

impl Requests {
    /// Returns the number of requests, including those that were denied.
    pub fn all(&self) -> usize {
        let Self { ranges, keys_only: _, serializable: _, txns, deletions, compactions, txn_times: _, .. } = self;
        let Self { grants, renewals, revocations, lease_questions, watches, progress, .. } = self;
        let Self { versions, tokens, denied, .. } = self;
        let of_keys = ranges + txns + deletions + compactions + denied;
        of_keys + grants + renewals + revocations + lease_questions + watches + progress + versions + tokens
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etcd_client::{Channel, Client};

    use crate::FakeEtcd;

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_request_is_counted() {
        let fake = FakeEtcd::start();
        let mut client = Client::from_channel(Channel::Tonic(fake.channel()), None).await.unwrap();
        client.put("k", "", None).await.unwrap();
        client.delete("k", None).await.unwrap();
        client.compact(2, None).await.unwrap();
        let lease = client.lease_grant(60, None).await.unwrap().id();
        client.lease_revoke(lease).await.unwrap();
        client.lease_revoke(lease).await.unwrap_err();
        let before = fake.requests();
        assert_eq!((before.txns, before.deletions, before.compactions), (1, 1, 1));
        assert_eq!((before.grants, before.revocations), (1, 2));
        assert_eq!(before.all(), 6);
        let mut watch = client.watch("k", None).await.unwrap();
        assert!(watch.message().await.unwrap().unwrap().created());
        watch.request_progress().await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.message()).await.unwrap().unwrap().unwrap();
        let after = fake.requests();
        assert_eq!((after.watches, after.progress, after.all()), (1, 1, 8));
    }
}
