//! Revisions and records as the client library has them.

use enlist::Revision;
use etcd_client::GetResponse;

use crate::watch::record::Record;

/// A revision as etcd's API has it.
pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

/// Records that were read.
pub(crate) fn records(response: GetResponse) -> impl Iterator<Item = Record> {
    response.0.kvs.into_iter().map(Record::from)
}

pub(crate) fn revision_of(response: &GetResponse) -> Revision {
    header_revision(response.header())
}

/// The revision in a header; 0 where there is none, which orders before everything.
pub(crate) fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision::new(header.map_or(0, |header| u64::try_from(header.revision()).unwrap_or(0)))
}
