//! Forwarding of one connection of a proxy: two directions, each with a queue of chunks in transit.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use enlist::Moment;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    time::Instant,
};

use super::modes::{ConnectionMode, Direction, Mode, Modes};

/// Maximum number of bytes of one read.
const CHUNK: usize = 16 << 10;

/// Maximum number of chunks in transit per direction.
const IN_FLIGHT: usize = 256;

/// Maximum number of bytes of one write in [`Mode::Throttle`].
const THROTTLED_WRITE: usize = 1024;

/// Counters of one connection.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) opened: Moment,
    pub(super) to_server: AtomicU64,
    pub(super) to_client: AtomicU64,
    pub(super) ended: AtomicBool,
}

impl Record {
    pub(super) fn new() -> Self {
        let (to_server, to_client, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Self { opened: Moment::now(), to_server, to_client, ended }
    }
}

/// Reason for the end of a connection.
enum ForwardingEnd {
    Closed,
    Reset,
}

impl ForwardingEnd {
    /// Returns the end that `mode` causes, if it ends connections.
    fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Cut => Some(Self::Closed),
            Mode::Reset | Mode::Refuse => Some(Self::Reset),
            _ => None,
        }
    }
}

/// Forwards both directions until one side closes the connection or the mode ends it.
pub(super) async fn forward(mut client: TcpStream, target: SocketAddr, modes: watch::Receiver<Modes>, record: &Record) {
    let mut mode = ConnectionMode::new(modes);
    let mut ending = mode.clone();
    let both = async {
        mode.until(|mode| !matches!(mode, Mode::BlackHole(_))).await;
        let Ok(mut server) = TcpStream::connect(target).await else {
            return ForwardingEnd::Closed;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let end = tokio::select! {
            end = pump(from_client, to_server, Direction::ToServer, mode.clone(), &record.to_server) => end,
            end = pump(from_server, to_client, Direction::ToClient, mode.clone(), &record.to_client) => end,
        };
        if matches!(end, ForwardingEnd::Reset) {
            let _ = server.set_zero_linger();
        }
        end
    };
    let end = tokio::select! {
        biased;
        mode = ending.until(|mode| ForwardingEnd::of(mode).is_some()) => {
            ForwardingEnd::of(mode).unwrap_or(ForwardingEnd::Closed)
        }
        end = both => end,
    };
    if matches!(end, ForwardingEnd::Reset) {
        let _ = client.set_zero_linger();
    }
    record.ended.store(true, Ordering::Relaxed);
}

/// Forwards one direction according to the mode.
async fn pump(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    direction: Direction,
    mode: ConnectionMode,
    forwarded: &AtomicU64,
) -> ForwardingEnd {
    let (queue, queued) = mpsc::channel(IN_FLIGHT);
    let writer = Writer { to, direction, mode: mode.clone(), forwarded, since_change: (0, 0) };
    tokio::select! {
        end = writer.run(queued) => end,
        () = read(from, direction, mode, queue) => ForwardingEnd::Closed,
    }
}

/// A chunk of bytes, and the earliest time at which it is written.
type Chunk = (Instant, Vec<u8>);

/// Reads into the queue. Never returns, because the writer ends the direction after the last chunk.
async fn read(
    mut from: impl AsyncRead + Unpin,
    direction: Direction,
    mut mode: ConnectionMode,
    queue: mpsc::Sender<Chunk>,
) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if direction == Direction::ToServer {
            mode.set_head(&buffer[..count]);
        }
        let delay = match mode.get().0 {
            Mode::Delay { delay, jitter } => delay + jitter.mul_f64(fastrand::f64()),
            _ => Duration::ZERO,
        };
        if queue.send((Instant::now() + delay, buffer[..count].to_vec())).await.is_err() {
            break;
        }
    }
    drop(queue);
    std::future::pending::<()>().await;
}

/// Writing half of one direction.
struct Writer<'a, W> {
    to: W,
    direction: Direction,
    mode: ConnectionMode,
    forwarded: &'a AtomicU64,
    /// Number of changes of modes, and the bytes written since the last one.
    since_change: (u64, u64),
}

/// One write: its size, the pause after it, and the end of the connection that follows.
#[derive(Debug, PartialEq)]
struct Write {
    size: usize,
    pause: Duration,
    last: bool,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    async fn run(mut self, mut queued: mpsc::Receiver<Chunk>) -> ForwardingEnd {
        while let Some((due, chunk)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            if let Err(end) = self.write(&chunk).await {
                return end;
            }
        }
        // The bytes have to arrive before the end does.
        let _ = self.to.shutdown().await;
        ForwardingEnd::Closed
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<(), ForwardingEnd> {
        let mut remaining = chunk;
        while !remaining.is_empty() {
            let direction = self.direction;
            let holds = |mode: Mode| matches!(mode, Mode::BlackHole(blocked) if blocked.covers(direction));
            let mode = self.mode.until(|mode| !holds(mode)).await;
            if let Some(end) = ForwardingEnd::of(mode) {
                return Err(end);
            }
            let (_, generation) = self.mode.get();
            if self.since_change.0 != generation {
                self.since_change = (generation, 0);
            }
            let Write { size, pause, last } = next_write(mode, direction, remaining.len(), self.since_change.1);
            self.to.write_all(&remaining[..size]).await.map_err(|_| ForwardingEnd::Closed)?;
            self.since_change.1 += size as u64;
            self.forwarded.fetch_add(size as u64, Ordering::Relaxed);
            remaining = &remaining[size..];
            if last {
                return Err(ForwardingEnd::Reset);
            }
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}

/// Returns the next write of `remaining` bytes, after `written` bytes since the mode was set.
fn next_write(mode: Mode, direction: Direction, remaining: usize, written: u64) -> Write {
    match mode {
        Mode::Throttle(rate) => {
            let size = remaining.min(THROTTLED_WRITE);
            let bytes = u32::try_from(size).unwrap_or(u32::MAX);
            Write { size, pause: Duration::from_secs(1) * bytes / rate.max(1), last: false }
        }
        Mode::CutAfter(limit) if direction == Direction::ToClient => {
            let rest = usize::try_from(limit.saturating_sub(written)).unwrap_or(usize::MAX);
            Write { size: remaining.min(rest), pause: Duration::ZERO, last: rest <= remaining }
        }
        _ => Write { size: remaining, pause: Duration::ZERO, last: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttled_direction_pauses_after_each_write() {
        let write = next_write(Mode::Throttle(512), Direction::ToServer, 4096, 0);
        assert_eq!(write, Write { size: 1024, pause: Duration::from_secs(2), last: false });
    }

    #[test]
    fn only_answers_count_towards_a_cut() {
        let write = |direction, written| next_write(Mode::CutAfter(10), direction, 8, written);
        assert_eq!(write(Direction::ToClient, 0), Write { size: 8, pause: Duration::ZERO, last: false });
        assert_eq!(write(Direction::ToClient, 8), Write { size: 2, pause: Duration::ZERO, last: true });
        assert_eq!(write(Direction::ToServer, 8), Write { size: 8, pause: Duration::ZERO, last: false });
    }
}
