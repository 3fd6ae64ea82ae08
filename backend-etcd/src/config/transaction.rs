//! One transaction of configuration: a guarded request, and the recovery of its outcome if its reply was lost.
//!
//! The outcome is read back from the store:
//!
//! - With a condition on a revision, the transaction is sent again. It cannot be applied twice, because the first
//!   application ends the expected state. If the second one is refused, the first change of that value is looked up
//!   (`first_change.rs`): it is this transaction if all of its writes are found at that revision.
//! - Else a value has to be found that was written after the request began, with all other writes at its revision.
//!
//! An equal transaction of another client cannot be distinguished from this one, and counts as it. If neither outcome
//! is proven, the caller receives the failure of the request, after which the transaction may have been applied.

use std::{collections::BTreeSet, fmt};

use enlist::{ConfigWrite, Error, Expect, Namespace, Revision};
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnResponse, proto::PbTxnOpResponse};

use crate::{
    client::{
        connection::request_channel::Clients,
        requests::response::{header_revision, signed},
        store_client::StoreClient,
    },
    config::{
        first_change::{FirstChange, Search, State},
        history::version_at,
    },
    error::{Failure, text_cause},
    layout::config::ConfigLayout,
    watch::record::Record,
};

/// A transaction of configuration.
pub(crate) struct Transaction {
    writes: Vec<KeyWrite>,
}

struct KeyWrite {
    key: Vec<u8>,
    write: ConfigWrite,
}

/// Writes of a transaction that were found at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    All,
    NotAll,
}

/// Reply of etcd to a transaction.
#[derive(Debug)]
enum Answer {
    /// It was applied, at this revision.
    Done(Revision),
    /// A condition did not hold. Contains the revision of the last change of each value; `None` if it is absent.
    Refused(Vec<Option<Revision>>),
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.writes.iter().map(|KeyWrite { write, .. }| write)).finish()
    }
}

impl Transaction {
    pub(crate) fn new(layout: &ConfigLayout, namespace: &Namespace, writes: Vec<ConfigWrite>) -> Result<Self, Error> {
        let with_key = |write: ConfigWrite| Ok(KeyWrite { key: layout.key(namespace, &write.path)?, write });
        Ok(Self { writes: writes.into_iter().map(with_key).collect::<Result<_, Error>>()? })
    }

    /// Sends the transaction. Returns its revision. If the reply is lost, looks for the outcome within another deadline
    /// of a request.
    pub(crate) async fn commit(&self, client: &StoreClient) -> Result<Revision, Error> {
        let before = client.store.highest();
        let failure = match self.send(client).await {
            Ok(Answer::Done(revision)) => return Ok(revision),
            Ok(Answer::Refused(found)) => return Err(self.conflict(&found)),
            Err(failure) => failure,
        };
        if failure.is_ambiguous() {
            tracing::debug!(cause = %failure, "the reply to a configuration transaction was lost");
            let found = tokio::time::timeout(client.control.limit, self.outcome(client, before)).await;
            if let Ok(Some(outcome)) = found {
                return outcome;
            }
        }
        Err(failure.into_error(&self.describe()))
    }

    /// Looks for the outcome until etcd answers. `None`: it cannot be decided.
    async fn outcome(&self, client: &StoreClient, before: Revision) -> Option<Result<Revision, Error>> {
        loop {
            let recoveries = client.control.recoveries();
            let found = match self.expected_state() {
                Some(expected) => self.send_again(client, expected).await,
                None => self.find(client, before).await,
            };
            match found {
                Ok(outcome) => return outcome,
                Err(failure) if failure.is_outage() => client.control.recovered_since(recoveries).await,
                Err(_) => return None,
            }
        }
    }

    /// Returns a write that expects a revision, with that revision. No value returns to such a state.
    fn expected_state(&self) -> Option<(usize, Revision)> {
        self.writes.iter().enumerate().find_map(|(index, KeyWrite { write, .. })| match write.expect {
            Expect::Revision(revision) if revision > Revision::default() => Some((index, revision)),
            Expect::Revision(_) | Expect::Absent | Expect::Any => None,
        })
    }

    /// Sends the transaction again, after a lost reply.
    async fn send_again(
        &self,
        client: &StoreClient,
        (index, expected): (usize, Revision),
    ) -> Result<Option<Result<Revision, Error>>, Failure> {
        let found = match self.send(client).await? {
            Answer::Done(revision) => return Ok(Some(Ok(revision))),
            Answer::Refused(found) => found,
        };
        if found[index] == Some(expected) {
            // Another condition did not hold. It may hold again when a late first attempt arrives.
            return Ok(None);
        }
        Ok(match self.first_change(client, index, expected, found[index]).await? {
            FirstChange::At(revision) if self.found_at(client, revision).await? == Writes::All => Some(Ok(revision)),
            FirstChange::At(_) | FirstChange::NeverExpected => Some(Err(self.conflict(&found))),
            FirstChange::Compacted => None,
        })
    }

    /// Returns the first change after the state `expected` of a value, which has changed since.
    async fn first_change(
        &self,
        client: &StoreClient,
        index: usize,
        expected: Revision,
        modified: Option<Revision>,
    ) -> Result<FirstChange, Failure> {
        let key = &self.writes[index].key;
        let changed = match modified {
            Some(modified) => modified,
            // The reply to the transaction was at least at this revision.
            None => client.store.highest(),
        };
        let mut search = Search::new(expected, changed);
        loop {
            let at = match search.next() {
                Ok(at) => at,
                Err(found) => return Ok(found),
            };
            search.note(match version_at(client, key, Some(at)).await {
                Ok(record) if record.as_ref().is_some_and(|record| record.modified == expected) => State::Expected,
                Ok(_) => State::Other,
                Err(Failure::Compacted) => State::Compacted,
                Err(failure) => return Err(failure),
            });
        }
    }

    /// Looks for values that this transaction wrote after the revision `before`.
    async fn find(&self, client: &StoreClient, before: Revision) -> Result<Option<Result<Revision, Error>>, Failure> {
        let mut tried = BTreeSet::from([before]);
        for KeyWrite { key, write } in &self.writes {
            if write.value.is_none() {
                continue;
            }
            let Some(record) = version_at(client, key, None).await? else { continue };
            let at = if write.expect == Expect::Any { record.modified } else { record.created };
            if at > before && tried.insert(at) && self.found_at(client, at).await? == Writes::All {
                return Ok(Some(Ok(at)));
            }
        }
        Ok(None)
    }

    /// Returns the writes of the transaction that are found at `revision`.
    async fn found_at(&self, client: &StoreClient, revision: Revision) -> Result<Writes, Failure> {
        for KeyWrite { key, write } in &self.writes {
            let found = version_at(client, key, Some(revision)).await?;
            if !is_written(write, revision, found.as_ref()) {
                return Ok(Writes::NotAll);
            }
        }
        Ok(Writes::All)
    }

    async fn send(&self, client: &StoreClient) -> Result<Answer, Failure> {
        let send = |mut clients: Clients| {
            let txn = self.txn();
            async move { clients.kv.txn(txn).await }
        };
        let response = client.control.call("configuration", send).await?;
        self.read(response)
    }

    fn txn(&self) -> Txn {
        let compares = self.writes.iter().filter_map(KeyWrite::compare);
        let reads = self.writes.iter().map(|KeyWrite { key, .. }| {
            // Without values, which could be larger than the limit of an answer.
            TxnOp::get(&key[..], Some(GetOptions::new().with_keys_only()))
        });
        Txn::new()
            .when(compares.collect::<Vec<_>>())
            .and_then(self.writes.iter().map(KeyWrite::op).collect::<Vec<_>>())
            .or_else(reads.collect::<Vec<_>>())
    }

    fn read(&self, response: TxnResponse) -> Result<Answer, Failure> {
        if response.succeeded() {
            return Ok(Answer::Done(header_revision(response.header())));
        }
        let operations = response.0.responses.into_iter();
        let found: Vec<_> = operations
            .map(|operation| match operation.response {
                Some(PbTxnOpResponse::ResponseRange(found)) => found.kvs.into_iter().next().map(Record::from),
                _ => None,
            })
            .map(|record| record.map(|record| record.modified))
            .collect();
        let is_complete = found.len() == self.writes.len() && self.first_unexpected(&found).is_some();
        if is_complete { Ok(Answer::Refused(found)) } else { Err(Failure::Lost(text_cause("an incomplete refusal"))) }
    }

    /// Returns the first write whose condition does not hold.
    fn first_unexpected(&self, found: &[Option<Revision>]) -> Option<usize> {
        self.writes.iter().zip(found).position(|(KeyWrite { write, .. }, found)| !write.expect.holds(*found))
    }

    fn conflict(&self, found: &[Option<Revision>]) -> Error {
        let index = self.first_unexpected(found).unwrap_or_default();
        let revision = found[index].unwrap_or_default();
        Error::Conflict { what: self.writes[index].write.path.to_string(), revision }
    }

    /// Returns a description of the keys for messages.
    fn describe(&self) -> String {
        match &self.writes[..] {
            [KeyWrite { key, .. }] => format!("the key {}", key.escape_ascii()),
            [KeyWrite { key, .. }, others @ ..] => {
                format!("the key {} and {} others", key.escape_ascii(), others.len())
            }
            [] => "no keys".to_owned(),
        }
    }
}

impl KeyWrite {
    fn compare(&self) -> Option<Compare> {
        match self.write.expect {
            Expect::Any => None,
            Expect::Absent => Some(Compare::create_revision(&self.key[..], CompareOp::Equal, 0)),
            Expect::Revision(revision) => {
                Some(Compare::mod_revision(&self.key[..], CompareOp::Equal, signed(revision)))
            }
        }
    }

    fn op(&self) -> TxnOp {
        match &self.write.value {
            Some(value) => TxnOp::put(&self.key[..], &value[..], None),
            None => TxnOp::delete(&self.key[..], None),
        }
    }
}

/// Returns `true` if the state of a value at `revision` is the one that `write` leaves at that revision.
fn is_written(write: &ConfigWrite, revision: Revision, found: Option<&Record>) -> bool {
    match (&write.value, found) {
        (Some(value), Some(found)) => found.modified == revision && found.value == *value,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use enlist::ConfigPath;

    use super::*;

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    fn transaction(writes: Vec<ConfigWrite>) -> Transaction {
        Transaction::new(&ConfigLayout::default(), &Namespace::default(), writes).unwrap()
    }

    fn revision(number: u64) -> Revision {
        Revision::new(number)
    }

    #[test]
    fn the_first_condition_that_does_not_hold_is_reported() {
        let transaction = transaction(vec![
            ConfigWrite::put(path("a"), *b"1", Expect::Any),
            ConfigWrite::put(path("b"), *b"1", Expect::Revision(revision(5))),
            ConfigWrite::put(path("c"), *b"1", Expect::Absent),
        ]);
        let conflict = |found: &[Option<Revision>]| match transaction.conflict(found) {
            Error::Conflict { what, revision } => (what, revision.get()),
            other => panic!("{other:?}"),
        };
        let (five, six) = (Some(revision(5)), Some(revision(6)));
        assert_eq!(conflict(&[five, five, six]), ("c".to_owned(), 6));
        assert_eq!(conflict(&[five, None, six]), ("b".to_owned(), 0));
        assert_eq!(transaction.first_unexpected(&[None, five, None]), None);
        assert_eq!(transaction.expected_state(), Some((1, revision(5))));
    }

    #[test]
    fn absence_is_no_state_that_ends_for_good() {
        for expect in [Expect::Any, Expect::Absent, Expect::Revision(Revision::default())] {
            assert_eq!(transaction(vec![ConfigWrite::delete(path("a"), expect)]).expected_state(), None);
        }
    }

    #[test]
    fn a_write_is_recognised_by_its_revision_and_its_value() {
        let record = |value: &[u8], modified| Record {
            key: b"k"[..].into(),
            value: value.to_vec(),
            created: revision(1),
            modified: revision(modified),
            lease: None,
        };
        let put = ConfigWrite::put(path("a"), *b"1", Expect::Any);
        assert!(is_written(&put, revision(5), Some(&record(b"1", 5))));
        assert!(!is_written(&put, revision(5), Some(&record(b"1", 4))));
        assert!(!is_written(&put, revision(5), Some(&record(b"2", 5))));
        assert!(!is_written(&put, revision(5), None));
        let delete = ConfigWrite::delete(path("a"), Expect::Any);
        assert!(is_written(&delete, revision(5), None));
        assert!(!is_written(&delete, revision(5), Some(&record(b"1", 4))));
    }

    #[test]
    fn values_of_a_transaction_are_not_shown() {
        let shown = format!("{:?}", transaction(vec![ConfigWrite::put(path("a"), *b"s3cret", Expect::Any)]));
        assert!(shown.contains("Some(6)") && !shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
    }
}
