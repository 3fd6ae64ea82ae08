//! A check, without sending anything, whether a connection takes calls. The frames of a connection over TLS are not
//! visible here, but hyper and h2 know of a GOAWAY.

use std::{future::poll_fn, time::Duration};

use http::{Method, header::CONTENT_LENGTH};
use tokio::time::timeout;
use tonic::body::Body;
use tower::Service as _;

use crate::{
    retry::failure::{BoxError, is_invalid_request},
    subchannel::connections::connection::Connection,
};

/// Readiness of a connection for calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceptance {
    Yes,
    /// It has ended, or the server sent GOAWAY.
    No,
    /// No answer came in time: a `concurrency_limit` of the settings is reached.
    Unknown,
}

/// Asks hyper for a request that HTTP/2 does not allow: CONNECT with a body. hyper reads requests only while h2 takes
/// streams, and refuses this one itself. A version that sent it would receive an error from any server, and a response
/// is a `Yes` as well.
///
/// # Cancel safety
///
/// Dropping the future has no effect.
pub(crate) async fn takes_calls(connection: &Connection, limit: Duration) -> Acceptance {
    match timeout(limit, ask(connection)).await {
        Ok(Ok(())) => Acceptance::Yes,
        Ok(Err(error)) if is_invalid_request(&*error) => Acceptance::Yes,
        Ok(Err(_)) => Acceptance::No,
        Err(_) => Acceptance::Unknown,
    }
}

async fn ask(connection: &Connection) -> Result<(), BoxError> {
    let mut channel = connection.channel();
    poll_fn(|cx| channel.poll_ready(cx)).await?;
    let invalid = http::Request::builder().method(Method::CONNECT).header(CONTENT_LENGTH, 1).body(Body::empty())?;
    channel.call(invalid).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subchannel::{
        connections::transport::{Opened, Stream},
        liveness::probe_request::wait_for_response,
    };
    use bytes::Bytes;
    use std::pin::pin;
    use tokio::io::{DuplexStream, duplex};
    use tonic::transport::Endpoint;

    const SECOND: Duration = Duration::from_secs(1);

    async fn connected() -> (Connection, h2::server::Connection<DuplexStream, Bytes>) {
        let (client, server) = duplex(64 << 10);
        let opened: Opened = Box::pin(async { Ok(Box::new(client) as Box<dyn Stream>) });
        let settings = Endpoint::from_static("http://h:1");
        let (connection, server) = tokio::join!(Connection::dial(opened, &settings), h2::server::handshake(server));
        (connection.unwrap(), server.unwrap())
    }

    #[tokio::test]
    async fn a_check_sends_nothing() {
        let (connection, mut server) = connected().await;
        let checked = async {
            for _ in 0..3 {
                assert_eq!(takes_calls(&connection, SECOND).await, Acceptance::Yes);
            }
            wait_for_response(connection.channel()).await
        };
        tokio::select! {
            response = checked => panic!("the server sends none: {response:?}"),
            first = server.accept() => {
                let (request, _) = first.unwrap().unwrap();
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check", "a request that was not a check");
            }
        }
    }

    #[tokio::test]
    async fn a_goaway_ends_the_acceptance() {
        let (connection, mut server) = connected().await;
        // Without a stream the client would close the connection.
        let mut stream = pin!(wait_for_response(connection.channel()));
        let _held = tokio::select! {
            response = &mut stream => panic!("the server sends none: {response:?}"),
            accepted = server.accept() => accepted.unwrap().unwrap(),
        };
        server.graceful_shutdown();
        tokio::select! {
            // Visible frames report it, too.
            () = connection.spent() => {}
            response = &mut stream => panic!("the server sends none: {response:?}"),
            closed = poll_fn(|cx| server.poll_closed(cx)) => panic!("the client is connected: {closed:?}"),
        }
        assert_eq!(takes_calls(&connection, SECOND).await, Acceptance::No);
    }
}
