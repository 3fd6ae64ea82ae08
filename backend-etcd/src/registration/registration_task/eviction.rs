//! An own key is gone although its lease lives: was it deleted by hand, or by another registration that had it in between? The history
//! of the key tells, see [`super::removal`] for the mark that a removal leaves in it.

use std::time::Duration;

use enlist::Revision;
use etcd_client::WatchOptions;

use crate::{
    client::{connection::Connection, response::signed},
    error::{Failure, classify_cancel},
    watch::{
        record::{KeyRange, Record},
        replica::KeyEvent,
        watch_stream::{OpenWatch, StreamEnd},
        watch_task::key_event,
    },
};

/// Maximum time until the history of a key is told; etcd serves a watch that begins in the past within 100 ms.
const HISTORY: Duration = Duration::from_secs(2);

/// The fate of an own key that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// It was deleted as it was.
    Deleted,
    /// Another registration had it in between, or marked it before it removed it.
    Replaced,
}

/// Decides by the next event of the key: `None` if that is an own write.
fn judge(event: &KeyEvent, is_own: impl Fn(&Record) -> bool) -> Option<Loss> {
    match event {
        KeyEvent::Put(record) if is_own(record) => None,
        KeyEvent::Put(_) => Some(Loss::Replaced),
        KeyEvent::Delete { .. } => Some(Loss::Deleted),
    }
}

/// Looks at what happened to `key` after `written`. What was compacted away, or is not told in time, counts as never done.
///
/// Dropping the future has no effect.
pub(super) async fn loss(
    conn: &Connection,
    key: &[u8],
    written: Revision,
    is_own: impl Fn(&Record) -> bool,
) -> Result<Loss, Failure> {
    match tokio::time::timeout(HISTORY, read(conn, key, written.next(), is_own)).await {
        Ok(read) => read,
        Err(_) => Ok(Loss::Deleted),
    }
}

async fn read(
    conn: &Connection,
    key: &[u8],
    mut from: Revision,
    is_own: impl Fn(&Record) -> bool,
) -> Result<Loss, Failure> {
    loop {
        let options = WatchOptions::new().with_start_revision(signed(from));
        let mut watch = OpenWatch::open(conn, &KeyRange::key(key), options).await?;
        let compacted = loop {
            let message = watch.message().await.map_err(StreamEnd::into_failure)?;
            if message.compact_revision() > 0 {
                break u64::try_from(message.compact_revision()).unwrap_or(0);
            }
            if message.canceled() {
                return Err(classify_cancel(message.cancel_reason()));
            }
            let mut events = message.0.events.into_iter().filter_map(key_event);
            if let Some(loss) = events.find_map(|event| judge(&event, &is_own)) {
                return Ok(loss);
            }
        };
        from = Revision::new(compacted).next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_value_before_the_deletion_is_a_replacement() {
        let (key, at) = (b"k"[..].into(), Revision::new(5));
        let own = Record { key, value: b"own".to_vec(), created: at, modified: at, lease: None };
        let foreign = Record { value: b"foreign".to_vec(), ..own.clone() };
        let delete = KeyEvent::Delete { key: own.key.clone(), revision: Revision::new(9) };
        let loss = |events: &[KeyEvent]| events.iter().find_map(|event| judge(event, |record| *record == own));
        assert_eq!(loss(&[]), None);
        assert_eq!(loss(&[KeyEvent::Put(own.clone()), delete.clone()]), Some(Loss::Deleted));
        assert_eq!(loss(&[KeyEvent::Put(foreign.clone()), delete.clone()]), Some(Loss::Replaced));
        assert_eq!(loss(&[delete, KeyEvent::Put(foreign)]), Some(Loss::Deleted));
    }
}
