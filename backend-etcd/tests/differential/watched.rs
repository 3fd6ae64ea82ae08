//! Watches of both sides, message by message: headers, the events that come together, replies to requests for progress,
//! and cancellations.

use std::fmt::Write as _;

use enlist_testkit::soon;
use etcd_client::{
    Client, Error, Txn, TxnOp, WatchFilterType, WatchOptions, WatchStream,
    proto::{PbEvent, PbWatchResponse},
};

use super::{leases::without_chosen_lease, plain};

/// Number of a watch that no stream has.
const UNKNOWN: i64 = 77;

/// Change of a key, as the watch of all keys reports it.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) revision: i64,
    pub(super) key: String,
    /// Revision of the key's creation; 0 for a deletion.
    pub(super) created: i64,
    /// Lease of the key; 0 for none.
    pub(super) lease: i64,
    pub(super) is_deletion: bool,
}

/// A watch, and the writes while it is open.
#[derive(Clone, Debug)]
pub(super) struct WatchPlan {
    /// First key of the range, and the first one that is written.
    pub(super) key: String,
    /// End of the range; `None` for a single key.
    pub(super) end: Option<&'static str>,
    pub(super) start: i64,
    pub(super) filters: Vec<WatchFilterType>,
    pub(super) previous: bool,
    /// Keys of the transactions, each once.
    pub(super) keys: Vec<String>,
    /// Revision of the store, and that of its last compaction.
    pub(super) now: i64,
    pub(super) compacted: i64,
    /// Etcd replies to a request for progress after the events before (since 3.4.25 and 3.5.8, #15220).
    pub(super) is_ordered: bool,
    /// The first message has events of the past.
    pub(super) has_past_events: bool,
}

impl WatchPlan {
    /// Returns `true` if the watch reports a change of the past for certain: some releases omit a deletion at exactly
    /// the compacted revision.
    pub(super) fn reports(&self, change: &Change) -> bool {
        let is_within = match self.end {
            None => change.key == self.key,
            Some("\0") => change.key >= self.key,
            Some(end) => change.key >= self.key && *change.key < *end,
        };
        let left_out = if change.is_deletion { WatchFilterType::NoDelete } else { WatchFilterType::NoPut };
        let is_omitted = change.is_deletion && change.revision == self.compacted;
        is_within
            && self.is_of_the_past()
            && change.revision >= self.start
            && !is_omitted
            && !self.filters.contains(&left_out)
    }

    fn is_of_the_past(&self) -> bool {
        self.start > 0 && self.start <= self.now && !self.is_compacted()
    }

    fn is_compacted(&self) -> bool {
        self.start > 0 && self.start < self.compacted
    }

    fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end != "\0" && *self.key >= *end)
    }

    fn sees_deletions(&self) -> bool {
        !self.filters.contains(&WatchFilterType::NoDelete)
    }

    /// Returns the kind of the watch.
    pub(super) fn kind(&self) -> &'static str {
        match self.end {
            _ if self.is_empty() => "of an empty range",
            _ if self.is_compacted() => "from a compacted revision",
            _ if self.start > self.now => "from a future revision",
            None if self.has_past_events => "of a single key with past events",
            None => "of a single key",
            Some(_) if self.has_past_events => "of a range with past events",
            Some(_) => "of a range",
        }
    }

    fn options(&self) -> WatchOptions {
        let mut options = WatchOptions::new().with_start_revision(self.start).with_progress_notify();
        options = options.with_filters(self.filters.clone());
        if let Some(end) = self.end {
            options = options.with_range(end);
        }
        if self.previous { options.with_prev_key() } else { options }
    }
}

/// A watch whose messages are read one by one.
pub(super) struct Reader {
    stream: WatchStream,
    compacted: i64,
    has_ended: bool,
}

impl Reader {
    pub(super) async fn open(client: &mut Client, key: &str, options: WatchOptions) -> Result<Self, Error> {
        Ok(Self { stream: client.watch(key, Some(options)).await?, compacted: 0, has_ended: false })
    }

    /// Returns the next message, without what may differ. The end of the stream counts as a message with a reason.
    pub(super) async fn message(&mut self) -> PbWatchResponse {
        let ended = match soon("a message of the watch", self.stream.message()).await {
            Ok(Some(message)) => Ok(message.0),
            Ok(None) => Err("the stream has ended".to_owned()),
            Err(error) => Err(format!("the stream has ended: {error}")),
        };
        self.has_ended = ended.is_err();
        let mut message =
            ended.unwrap_or_else(|cancel_reason| PbWatchResponse { cancel_reason, ..PbWatchResponse::default() });
        plain(&mut message.header);
        for event in &mut message.events {
            event.kv.iter_mut().chain(&mut event.prev_kv).for_each(without_chosen_lease);
        }
        message.events.retain(|event| !(event.r#type == 1 && revision_of(event) == self.compacted));
        message
    }

    /// Returns all messages up to the events of `revision`.
    pub(super) async fn until(&mut self, revision: i64) -> Vec<PbWatchResponse> {
        let mut messages = Vec::new();
        while !self.has_ended && messages.last().and_then(last_revision).is_none_or(|last| last < revision) {
            messages.push(self.message().await);
        }
        messages
    }

    /// Requests progress. Returns all messages up to the reply, and at least up to the events of `revision`.
    pub(super) async fn progress(&mut self, revision: i64) -> Vec<PbWatchResponse> {
        self.stream.request_progress().await.unwrap();
        let mut messages: Vec<PbWatchResponse> = Vec::new();
        let has_replied = |messages: &[PbWatchResponse]| messages.iter().any(|message| message.watch_id == -1);
        let last = |messages: &[PbWatchResponse]| messages.iter().filter_map(last_revision).max().unwrap_or(0);
        while !self.has_ended && (!has_replied(&messages) || last(&messages) < revision) {
            messages.push(self.message().await);
        }
        messages
    }
}

fn revision_of(event: &PbEvent) -> i64 {
    event.kv.as_ref().unwrap().mod_revision
}

fn last_revision(message: &PbWatchResponse) -> Option<i64> {
    message.events.last().map(revision_of)
}

/// Returns the changes in these messages.
pub(super) fn changes(messages: &[PbWatchResponse]) -> impl Iterator<Item = Change> {
    messages.iter().flat_map(|message| &message.events).map(|event| {
        let pair = event.kv.as_ref().unwrap();
        Change {
            revision: revision_of(event),
            key: String::from_utf8(pair.key.clone()).unwrap(),
            created: pair.create_revision,
            lease: pair.lease,
            is_deletion: event.r#type == 1,
        }
    })
}

/// Returns the messages as text, one per line, with all fields.
pub(super) fn text(messages: &[PbWatchResponse]) -> String {
    messages.iter().fold(String::new(), |mut text, message| {
        writeln!(text, "{message:?}").unwrap();
        text
    })
}

/// Returns the events of messages as text, whatever the messages: how many revisions a message has depends on the time
/// at which etcd serves a watch that starts in the past. A revision is never split, and no header is behind its events.
fn text_of_events(messages: &[PbWatchResponse]) -> String {
    let mut text = String::new();
    let mut before = 0;
    for message in messages.iter().filter(|message| !message.events.is_empty()) {
        let (first, last) = (revision_of(&message.events[0]), last_revision(message).unwrap());
        assert!(first > before, "revision {first} is split: {messages:?}");
        assert!(message.header.as_ref().unwrap().revision >= last, "behind its events: {message:?}");
        before = last;
        for event in &message.events {
            writeln!(text, "{event:?}").unwrap();
        }
    }
    text
}

async fn put(client: &mut Client, key: &str) -> i64 {
    client.put(key, "", None).await.unwrap().header().unwrap().revision()
}

async fn delete(client: &mut Client, key: &str) -> i64 {
    client.delete(key, None).await.unwrap().header().unwrap().revision()
}

/// Makes changes of one and of several keys. Returns the revision of the last one that the watch reports.
async fn write_several(client: &mut Client, plan: &WatchPlan) -> i64 {
    let several = |operation: fn(&str) -> TxnOp| {
        Txn::new().and_then(plan.keys.iter().map(|key| operation(key)).collect::<Vec<_>>())
    };
    client.txn(several(|key| TxnOp::put(key, "several", None))).await.unwrap();
    let written = put(client, &plan.key).await;
    let deleted = client.txn(several(|key| TxnOp::delete(key, None))).await.unwrap();
    if plan.sees_deletions() { deleted.header().unwrap().revision() } else { written }
}

/// Opens a watch on one side, makes changes, requests progress, and cancels it. Returns all messages as text.
pub(super) async fn transcript(client: &mut Client, plan: &WatchPlan) -> Result<String, Error> {
    let mut reader = Reader::open(client, &plan.key, plan.options()).await?;
    reader.compacted = plan.compacted;
    let mut lines = format!("{}\n", plan.kind());
    let created = reader.message().await;
    let id = created.watch_id;
    lines += &text(&[created]);
    if plan.is_empty() {
        return Ok(lines);
    }
    if plan.is_compacted() {
        lines += &text(&[reader.message().await]);
        // It is canceled once more.
        reader.stream.cancel(id).await?;
        lines += &text(&[reader.message().await]);
        return Ok(lines);
    }
    if plan.has_past_events {
        lines += &text(&[reader.message().await]);
    }
    let mut last = 0;
    // A second time if the first change is before the start.
    for _ in 0..if plan.start > plan.now + 1 { 2 } else { 1 } {
        let (written, deleted) = (put(client, &plan.key).await, delete(client, &plan.key).await);
        last = if plan.sees_deletions() { deleted } else { written };
    }
    let first = reader.until(last).await;
    lines += &if plan.is_of_the_past() && !plan.has_past_events { text_of_events(&first) } else { text(&first) };
    lines += &text(&reader.progress(0).await);
    let last = write_several(client, plan).await;
    let mut messages = reader.progress(last).await;
    if !plan.is_ordered {
        messages.sort_by_key(|message| message.watch_id == -1);
    }
    lines += &text(&messages);
    // The cancellation of a watch that does not exist has no effect.
    reader.stream.cancel(UNKNOWN).await?;
    lines += &text(&reader.progress(0).await);
    reader.stream.cancel(id).await?;
    lines += &text(&[reader.message().await]);
    Ok(lines)
}
