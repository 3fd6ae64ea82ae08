//! Deletions in the history of a key.
//!
//! No read returns the revision of a deletion, but a watch that starts in the past does. Its progress proves that there
//! are no others, if the member reports it in order (etcd 3.4.25, 3.5.8 and later). Of other members no deletions are
//! requested.

use std::time::Duration;

use enlist::Revision;
use etcd_client::{EventType, WatchResponse};

use crate::{
    client::{
        connection::{dialled::ProgressReplies, watch_call::WatchOptions},
        requests::response::header_revision,
        store_client::StoreClient,
    },
    error::{Failure, classify_cancel, text_cause},
    watch::{
        record::KeyRange,
        watch_stream::{OpenWatch, StreamEnd},
    },
};

/// Interval between requests for the progress of the watch. A member that has not caught up does not reply.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// State of the search after a message.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// More messages follow.
    Continue,
    /// All deletions are known.
    Complete,
    /// The history before this revision is compacted.
    CompactedBefore(Revision),
}

/// Returns the revisions at which a key was deleted, up to `upto`, oldest first, as far as the history goes; none if
/// the member does not report progress in order.
pub(crate) async fn deletions(client: &StoreClient, key: &[u8], upto: Revision) -> Result<Vec<Revision>, Failure> {
    let reading = tokio::time::timeout(client.data.limit, read_all(client, key, upto));
    reading.await.unwrap_or_else(|_| Err(Failure::Lost(text_cause("the watch of the history does not catch up"))))
}

async fn read_all(client: &StoreClient, key: &[u8], upto: Revision) -> Result<Vec<Revision>, Failure> {
    let (range, mut start) = (KeyRange::key(key), Revision::new(1));
    loop {
        let options = WatchOptions { from: start, only_deletions: true, ..WatchOptions::default() };
        let mut watch = OpenWatch::open(client, &range, options).await?;
        client.learn_version().await?;
        if watch.connection().progress_replies() != Some(ProgressReplies::InOrder) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let progress = watch.progress();
        start = loop {
            let Ok(message) = tokio::time::timeout(PROGRESS_INTERVAL, watch.message()).await else {
                progress.notify_one();
                continue;
            };
            match note(&message.map_err(StreamEnd::into_failure)?, upto, &mut found)? {
                Read::Continue => {}
                Read::Complete => return Ok(found),
                Read::CompactedBefore(revision) => break revision.max(start.next()),
            }
        };
    }
}

fn note(message: &WatchResponse, upto: Revision, found: &mut Vec<Revision>) -> Result<Read, Failure> {
    let revision = |number: i64| Revision::new(u64::try_from(number).unwrap_or(0));
    if message.compact_revision() > 0 {
        return Ok(Read::CompactedBefore(revision(message.compact_revision())));
    }
    if message.canceled() {
        return Err(classify_cancel(message.cancel_reason()));
    }
    let deleted = message.events().iter().filter(|event| event.event_type() == EventType::Delete);
    found.extend(deleted.filter_map(|event| event.kv()).map(|pair| revision(pair.mod_revision())));
    // The reply to a request for progress.
    let is_reply = message.watch_id() == -1;
    Ok(if is_reply && header_revision(message.header()) >= upto { Read::Complete } else { Read::Continue })
}
