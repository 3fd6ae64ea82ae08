//! One call: its attempts, each sent to an instance.
//!
//! The first attempt is sent without waiting and kept in a small future, so that a call over a ready channel costs as
//! much as over tonic's own. A call that has to wait continues in a boxed future.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderName, request::Parts};
use tonic::{Code, Status, body::Body, transport::channel};
use tower::Service;

use crate::{
    channel::{
        in_flight::InFlightCall,
        inner::{CallHead, ChannelInner, Tracing},
        kept_head::KeptHead,
        response,
    },
    retry::{
        deadline::{Deadline, Expiry},
        failure::{Attempted, BoxError, Failure, Reach},
        policy::{Attempts, Ended, Pushback, TakenRetry},
        replay::Replay,
        status,
    },
    subchannel::subchannel::Subchannel,
    trace::span::CallSpan,
};

/// Number of attempts that were made before this one (gRFC A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

type Outcome = Result<http::Response<Body>, Status>;

/// Future of the response to a call.
pub struct ResponseFuture(State);

enum State {
    /// The first attempt is under way.
    First { sending: Sending, call: Option<Box<Call>> },
    /// The call waits, or has further attempts.
    Later(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl ResponseFuture {
    /// Begins a call.
    pub(crate) fn begin(inner: &Arc<ChannelInner>, request: http::Request<Body>) -> Self {
        if inner.intercept.is_some() || inner.tracing == Tracing::On {
            let inner = Arc::clone(inner);
            return Self(State::Later(Box::pin(async move { prepared(inner, request).await })));
        }
        let (mut head, body) = request.into_parts();
        let deadline = Deadline::of(&head.headers);
        let (mut call, body) = Call::begin(Arc::clone(inner), KeptHead::of(&mut head), body, deadline, None);
        match call.send_now(http::Request::from_parts(head, body)) {
            Ok(sending) => Self(State::First { sending, call: Some(call) }),
            Err(body) => Self(State::Later(Box::pin(async move { call.go_on(body).await }))),
        }
    }
}

impl Future for ResponseFuture {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            match &mut self.0 {
                State::Later(later) => return later.as_mut().poll(cx),
                State::First { sending, call } => {
                    let sent = ready!(Pin::new(sending).poll(cx));
                    let Some(mut call) = call.take() else { return Poll::Ready(Err(polled_again())) };
                    match call.judge(sent) {
                        Verdict::Done(outcome) => return Poll::Ready(outcome),
                        Verdict::Again { delay, body } => {
                            self.0 = State::Later(Box::pin(async move {
                                tokio::time::sleep(delay).await;
                                call.go_on(body).await
                            }));
                        }
                    }
                }
            }
        }
    }
}

/// A call with an interceptor or a span.
async fn prepared(inner: Arc<ChannelInner>, request: http::Request<Body>) -> Outcome {
    let (mut head, body) = request.into_parts();
    let deadline = Deadline::of(&head.headers);
    if inner.tracing == Tracing::Off {
        let deadline = intercepted(&inner, &mut head, deadline).await?;
        let (mut call, body) = Call::begin(inner, KeptHead::of(&mut head), body, deadline, None);
        return call.go_on(body).await;
    }
    let span = CallSpan::begin(inner.view.service(), &head);
    let deadline = match span.scope().run(intercepted(&inner, &mut head, deadline)).await {
        Ok(deadline) => deadline,
        Err(refused) => return span.follow(Err::<http::Response<Body>, _>(refused)).map(boxed),
    };
    span.inject(&mut head);
    let in_span = span.scope();
    let (mut call, body) = Call::begin(inner, KeptHead::of(&mut head), body, deadline, Some(span));
    let outcome = in_span.run(call.go_on(body)).await;
    match call.span {
        Some(span) => span.follow(outcome).map(boxed),
        None => outcome,
    }
}

/// Lets the interceptor change the head of a call, and so its deadline.
async fn intercepted(inner: &ChannelInner, head: &mut Parts, deadline: Deadline) -> Result<Deadline, Status> {
    let Some(intercept) = &inner.intercept else {
        return Ok(deadline);
    };
    let Parts { uri, headers, .. } = &mut *head;
    let before = intercept.before(CallHead { service: inner.view.service(), path: uri.path(), headers });
    deadline.bound(before).await.ok_or_else(|| Status::deadline_exceeded("the interceptor took too long"))??;
    let deadline = deadline.sooner(Deadline::of(&head.headers));
    deadline.set_header(&mut head.headers);
    Ok(deadline)
}

/// A call and its attempts so far.
struct Call {
    inner: Arc<ChannelInner>,
    head: KeptHead,
    replay: Replay,
    deadline: Deadline,
    attempts: Attempts,
    tried: Vec<Arc<Subchannel>>,
    span: Option<CallSpan>,
}

/// End of an attempt that could be repeated, and its target.
type FailedAttempt = (Ended, Arc<Subchannel>);

/// Consequence of the end of an attempt.
enum Verdict {
    Done(Outcome),
    /// Another attempt, after a delay, with its body.
    Again {
        delay: Duration,
        body: Body,
    },
}

impl Call {
    /// A call, and the body of its first attempt.
    fn begin(
        inner: Arc<ChannelInner>,
        head: KeptHead,
        body: Body,
        deadline: Deadline,
        span: Option<CallSpan>,
    ) -> (Box<Self>, Body) {
        inner.retries.deposit();
        let (replay, body) = Replay::begin(body, inner.replay_limit, deadline);
        let attempts = Attempts::new(inner.retries.policy(head.path()));
        (Box::new(Self { inner, head, replay, deadline, attempts, tried: Vec::new(), span }), body)
    }

    /// The first attempt, if it can be sent without waiting; else its body.
    fn send_now(&mut self, request: http::Request<Body>) -> Result<Sending, Body> {
        let Some(in_flight) = self.inner.choose_now(&self.head) else {
            return Err(request.into_body());
        };
        let Some(channel) = in_flight.connection().ready_now() else {
            in_flight.unused();
            return Err(request.into_body());
        };
        let response = channel.call(request.map(|body| in_flight.carry(body)));
        Ok(self.sending(in_flight, response))
    }

    /// All further attempts; `body` is that of the next one.
    async fn go_on(&mut self, mut body: Body) -> Outcome {
        loop {
            let in_flight = self.inner.choose(&self.head, &self.tried, &self.deadline).await?;
            // Time has passed since the caller set it.
            self.deadline.set_header(self.head.headers_mut());
            let mut channel = in_flight.connection().channel();
            let room = self.deadline.bound(poll_fn(|cx| channel.poll_ready(cx))).await;
            let sent = match room {
                Some(Ok(())) => {
                    let response = channel.call(self.request(&in_flight, body));
                    self.sending(in_flight, response).await
                }
                Some(Err(error)) => Sent { in_flight, response: Err(NoResponse::NotTaken(error.into())) },
                None => Sent { in_flight, response: Err(NoResponse::Late) },
            };
            match self.judge(sent) {
                Verdict::Done(outcome) => return outcome,
                Verdict::Again { delay, body: next } => {
                    tokio::time::sleep(delay).await;
                    body = next;
                }
            }
        }
    }

    /// The request of an attempt.
    fn request(&mut self, in_flight: &InFlightCall, body: Body) -> http::Request<Body> {
        if let Some(span) = &mut self.span {
            span.called(in_flight.subchannel().endpoint());
        }
        let mut request = self.head.request(in_flight.carry(body));
        if self.attempts.sent() > 0 {
            request.headers_mut().insert(PREVIOUS_ATTEMPTS, self.attempts.sent().into());
        }
        request
    }

    fn sending(&self, in_flight: InFlightCall, response: channel::ResponseFuture) -> Sending {
        Sending { in_flight: Some(in_flight), response, expiry: self.deadline.expiry() }
    }

    /// Decides about another attempt. Without one the call is committed, which frees the kept part of its request.
    fn judge(&mut self, sent: Sent) -> Verdict {
        let Sent { mut in_flight, response } = sent;
        let (ended, outcome) = match response {
            Ok((response, expiry)) => {
                in_flight.responded();
                let only_status = status::only_status(&response);
                let ended = only_status.and_then(|code| refused(code, &response));
                let ended = ended.map(|ended| (ended, Arc::clone(in_flight.subchannel())));
                (ended, response::tracked(response, only_status, in_flight, self.deadline, expiry))
            }
            Err(no_response) => self.failed(in_flight, no_response),
        };
        if let Some((delay, body)) = ended.and_then(|(ended, target)| self.again(ended, target)) {
            return Verdict::Again { delay, body };
        }
        self.replay.commit();
        Verdict::Done(outcome)
    }

    fn failed(&self, in_flight: InFlightCall, no_response: NoResponse) -> (Option<FailedAttempt>, Outcome) {
        if let Some(own_error) = self.replay.own_error() {
            in_flight.unused();
            return (None, Err(own_error));
        }
        let target = Arc::clone(in_flight.subchannel());
        let instance = target.to_string();
        let attempted = Attempted { is_begun: self.replay.is_begun(), is_late: self.deadline.is_past() };
        let Failure { reach, status, broken } = match no_response {
            NoResponse::NotTaken(error) => Failure::not_taken(error, &instance),
            NoResponse::Late => Failure::late(&instance),
            NoResponse::Lost(error) => Failure::of(error, &instance, attempted),
        };
        // A call that was late before it was sent is no evidence against the instance.
        if attempted.is_begun || reach != Reach::OutOfTime {
            in_flight.ended(status.code());
        }
        if broken {
            in_flight.demote();
        }
        if !attempted.is_begun {
            // Nor is silence evidence against the connection.
            in_flight.unused();
        }
        (Some((Ended::Failed { reach, code: status.code() }, target)), Err(status))
    }

    /// The delay before another attempt, and its body. `target` received the attempt that has ended.
    fn again(&mut self, ended: Ended, target: Arc<Subchannel>) -> Option<(Duration, Body)> {
        if !self.replay.is_replayable() {
            return None;
        }
        let delay = self.attempts.again(ended).filter(|delay| self.deadline.allows(*delay))?;
        if self.inner.retries.take_retry() == TakenRetry::Exhausted {
            return None;
        }
        // Before the delay: the connection of the ended attempt may still read its body.
        let body = self.replay.attempt()?;
        tracing::debug!(?ended, ?delay, "call tried again");
        self.tried.push(target);
        Some((delay, body))
    }
}

/// One attempt under way.
struct Sending {
    in_flight: Option<InFlightCall>,
    response: channel::ResponseFuture,
    expiry: Expiry,
}

/// An attempt and its outcome.
struct Sent {
    in_flight: InFlightCall,
    response: Result<(http::Response<Body>, Expiry), NoResponse>,
}

/// Reasons for an attempt without a response.
enum NoResponse {
    /// The connection takes no more calls.
    NotTaken(BoxError),
    /// The deadline of the call came first.
    Late,
    Lost(BoxError),
}

impl Future for Sending {
    type Output = Sent;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Sent> {
        let response = match Pin::new(&mut self.response).poll(cx) {
            Poll::Ready(Ok(response)) => Ok((response, std::mem::take(&mut self.expiry))),
            Poll::Ready(Err(error)) => Err(NoResponse::Lost(error.into())),
            Poll::Pending => {
                ready!(self.expiry.poll(cx));
                Err(NoResponse::Late)
            }
        };
        match self.in_flight.take() {
            Some(in_flight) => Poll::Ready(Sent { in_flight, response }),
            None => Poll::Pending,
        }
    }
}

/// The end of an attempt whose response is `code` and nothing else.
fn refused(code: Code, response: &http::Response<Body>) -> Option<Ended> {
    (code != Code::Ok).then(|| Ended::Responded { code, pushback: Pushback::read(response.headers()) })
}

/// A response with the body type of tonic.
fn boxed<B>(response: http::Response<B>) -> http::Response<Body>
where
    B: http_body::Body<Data = bytes::Bytes, Error = Status> + Send + 'static,
{
    response.map(Body::new)
}

fn polled_again() -> Status {
    Status::internal("polled after its end")
}
