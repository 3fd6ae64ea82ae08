//! Cause of the loss of an own key with a live lease: an operator deleted it, or another registration had it in
//! between. The history of the key distinguishes the two; see [`super::removal`] for the mark that a removal leaves in
//! it.

use std::time::Duration;

use enlist::Revision;
use tokio::time::Instant;

use crate::{
    client::{connection::watch_call::WatchOptions, requests::response::header_revision, store_client::StoreClient},
    error::{Failure, classify_cancel, text_cause},
    watch::{
        record::{KeyRange, Record},
        replica::KeyEvent,
        replica::key_event,
        watch_stream::{OpenWatch, StreamEnd},
    },
};

/// Maximum time until a watch is open, and from then on until it has reported the history of a key. etcd serves a watch
/// that begins in the past within 100 ms.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(2);

/// Cause of the loss of an own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// An operator deleted it.
    Deleted,
    /// Another registration had it in between, or marked it before it removed it.
    Replaced,
    /// The history has no deletion of it: the store was restored to an earlier state.
    Unwritten,
}

/// Readable part of the history of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum History {
    /// All since the last own write.
    Whole,
    /// Its beginning was compacted away.
    Compacted,
}

impl History {
    /// Returns the cause of a loss without an event in the history.
    fn without_an_event(self) -> Loss {
        match self {
            Self::Whole => Loss::Unwritten,
            Self::Compacted => Loss::Deleted,
        }
    }
}

/// Returns the cause shown by the next event of the key; `None` for an own write.
fn judge(event: &KeyEvent, is_own: impl Fn(&Record) -> bool) -> Option<Loss> {
    match event {
        KeyEvent::Put(record) if is_own(record) => None,
        KeyEvent::Put(_) => Some(Loss::Replaced),
        KeyEvent::Delete { .. } => Some(Loss::Deleted),
    }
}

/// State of the watch that reads the history of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HistoryWatch {
    Opening,
    /// The member had not reached the revision at which the key was found absent.
    Lagging,
    /// The member had reached that revision when the watch was opened.
    Current,
}

impl HistoryWatch {
    /// Returns the state of a watch that was opened when its member was at `now`.
    fn opened(now: Revision, absent_at: Revision) -> Self {
        if now < absent_at { Self::Lagging } else { Self::Current }
    }

    /// Returns the cause of a loss for which the watch reported no event in time.
    fn without_an_event(self, history: History) -> Result<Loss, Failure> {
        match self {
            Self::Opening => Err(Failure::Lost(text_cause("the history of a key did not arrive in time"))),
            Self::Lagging => Err(Failure::Lost(text_cause("the member that has the history of a key lags behind"))),
            Self::Current => Ok(history.without_an_event()),
        }
    }
}

/// Reads the history of `key` from the own write at `written` on. The key was absent at the revision `absent_at`. A
/// compacted history counts as a deletion.
///
/// Dropping the future has no effect.
pub(super) async fn loss(
    client: &StoreClient,
    key: &[u8],
    written: Revision,
    absent_at: Revision,
    is_own: impl Fn(&Record) -> bool,
) -> Result<Loss, Failure> {
    let mut history = History::Whole;
    // Not from the next revision on: some releases forget a deletion at the revision to which the history was compacted
    // (etcd-io/etcd#19179).
    let mut from = written.max(Revision::new(1));
    loop {
        let options = WatchOptions { from, ..WatchOptions::default() };
        let mut watch = OpenWatch::open(client, &KeyRange::key(key), options).await?;
        let (mut due, mut state) = (Instant::now() + HISTORY_TIMEOUT, HistoryWatch::Opening);
        let compacted = loop {
            let message = match tokio::time::timeout_at(due, watch.message()).await {
                Ok(message) => message.map_err(StreamEnd::into_failure)?,
                Err(_) => return state.without_an_event(history),
            };
            if message.compact_revision() > 0 {
                break u64::try_from(message.compact_revision()).unwrap_or(0);
            }
            if message.canceled() {
                return Err(classify_cancel(message.cancel_reason()));
            }
            if message.created() {
                let now = header_revision(message.header());
                (due, state) = (Instant::now() + HISTORY_TIMEOUT, HistoryWatch::opened(now, absent_at));
            }
            // Some releases send older events to a watch from a revision in the future of its member
            // (etcd-io/etcd#20221).
            let events = message.0.events.into_iter().filter_map(key_event);
            let mut events = events.filter(|event| event.revision() >= from);
            if let Some(loss) = events.find_map(|event| judge(&event, &is_own)) {
                return Ok(loss);
            }
        };
        (history, from) = (History::Compacted, Revision::new(compacted).next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_without_a_deletion_is_that_of_a_restored_store() {
        assert_eq!(History::Whole.without_an_event(), Loss::Unwritten);
        assert_eq!(History::Compacted.without_an_event(), Loss::Deleted, "it may have been compacted away");
    }

    #[test]
    fn a_member_that_lags_proves_nothing() {
        let (now, later) = (Revision::new(5), Revision::new(6));
        for (state, concludes) in [
            (HistoryWatch::Opening, false),
            (HistoryWatch::opened(now, later), false),
            (HistoryWatch::opened(now, now), true),
            (HistoryWatch::opened(later, now), true),
        ] {
            for history in [History::Whole, History::Compacted] {
                assert_eq!(state.without_an_event(history).is_ok(), concludes, "{state:?} {history:?}");
            }
        }
    }

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
