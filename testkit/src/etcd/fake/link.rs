//! Connections of one client to the scripted etcd, and faults of its network.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use enlist::backend::MutexExt as _;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tonic::transport::{Channel, Endpoint};

use crate::faults::modes::Direction;

/// Maximum number of bytes in flight per direction of a pipe.
const PIPE: usize = 1 << 20;

/// Link of a client to the scripted etcd. Clones are the same link.
#[derive(Clone, Debug)]
pub struct Link {
    channel: Channel,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of cuts. A pipe with a smaller number is broken.
    cuts: u64,
    refuses: bool,
    stalled: Option<Direction>,
    /// Number of connections that are not broken.
    open: usize,
    /// Number of connections that were broken, refused or held back.
    disturbed: usize,
    /// Tasks that wait for a change of the state.
    waiting: Vec<Waker>,
}

impl Link {
    pub(super) fn new(pipes: mpsc::Sender<DuplexStream>) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let of_pipes = Arc::clone(&state);
        let dial = tower::service_fn(move |_| {
            let (pipes, state) = (pipes.clone(), Arc::clone(&of_pipes));
            async move {
                let cuts = {
                    let mut state = locked(&state);
                    if state.refuses {
                        state.disturbed += 1;
                        return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                    }
                    state.cuts
                };
                let (ours, theirs) = tokio::io::duplex(PIPE);
                pipes.send(theirs).await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(Pipe::open(ours, cuts, state)))
            }
        });
        Self { channel: Endpoint::from_static("http://fake.etcd").connect_with_connector_lazy(dial), state }
    }

    /// Returns the channel, for `Etcd::from_channel`. It reconnects by itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Breaks all present connections.
    pub fn cut(&self) {
        self.change(|state| {
            state.cuts += 1;
            state.disturbed += std::mem::take(&mut state.open);
        });
    }

    /// Refuses new connections until [`accept_connections`](Self::accept_connections).
    pub fn refuse_connections(&self) {
        self.change(|state| state.refuses = true);
    }

    /// Accepts new connections again.
    pub fn accept_connections(&self) {
        self.change(|state| state.refuses = false);
    }

    /// Holds back the bytes of this direction, until the next call. No byte is lost.
    pub fn stall(&self, direction: Option<Direction>) {
        self.change(|state| {
            state.stalled = direction;
            state.disturbed += if direction.is_some() { state.open } else { 0 };
        });
    }

    /// Returns the number of connections so far that a fault broke, refused, or held back from its start.
    pub fn disturbed(&self) -> usize {
        locked(&self.state).disturbed
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = locked(&self.state);
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.locked()
}

/// Client end of a connection.
struct Pipe {
    inner: DuplexStream,
    cuts: u64,
    state: Arc<Mutex<State>>,
}

impl Pipe {
    fn open(inner: DuplexStream, cuts: u64, state: Arc<Mutex<State>>) -> Self {
        {
            let mut state = locked(&state);
            state.open += usize::from(state.cuts == cuts);
        }
        Self { inner, cuts, state }
    }

    /// Returns `Ready` if bytes may pass. The task is woken when that may have changed, also if it is ready.
    fn poll_open(&self, cx: &Context<'_>, direction: Direction) -> Poll<io::Result<()>> {
        let mut state = locked(&self.state);
        if state.cuts != self.cuts {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        match state.stalled {
            Some(stalled) if stalled == direction || stalled == Direction::Both => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut state = locked(&self.state);
        if state.cuts == self.cuts {
            state.open -= 1;
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.poll_open(cx, Direction::ToClient) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_read(cx, buffer),
            other => other,
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_open(cx, Direction::ToServer) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.inner).poll_write(cx, bytes),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
