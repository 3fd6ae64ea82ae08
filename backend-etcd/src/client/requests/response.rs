//! Conversion of the client library's revisions and records.

use enlist::Revision;
use etcd_client::GetResponse;

use crate::watch::record::Record;

/// Returns a revision in the form of etcd's API.
pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

/// Returns the records of a read.
pub(crate) fn records(response: GetResponse) -> impl Iterator<Item = Record> {
    response.0.kvs.into_iter().map(Record::from)
}

pub(crate) fn revision_of(response: &GetResponse) -> Revision {
    header_revision(response.header())
}

/// Returns the revision in a header; 0 without a header, which orders before all others.
pub(crate) fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision::new(header.map_or(0, |header| u64::try_from(header.revision()).unwrap_or(0)))
}
