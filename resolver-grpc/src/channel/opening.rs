//! A request body that notes the opening of its stream, for connections whose server's limit is not visible. hyper
//! reads a body only once its stream is open, so the first read marks the opening. Until then the call waits in hyper.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};

use crate::subchannel::connections::connection::Connection;

/// The body of a call over `connection`, which counts it as unopened until it is read or dropped.
pub(crate) fn opening(body: Body, connection: &Arc<Connection>) -> Body {
    if !connection.is_opaque() {
        return body;
    }
    connection.hand_over();
    Body::new(Opening { body, unopened: Some(Arc::clone(connection)) })
}

struct Opening {
    body: Body,
    unopened: Option<Arc<Connection>>,
}

impl Opening {
    fn opened(&mut self) {
        if let Some(connection) = self.unopened.take() {
            connection.opened();
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.opened();
    }
}

impl http_body::Body for Opening {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.opened();
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
