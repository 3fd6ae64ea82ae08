//! A channel to one pinned endpoint, which fails over to another one.
//!
//! The client library's balanced channel keeps selecting a dead member (26 % of calls fail with one of three down).
//! This channel dials the members in turn and stays with the first that answers. It moves on when a call fails in
//! transport, or when its user reports that the member does not answer. Dialling has its own task on the session's
//! runtime, which continues when the waiting call is dropped: the deadline of a renewal may be shorter than a
//! handshake.
//!
//! A failure counts against the connection on which it occurred, see [`crate::client::connection::dialled`].

use std::{
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use enlist::{TaskOwner, backend::MutexExt as _};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{HeaderName, HeaderValue};
use tokio::{runtime::Handle, sync::oneshot};
use tonic::{body::Body, transport::Endpoint};
use tower::{BoxError, Service, ServiceExt};

use crate::{
    client::connection::{
        dial::dial,
        dialled::{Dialled, Used},
        members::Members,
        pinned::{ChannelState, Outcome, Pinned},
    },
    error::{
        text_cause,
        transport::{DialError, Proxied},
    },
};

/// Header that makes a member without a leader refuse a request.
const REQUIRES_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// Failure of an established connection.
#[derive(Debug)]
struct Broken {
    url: Option<http::Uri>,
    /// TLS without a client certificate. In TLS 1.3 a missing certificate is refused after the handshake, and the alert
    /// is often lost to a broken pipe.
    shows_no_identity: bool,
    source: tonic::transport::Error,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.url {
            Some(url) => write!(f, "the connection to {url} ended")?,
            None => f.write_str("the connection ended")?,
        }
        if self.shows_no_identity {
            f.write_str("; the server may want a client certificate, and none is configured")?;
        }
        Ok(())
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A channel that fails over. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Failover {
    inner: Arc<Inner>,
}

/// State that the clones share.
struct Inner {
    /// Configured members. The dialled ones are in [`Pinned`].
    members: Arc<Members>,
    pinned: Mutex<Pinned>,
    tasks: TaskOwner,
}

impl Failover {
    pub(crate) fn new(members: Members, runtime: Handle) -> Self {
        // Random, to spread clients over the members, also those of one process.
        let at = match &members {
            Members::Urls { urls, .. } if !urls.is_empty() => fastrand::usize(..urls.len()),
            Members::Urls { .. } | Members::Fixed(_) => 0,
        };
        let refused = match &members {
            Members::Urls { urls, .. } => vec![None; urls.len()],
            Members::Fixed(_) => Vec::new(),
        };
        let members = Arc::new(members);
        let pinned = Pinned { members: Arc::clone(&members), at, generation: 0, state: ChannelState::Down, refused };
        let inner = Inner { members, pinned: Mutex::new(pinned), tasks: TaskOwner::on(runtime) };
        Self { inner: Arc::new(inner) }
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, Pinned> {
        self.inner.pinned.locked()
    }

    /// Dials the advertised members of the cluster from now on, then the configured ones. The present connection stays.
    pub(crate) fn take_over(&self, advertised: &[Endpoint]) {
        if let Some(members) = self.inner.members.with(advertised) {
            self.pinned().take_over(members);
        }
    }

    fn shows_no_identity(&self) -> bool {
        matches!(&*self.inner.members, Members::Urls { tls: Some(files), .. } if !files.has_identity())
    }

    /// Returns the present connection.
    pub(crate) fn current(&self) -> Option<Dialled> {
        match &self.pinned().state {
            ChannelState::Up(connection, _) => Some(connection.clone()),
            ChannelState::Down | ChannelState::Dialling(_) => None,
        }
    }

    /// Gives up a connection whose member does not answer. The next call uses another member. A newer connection is not
    /// affected. A channel that the user made is not given up, because there is no other one.
    pub(crate) fn give_up(&self, connection: &Dialled) {
        if let Members::Urls { .. } = &*self.inner.members {
            let mut pinned = self.pinned();
            if pinned.is_current(connection) {
                let next = pinned.at.wrapping_add(1);
                pinned.leave(connection, next);
            }
        }
    }

    /// Records that the member of a connection refuses to serve, and gives the connection up unless all members have
    /// refused recently. Returns `true` if the next call uses another connection.
    pub(crate) fn refused(&self, connection: &Dialled) -> bool {
        let mut pinned = self.pinned();
        // After a refusal of another caller the connection may have been replaced already.
        !pinned.is_current(connection) || pinned.refused(connection)
    }

    /// Returns the connection. If there is none, one task dials it for all waiting callers.
    ///
    /// Dropping the future does not stop the dial.
    async fn connected(&self) -> Outcome {
        let dialling = {
            let mut pinned = self.pinned();
            let members = Arc::clone(&pinned.members);
            match (&pinned.state, &*members) {
                (ChannelState::Up(connection, channel), _) => return Ok((connection.clone(), channel.clone())),
                (ChannelState::Down, Members::Fixed(channel)) => return Ok(pinned.up(&members, 0, channel.clone())),
                (ChannelState::Dialling(dialling), _) => dialling.clone(),
                (ChannelState::Down, Members::Urls { .. }) => {
                    let dialling = self.dial(members, pinned.at)?;
                    pinned.state = ChannelState::Dialling(dialling.clone());
                    dialling
                }
            }
        };
        let ended = dialling.clone().await;
        ended.unwrap_or_else(|_| {
            // The runtime of the dial is gone. The next call detects that by itself.
            let mut pinned = self.pinned();
            if matches!(&pinned.state, ChannelState::Dialling(other) if other.ptr_eq(&dialling)) {
                pinned.state = ChannelState::Down;
            }
            Err(DialError(text_cause("the session has ended")))
        })
    }

    /// Starts the dialling task. It begins with the member at `first`.
    fn dial(&self, members: Arc<Members>, first: usize) -> Result<Shared<oneshot::Receiver<Outcome>>, DialError> {
        let (sender, outcome) = oneshot::channel();
        let inner = Arc::downgrade(&self.inner);
        let task = async move {
            let dialled = dial(&members, first).await;
            // The channel was dropped, so the connection is not needed.
            let Some(inner) = inner.upgrade() else { return };
            let mut pinned = inner.pinned.locked();
            let outcome = match dialled {
                Ok((at, channel)) => Ok(pinned.up(&members, at, channel)),
                Err(cause) => {
                    pinned.state = ChannelState::Down;
                    Err(DialError(cause))
                }
            };
            drop(pinned);
            // The waiting callers may be gone. The next call uses the connection.
            let _ = sender.send(outcome);
        };
        self.inner
            .tasks
            .spawn_until_stopped("dial", task)
            .map_err(|_| DialError(text_cause("the session has ended")))?;
        Ok(outcome.shared())
    }
}

impl Service<http::Request<Body>> for Failover {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Connecting is part of the call, so a dropped call leaves nothing half done.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        let used = request.extensions_mut().remove::<Used>().unwrap_or_else(Used::present);
        used.set(None);
        if !used.is_leaderless() {
            request.headers_mut().insert(REQUIRES_LEADER, HeaderValue::from_static("true"));
        }
        Box::pin(async move {
            let (connection, mut channel) = this.connected().await?;
            used.set(Some(connection.clone()));
            let url = connection.url().cloned();
            let answered = match channel.ready().await {
                Ok(ready) => ready.call(request).await,
                Err(error) => Err(error),
            };
            match answered {
                Ok(answer) if Proxied::refuses(answer.status()) => Err(Proxied { url, status: answer.status() }.into()),
                Ok(answer) => Ok(answer),
                Err(source) => {
                    this.give_up(&connection);
                    Err(Broken { url, shows_no_identity: this.shows_no_identity(), source }.into())
                }
            }
        })
    }
}

impl fmt::Debug for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failover").field("members", &self.inner.members).finish_non_exhaustive()
    }
}
