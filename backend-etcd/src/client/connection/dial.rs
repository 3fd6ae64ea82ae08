//! Dialling: opens one connection, to the first member that answers.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use enlist::{
    backend::{FrameVisibility, JoinedWrites, rounded},
    with_causes,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::uri::Scheme;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{net::TcpStream, time::Instant};
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, Service};

use crate::{
    client::connection::{dial_settings::DialSettings, members::Members, tls::TlsFiles},
    error::text_cause,
};

/// Delay before the next member is dialled concurrently.
const CONCURRENT_DIAL_DELAY: Duration = Duration::from_millis(500);

/// Dials each member once, in order, beginning with the one at `first`. The next dial starts as soon as one has failed,
/// and concurrently with a slow one. Returns the first connection and the index of its member.
pub(crate) async fn dial(members: &Members, first: usize) -> Result<(usize, Channel), enlist::Cause> {
    let Members::Urls { urls, tls, settings, connect_timeout } = members else {
        return Err(text_cause("this channel is not dialled"));
    };
    let mut left = (0..urls.len()).map(|step| first.wrapping_add(step) % urls.len());
    let mut dials = FuturesUnordered::new();
    let mut last = text_cause("no endpoint is configured");
    let mut due = Instant::now();
    loop {
        tokio::select! {
            Some((at, dialled)) = dials.next() => match dialled {
                Ok(channel) => return Ok((at, channel)),
                Err(cause) => {
                    tracing::debug!(endpoint = %urls[at].uri(), %cause, "endpoint not reached");
                    (last, due) = (cause, Instant::now());
                }
            },
            () = tokio::time::sleep_until(due), if left.len() > 0 => {
                let at = left.next().unwrap_or_default();
                let dial = dial_one(&urls[at], tls.as_ref(), settings.as_ref(), *connect_timeout);
                dials.push(dial.map(move |dialled| (at, dialled)));
                due = Instant::now() + CONCURRENT_DIAL_DELAY;
            }
            else => return Err(last),
        }
    }
}

async fn dial_one(
    url: &Endpoint,
    tls: Option<&TlsFiles>,
    settings: Option<&DialSettings>,
    limit: Duration,
) -> Result<Channel, enlist::Cause> {
    let connect = async {
        let endpoint = match tls {
            Some(files) => files.apply(url.clone()).await?,
            None => url.clone(),
        };
        let endpoint = match settings {
            Some(settings) => settings.apply(endpoint)?,
            None => endpoint,
        };
        let connector = SingleUse { connector: Some(tcp_connector(&endpoint, limit)), frames: frames(&endpoint) };
        let dialled = endpoint.connect_with_connector(connector);
        dialled.await.map_err(|error| text_cause(format!("{}: {}", url.uri(), with_causes(&error))))
    };
    let dialled = tokio::time::timeout(limit, connect).await;
    dialled.unwrap_or_else(|_| Err(text_cause(format!("{}: no connection within {}", url.uri(), rounded(limit)))))
}

/// Returns the visibility of the frames to the stream below TLS.
fn frames(url: &Endpoint) -> FrameVisibility {
    if url.uri().scheme() == Some(&Scheme::HTTPS) { FrameVisibility::Encrypted } else { FrameVisibility::Visible }
}

/// Creates a connector with the TCP settings that tonic exposes.
fn tcp_connector(settings: &Endpoint, limit: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    // TLS is added on top of it.
    connector.enforce_http(false);
    connector.set_nodelay(settings.get_tcp_nodelay());
    connector.set_keepalive(settings.get_tcp_keepalive());
    connector.set_keepalive_interval(settings.get_tcp_keepalive_interval());
    connector.set_keepalive_retries(settings.get_tcp_keepalive_retries());
    connector.set_connect_timeout(Some(settings.get_connect_timeout().map_or(limit, |own| own.min(limit))));
    connector
}

/// Connects once. tonic's own connector would reconnect by itself, with the TLS files as they were at its creation.
struct SingleUse {
    connector: Option<HttpConnector>,
    frames: FrameVisibility,
}

impl Service<http::Uri> for SingleUse {
    type Response = TokioIo<JoinedWrites<TcpStream>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.connector {
            Some(connector) => connector.poll_ready(context).map_err(Into::into),
            None => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, url: http::Uri) -> Self::Future {
        let Some(mut connector) = self.connector.take() else {
            return Box::pin(std::future::ready(Err("the connection ended".into())));
        };
        let frames = self.frames;
        Box::pin(async move {
            let stream = connector.call(url).await?.into_inner();
            Ok(TokioIo::new(JoinedWrites::new(stream, frames)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{pin::Pin, task::Waker};
    use tokio::{io::AsyncWrite, net::TcpListener};

    /// Header of a frame with the head of a request that has a body.
    const HEAD: [u8; 9] = [0, 0, 0, 1, 4, 0, 0, 0, 1];

    #[tokio::test]
    async fn the_head_of_a_request_waits_for_its_body() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (scheme, waits) in [("http", true), ("https", false)] {
            let url = Endpoint::from_shared(format!("{scheme}://{}", listener.local_addr().unwrap())).unwrap();
            let connector = Some(tcp_connector(&url, Duration::from_secs(10)));
            let mut connector = SingleUse { connector, frames: frames(&url) };
            let mut stream = connector.call(url.uri().clone()).await.unwrap().into_inner();
            let write = Pin::new(&mut stream).poll_write(&mut Context::from_waker(Waker::noop()), &HEAD);
            assert_eq!(write.is_pending(), waits, "{scheme}");
        }
    }
}
