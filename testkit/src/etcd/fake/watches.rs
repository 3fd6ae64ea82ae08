//! Watches of the scripted etcd.

use std::sync::Arc;

use enlist::backend::MutexExt as _;
use etcd_client::proto::{PbEvent, PbResponseHeader, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use futures::Stream;
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};

use super::{
    etcd_defects::{EtcdDefect, LATE_EVENTS},
    misbehavior::{Misbehavior, message, misreported},
    state::FakeState,
};

/// Sending half of a watch's response stream.
type Responses = mpsc::Sender<PbWatchResponse>;

/// End of a watch stream.
struct Ended;

/// Delays the responses of a watch by the pause of the fake, which is zero by default.
pub(super) fn delayed(
    state: Arc<FakeState>,
    responses: mpsc::Receiver<PbWatchResponse>,
) -> impl Stream<Item = Result<PbWatchResponse, Status>> {
    let begun = (responses, Instant::now());
    futures::stream::unfold(begun, move |(mut responses, last)| {
        let state = Arc::clone(&state);
        async move {
            let response = responses.recv().await?;
            let pause = *state.pause.locked();
            tokio::time::sleep_until(last + pause).await;
            Some((Ok(response), (responses, Instant::now())))
        }
    })
}

/// Serves one watch stream, until the client closes it, the store is wiped, or a misbehavior ends it.
pub(super) async fn serve(state: Arc<FakeState>, mut requests: Streaming<PbWatchRequest>, responses: Responses) {
    let Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) })) =
        requests.message().await
    else {
        return;
    };
    let start = create.start_revision;
    let filter = Filter {
        key: create.key,
        range_end: create.range_end,
        types_left_out: create.filters,
        with_previous: create.prev_kv,
    };
    let Ok(mut watch) = Watch::open(state, responses, filter, start).await else { return };
    let mut revisions = watch.state.revision.subscribe();
    // The answer to a progress request follows the events that were due before the request.
    let mut progress_requested = false;
    loop {
        if watch.hold_back(&mut requests).await.is_err() {
            return;
        }
        let Ok(header) = watch.deliver().await else { return };
        if progress_requested && watch.report_progress(header).await.is_err() {
            return;
        }
        progress_requested = false;
        tokio::select! {
            () = watch.responses.closed() => return,
            _ = revisions.changed() => {}
            request = requests.message() => match request {
                Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::ProgressRequest(_)) })) => {
                    progress_requested = true;
                }
                _ => return,
            },
        }
    }
}

/// Events that a watch asks for.
struct Filter {
    key: Vec<u8>,
    range_end: Vec<u8>,
    types_left_out: Vec<i32>,
    with_previous: bool,
}

/// One open watch.
struct Watch {
    state: Arc<FakeState>,
    responses: Responses,
    filter: Filter,
    /// First revision whose events have not been delivered.
    next: i64,
    /// Number of wipes when the watch was opened. A wipe ends it.
    wipes: usize,
}

impl Watch {
    async fn open(state: Arc<FakeState>, responses: Responses, filter: Filter, start: i64) -> Result<Self, Ended> {
        state.awake().await;
        if let Some(Misbehavior::LateWatch(delay)) =
            state.next_misbehavior(|next| matches!(next, Misbehavior::LateWatch(_)))
        {
            tokio::time::sleep(delay).await;
        }
        let (header, revision, compacted, unsynced) = {
            let mut store = state.store();
            let revision = store.open_watch();
            let header = store.header().map(|header| PbResponseHeader { revision, ..header });
            (header, revision, store.compacted, store.unsynced)
        };
        let mut created = PbWatchResponse { created: true, ..message(header, Vec::new()) };
        if let Some(Misbehavior::Refuse(reason)) = state.next_misbehavior(|next| matches!(next, Misbehavior::Refuse(_)))
        {
            (created.canceled, created.watch_id, created.cancel_reason) = (true, -1, reason.to_owned());
            return Err(end_with(&responses, created).await);
        }
        let lags = state.next_misbehavior(|next| matches!(next, Misbehavior::LaggingWatch(_)));
        if let (Some(_), Some(header)) = (lags, &mut created.header) {
            header.revision = start - 1;
        }
        responses.send(created).await.map_err(|_| Ended)?;
        if let Some(Misbehavior::LaggingWatch(lag)) = lags {
            tokio::time::sleep(lag).await;
        }
        let mut next = if start == 0 { revision + 1 } else { start };
        if next > revision + 1 && state.store().defects.has(EtcdDefect::OldEvents) {
            responses.send(message(header, Vec::new())).await.map_err(|_| Ended)?;
            next = revision + 1;
        }
        if next < compacted {
            return Err(cancel(&responses, compacted).await);
        }
        if next <= revision && !unsynced.is_zero() {
            tokio::time::sleep(unsynced).await;
        }
        let wipes = state.store().wipes;
        Ok(Self { state, responses, filter, next, wipes })
    }

    /// Sends the events that are due. Returns the header of the revision up to which they have been sent.
    async fn deliver(&mut self) -> Result<Option<PbResponseHeader>, Ended> {
        self.state.awake().await;
        let (header, now, compacted, due) = {
            let store = self.state.store();
            if store.wipes != self.wipes {
                return Err(Ended);
            }
            let due = store.events(self.next, &self.filter.key, &self.filter.range_end);
            (store.header(), store.revision, store.compacted, due)
        };
        // The watch has not kept up, and the history that it missed is compacted.
        if self.next < compacted {
            return Err(cancel(&self.responses, compacted).await);
        }
        for (revision, events) in due {
            let events = self.filter.apply(events, compacted);
            if events.is_empty() {
                continue;
            }
            let misbehavior = self.state.next_misbehavior(Misbehavior::is_of_events);
            let (messages, misbehavior) = misreported(misbehavior, header, revision, events);
            for message in messages {
                self.responses.send(message).await.map_err(|_| Ended)?;
            }
            self.next = revision + 1;
            if misbehavior == Some(Misbehavior::Silence) {
                self.responses.closed().await;
                return Err(Ended);
            }
        }
        self.next = self.next.max(now + 1);
        Ok(header)
    }

    /// Holds events back and answers requests for progress in the meantime, with [`EtcdDefect::EarlyProgress`].
    async fn hold_back(&self, requests: &mut Streaming<PbWatchRequest>) -> Result<(), Ended> {
        let is_early = {
            let store = self.state.store();
            let has_events = !store.events(self.next, &self.filter.key, &self.filter.range_end).is_empty();
            has_events && store.defects.has(EtcdDefect::EarlyProgress)
        };
        if !is_early {
            return Ok(());
        }
        let mut late = std::pin::pin!(tokio::time::sleep(LATE_EVENTS));
        loop {
            tokio::select! {
                () = self.responses.closed() => return Err(Ended),
                () = &mut late => return Ok(()),
                request = requests.message() => match request {
                    Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::ProgressRequest(_)) })) => {
                        let header = self.state.store().header();
                        self.report_progress(header).await?;
                    }
                    _ => return Err(Ended),
                },
            }
        }
    }

    async fn report_progress(&self, header: Option<PbResponseHeader>) -> Result<(), Ended> {
        let progress = PbWatchResponse { watch_id: -1, ..message(header, Vec::new()) };
        self.responses.send(progress).await.map_err(|_| Ended)
    }
}

impl Filter {
    /// Returns the events that are asked for, each with the value before it if that is asked for and not compacted.
    fn apply(&self, events: Vec<PbEvent>, compacted: i64) -> Vec<PbEvent> {
        let known =
            |event: &PbEvent| self.with_previous && event.kv.as_ref().is_some_and(|pair| pair.mod_revision > compacted);
        let wanted = events.into_iter().filter(|event| !self.types_left_out.contains(&event.r#type));
        wanted.map(|event| if known(&event) { event } else { PbEvent { prev_kv: None, ..event } }).collect()
    }
}

/// Cancels a watch whose start is compacted.
async fn cancel(responses: &Responses, compacted: i64) -> Ended {
    let canceled = PbWatchResponse { canceled: true, compact_revision: compacted, ..PbWatchResponse::default() };
    end_with(responses, canceled).await
}

/// Sends the last response, and waits until the client has closed the stream.
async fn end_with(responses: &Responses, last: PbWatchResponse) -> Ended {
    // An error means that the client is gone.
    let _ = responses.send(last).await;
    responses.closed().await;
    Ended
}
