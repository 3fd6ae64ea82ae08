//! Reads of a key. Some releases of etcd answer stale reads after a pause of the process (etcd-io/etcd#20418). A write
//! is never stale, so it replaces a read that is older than a known revision.

use enlist::Revision;

use crate::{
    client::{
        requests::{guarded_write::Guard, kv::WriteOutcome},
        store_client::StoreClient,
    },
    error::{Failure, text_cause},
    watch::record::Record,
};

/// Reads a key, and returns the revision of that state. A read below the highest known revision is stale, or the store
/// was restored: it is repeated by a write.
///
/// Dropping the future has no effect.
pub(super) async fn current(client: &StoreClient, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
    let known = client.store.highest();
    let read = client.get(key).await?;
    if read.1 < known { current_by_a_write(client, key).await } else { Ok(read) }
}

/// As [`current`], by a write without an effect: a removal guarded by the absence of the key.
///
/// Dropping the future has no effect.
pub(super) async fn current_by_a_write(
    client: &StoreClient,
    key: &[u8],
) -> Result<(Option<Record>, Revision), Failure> {
    match client.delete_in_time(key, Guard::Absent).await? {
        WriteOutcome::Done(at) => Ok((None, at)),
        WriteOutcome::Refused(Some(record)) => {
            let at = record.modified;
            Ok((Some(record), at))
        }
        WriteOutcome::Refused(None) => Err(Failure::Lost(text_cause("the key changed meanwhile"))),
    }
}
