//! The connection to etcd: one pinned endpoint, and another one when that fails.
//!
//! The client library's own balanced channel keeps picking a dead member (26 % of calls fail with one of three down). This
//! one dials the members in turn, stays with the first that answers, and moves on when a call fails in transport or its
//! user says that the member does not answer. Dialling happens on the session's runtime, whoever calls.
//!
//! A failure counts against the connection on which it occurred, never against a newer one: each connection is a [`Dialled`],
//! and [`Used`] carries it from here to the request layer, which notices that an answer does not come.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tower::{BoxError, Service, ServiceExt};

use crate::error::said;

/// HTTP/2 pings find a dead peer; etcd ends connections that ping faster than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Where TLS material lies. Files are read at every dial, so a renewed certificate is used without a restart.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) domain: Option<String>,
}

/// No endpoint could be reached, so nothing was sent.
#[derive(Clone, Debug)]
pub(crate) struct DialError(enlist::Cause);

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no endpoint could be reached")
    }
}

impl std::error::Error for DialError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// A connection that had been made broke.
#[derive(Debug)]
struct Broken {
    url: Option<http::Uri>,
    /// TLS without a client certificate. In TLS 1.3 the refusal of a missing one comes after the handshake, and the alert
    /// that says so is often lost to a broken pipe.
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

/// What is dialled.
#[derive(Clone, Debug)]
pub(crate) enum Members {
    /// These URLs, in turn.
    Urls { urls: Vec<Endpoint>, tls: Option<TlsFiles>, connect_timeout: Duration },
    /// A channel that the user made; it has to look after itself.
    Fixed(Channel),
}

/// One connection of a [`Failover`]. Clones are the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Dialled {
    /// Counts the connections of its channel.
    generation: u64,
    given_up: CancellationToken,
}

impl Dialled {
    /// Waits until the connection is given up. Its streams have to move then, or it stays open beside its successor.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

tokio::task_local! {
    /// Where the channel notes the connection that the present call uses. The client between the two carries nothing.
    static USED: Used;
}

/// The connection that a call uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used(Arc<Mutex<Option<Dialled>>>);

impl Used {
    /// Runs `call`, whose requests note their connection here.
    pub(crate) async fn by<F: Future>(&self, call: F) -> F::Output {
        USED.scope(self.clone(), call).await
    }

    /// The connection of the latest request; `None` while it is being dialled.
    pub(crate) fn connection(&self) -> Option<Dialled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that nothing is outstanding: the connection has answered.
    pub(crate) fn answered(&self) {
        self.set(None);
    }

    fn set(&self, connection: Option<Dialled>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

/// A channel that fails over. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Failover {
    shared: Arc<Shared>,
}

struct Shared {
    members: Members,
    runtime: Handle,
    pinned: Mutex<Pinned>,
    /// One dial at a time; the others wait for its result.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Pinned {
    /// The member that is, or is next to be, dialled.
    at: usize,
    /// Counts the connections, so that a late failure of an old one does not end a new one.
    generation: u64,
    current: Option<(Dialled, Channel)>,
}

impl Failover {
    pub(crate) fn new(members: Members, runtime: Handle) -> Self {
        // Clients of one process begin with different members, as do processes.
        let at = match &members {
            Members::Urls { urls, .. } if !urls.is_empty() => fastrand::usize(..urls.len()),
            Members::Urls { .. } | Members::Fixed(_) => 0,
        };
        let pinned = Mutex::new(Pinned { at, ..Pinned::default() });
        let shared = Shared { members, runtime, pinned, dialling: tokio::sync::Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, Pinned> {
        self.shared.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member that is, or is next to be, dialled.
    fn url(&self) -> Option<http::Uri> {
        match &self.shared.members {
            Members::Urls { urls, .. } if !urls.is_empty() => Some(urls[self.pinned().at % urls.len()].uri().clone()),
            Members::Urls { .. } | Members::Fixed(_) => None,
        }
    }

    fn shows_no_identity(&self) -> bool {
        matches!(&self.shared.members, Members::Urls { tls: Some(TlsFiles { identity: None, .. }), .. })
    }

    fn current(&self) -> Option<(Dialled, Channel)> {
        self.pinned().current.clone()
    }

    /// Gives a connection up: its member does not answer. The next call goes to another one. A connection that was given up
    /// before stays so, whatever has been dialled since.
    pub(crate) fn give_up(&self, connection: &Dialled) {
        let mut pinned = self.pinned();
        let current = pinned.current.take_if(|(current, _)| current.generation == connection.generation);
        if let Some((given_up, _)) = current {
            pinned.at = pinned.at.wrapping_add(1);
            drop(pinned);
            given_up.given_up.cancel();
        }
    }

    async fn connected(&self) -> Result<(Dialled, Channel), DialError> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _one = self.shared.dialling.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let channel = match &self.shared.members {
            Members::Fixed(channel) => channel.clone(),
            Members::Urls { urls, tls, connect_timeout } => self.dial(urls, tls.as_ref(), *connect_timeout).await?,
        };
        let mut pinned = self.pinned();
        pinned.generation += 1;
        let connection = Dialled { generation: pinned.generation, given_up: CancellationToken::new() };
        Ok(pinned.current.insert((connection, channel)).clone())
    }

    /// Dials the members in turn, each once.
    async fn dial(
        &self,
        urls: &[Endpoint],
        tls: Option<&TlsFiles>,
        connect_timeout: Duration,
    ) -> Result<Channel, DialError> {
        let first = self.pinned().at;
        let mut last = said("no endpoint is configured");
        for at in (0..urls.len()).map(|step| first.wrapping_add(step)) {
            let url = &urls[at % urls.len()];
            // Whoever waits may give up before the dial does; the next one then begins with another member.
            self.pinned().at = at.wrapping_add(1);
            let endpoint = match with_tls(url, tls).await {
                Ok(endpoint) => endpoint,
                Err(cause) => {
                    last = cause;
                    continue;
                }
            };
            // The connection's own task lives where it was dialled.
            let dialled = self.shared.runtime.spawn(async move { endpoint.connect().await });
            match tokio::time::timeout(connect_timeout, AbortOnDrop(dialled)).await {
                Ok(Ok(Ok(channel))) => {
                    self.pinned().at = at;
                    return Ok(channel);
                }
                Ok(Ok(Err(error))) => last = said(format!("{}: {}", url.uri(), chain(&error))),
                Ok(Err(_)) => last = said("the session has ended"),
                Err(_) => last = said(format!("{}: no connection within {connect_timeout:?}", url.uri())),
            }
            tracing::debug!(endpoint = %url.uri(), cause = %last, "endpoint not reached");
        }
        Err(DialError(last))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts.dedup();
    texts.join(": ")
}

/// Applies keep-alive and, where asked for, TLS from files as they are now.
async fn with_tls(url: &Endpoint, files: Option<&TlsFiles>) -> Result<Endpoint, enlist::Cause> {
    let endpoint =
        url.clone().http2_keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(true);
    let Some(TlsFiles { ca, identity, domain }) = files else {
        return Ok(endpoint);
    };
    let mut config = ClientTlsConfig::new();
    if let Some(path) = ca {
        config = config.ca_certificate(Certificate::from_pem(read(path).await?));
    }
    if let Some((certificate, key)) = identity {
        config = config.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    if let Some(domain) = domain {
        config = config.domain_name(domain);
    }
    endpoint.tls_config(config).map_err(|error| said(chain(&error)))
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, enlist::Cause> {
    tokio::fs::read(path).await.map_err(|error| said(format!("{}: {error}", path.display())))
}

/// Aborts the task when the wait for it is given up.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
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

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        let used = USED.try_with(Used::clone).unwrap_or_default();
        used.set(None);
        Box::pin(async move {
            let (connection, mut channel) = this.connected().await?;
            used.set(Some(connection.clone()));
            let url = this.url();
            let answered = match channel.ready().await {
                Ok(ready) => ready.call(request).await,
                Err(error) => Err(error),
            };
            answered.map_err(|error| {
                this.give_up(&connection);
                BoxError::from(Broken { url, shows_no_identity: this.shows_no_identity(), source: error })
            })
        })
    }
}

impl fmt::Debug for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failover").field("members", &self.shared.members).finish_non_exhaustive()
    }
}
