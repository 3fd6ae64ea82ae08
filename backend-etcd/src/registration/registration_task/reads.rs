//! Reads of a key. Those of some releases of etcd are stale after a pause of the process (etcd-io/etcd#20418); a write
//! is never stale, so it replaces a read that is older than what is known.

use enlist::Revision;

use crate::{
    client::{connection::Connection, guarded_write::Guard, kv::Written},
    error::{Failure, text_cause},
    watch::record::Record,
};

/// Reads a key, and returns a revision at which it was so. A read of a lower revision than what this client has seen
/// before is stale, or the store was restored: it is repeated by a write.
///
/// Dropping the future has no effect.
pub(super) async fn current(conn: &Connection, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
    let known = conn.store.highest();
    let read = conn.get(key).await?;
    if read.1 < known { current_by_a_write(conn, key).await } else { Ok(read) }
}

/// As [`current`], by a write that changes nothing: the removal of a key that has to be absent.
///
/// Dropping the future has no effect.
pub(super) async fn current_by_a_write(conn: &Connection, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
    match conn.delete(key, Guard::Absent).await? {
        Written::Done(at) => Ok((None, at)),
        Written::Refused(Some(record)) => {
            let at = record.modified;
            Ok((Some(record), at))
        }
        Written::Refused(None) => Err(Failure::Lost(text_cause("the key changed meanwhile"))),
    }
}
