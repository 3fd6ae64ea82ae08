//! One connection to one instance: dialled once, and observed until its end.
//!
//! tonic's channel reports an endpoint that refuses connections as ready, and dials again by itself. The connector here
//! works once. When the connection is gone, the [subchannel](crate::subchannel) dials a new one after its own backoff.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use enlist::backend::FrameVisibility;
use http::Uri;
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint as Settings};
use tower::service_fn;

use crate::{
    retry::failure::BoxError,
    subchannel::{
        connections::{
            monitored_stream::{Pulse, connect_once},
            shared_channel::{ReadyChannel, SharedChannel},
            transport::Opened,
        },
        liveness::probe_request::wait_for_response,
    },
};

/// Maximum number of calls on a connection over TLS, whose server's limit is not visible, while further connections may
/// be made. RFC 9113 (section 6.5.2) recommends that no server allows fewer.
const UNSEEN_STREAMS: usize = 100;

/// Admission of a call to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Begun,
    /// The connection has no stream for the call.
    Full,
}

/// A connection, which may have ended since.
pub(crate) struct Connection {
    channel: SharedChannel,
    pulse: Arc<Pulse>,
    /// Calls that were begun over it and have not ended.
    calls: AtomicUsize,
    /// Calls that have no stream yet and wait in hyper, if the server's limit is not visible.
    unopened: AtomicUsize,
    /// Streams other than calls: a health stream.
    others: AtomicUsize,
    /// Its last call has ended.
    quiet: Notify,
    /// A probe was requested.
    doubted: Notify,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("pulse", &self.pulse).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects over the stream that `opened` yields. The connection takes calls once the server has sent its first
    /// frame: a stopped process accepts connections and stays silent. Over TLS any response to a health check is
    /// required instead.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub(crate) async fn dial(opened: Opened, settings: &Settings) -> Result<Self, BoxError> {
        let is_tls = settings.uri().scheme_str() == Some("https");
        let frames = if is_tls { FrameVisibility::Encrypted } else { FrameVisibility::Visible };
        let pulse = Arc::new(Pulse::new(frames));
        let channel = {
            let mut once = Some((opened, Arc::clone(&pulse)));
            let connector = service_fn(move |_: Uri| connect_once(once.take()));
            settings.connect_with_connector(connector).await?
        };
        let heard = async {
            if frames == FrameVisibility::Visible {
                pulse.heard.cancelled().await;
                return Ok(());
            }
            // A handshake may be that of a proxy that terminates TLS.
            wait_for_response(channel.clone()).await.map_err(|failure| BoxError::from(failure.status))
        };
        tokio::select! {
            heard = heard => heard?,
            () = pulse.lost.cancelled() => return Err("closed before the server said anything".into()),
        }
        let channel = SharedChannel::new(channel);
        let [calls, unopened, others] = [0; 3].map(AtomicUsize::new);
        Ok(Self { channel, pulse, calls, unopened, others, quiet: Notify::new(), doubted: Notify::new() })
    }

    /// The channel over this connection alone.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.cloned()
    }

    /// The channel with room for one call; `None` if it has none now.
    pub(crate) fn ready_now(&self) -> Option<ReadyChannel<'_>> {
        self.channel.ready_now()
    }

    /// Number of reads so far. While it does not change, nothing was received.
    pub(crate) fn reads(&self) -> u64 {
        self.pulse.reads.load(Ordering::Relaxed)
    }

    /// Number of calls over the connection that have not ended.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    /// Begins a call, if there is a stream for it.
    pub(crate) fn begin(&self) -> Admission {
        let room = self.room();
        let begun =
            self.calls.fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| (calls < room).then_some(calls + 1));
        if begun.is_ok() { Admission::Begun } else { Admission::Full }
    }

    /// Begins a call beyond the room of the connection.
    pub(crate) fn begin_anyway(&self) {
        self.calls.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that a call that was begun has ended.
    pub(crate) fn end(&self) {
        if self.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quiet.notify_one();
        }
    }

    /// Returns `true` if there is a stream for another call.
    pub(crate) fn has_room(&self) -> bool {
        self.calls() < self.room()
    }

    /// Returns `true` if the server's frames are not visible: the connection is encrypted.
    pub(crate) fn is_opaque(&self) -> bool {
        self.pulse.frames == FrameVisibility::Encrypted
    }

    /// Returns `true` if calls beyond the room of the connection are allowed: the server's limit is unknown, and few
    /// calls wait for a stream.
    pub(crate) fn may_overflow(&self) -> bool {
        self.is_opaque() && self.unopened.load(Ordering::Relaxed) < UNSEEN_STREAMS
    }

    /// Notes a call that has no stream yet.
    pub(crate) fn hand_over(&self) {
        self.unopened.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a call has its stream, or has ended.
    pub(crate) fn opened(&self) {
        self.unopened.fetch_sub(1, Ordering::Relaxed);
    }

    /// Maximum number of calls at a time.
    fn room(&self) -> usize {
        if self.pulse.frames == FrameVisibility::Encrypted {
            return UNSEEN_STREAMS;
        }
        let streams = usize::try_from(self.pulse.max_streams.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        // A health stream may occupy the only one: calls then need a further connection.
        streams.saturating_sub(self.others.load(Ordering::Relaxed))
    }

    /// Returns `true` if the server takes calls on connections like this one.
    pub(crate) fn takes_streams(&self) -> bool {
        self.pulse.max_streams.load(Ordering::Acquire) > 0
    }

    /// Notes a stream other than a call, for as long as the connection lasts.
    pub(crate) fn occupy(&self) {
        self.others.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the server changes its limit of streams.
    pub(crate) async fn restated(&self) {
        self.pulse.restated.notified().await;
    }

    /// Waits until no call is in flight.
    pub(crate) async fn quiet(&self) {
        while self.calls() > 0 {
            self.quiet.notified().await;
        }
    }

    /// Marks the connection as taking no more calls.
    pub(crate) fn spend(&self) {
        self.pulse.spent.cancel();
    }

    /// Waits until the connection takes no more calls.
    pub(crate) async fn spent(&self) {
        self.pulse.spent.cancelled().await;
    }

    /// Requests a probe.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Waits for the request of a probe.
    pub(crate) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// The error that ended the connection, if it is known.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.pulse.cause.get().map(String::as_str)
    }

    /// Returns `true` if the connection is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.pulse.lost.is_cancelled()
    }

    /// Waits until the connection is gone.
    pub(crate) async fn lost(&self) {
        self.pulse.lost.cancelled().await;
    }

    /// Ends the connection. Its calls fail.
    pub(crate) fn cut(&self) {
        self.pulse.cut.store(true, Ordering::Release);
        self.pulse.reader.wake();
    }
}
