//! Connections of one client to the fake, and what a network does to them.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tonic::transport::{Channel, Endpoint};

use crate::faults::modes::Direction;

/// Bytes in flight per direction of a pipe.
const PIPE: usize = 1 << 20;

/// A client's own way to the fake. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Link {
    channel: Channel,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the cuts: a pipe of an earlier count is broken.
    cuts: u64,
    refuses: bool,
    stalled: Option<Direction>,
    /// What waits in a pipe for the state to change.
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
                    let state = locked(&state);
                    if state.refuses {
                        return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                    }
                    state.cuts
                };
                let (ours, theirs) = tokio::io::duplex(PIPE);
                pipes.send(theirs).await.map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(Pipe { inner: ours, cuts, state }))
            }
        });
        Self { channel: Endpoint::from_static("http://fake.etcd").connect_with_connector_lazy(dial), state }
    }

    /// The channel, for `Etcd::from_channel`. It dials again by itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Breaks the connections that there are.
    pub fn cut(&self) {
        self.change(|state| state.cuts += 1);
    }

    /// Refuses new connections, or takes them again.
    pub fn refuse(&self, refuses: bool) {
        self.change(|state| state.refuses = refuses);
    }

    /// Holds back what goes in this direction until the direction is another; nothing is lost.
    pub fn stall(&self, direction: Option<Direction>) {
        self.change(|state| state.stalled = direction);
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
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client's end of a connection.
struct Pipe {
    inner: DuplexStream,
    cuts: u64,
    state: Arc<Mutex<State>>,
}

impl Pipe {
    /// Whether bytes may pass. The task is woken when that may have changed, also where they may.
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
