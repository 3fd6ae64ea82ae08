//! Reads of a key. Some releases of etcd answer stale reads after a pause of the process (etcd-io/etcd#20418). A write
//! is never stale, so it replaces a read that is older than a known revision.

use enlist::Revision;

use crate::{
    client::{connection::Connection, guarded_write::Guard, kv::Written},
    error::{Failure, text_cause},
    watch::record::Record,
};

/// Reads a key, and returns the revision of that state. A read below the highest known revision is stale, or the store
/// was restored: it is repeated by a write.
///
/// Dropping the future has no effect.
pub(super) async fn current(conn: &Connection, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
    let known = conn.store.highest();
    let read = conn.get(key).await?;
    if read.1 < known { current_by_a_write(conn, key).await } else { Ok(read) }
}

/// As [`current`], by a write without an effect: a removal guarded by the absence of the key.
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
