//! The request of a probe: a health check, to which any response will do.

use std::{
    future::{pending, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, transport::Channel};
use tower::Service;

use crate::retry::failure::{Attempted, BoxError, Failure, Reach};

/// Method of the health check (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), and a request for
/// the whole server: an empty message.
const METHOD: &str = "/grpc.health.v1.Health/Check";
pub(crate) const REQUEST: &[u8] = &[0; 5];

/// A request without a message, which ends with an error. An upload that is not read may have used up the window of the
/// whole connection (RFC 9113, section 6.9): only a request without data reaches the server then.
pub(crate) const HEAD_ONLY: &[u8] = &[];

/// Waits for any response of the server.
///
/// # Errors
///
/// If no response can arrive any more.
pub(crate) async fn wait_for_response(channel: Channel) -> Result<(), Failure> {
    ask(channel, REQUEST, CancellationToken::new()).await
}

/// Sends the probe. `opened` is cancelled once it has a stream.
pub(crate) async fn ask(
    mut channel: Channel,
    message: &'static [u8],
    opened: CancellationToken,
) -> Result<(), Failure> {
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
        // The timeout of the user's settings does not apply to probes.
        Err(Failure { reach: Reach::OutOfTime, .. }) => pending().await,
        Err(failure) if failure.broken => Err(failure),
        // A server that resets this stream has responded.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Body of a probe. hyper reads a body only once its stream is open, so the first read marks the opening.
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
