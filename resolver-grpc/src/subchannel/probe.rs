//! A sign of life, asked for over a connection with a health check; any answer will do. A probe that has to wait for its
//! turn, because all streams of the connection are taken, says nothing about the other side.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, transport::Channel};
use tower::Service;

use crate::{
    retry::failure::{Attempted, BoxError, Failure, Reach},
    subchannel::connection::Connection,
};

/// The method that is asked (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), and a request without a service:
/// a message without a byte.
const METHOD: &str = "/grpc.health.v1.Health/Check";
const REQUEST: &[u8] = &[0; 5];

/// A request without even a message, which is answered with an error. An upload that is not read may have taken the window of the
/// whole connection (RFC 9113, section 6.9): only a request without data reaches the server then.
const NO_REQUEST: &[u8] = &[];

/// Result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// Something was heard from the other side.
    Alive,
    /// The probe could not be sent, which is no evidence of anything.
    Unsent,
    /// The connection takes no calls any more: it is gone, or the server said GOAWAY.
    Refused,
    /// The probe was sent, and nothing at all was heard.
    Silent,
}

/// Asks for a sign of life. The probe may take `limit` to be sent and `limit` to be answered.
///
/// # Cancel safety
///
/// Dropping the future takes the probe back.
pub(crate) async fn probe(connection: &Connection, limit: Duration) -> ProbeOutcome {
    let (before, opened) = (connection.reads(), CancellationToken::new());
    let message = if connection.calls() > 0 { NO_REQUEST } else { REQUEST };
    let mut answer = pin!(ask(connection.channel(), message, opened.clone()));
    let answer = tokio::select! {
        answer = &mut answer => Some(answer),
        () = opened.cancelled() => timeout(limit, &mut answer).await.ok(),
        () = sleep(limit) => None,
    };
    let refused = matches!(answer, Some(Err(Failure { reach: Reach::NeverLeft, broken: true, .. })));
    judge(connection.reads() != before, opened.is_cancelled(), refused)
}

/// Waits until the server answers, with whatever it is.
///
/// # Errors
///
/// If no answer can come any more.
pub(crate) async fn answered(channel: Channel) -> Result<(), Failure> {
    ask(channel, REQUEST, CancellationToken::new()).await
}

/// Sends the probe; `opened` tells that it has a stream.
async fn ask(mut channel: Channel, message: &'static [u8], opened: CancellationToken) -> Result<(), Failure> {
    let sent = opened.clone();
    let failed =
        |error: BoxError| Failure::of(error, "probed", Attempted { is_begun: sent.is_cancelled(), is_late: false });
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(|error| failed(error.into()))?;
    let request = http::Request::post(METHOD)
        .header(http::header::TE, "trailers")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .body(Body::new(ProbeBody { message: Some(Bytes::from_static(message)), opened }))
        .map_err(|error| failed(error.into()))?;
    match channel.call(request).await.map_err(|error| failed(error.into())) {
        // The settings' own timeout is none of a probe's.
        Err(Failure { reach: Reach::OutOfTime, .. }) => pending().await,
        Err(failure) if failure.broken => Err(failure),
        // A server that ends this one stream has answered, too.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn judge(heard: bool, opened: bool, refused: bool) -> ProbeOutcome {
    match () {
        () if refused => ProbeOutcome::Refused,
        () if heard => ProbeOutcome::Alive,
        () if opened => ProbeOutcome::Silent,
        () => ProbeOutcome::Unsent,
    }
}

/// The request of a probe. hyper reads a body only once its stream is open, so the first read tells that.
struct ProbeBody {
    message: Option<Bytes>,
    opened: CancellationToken,
}

impl http_body::Body for ProbeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.opened.cancel();
        Poll::Ready(self.message.take().map(|message| Ok(Frame::data(message))))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_probe_that_was_sent_speaks_against_a_connection() {
        assert_eq!(judge(false, true, false), ProbeOutcome::Silent);
        assert_eq!(judge(false, false, false), ProbeOutcome::Unsent);
        for opened in [false, true] {
            assert_eq!(judge(true, opened, false), ProbeOutcome::Alive);
            assert_eq!(judge(true, opened, true), ProbeOutcome::Refused);
        }
    }
}
