//! Records that the scripted etcd keeps for tests: changes of keys and counts of requests.

use tokio::time::Instant;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyChange {
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
