//! One call: choose an instance, send, and where that is right, choose another one.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use async_trait::async_trait;
use enlist::{Presence, ServiceRef, ServiceView, TaskOwner};
use http::{HeaderMap, HeaderName, request::Parts};
use tokio::time::timeout;
use tonic::{Code, Status, body::Body};
use tower::Service;

use crate::{
    answer,
    balance::{Balance, Choice, HashKey},
    deadline::Deadline,
    failure::{BoxError, Failure},
    replay::Replay,
    retry::{Attempts, Ended, Pushback, Retries},
    set::{Picture, Shared},
    subchannel::{Flight, InstanceState, Subchannel, Terms},
};

/// How many attempts were made before this one (gRFC A6).
const PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// In the extensions of a `tonic::Request`: whether this call waits for an instance that is ready, up to its deadline or the
/// channel's bound, instead of failing at once. Overrides the channel's own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitForReady(pub bool);

/// What an [`Intercept`] may see and change of a call.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallHead<'a> {
    /// The service that is called.
    pub service: &'a ServiceRef,
    /// The method: `/package.Service/Method`.
    pub path: &'a str,
    /// The headers, which are gRPC's metadata.
    pub headers: &'a mut HeaderMap,
}

/// Runs before each call of a channel: adds credentials, refuses what is not allowed. Implemented by users; kept in an `Arc<dyn
/// Intercept>`.
#[async_trait]
pub trait Intercept: Send + Sync + 'static {
    /// Changes the head of a call, once, before an instance is chosen.
    ///
    /// Signature: `async fn before(&self, call: CallHead<'_>) -> Result<(), Status>`.
    ///
    /// # Errors
    ///
    /// The status that the call ends with; it is not sent then.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped with the call.
    async fn before(&self, call: CallHead<'_>) -> Result<(), Status>;
}

/// What all clones of a channel share.
pub(crate) struct Core {
    pub(crate) view: ServiceView,
    pub(crate) shared: Arc<Shared>,
    pub(crate) terms: Arc<Terms>,
    pub(crate) balance: Balance,
    pub(crate) turn: AtomicUsize,
    pub(crate) retries: Retries,
    pub(crate) replay_limit: usize,
    pub(crate) wait_limit: Duration,
    pub(crate) wait_for_ready: bool,
    pub(crate) intercept: Option<Arc<dyn Intercept>>,
    pub(crate) tasks: TaskOwner,
}

/// What a call does next.
enum Next {
    Take(Flight),
    /// Somebody may be ready soon.
    Wait,
    Refuse,
}

impl Core {
    pub(crate) async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        #[cfg_attr(not(feature = "trace"), expect(unused_mut, reason = "a trace adds headers"))]
        let (mut head, body) = request.into_parts();
        #[cfg(feature = "trace")]
        {
            let span = crate::trace::client_span(&mut head);
            let call = async {
                let outcome = self.attempt(head, body).await;
                crate::trace::ended(match &outcome {
                    Ok(answer) => answer::code(answer.headers()).unwrap_or(Code::Ok),
                    Err(status) => status.code(),
                });
                outcome
            };
            tracing::Instrument::instrument(call, span).await
        }
        #[cfg(not(feature = "trace"))]
        self.attempt(head, body).await
    }

    /// As many attempts as it takes.
    async fn attempt(&self, mut head: Parts, body: Body) -> Result<http::Response<Body>, Status> {
        if let Some(intercept) = &self.intercept {
            let Parts { uri, headers, .. } = &mut head;
            intercept.before(CallHead { service: self.view.service(), path: uri.path(), headers }).await?;
        }
        let deadline = Deadline::of(&head.headers);
        let replay = Replay::new(body, self.replay_limit);
        let mut attempts = Attempts::new(self.retries.policy(head.uri.path()));
        let mut tried = Vec::new();
        self.retries.deposit();
        loop {
            let flight = self.choose(&head, &tried, &deadline).await?;
            let Some(body) = replay.attempt() else {
                return Err(Status::internal("the request could not be sent again"));
            };
            let request = assemble(&head, body, &attempts, &deadline);
            let subchannel = Arc::clone(flight.subchannel());
            #[cfg(feature = "trace")]
            crate::trace::called(subchannel.endpoint());
            let (ended, outcome) = send(flight, request).await;
            let Some(ended) = ended.filter(|_| replay.is_replayable()) else {
                return outcome;
            };
            let Some(delay) = attempts.again(ended).filter(|delay| deadline.allows(*delay)) else {
                return outcome;
            };
            if !self.retries.withdraw() {
                return outcome;
            }
            tracing::debug!(instance = %subchannel, ?ended, ?delay, "call tried again");
            tried.push(subchannel);
            tokio::time::sleep(delay).await;
        }
    }

    /// Chooses an instance, and waits for one where there may be one soon.
    async fn choose(&self, head: &Parts, tried: &[Arc<Subchannel>], deadline: &Deadline) -> Result<Flight, Status> {
        match self.look(head, tried) {
            Next::Take(flight) => return Ok(flight),
            Next::Refuse => return Err(Status::unavailable(self.explain())),
            Next::Wait => {}
        }
        let limit = deadline.left().map_or(self.wait_limit, |left| left.min(self.wait_limit));
        let mut pictures = self.shared.pictures.subscribe();
        let wait = async {
            loop {
                match self.look(head, tried) {
                    Next::Take(flight) => return Ok(flight),
                    Next::Refuse => return Err(Status::unavailable(self.explain())),
                    // The sender lives as long as `self` does.
                    Next::Wait => _ = pictures.changed().await,
                }
            }
        };
        match timeout(limit, wait).await {
            Ok(chosen) => chosen,
            Err(_) if !deadline.allows(Duration::ZERO) => Err(Status::deadline_exceeded(self.explain())),
            Err(_) => Err(Status::unavailable(self.explain())),
        }
    }

    fn look(&self, head: &Parts, tried: &[Arc<Subchannel>]) -> Next {
        if self.view.too_old().is_some() {
            return Next::Refuse;
        }
        let picture = self.shared.set.load();
        let choice = Choice { balance: &self.balance, key: self.key(head), turn: &self.turn };
        let is_tried = |subchannel: &Arc<Subchannel>| tried.iter().any(|tried| Arc::ptr_eq(tried, subchannel));
        let ready = picture.ready.pick(&choice, is_tried).or_else(|| last_resort(&picture));
        if let Some(flight) = ready.and_then(|subchannel| Flight::begin(subchannel, &self.terms)) {
            return Next::Take(flight);
        }
        let wait_for_ready = head.extensions.get().map_or(self.wait_for_ready, |WaitForReady(wait)| *wait);
        if picture.closed {
            Next::Refuse
        } else if !picture.known || wait_for_ready || picture.all.iter().any(may_be_ready) {
            Next::Wait
        } else {
            Next::Refuse
        }
    }

    fn key<'a>(&self, head: &'a Parts) -> Option<&'a [u8]> {
        let Balance::ConsistentHash(header) = &self.balance else {
            return None;
        };
        if let Some(HashKey(key)) = head.extensions.get() {
            return Some(key);
        }
        head.headers.get(header.as_ref()?).map(http::HeaderValue::as_bytes)
    }

    /// Why no instance can take a call.
    fn explain(&self) -> String {
        let (service, picture) = (self.view.service(), self.shared.set.load());
        if picture.closed {
            return format!("the channel to {service} is closed");
        }
        let (Some(snapshot), Some(freshness)) = (self.view.snapshot(), self.view.freshness()) else {
            return format!("{service} is not known yet");
        };
        let age = freshness.age();
        let held = snapshot.entries().filter(|entry| entry.presence() == Presence::Held).count();
        let ready = picture.all.iter().filter(|subchannel| subchannel.state() == InstanceState::Ready).count();
        let revision = snapshot.revision();
        let counts = format!("{} listed, {ready} ready, {held} held", snapshot.len());
        let trouble = picture
            .all
            .iter()
            .find_map(|subchannel| subchannel.trouble().map(|trouble| format!("; {subchannel}: {trouble}")));
        let what = match self.view.too_old() {
            Some(_) => "is known too long ago to be called",
            None => "has no instance that can take a call",
        };
        format!("{service} {what}: {counts}; revision {revision}, right {age:?} ago{}", trouble.unwrap_or_default())
    }
}

/// Somebody who is connected although not well, when nobody is ready: better than nobody.
fn last_resort(picture: &Picture) -> Option<&Arc<Subchannel>> {
    if picture.all.iter().any(may_be_ready) {
        return None;
    }
    let connected: Vec<_> = picture.all.iter().filter(|subchannel| subchannel.is_connected()).collect();
    fastrand::choice(connected)
}

/// Says whether the instance is ready, or might be in a moment.
fn may_be_ready(subchannel: &Arc<Subchannel>) -> bool {
    matches!(subchannel.state(), InstanceState::Connecting | InstanceState::Ready)
}

/// One attempt's request.
fn assemble(head: &Parts, body: Body, attempts: &Attempts<'_>, deadline: &Deadline) -> http::Request<Body> {
    let mut head = head.clone();
    if attempts.left() > 0 {
        head.headers.insert(PREVIOUS, attempts.left().into());
        deadline.tell(&mut head.headers);
    }
    http::Request::from_parts(head, body)
}

/// One attempt. Says how it ended if another one may be made.
async fn send(
    mut flight: Flight,
    request: http::Request<Body>,
) -> (Option<Ended>, Result<http::Response<Body>, Status>) {
    let mut channel = flight.connection().channel();
    let taken = poll_fn(|cx| channel.poll_ready(cx)).await;
    let outcome = match taken {
        Ok(()) => channel.call(request).await.map_err(|error| Failure::of(error.into(), &named(&flight))),
        Err(error) => Err(Failure::not_taken(BoxError::from(error), &named(&flight))),
    };
    match outcome {
        Ok(answer) => {
            flight.answered();
            (refused(&answer), Ok(answer::tracked(answer, flight)))
        }
        Err(Failure { reach, status, broken }) => {
            flight.ended(status.code());
            if broken {
                flight.demote();
            }
            (Some(Ended::Failed(reach)), Err(status))
        }
    }
}

fn named(flight: &Flight) -> String {
    flight.subchannel().to_string()
}

/// The answer is a status and nothing else: the only kind that gRFC A6 lets a client repeat.
fn refused(answer: &http::Response<Body>) -> Option<Ended> {
    let code = answer::code(answer.headers()).filter(|code| *code != Code::Ok)?;
    Some(Ended::Answered { code, pushback: Pushback::read(answer.headers()) })
}
