//! The request of a probe: a health check, to which any answer will do.

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

/// The method that is asked (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), and a request without
/// a service: a message without a byte.
const METHOD: &str = "/grpc.health.v1.Health/Check";
pub(super) const REQUEST: &[u8] = &[0; 5];

/// A request without even a message, which is answered with an error. An upload that is not read may have taken the
/// window of the whole connection (RFC 9113, section 6.9): only a request without data reaches the server then.
pub(super) const HEAD_ONLY: &[u8] = &[];

/// Waits until the server answers, with whatever it is.
///
/// # Errors
///
/// If no answer can come any more.
pub(crate) async fn wait_for_response(channel: Channel) -> Result<(), Failure> {
    ask(channel, REQUEST, CancellationToken::new()).await
}

/// Sends the probe; `opened` tells that it has a stream.
pub(super) async fn ask(
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
        // The settings' own timeout is none of a probe's.
        Err(Failure { reach: Reach::OutOfTime, .. }) => pending().await,
        Err(failure) if failure.broken => Err(failure),
        // A server that ends this one stream has answered, too.
        Ok(_) | Err(_) => Ok(()),
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
