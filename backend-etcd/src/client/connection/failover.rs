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
    time::Duration,
};

use enlist::{Moment, TaskOwner, backend::MutexExt as _};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{runtime::Handle, sync::oneshot};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{BoxError, Service, ServiceExt};

use crate::{
    client::connection::{
        dial::dial,
        dialled::{Dialled, Used},
        members::Members,
    },
    error::{
        text_cause,
        transport::{DialError, Proxied},
    },
};

/// Time for which a member that refused to serve is avoided if there is another one. If all refuse, it is the minimum
/// interval between two dials of a member.
const REFUSED_MEMBER_DELAY: Duration = Duration::from_secs(1);

/// Header that makes a member without a leader refuse a request. The client adds it to all requests.
const REQUIRES_LEADER: &str = "hasleader";

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

struct Pinned {
    /// Dialled members: the configured ones, or those that the cluster advertises.
    members: Arc<Members>,
    /// Index of the member that is connected, or is dialled next.
    at: usize,
    /// Counts the connections, so that a late failure of an old one does not end a new one.
    generation: u64,
    state: ChannelState,
    /// Time of the last refusal of each member.
    refused: Vec<Option<Moment>>,
}

/// Outcome of a dial.
type Outcome = Result<(Dialled, Channel), DialError>;

enum ChannelState {
    /// No connection. The next call starts a dial.
    Down,
    /// A task dials, and calls wait for its outcome.
    Dialling(Shared<oneshot::Receiver<Outcome>>),
    Up(Dialled, Channel),
}

impl Pinned {
    /// Records a connection to the member at `at` of `members`. The pinned members may have changed since.
    fn up(&mut self, members: &Members, at: usize, channel: Channel) -> (Dialled, Channel) {
        self.generation += 1;
        let url = members.url(at);
        self.at = url.as_ref().and_then(|url| self.members.index_of(url)).unwrap_or(0);
        let connection = Dialled::new(self.generation, url);
        self.state = ChannelState::Up(connection.clone(), channel.clone());
        (connection, channel)
    }

    fn is_current(&self, connection: &Dialled) -> bool {
        matches!(&self.state, ChannelState::Up(current, _) if current.generation == connection.generation)
    }

    /// Gives the connection up. The member at `next` is dialled next.
    fn leave(&mut self, connection: &Dialled, next: usize) {
        connection.given_up.cancel();
        self.state = ChannelState::Down;
        self.at = next;
    }

    /// Dials `members` from now on. The present connection stays, and is attributed to its member if that is among
    /// them.
    fn take_over(&mut self, members: Members) {
        let Members::Urls { urls, .. } = &members else { return };
        let index_of = |url: &http::Uri| urls.iter().position(|other| other.uri() == url);
        let mut refused = vec![None; urls.len()];
        for (at, ago) in self.refused.iter().enumerate() {
            if let Some(at) = self.members.url(at).as_ref().and_then(index_of) {
                refused[at] = *ago;
            }
        }
        let at = self.members.url(self.at).as_ref().and_then(index_of);
        // Random, to spread clients over the members.
        self.at = at.unwrap_or_else(|| fastrand::usize(..urls.len().max(1)));
        self.refused = refused;
        self.members = Arc::new(members);
    }

    /// Gives the connection up, because its member refused to serve, if there is another one to dial. Returns `true`
    /// if so.
    fn refused(&mut self, connection: &Dialled) -> bool {
        let Some(at) = self.at.checked_rem(self.refused.len()) else {
            return false;
        };
        let ago: Vec<_> = self.refused.iter().map(|refused| refused.map(|at| at.elapsed())).collect();
        self.refused[at] = Some(Moment::now());
        let next = after_refusal(at, &ago);
        if let Some(next) = next {
            self.leave(connection, next);
        }
        next.is_some()
    }
}

/// Returns the member to dial after a refusal of the one at `at`; `None` is to stay. `refused` contains the age of each
/// member's previous refusal. Members without a recent refusal are preferred. The same member is dialled again from
/// time to time, because its address may be a load balancer with several members behind it.
fn after_refusal(at: usize, refused: &[Option<Duration>]) -> Option<usize> {
    let count = refused.len();
    (1..=count)
        .map(|step| (at + step) % count)
        .find(|member| refused[*member].is_none_or(|ago| ago >= REFUSED_MEMBER_DELAY))
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
        if used.is_leaderless() {
            request.headers_mut().remove(REQUIRES_LEADER);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(hosts: &[&str]) -> Vec<Endpoint> {
        hosts.iter().map(|host| Endpoint::from_shared(format!("http://{host}:1")).unwrap()).collect()
    }

    fn pinned(hosts: &[&str], at: usize) -> Pinned {
        let urls = urls(hosts);
        let refused = vec![None; urls.len()];
        let members =
            Arc::new(Members::Urls { urls, tls: None, settings: None, connect_timeout: REFUSED_MEMBER_DELAY });
        Pinned { members, at, generation: 0, state: ChannelState::Down, refused }
    }

    fn hosts(members: &Members) -> Vec<String> {
        let Members::Urls { urls, .. } = members else { return Vec::new() };
        urls.iter().map(|url| url.uri().host().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_advertised_comes_first_and_what_is_configured_stays() {
        let configured = pinned(&["a", "b"], 0).members;
        assert_eq!(hosts(&configured.with(&urls(&["c", "b", "c"])).unwrap()), ["c", "b", "a"]);
        assert_eq!(hosts(&configured.with(&[]).unwrap()), ["a", "b"]);
    }

    #[test]
    fn a_connection_and_a_refusal_stay_with_their_member() {
        let mut pinned = pinned(&["a", "b"], 1);
        pinned.refused = vec![None, Some(Moment::now())];
        let taken = pinned.members.with(&urls(&["c", "b"])).unwrap();
        pinned.take_over(taken);
        assert_eq!(hosts(&pinned.members), ["c", "b", "a"]);
        assert_eq!(pinned.at, 1);
        assert!(matches!(pinned.refused[..], [None, Some(_), None]));
        let taken =
            Members::Urls { urls: urls(&["d"]), tls: None, settings: None, connect_timeout: REFUSED_MEMBER_DELAY };
        pinned.take_over(taken);
        assert_eq!((pinned.at, pinned.refused.len()), (0, 1), "its member is not among them");
    }

    #[test]
    fn after_a_refusal_comes_a_member_that_did_not_just_refuse() {
        let (just, before) = (Some(REFUSED_MEMBER_DELAY / 2), Some(REFUSED_MEMBER_DELAY));
        assert_eq!(after_refusal(0, &[None, None, None]), Some(1));
        assert_eq!(after_refusal(2, &[None, None, None]), Some(0));
        assert_eq!(after_refusal(0, &[just, just, before]), Some(2));
        assert_eq!(after_refusal(1, &[just, before, just]), Some(1), "all others just refused: the same");
        assert_eq!(after_refusal(1, &[just, just, just]), None, "all just refused: stay");
        assert_eq!(after_refusal(0, &[None]), Some(0), "one address may be several members");
    }
}
