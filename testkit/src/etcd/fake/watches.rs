//! Watches of the scripted etcd. A stream has one watch: a second one is refused, as is what a watch may ask for and
//! the fake does not imitate.

use std::{convert::Infallible, sync::Arc, time::Duration};

use enlist::backend::MutexExt as _;
use etcd_client::proto::{PbEvent, PbResponseHeader, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use futures::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval},
};
use tonic::{Status, Streaming};

use super::{
    etcd_defects::{EtcdDefect, LATE_EVENTS},
    misbehavior::{Misbehavior, message, misreported},
    state::FakeState,
};

/// Number of the only watch of a stream.
const WATCH_ID: i64 = 0;

/// Number of a message that belongs to no watch.
const NO_WATCH: i64 = -1;

/// Interval of the notices of progress. Etcd adds up to a tenth at random.
const NOTICES: Duration = Duration::from_secs(600);

/// Maximum number of revisions in one message of a watch that starts in the past.
const MAX_REVISIONS: usize = 1000;

/// Receiving half of a stream.
type Requests = Streaming<PbWatchRequest>;

/// Sending half of a stream.
type Responses = mpsc::Sender<Result<PbWatchResponse, Status>>;

/// End of a watch.
enum Ended {
    /// The stream ends, too.
    Closed,
    /// The stream ends with an error.
    Refused(Status),
    /// The stream stays open after this message.
    Canceled(PbWatchResponse),
}

/// Delays the responses of a watch by the pause of the fake, which is zero by default.
pub(super) fn delayed(
    state: Arc<FakeState>,
    responses: mpsc::Receiver<Result<PbWatchResponse, Status>>,
) -> impl Stream<Item = Result<PbWatchResponse, Status>> {
    let begun = (responses, Instant::now());
    futures::stream::unfold(begun, move |(mut responses, last)| {
        let state = Arc::clone(&state);
        async move {
            let response = responses.recv().await?;
            let due = last + *state.pause.locked();
            if due > Instant::now() {
                state.count_delay();
            }
            tokio::time::sleep_until(due).await;
            Some((response, (responses, Instant::now())))
        }
    })
}

/// Serves one watch stream, until the client closes it, the store is wiped, or a misbehavior ends it.
pub(super) async fn serve(state: Arc<FakeState>, mut requests: Requests, responses: Responses) {
    let Err(ended) = watch(&state, &mut requests, &responses).await;
    let ended = match ended {
        Ended::Canceled(last) => {
            let Err(ended) = linger(&state, &mut requests, &responses, last).await;
            ended
        }
        other => other,
    };
    if let Ended::Refused(status) = ended {
        // An error means that the client is gone.
        let _ = responses.send(Err(status)).await;
    }
}

async fn watch(state: &Arc<FakeState>, requests: &mut Requests, responses: &Responses) -> Result<Infallible, Ended> {
    let Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) })) =
        requests.message().await
    else {
        return Err(Ended::Refused(Status::unimplemented("a stream that does not begin with a watch")));
    };
    if create.fragment || create.watch_id != 0 || create.start_revision < 0 {
        return Err(Ended::Refused(Status::unimplemented("fragments, chosen watch ids, negative revisions")));
    }
    let (start, notices) = (create.start_revision, create.progress_notify.then(Notices::start));
    let filter = Filter {
        // As in etcd, no key stands for the smallest one.
        key: if create.key.is_empty() { vec![0] } else { create.key },
        range_end: create.range_end,
        types_left_out: create.filters,
        with_previous: create.prev_kv,
    };
    let mut watch = Watch::open(Arc::clone(state), responses.clone(), filter, start).await?;
    watch.notices = notices;
    watch.follow(requests).await
}

/// Keeps the stream of a canceled watch open. A watch that was canceled because of its start can be canceled again, as
/// in etcd.
async fn linger(
    state: &FakeState,
    requests: &mut Requests,
    responses: &Responses,
    last: PbWatchResponse,
) -> Result<Infallible, Ended> {
    let mut is_known = last.compact_revision > 0;
    let mut next = Some(last);
    loop {
        if let Some(message) = next.take() {
            send(responses, message).await?;
        }
        tokio::select! {
            () = responses.closed() => return Err(Ended::Closed),
            request = next_request(requests) => if is_known && cancels(&request?) {
                state.awake().await;
                (next, is_known) = (Some(canceled(state.store().header())), false);
            },
        }
    }
}

/// Returns the next request of a stream that has its watch.
async fn next_request(requests: &mut Requests) -> Result<PbWatchRequestUnion, Ended> {
    match requests.message().await {
        Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(_)) })) => {
            Err(Ended::Refused(Status::unimplemented("several watches on one stream")))
        }
        Ok(Some(PbWatchRequest { request_union: Some(request) })) => Ok(request),
        _ => Err(Ended::Closed),
    }
}

/// Returns `true` if a request cancels the watch. One that cancels another watch has no effect.
fn cancels(request: &PbWatchRequestUnion) -> bool {
    matches!(request, PbWatchRequestUnion::CancelRequest(cancel) if cancel.watch_id == WATCH_ID)
}

fn canceled(header: Option<PbResponseHeader>) -> PbWatchResponse {
    PbWatchResponse { canceled: true, ..message(header, Vec::new()) }
}

async fn send(responses: &Responses, message: PbWatchResponse) -> Result<(), Ended> {
    responses.send(Ok(message)).await.map_err(|_| Ended::Closed)
}

/// Events that a watch asks for.
struct Filter {
    key: Vec<u8>,
    range_end: Vec<u8>,
    types_left_out: Vec<i32>,
    with_previous: bool,
}

/// Notices of the progress of a watch without events.
struct Notices {
    timer: Interval,
    /// No event was sent since the timer fired.
    is_quiet: bool,
}

impl Notices {
    fn start() -> Self {
        Self { timer: tokio::time::interval_at(Instant::now() + NOTICES, NOTICES), is_quiet: true }
    }

    /// Waits until a notice is due, if there are any.
    async fn due(notices: &mut Option<Self>) {
        let Some(notices) = notices else { return std::future::pending().await };
        loop {
            notices.timer.tick().await;
            if std::mem::replace(&mut notices.is_quiet, true) {
                return;
            }
        }
    }
}

/// One open watch.
struct Watch {
    state: Arc<FakeState>,
    responses: Responses,
    filter: Filter,
    /// First revision whose events have not been delivered.
    next: i64,
    /// The watch starts in the past, and has delivered nothing yet.
    is_unsynced: bool,
    /// Number of wipes when the watch was opened. A wipe ends it.
    wipes: usize,
    notices: Option<Notices>,
}

impl Watch {
    async fn open(state: Arc<FakeState>, responses: Responses, filter: Filter, start: i64) -> Result<Self, Ended> {
        state.awake().await;
        if let Some(Misbehavior::LateWatch(delay)) =
            state.next_misbehavior(|next| matches!(next, Misbehavior::LateWatch(_)))
        {
            tokio::time::sleep(delay).await;
        }
        let (header, revision, compacted, wipes) = {
            let mut store = state.store();
            let revision = store.open_watch();
            let header = store.header().map(|header| PbResponseHeader { revision, ..header });
            (header, revision, store.compacted, store.wipes)
        };
        let mut created = PbWatchResponse { created: true, ..message(header, Vec::new()) };
        if let Some(reason) = refusal(&state, &filter) {
            (created.canceled, created.watch_id, created.cancel_reason) = (true, NO_WATCH, reason.to_owned());
            return Err(Ended::Canceled(created));
        }
        let lags = state.next_misbehavior(|next| matches!(next, Misbehavior::LaggingWatch(_)));
        if let (Some(_), Some(header)) = (lags, &mut created.header) {
            header.revision = start - 1;
        }
        send(&responses, created).await?;
        if let Some(Misbehavior::RefuseCreated(delay, reason)) =
            state.next_misbehavior(|next| matches!(next, Misbehavior::RefuseCreated(..)))
        {
            tokio::time::sleep(delay).await;
            return Err(Ended::Canceled(PbWatchResponse { cancel_reason: reason.to_owned(), ..canceled(header) }));
        }
        if let Some(Misbehavior::LaggingWatch(lag)) = lags {
            tokio::time::sleep(lag).await;
        }
        let mut next = if start == 0 { revision + 1 } else { start };
        if next > revision + 1 && state.store().defects.has(EtcdDefect::OldEvents) {
            state.store().defects.note_shown(EtcdDefect::OldEvents);
            send(&responses, message(header, Vec::new())).await?;
            next = revision + 1;
        }
        if next < compacted {
            return Err(compacted_start(header, compacted));
        }
        Ok(Self { state, responses, filter, next, is_unsynced: next <= revision, wipes, notices: None })
    }

    /// Sends events and answers requests until the watch ends.
    async fn follow(&mut self, requests: &mut Requests) -> Result<Infallible, Ended> {
        let mut revisions = self.state.revision.subscribe();
        let unsynced = self.state.store().unsynced;
        if self.is_unsynced && !unsynced.is_zero() {
            self.hold_back(unsynced, requests).await?;
        }
        // Number in the message about progress that follows the events, if one is due.
        let mut progress = None;
        loop {
            if self.events_are_late() {
                self.hold_back(LATE_EVENTS, requests).await?;
            }
            let header = self.deliver().await?;
            if let Some(watch_id) = progress.take() {
                self.report_progress(watch_id, header).await?;
            }
            tokio::select! {
                () = self.responses.closed() => return Err(Ended::Closed),
                _ = revisions.changed() => {}
                () = Notices::due(&mut self.notices) => progress = Some(WATCH_ID),
                request = next_request(requests) => {
                    progress = self.is_progress(&request?).await?.then_some(NO_WATCH);
                }
            }
        }
    }

    /// Returns `true` for a request for progress. A cancellation ends the watch.
    async fn is_progress(&self, request: &PbWatchRequestUnion) -> Result<bool, Ended> {
        if cancels(request) {
            self.state.awake().await;
            return Err(Ended::Canceled(canceled(self.state.store().header())));
        }
        let is_progress = matches!(request, PbWatchRequestUnion::ProgressRequest(_));
        self.state.store().requests.progress += usize::from(is_progress);
        Ok(is_progress)
    }

    /// Sends the events that are due. Returns the header of the revision up to which they have been sent.
    async fn deliver(&mut self) -> Result<Option<PbResponseHeader>, Ended> {
        self.state.awake().await;
        let (header, now, compacted, due, misbehaves) = {
            let store = self.state.store();
            if store.wipes != self.wipes {
                return Err(Ended::Closed);
            }
            let due = store.events(self.next, &self.filter.key, &self.filter.range_end);
            let misbehaves = store.misbehavior.front().is_some_and(Misbehavior::is_of_events);
            (store.header(), store.revision, store.compacted, due, misbehaves)
        };
        // The watch has not kept up, and the history that it missed is compacted.
        if self.next < compacted {
            return Err(compacted_start(header, compacted));
        }
        let due = due.into_iter().map(|(revision, events)| (revision, self.filter.apply(events, compacted)));
        let due: Vec<_> = due.filter(|(_, events)| !events.is_empty()).collect();
        if let Some(notices) = self.notices.as_mut().filter(|_| !due.is_empty()) {
            notices.is_quiet = false;
        }
        // Events of the past come together. A misbehavior concerns the events of one revision.
        let is_together = std::mem::take(&mut self.is_unsynced) && !misbehaves;
        if is_together {
            for revisions in due.chunks(MAX_REVISIONS) {
                let events = revisions.iter().flat_map(|(_, events)| events.clone()).collect();
                send(&self.responses, message(header, events)).await?;
            }
        } else {
            for (revision, events) in due {
                self.report(header.map(|header| PbResponseHeader { revision, ..header }), revision, events).await?;
            }
        }
        self.next = self.next.max(now + 1);
        Ok(header)
    }

    /// Sends the events of one revision, or what a misbehavior makes of them.
    async fn report(&self, header: Option<PbResponseHeader>, revision: i64, events: Vec<PbEvent>) -> Result<(), Ended> {
        let misbehavior = self.state.next_misbehavior(Misbehavior::is_of_events);
        let (messages, misbehavior) = misreported(misbehavior, header, revision, events);
        for message in messages {
            send(&self.responses, message).await?;
        }
        if misbehavior == Some(Misbehavior::Silence) {
            self.responses.closed().await;
            return Err(Ended::Closed);
        }
        Ok(())
    }

    /// Returns `true` if [`EtcdDefect::EarlyProgress`] holds events back.
    fn events_are_late(&self) -> bool {
        let store = self.state.store();
        let has_events = !store.events(self.next, &self.filter.key, &self.filter.range_end).is_empty();
        has_events && store.defects.has(EtcdDefect::EarlyProgress)
    }

    /// Holds events back. Meanwhile etcd does not answer requests for progress, or at once, with
    /// [`EtcdDefect::EarlyProgress`].
    async fn hold_back(&self, time: Duration, requests: &mut Requests) -> Result<(), Ended> {
        let mut late = std::pin::pin!(tokio::time::sleep(time));
        loop {
            tokio::select! {
                () = self.responses.closed() => return Err(Ended::Closed),
                () = &mut late => return Ok(()),
                request = next_request(requests) => if self.is_progress(&request?).await? {
                    let (header, is_early) = {
                        let mut store = self.state.store();
                        let is_early = store.defects.has(EtcdDefect::EarlyProgress);
                        if is_early {
                            store.defects.note_shown(EtcdDefect::EarlyProgress);
                        }
                        (store.header(), is_early)
                    };
                    if is_early {
                        self.report_progress(NO_WATCH, header).await?;
                    }
                },
            }
        }
    }

    async fn report_progress(&self, watch_id: i64, header: Option<PbResponseHeader>) -> Result<(), Ended> {
        send(&self.responses, PbWatchResponse { watch_id, ..message(header, Vec::new()) }).await
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

/// Returns the reason for which a watch is not opened, if any.
fn refusal(state: &FakeState, filter: &Filter) -> Option<&'static str> {
    if let Some(Misbehavior::Refuse(reason)) = state.next_misbehavior(|next| matches!(next, Misbehavior::Refuse(_))) {
        return Some(reason);
    }
    let is_empty = !filter.range_end.is_empty() && filter.range_end != [0] && filter.key >= filter.range_end;
    is_empty.then_some("mvcc: watcher range is empty")
}

/// Cancels a watch whose start is compacted. As in etcd, the message has no revision.
fn compacted_start(header: Option<PbResponseHeader>, compacted: i64) -> Ended {
    let header = header.map(|header| PbResponseHeader { revision: 0, ..header });
    Ended::Canceled(PbWatchResponse { compact_revision: compacted, ..canceled(header) })
}
