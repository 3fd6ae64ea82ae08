//! gRPC services of the scripted etcd. Each method waits where the handle asks for that, and then asks the store.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use enlist::TaskOwner;
use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbAuthenticateRequest, PbAuthenticateResponse, PbCompactionRequest,
    PbCompactionResponse, PbDefragmentRequest, PbDefragmentResponse, PbDeleteRequest, PbDeleteResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbKvService, PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbMaintenanceService, PbMoveLeaderRequest,
    PbMoveLeaderResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest, PbStatusResponse, PbTxnRequest, PbTxnResponse,
    PbWatchRequest, PbWatchResponse, PbWatchService,
};
use futures::{future::BoxFuture, stream::BoxStream};
use tokio::sync::{mpsc, oneshot};
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    body::Body,
    server::{NamedService, UnaryService},
};

use super::{
    etcd_defects::{EtcdDefect, REVOKED_AFTER, RevocationCause},
    misbehavior::{LateWrite, Misbehavior},
    state::{Consistency, FakeState},
    watches,
};

/// Maximum number of responses of a watch that its client has not read.
const RESPONSES: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) shared: Arc<FakeState>,
    /// Tasks of watches and late transactions.
    pub(super) tasks: Arc<TaskOwner>,
}

#[async_trait]
impl PbKvService for Service {
    type RangeStreamStream = BoxStream<'static, Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        self.shared.awake().await;
        let read = if request.get_ref().serializable { Consistency::Serializable } else { Consistency::Linearizable };
        self.shared.quorum(request.metadata(), read).await?;
        self.shared.check_permission()?;
        let asked = request.get_ref();
        let lists = !asked.keys_only && !asked.count_only && !asked.range_end.is_empty();
        if lists && self.shared.next_misbehavior(|next| *next == Misbehavior::NoList).is_some() {
            return Err(Status::unavailable("no list this time"));
        }
        let mut store = self.shared.store();
        store.requests.ranges += 1;
        store.requests.keys_only += usize::from(asked.keys_only);
        store.requests.serializable += usize::from(asked.serializable);
        let answer = if read == Consistency::Linearizable { store.read(asked) } else { store.range(asked) };
        answer.map(Response::new)
    }

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("range stream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), Consistency::Linearizable).await?;
        self.shared.check_permission()?;
        self.shared.store().requests.txns += 1;
        self.shared.change(|store| store.put_request(request.into_inner())).map(Response::new)
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), Consistency::Linearizable).await?;
        self.shared.check_permission()?;
        self.shared.store().requests.deletions += 1;
        self.shared.change(|store| store.delete_request(request.get_ref())).map(Response::new)
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), Consistency::Linearizable).await?;
        let request = request.into_inner();
        let Some(Misbehavior::LateTxn(delay)) =
            self.shared.next_misbehavior(|next| matches!(next, Misbehavior::LateTxn(_)))
        else {
            return self.shared.txn(request).map(Response::new);
        };
        let (shared, stop) = (Arc::clone(&self.shared), self.tasks.stop_signal());
        let (sender, outcome) = oneshot::channel();
        let late = self.tasks.spawn("late transaction", async move {
            if stop.run_until_cancelled_owned(tokio::time::sleep(delay)).await.is_some() {
                let outcome = shared.txn(request);
                shared.store().late.push(outcome.as_ref().map(LateWrite::of).map_err(Clone::clone));
                // The caller may be gone.
                let _ = sender.send(outcome);
            }
        });
        late.map_err(|error| Status::unavailable(error.to_string()))?;
        outcome.await.map_err(|_| Status::unavailable("the server has ended"))?.map(Response::new)
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        self.shared.awake().await;
        self.shared.quorum(request.metadata(), Consistency::Linearizable).await?;
        let mut store = self.shared.store();
        store.requests.compactions += 1;
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
        self.shared.quorum(request.metadata(), Consistency::Linearizable).await?;
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
        self.shared.store().requests.revocations += 1;
        self.shared.revocations_released().await;
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
        let tasks = Arc::clone(&self.tasks);
        let begun = (request.into_inner(), shared, tasks);
        let answers = futures::stream::unfold(begun, |(mut requests, shared, tasks)| async move {
            let asked = requests.message().await.ok()??;
            shared.awake().await;
            shared.renewals_released().await;
            let is_missing = shared.next_misbehavior(|next| *next == Misbehavior::LeaseGone).is_some();
            let header = {
                let mut store = shared.store();
                store.requests.renewals += 1;
                // Etcd takes the revision before it renews.
                store.header()
            };
            let ttl = if is_missing { 0 } else { shared.renew(asked.id).await };
            let answer = PbLeaseKeepAliveResponse { header, id: asked.id, ttl };
            if shared.store().defects.has(EtcdDefect::FormerLeaderRevokes) {
                let (state, stop) = (Arc::clone(&shared), tasks.stop_signal());
                // An error means that the server has ended.
                let _ = tasks.spawn("former leader", async move {
                    stop.run_until_cancelled_owned(revoke_as_former_leader(&state, asked.id)).await;
                });
            }
            Some((Ok(answer), (requests, shared, tasks)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        self.shared.awake().await;
        self.shared.store().requests.lease_questions += 1;
        self.shared.lease_queries_released().await;
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
        if store.hides_version {
            return Err(Status::permission_denied("etcdserver: permission denied"));
        }
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
        // A watch needs a leader only if the client requires one.
        self.shared.quorum(request.metadata(), Consistency::Serializable).await?;
        self.shared.store().requests.watches += 1;
        let (responses, sent) = mpsc::channel(RESPONSES);
        let shared = Arc::clone(&self.shared);
        let stop = self.tasks.stop_signal();
        let served = self.tasks.spawn("fake watch", async move {
            stop.run_until_cancelled_owned(watches::serve(shared, request.into_inner(), responses)).await;
        });
        served.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(Box::pin(watches::delayed(Arc::clone(&self.shared), sent))))
    }
}

/// Service that issues tokens. `etcd-client` does not export the messages of its trait, so it is implemented by hand.
#[derive(Clone, Debug)]
pub(super) struct Auth(pub(super) Arc<FakeState>);

impl NamedService for Auth {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl UnaryService<PbAuthenticateRequest> for Auth {
    type Response = PbAuthenticateResponse;
    type Future = BoxFuture<'static, Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<PbAuthenticateRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            shared.awake().await;
            let mut store = shared.store();
            store.requests.tokens += 1;
            let token = format!("token-{}", store.requests.tokens);
            Ok(Response::new(PbAuthenticateResponse { header: store.header(), token }))
        })
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

/// Revokes a lease, as a former leader does after a renewal that the present leader acknowledged.
async fn revoke_as_former_leader(state: &FakeState, lease: i64) {
    tokio::time::sleep(REVOKED_AFTER).await;
    if state.store().defects.has(EtcdDefect::FormerLeaderRevokes) {
        state.change(|store| store.revoke_because(lease, RevocationCause::FormerLeader));
    }
}
