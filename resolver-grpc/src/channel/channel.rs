//! The channel that generated clients take: the handle, its state and its end. It is made by `builder.rs`, and each
//! call is in `call.rs`.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use enlist::{Endpoint, Error, InstanceId, ServiceView, StopError};
use tokio::sync::watch;
use tonic::{Status, body::Body};
use tower::Service;

use crate::{
    channel::{call::ResponseFuture, inner::ChannelInner},
    retry::failure::BoxError,
    subchannel::{activity::Usage, connectivity::InstanceState, subchannel::Subchannel},
};

/// A channel to all instances of a service that respond. Every generated client accepts it. Clones share everything and
/// are cheap.
///
/// - An instance is a candidate only while its connection works. A failed connection is noticed with the first call,
///   which is sent to another instance if it provably never left. The instance is dialled again after 100 ms, growing
///   to 10 s, or at once when it is registered again.
/// - Calls to a service without instances fail with `UNAVAILABLE` at once. Calls to a service that is not known yet
///   wait.
/// - If no instance is ready but one is connected (ejected, unhealthy, suspect), calls go there.
/// - If the store is unavailable, the last known instances stay.
/// - Dropping the last clone ends its tasks; calls in flight finish, and their connections close with them.
///
/// ```
/// # use enlist_grpc::{BalancePolicy, Channel, RetryPolicy};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = enlist_memory::MemoryStore::new();
/// use enlist::{Directory, ServiceRef};
/// use std::sync::Arc;
///
/// let directory = Directory::new(Arc::new(store.client()));
/// let channel = Channel::builder()
///     .balance(BalancePolicy::LeastLoaded)
///     .retry("/grpc.health.v1.Health/Check", RetryPolicy::new())
///     .build(&directory.view(&ServiceRef::parse("greeter")?))?;
/// let client = tonic_health::pb::health_client::HealthClient::new(channel);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Channel {
    pub(super) inner: Arc<ChannelInner>,
}

impl Channel {
    /// The view that the channel follows.
    pub fn view(&self) -> &ServiceView {
        &self.inner.view
    }

    /// Waits, at most `limit`, until an instance is ready.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if none was. Its cause states what is known of the service and of its instances.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn ready(&self, limit: Duration) -> Result<(), Error> {
        self.inner.config.activity.set(Usage::Active);
        let mut versions = self.versions();
        let is_ready = || {
            let set = self.inner.picker_cell.set.load();
            set.all.iter().any(|subchannel| subchannel.state() == InstanceState::Ready)
        };
        let wait = versions.wait_for(|_| is_ready());
        if tokio::time::timeout(limit, wait).await.is_ok() {
            return Ok(());
        }
        let why: BoxError = self.inner.explain().into();
        Err(Error::Timeout { op: "waiting for an instance to be ready", limit, cause: Some(Arc::from(why)) })
    }

    /// State of each instance in this channel, in the order of their ids. Those that leave are included.
    pub fn instances(&self) -> Vec<InstanceStats> {
        let set = self.inner.picker_cell.set.load();
        let stats = |subchannel: &Arc<Subchannel>| {
            let (entry, (calls, failed)) = (subchannel.entry(), subchannel.counts());
            InstanceStats {
                id: entry.instance().id().clone(),
                endpoint: subchannel.endpoint().clone(),
                state: subchannel.state(),
                connections: subchannel.connections(),
                in_flight: subchannel.in_flight(),
                calls,
                failed,
                last_failure: subchannel.dial_failure().map(|cause| cause.to_string()),
            }
        };
        let mut instances: Vec<_> = set.all.iter().chain(&set.leaving).map(stats).collect();
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        instances
    }

    /// Ends all tasks and closes idle connections, for all clones. Waits at most `limit`. Calls in flight finish, new
    /// ones fail.
    ///
    /// # Errors
    ///
    /// [`StopError`] if a task did not end in time or had panicked.
    ///
    /// # Cancel safety
    ///
    /// The tasks end in the background.
    pub async fn close(&self, limit: Duration) -> Result<(), StopError> {
        let closed = self.inner.tasks.stop(limit).await;
        self.inner.picker_cell.close();
        closed
    }

    /// Receiver of the count of picker states.
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.inner.picker_cell.versions.subscribe()
    }

    /// Number of holders of this channel.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.inner)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = self.inner.view.service();
        f.debug_struct("Channel")
            .field("service", service)
            .field("instances", &self.instances())
            .finish_non_exhaustive()
    }
}

/// State of an instance in a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceStats {
    /// Id of the instance.
    pub id: InstanceId,
    /// The endpoint that is used.
    pub endpoint: Endpoint,
    /// State: ready for calls, or the reason why not.
    pub state: InstanceState,
    /// Connections that take calls.
    pub connections: usize,
    /// Calls that have not ended.
    pub in_flight: usize,
    /// Attempts that were sent to it so far.
    pub calls: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Cause of the failure of the latest dial, if it failed. It stays while the channel is idle, until a dial
    /// succeeds.
    pub last_failure: Option<String>,
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> ResponseFuture {
        ResponseFuture::begin(&self.inner, request)
    }
}
