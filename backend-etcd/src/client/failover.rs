//! The connection to etcd: one pinned endpoint, and another one when that fails.
//!
//! The client library's own balanced channel keeps picking a dead member (26 % of calls fail with one of three down).
//! This one dials the members in turn, stays with the first that answers, and moves on when a call fails in transport
//! or its user says that the member does not answer. A task of its own dials, on the session's runtime, and goes on
//! when a call that waits for it is dropped: a renewal may take less time than a handshake.
//!
//! A failure counts against the connection on which it occurred, see [`crate::client::dialled`].

use std::{
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use enlist::backend::MutexExt as _;
use enlist::{Moment, TaskOwner};
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
    client::{
        dial::{DialError, dial},
        dialled::{Dialled, Used},
        members::{Members, TlsFiles},
    },
    error::text_cause,
};

/// Time for which a member that refused to serve is left alone if another one may do better. Where all refuse, each is
/// dialled no more often.
const REST: Duration = Duration::from_secs(1);

/// Header for which a member without a leader refuses a request. The client adds it to all of them.
const REQUIRES_LEADER: &str = "hasleader";

/// A connection that had been made broke.
#[derive(Debug)]
struct Broken {
    url: Option<http::Uri>,
    /// TLS without a client certificate. In TLS 1.3 the refusal of a missing one comes after the handshake, and the
    /// alert that says so is often lost to a broken pipe.
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

/// A proxy answered instead of a member: a member's answer has the HTTP status 200.
#[derive(Debug)]
pub(crate) struct Proxied {
    url: Option<http::Uri>,
    status: http::StatusCode,
}

impl Proxied {
    /// Tells a proxy that has no member to pass the request to, or too many requests.
    fn refuses(status: http::StatusCode) -> bool {
        use http::StatusCode as S;
        matches!(status, S::TOO_MANY_REQUESTS | S::BAD_GATEWAY | S::SERVICE_UNAVAILABLE | S::GATEWAY_TIMEOUT)
    }
}

impl fmt::Display for Proxied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.url {
            Some(url) => write!(f, "a proxy at {url} answered {}", self.status),
            None => write!(f, "a proxy answered {}", self.status),
        }
    }
}

impl std::error::Error for Proxied {}

/// A channel that fails over. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Failover {
    inner: Arc<Inner>,
}

/// State that the clones share.
struct Inner {
    /// As configured; what is dialled is in [`Pinned`].
    members: Arc<Members>,
    pinned: Mutex<Pinned>,
    tasks: TaskOwner,
}

struct Pinned {
    /// Members that are dialled: the configured ones, or those that the cluster has.
    members: Arc<Members>,
    /// The member that is, or is next to be, dialled.
    at: usize,
    /// Counts the connections, so that a late failure of an old one does not end a new one.
    generation: u64,
    link: Link,
    /// Time at which each member refused to serve last.
    refused: Vec<Option<Moment>>,
}

/// Outcome of a dial.
type Outcome = Result<(Dialled, Channel), DialError>;

enum Link {
    /// No connection; the next call has one made.
    Down,
    /// A task dials, and calls wait for what becomes of it.
    Dialling(Shared<oneshot::Receiver<Outcome>>),
    Up(Dialled, Channel),
}

impl Pinned {
    /// Notes a connection to the member at `at` of `members`, which may be others by now.
    fn up(&mut self, members: &Members, at: usize, channel: Channel) -> (Dialled, Channel) {
        self.generation += 1;
        let url = members.url(at);
        self.at = url.as_ref().and_then(|url| self.members.place(url)).unwrap_or(0);
        let connection = Dialled::new(self.generation, url);
        self.link = Link::Up(connection.clone(), channel.clone());
        (connection, channel)
    }

    fn is_current(&self, connection: &Dialled) -> bool {
        matches!(&self.link, Link::Up(current, _) if current.generation == connection.generation)
    }

    /// Takes the connection down. The member at `next` is dialled then.
    fn leave(&mut self, connection: &Dialled, next: usize) {
        connection.given_up.cancel();
        self.link = Link::Down;
        self.at = next;
    }

    /// Dials `members` from now on. A connection stays, and counts as that of its member, if that is among them.
    fn take_over(&mut self, members: Members) {
        let Members::Urls { urls, .. } = &members else { return };
        let place = |url: &http::Uri| urls.iter().position(|other| other.uri() == url);
        let mut refused = vec![None; urls.len()];
        for (at, ago) in self.refused.iter().enumerate() {
            if let Some(at) = self.members.url(at).as_ref().and_then(place) {
                refused[at] = *ago;
            }
        }
        let at = self.members.url(self.at).as_ref().and_then(place);
        // Clients go to different members then, too.
        self.at = at.unwrap_or_else(|| fastrand::usize(..urls.len().max(1)));
        self.refused = refused;
        self.members = Arc::new(members);
    }

    /// Takes the connection down because its member refused to serve, if there is another one to dial; says whether
    /// there was.
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

/// The member to dial after the one at `at` refused to serve; `None` is to stay. `refused` has how long ago each did so
/// before. One that did not just refuse is preferred. The same one is dialled again now and then: it may be several
/// behind a load balancer.
fn after_refusal(at: usize, refused: &[Option<Duration>]) -> Option<usize> {
    let count = refused.len();
    (1..=count).map(|step| (at + step) % count).find(|member| refused[*member].is_none_or(|ago| ago >= REST))
}

impl Failover {
    pub(crate) fn new(members: Members, runtime: Handle) -> Self {
        // Clients of one process begin with different members, as do processes.
        let at = match &members {
            Members::Urls { urls, .. } if !urls.is_empty() => fastrand::usize(..urls.len()),
            Members::Urls { .. } | Members::Fixed(_) => 0,
        };
        let refused = match &members {
            Members::Urls { urls, .. } => vec![None; urls.len()],
            Members::Fixed(_) => Vec::new(),
        };
        let members = Arc::new(members);
        let pinned = Pinned { members: Arc::clone(&members), at, generation: 0, link: Link::Down, refused };
        let inner = Inner { members, pinned: Mutex::new(pinned), tasks: TaskOwner::on(runtime) };
        Self { inner: Arc::new(inner) }
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, Pinned> {
        self.inner.pinned.locked()
    }

    /// Dials the members that the cluster has from now on, and then the configured ones. The present connection stays.
    pub(crate) fn take_over(&self, advertised: &[Endpoint]) {
        if let Some(members) = self.inner.members.with(advertised) {
            self.pinned().take_over(members);
        }
    }

    fn shows_no_identity(&self) -> bool {
        matches!(&*self.inner.members, Members::Urls { tls: Some(TlsFiles { identity: None, .. }), .. })
    }

    /// The present connection.
    pub(crate) fn current(&self) -> Option<Dialled> {
        match &self.pinned().link {
            Link::Up(connection, _) => Some(connection.clone()),
            Link::Down | Link::Dialling(_) => None,
        }
    }

    /// Gives a connection up: its member does not answer. The next call goes to another one. A newer connection is left
    /// alone, and so is a channel that the user made, because there is no other one.
    pub(crate) fn give_up(&self, connection: &Dialled) {
        if let Members::Urls { .. } = &*self.inner.members {
            let mut pinned = self.pinned();
            if pinned.is_current(connection) {
                let next = pinned.at.wrapping_add(1);
                pinned.leave(connection, next);
            }
        }
    }

    /// Notes that the member of a connection refuses to serve, and gives it up unless all have refused just now. Says
    /// whether the next call goes over another connection.
    pub(crate) fn refused(&self, connection: &Dialled) -> bool {
        let mut pinned = self.pinned();
        // Another caller may have been refused as well, and left.
        !pinned.is_current(connection) || pinned.refused(connection)
    }

    /// The connection; where there is none it is dialled, by one task for all who wait. Dropping the future leaves that
    /// going.
    async fn connected(&self) -> Outcome {
        let dialling = {
            let mut pinned = self.pinned();
            let members = Arc::clone(&pinned.members);
            match (&pinned.link, &*members) {
                (Link::Up(connection, channel), _) => return Ok((connection.clone(), channel.clone())),
                (Link::Down, Members::Fixed(channel)) => return Ok(pinned.up(&members, 0, channel.clone())),
                (Link::Dialling(dialling), _) => dialling.clone(),
                (Link::Down, Members::Urls { .. }) => {
                    let dialling = self.dial(members, pinned.at)?;
                    pinned.link = Link::Dialling(dialling.clone());
                    dialling
                }
            }
        };
        let ended = dialling.clone().await;
        ended.unwrap_or_else(|_| {
            // Its runtime is gone. The next call finds out by itself.
            let mut pinned = self.pinned();
            if matches!(&pinned.link, Link::Dialling(other) if other.ptr_eq(&dialling)) {
                pinned.link = Link::Down;
            }
            Err(DialError(text_cause("the session has ended")))
        })
    }

    /// Starts the task that dials, beginning with the member at `first`.
    fn dial(&self, members: Arc<Members>, first: usize) -> Result<Shared<oneshot::Receiver<Outcome>>, DialError> {
        let (tell, told) = oneshot::channel();
        let inner = Arc::downgrade(&self.inner);
        let task = async move {
            let dialled = dial(&members, first).await;
            // Without the channel nobody needs a connection.
            let Some(inner) = inner.upgrade() else { return };
            let mut pinned = inner.pinned.locked();
            let outcome = match dialled {
                Ok((at, channel)) => Ok(pinned.up(&members, at, channel)),
                Err(cause) => {
                    pinned.link = Link::Down;
                    Err(DialError(cause))
                }
            };
            drop(pinned);
            // Those who waited may be gone; the connection is there for the next.
            let _ = tell.send(outcome);
        };
        self.inner
            .tasks
            .spawn_until_stopped("dial", task)
            .map_err(|_| DialError(text_cause("the session has ended")))?;
        Ok(told.shared())
    }
}

impl Service<http::Request<Body>> for Failover {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Connecting is part of the call, so that a call that is dropped leaves nothing half done.
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
        let members = Arc::new(Members::Urls { urls, tls: None, settings: None, connect_timeout: REST });
        Pinned { members, at, generation: 0, link: Link::Down, refused }
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
        let taken = Members::Urls { urls: urls(&["d"]), tls: None, settings: None, connect_timeout: REST };
        pinned.take_over(taken);
        assert_eq!((pinned.at, pinned.refused.len()), (0, 1), "its member is not among them");
    }

    #[test]
    fn after_a_refusal_comes_a_member_that_did_not_just_refuse() {
        let (just, before) = (Some(REST / 2), Some(REST));
        assert_eq!(after_refusal(0, &[None, None, None]), Some(1));
        assert_eq!(after_refusal(2, &[None, None, None]), Some(0));
        assert_eq!(after_refusal(0, &[just, just, before]), Some(2));
        assert_eq!(after_refusal(1, &[just, before, just]), Some(1), "all others just refused: the same");
        assert_eq!(after_refusal(1, &[just, just, just]), None, "all just refused: stay");
        assert_eq!(after_refusal(0, &[None]), Some(0), "one address may be several members");
    }
}
