//! The services of the fake: thin, over its store.

use std::{
    sync::{Arc, PoisonError},
    task::{Context, Poll},
};

use enlist::TaskOwner;
use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbAuthenticateRequest, PbAuthenticateResponse, PbCompactionRequest,
    PbCompactionResponse, PbDefragmentRequest, PbDefragmentResponse, PbDeleteRequest, PbDeleteResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbEvent, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbKvService, PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbMaintenanceService, PbMoveLeaderRequest,
    PbMoveLeaderResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest, PbStatusResponse, PbTxnRequest, PbTxnResponse,
    PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use futures::{Stream, future::BoxFuture, stream::BoxStream};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    body::Body,
    server::{NamedService, UnaryService},
};

use super::{Misbehavior, Shared, message, told};

/// Messages of a watch that wait for their reader.
const QUEUE: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    /// The watches.
    pub(super) tasks: Arc<TaskOwner>,
}

#[async_trait]
impl PbKvService for Service {
    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), request.get_ref().serializable).await?;
        self.shared.check_permission()?;
        let asked = request.get_ref();
        let lists = !asked.keys_only && !asked.count_only && !asked.range_end.is_empty();
        if lists && self.shared.lie(|lie| *lie == Misbehavior::NoList).is_some() {
            return Err(Status::unavailable("no list this time"));
        }
        let mut store = self.shared.store();
        store.requests.ranges += 1;
        store.requests.keys_only += usize::from(asked.keys_only);
        store.requests.serializable += usize::from(asked.serializable);
        store.range(asked).map(Response::new)
    }

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("range stream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        self.shared.change(|store| store.put_request(request.into_inner())).map(Response::new)
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        self.shared.change(|store| store.delete_request(request.get_ref())).map(Response::new)
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), false).await?;
        let request = request.into_inner();
        let Some(Misbehavior::LateTxn(delay)) = self.shared.lie(|lie| matches!(lie, Misbehavior::LateTxn(_))) else {
            return self.shared.txn(request).map(Response::new);
        };
        let (shared, stop) = (Arc::clone(&self.shared), self.tasks.stop_signal());
        let (tell, told) = oneshot::channel();
        let late = self.tasks.spawn("late transaction", async move {
            if stop.run_until_cancelled_owned(tokio::time::sleep(delay)).await.is_some() {
                let outcome = shared.txn(request);
                shared.store().late.push(outcome.as_ref().map(|answer| answer.succeeded).map_err(Clone::clone));
                // Whoever asked may be gone.
                let _ = tell.send(outcome);
            }
        });
        late.map_err(|error| Status::unavailable(error.to_string()))?;
        told.await.map_err(|_| Status::unavailable("the fake has ended"))?.map(Response::new)
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        let mut store = self.shared.store();
        store.compact(request.get_ref().revision)?;
        Ok(Response::new(PbCompactionResponse { header: store.header() }))
    }
}

#[async_trait]
impl PbLeaseService for Service {
    type LeaseKeepAliveStream = BoxStream<'static, Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), false).await?;
        let mut store = self.shared.store();
        store.requests.grants += 1;
        let PbLeaseGrantRequest { id, ttl } = request.into_inner();
        let (id, ttl) = store.grant(id, ttl)?;
        Ok(Response::new(PbLeaseGrantResponse { header: store.header(), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.shared.awake().await;
        // The sender lives as long as this, so waiting cannot fail.
        let _ = self.shared.revocations_held.subscribe().wait_for(|held| !held).await;
        let known = self.shared.change(|store| store.revoke(request.get_ref().id));
        if !known {
            return Err(Status::not_found("etcdserver: requested lease not found"));
        }
        Ok(Response::new(PbLeaseRevokeResponse { header: self.shared.store().header() }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let answers = futures::stream::unfold((request.into_inner(), shared), |(mut requests, shared)| async move {
            let asked = requests.message().await.ok()??;
            shared.awake().await;
            // The sender lives as long as this, so waiting cannot fail.
            let _ = shared.renewals_held.subscribe().wait_for(|held| !held).await;
            let lied = shared.lie(|lie| *lie == Misbehavior::LeaseGone).is_some();
            let answer = {
                let mut store = shared.store();
                store.requests.renewals += 1;
                let ttl = if lied { 0 } else { store.renew(asked.id) };
                PbLeaseKeepAliveResponse { header: store.header(), id: asked.id, ttl }
            };
            Some((Ok(answer), (requests, shared)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        self.shared.awake().await;
        self.shared.store().requests.lease_questions += 1;
        // The sender lives as long as this, so waiting cannot fail.
        let _ = self.shared.lease_questions_held.subscribe().wait_for(|held| !held).await;
        let store = self.shared.store();
        let PbLeaseTimeToLiveRequest { id, keys: with_keys } = request.into_inner();
        let (ttl, left) = store.time_to_live(id).unwrap_or((0, -1));
        let under = store.keys.values().filter(|pair| with_keys && pair.lease == id);
        let keys = under.map(|pair| pair.key.clone()).collect();
        Ok(Response::new(PbLeaseTimeToLiveResponse { header: store.header(), id, ttl: left, granted_ttl: ttl, keys }))
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("leases"))
    }
}

#[async_trait]
impl PbMaintenanceService for Service {
    type SnapshotStream = BoxStream<'static, Result<PbSnapshotResponse, Status>>;

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        self.shared.awake().await;
        let mut store = self.shared.store();
        store.requests.versions += 1;
        let (header, version) = (store.header(), store.version.clone());
        Ok(Response::new(PbStatusResponse { header, version, ..PbStatusResponse::default() }))
    }

    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        Err(Status::unimplemented("alarm"))
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(Status::unimplemented("defragment"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(Status::unimplemented("hash"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(Status::unimplemented("hash of the keys"))
    }

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("snapshot"))
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Status::unimplemented("move leader"))
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Status::unimplemented("downgrade"))
    }
}

#[async_trait]
impl PbWatchService for Service {
    type WatchStream = BoxStream<'static, Result<PbWatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        // A watch needs a leader only where that is asked for.
        self.shared.quorum(request.metadata(), true).await?;
        self.shared.store().requests.watches += 1;
        let (tell, messages) = mpsc::channel(QUEUE);
        let shared = Arc::clone(&self.shared);
        let stop = self.tasks.stop_signal();
        let served = self.tasks.spawn("fake watch", async move {
            stop.run_until_cancelled_owned(serve(shared, request.into_inner(), tell)).await;
        });
        served.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(Box::pin(slowly(Arc::clone(&self.shared), messages))))
    }
}

type Tell = mpsc::Sender<PbWatchResponse>;

/// The messages of a watch, with a rest after each where that was asked for.
fn slowly(
    shared: Arc<Shared>,
    messages: mpsc::Receiver<PbWatchResponse>,
) -> impl Stream<Item = Result<PbWatchResponse, Status>> {
    let begun = (messages, Instant::now());
    futures::stream::unfold(begun, move |(mut messages, told)| {
        let shared = Arc::clone(&shared);
        async move {
            let message = messages.recv().await?;
            let pause = *shared.pause.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep_until(told + pause).await;
            Some((Ok(message), (messages, Instant::now())))
        }
    })
}

/// Serves one watch stream. It ends when the client does, or where a lie says so.
async fn serve(shared: Arc<Shared>, mut requests: Streaming<PbWatchRequest>, tell: Tell) {
    let Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::CreateRequest(create)) })) =
        requests.message().await
    else {
        return;
    };
    shared.awake().await;
    if let Some(Misbehavior::LateWatch(delay)) = shared.lie(|lie| matches!(lie, Misbehavior::LateWatch(_))) {
        tokio::time::sleep(delay).await;
    }
    let (header, revision, compacted, unsynced) = {
        let store = shared.store();
        (store.header(), store.revision, store.compacted, store.unsynced)
    };
    if let Some(Misbehavior::Refuse(reason)) = shared.lie(|lie| matches!(lie, Misbehavior::Refuse(_))) {
        let refusal = PbWatchResponse {
            created: true,
            canceled: true,
            watch_id: -1,
            cancel_reason: reason.to_owned(),
            ..message(header, Vec::new())
        };
        let _ = tell.send(refusal).await;
        return tell.closed().await;
    }
    if tell.send(PbWatchResponse { created: true, ..message(header, Vec::new()) }).await.is_err() {
        return;
    }
    let mut revisions = shared.revision.subscribe();
    let mut next = if create.start_revision == 0 { revision + 1 } else { create.start_revision };
    if next < compacted {
        return cancel(&tell, compacted).await;
    }
    if next <= revision && !unsynced.is_zero() {
        tokio::time::sleep(unsynced).await;
    }
    let wipes = shared.store().wipes;
    // Somebody asked for progress. The answer comes after what was so before the question.
    let mut asked = false;
    loop {
        shared.awake().await;
        let (header, now, compacted, due) = {
            let store = shared.store();
            if store.wipes != wipes {
                return;
            }
            let due = store.events(next, &create.key, &create.range_end);
            (store.header(), store.revision, store.compacted, due)
        };
        // It has not kept up, and what it missed is forgotten.
        if next < compacted {
            return cancel(&tell, compacted).await;
        }
        for (revision, events) in due {
            let events = asked_for(events, &create.filters, create.prev_kv, compacted);
            if events.is_empty() {
                continue;
            }
            let lie = shared.lie(Misbehavior::is_of_events);
            let (messages, lie) = told(lie, header, revision, events);
            for message in messages {
                if tell.send(message).await.is_err() {
                    return;
                }
            }
            next = revision + 1;
            if lie == Some(Misbehavior::Silence) {
                return tell.closed().await;
            }
        }
        next = next.max(now + 1);
        if std::mem::take(&mut asked) {
            let sign = PbWatchResponse { watch_id: -1, ..message(header, Vec::new()) };
            if tell.send(sign).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tell.closed() => return,
            _ = revisions.changed() => {}
            request = requests.message() => match request {
                Ok(Some(PbWatchRequest { request_union: Some(PbWatchRequestUnion::ProgressRequest(_)) })) => asked = true,
                _ => return,
            },
        }
    }
}

/// Ends a watch whose beginning is forgotten.
async fn cancel(tell: &Tell, compacted: i64) {
    let cancel = PbWatchResponse { canceled: true, compact_revision: compacted, ..PbWatchResponse::default() };
    let _ = tell.send(cancel).await;
    tell.closed().await;
}

/// The events that a watch wants, with what was before if it wants that and it is not forgotten.
fn asked_for(events: Vec<PbEvent>, filters: &[i32], previous: bool, compacted: i64) -> Vec<PbEvent> {
    let known = |event: &PbEvent| previous && event.kv.as_ref().is_some_and(|pair| pair.mod_revision > compacted);
    let wanted = events.into_iter().filter(|event| !filters.contains(&event.r#type));
    wanted.map(|event| if known(&event) { event } else { PbEvent { prev_kv: None, ..event } }).collect()
}

/// Hands out tokens. The trait of this service has messages that `etcd-client` does not export, so it is served by hand.
#[derive(Clone, Debug)]
pub(super) struct Auth(pub(super) Arc<Shared>);

impl NamedService for Auth {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl UnaryService<PbAuthenticateRequest> for Auth {
    type Response = PbAuthenticateResponse;
    type Future = std::future::Ready<Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<PbAuthenticateRequest>) -> Self::Future {
        let mut store = self.0.store();
        store.requests.tokens += 1;
        let token = format!("token-{}", store.requests.tokens);
        std::future::ready(Ok(Response::new(PbAuthenticateResponse { header: store.header(), token })))
    }
}

impl tower::Service<http::Request<Body>> for Auth {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let authenticate = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/Authenticate") {
                return Ok(Status::unimplemented("only Authenticate").into_http());
            }
            let codec = tonic_prost::ProstCodec::<PbAuthenticateResponse, PbAuthenticateRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(authenticate, request).await)
        })
    }
}
