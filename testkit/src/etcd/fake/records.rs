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
    /// Grants of leases.
    pub grants: usize,
    /// Renewals.
    pub renewals: usize,
    /// Requests for the remaining time or the keys of a lease.
    pub lease_questions: usize,
    /// Watches.
    pub watches: usize,
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
        let Self { ranges, txns, grants, renewals, lease_questions, watches, versions, tokens, denied, .. } = self;
        ranges + txns + grants + renewals + lease_questions + watches + versions + tokens + denied
    }
}
