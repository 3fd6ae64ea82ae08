//! A TCP proxy that misbehaves on demand, between a client and its store or between members of a cluster.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{Moment, TaskOwner};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::Instant,
};

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// Chunks on their way while they are delayed.
const IN_FLIGHT: usize = 256;

/// Bytes that a throttled connection passes on at once.
const SIP: usize = 1024;

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// Bytes that the client sends.
    ToServer,
    /// Bytes that the server answers.
    ToClient,
    /// Both.
    Both,
}

impl Direction {
    fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// Effect of a proxy on its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Passes everything on.
    #[default]
    Pass,
    /// Nothing arrives any more, and nobody is told: sockets stay open, and what was sent arrives after the mode ends.
    BlackHole(Direction),
    /// Ends connections, and new ones at once.
    Cut,
    /// Resets connections, and new ones at once.
    Reset,
    /// Resets connections; new ones are refused.
    Refuse,
    /// Delays what is sent, each way, by `delay` and up to `jitter` more, in order.
    Delay {
        /// The least delay.
        delay: Duration,
        /// The most that is added to it.
        jitter: Duration,
    },
    /// Passes at most so many bytes a second, each way of each connection.
    Throttle(u32),
    /// Passes so many more bytes of answers on each connection, then resets it.
    CutAfter(u64),
}

/// Modes of connections: by what their first bytes contain, else the general one.
#[derive(Clone, Debug, Default)]
struct Modes {
    general: Mode,
    special: Vec<(Vec<u8>, Mode)>,
    /// Counts the changes, so that byte counts start over.
    generation: u64,
}

/// Events on one connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Connection {
    /// Time at which it was accepted.
    pub opened: Moment,
    /// Bytes passed on to the server.
    pub to_server: u64,
    /// Bytes passed on to the client.
    pub to_client: u64,
    /// `true` if it has ended.
    pub ended: bool,
}

#[derive(Debug)]
struct Entry {
    opened: Moment,
    to_server: AtomicU64,
    to_client: AtomicU64,
    ended: AtomicBool,
}

/// A proxy on a port of the loopback interface. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    modes: watch::Sender<Modes>,
    log: Arc<Mutex<Vec<Arc<Entry>>>>,
    _tasks: TaskOwner,
}

impl Proxy {
    /// A proxy to `target`.
    ///
    /// # Errors
    ///
    /// If no port can be had.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        // Below the range that outgoing connections take theirs from, which could take it while connections are refused.
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::server::free_port())).await;
        for _ in 0..8 {
            if listener.is_err() {
                listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::server::free_port())).await;
            }
        }
        let listener = listener?;
        let address = listener.local_addr()?;
        let modes = watch::Sender::new(Modes::default());
        let log = Arc::<Mutex<Vec<Arc<Entry>>>>::default();
        let tasks = TaskOwner::new();
        let stop = tasks.stop_signal();
        let accepting = accept(listener, address, target, modes.subscribe(), Arc::clone(&log));
        tasks
            .spawn("proxy", async move {
                stop.run_until_cancelled_owned(accepting).await;
            })
            .expect("the caller is in a runtime, and nobody has stopped the owner");
        Ok(Self { address, modes, log, _tasks: tasks })
    }

    /// Address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL to connect to.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the mode of all connections, present and future ones.
    pub fn set(&self, mode: Mode) {
        self.modes.send_modify(|modes| {
            *modes = Modes { general: mode, special: Vec::new(), generation: modes.generation + 1 };
        });
    }

    /// Sets the mode of connections whose first bytes contain `head`; the others keep theirs.
    pub fn set_for(&self, head: impl Into<Vec<u8>>, mode: Mode) {
        self.modes.send_modify(|modes| {
            modes.special.push((head.into(), mode));
            modes.generation += 1;
        });
    }

    /// Ends all connections, and every new one at once, until [`heal`](Self::heal).
    pub fn cut(&self) {
        self.set(Mode::Cut);
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.set(Mode::Pass);
    }

    /// The connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = |entry: &Arc<Entry>| Connection {
            opened: entry.opened,
            to_server: entry.to_server.load(Ordering::Relaxed),
            to_client: entry.to_client.load(Ordering::Relaxed),
            ended: entry.ended.load(Ordering::Relaxed),
        };
        log.iter().map(copy).collect()
    }
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    mut modes: watch::Receiver<Modes>,
    log: Arc<Mutex<Vec<Arc<Entry>>>>,
) {
    let mut listening = Some(listener);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let refuse = modes.borrow_and_update().general == Mode::Refuse;
        if refuse {
            listening = None;
        } else if listening.is_none() {
            listening = TcpListener::bind(address).await.ok();
        }
        tokio::select! {
            accepted = next(listening.as_ref()) => if let Some(client) = accepted {
                let entry = Arc::new(Entry {
                    opened: Moment::now(),
                    to_server: AtomicU64::new(0),
                    to_client: AtomicU64::new(0),
                    ended: AtomicBool::new(false),
                });
                log.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&entry));
                connections.spawn(forward(client, target, modes.clone(), entry));
            },
            Some(_) = connections.join_next() => {}
            changed = modes.changed() => if changed.is_err() {
                return;
            },
            // A port that could not be had back is tried again.
            () = tokio::time::sleep(Duration::from_millis(50)), if !refuse && listening.is_none() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

/// The mode of one connection, which depends on its first bytes once they are known.
#[derive(Clone)]
struct Own {
    modes: watch::Receiver<Modes>,
    head: Arc<std::sync::OnceLock<Vec<u8>>>,
}

impl Own {
    fn mode(&mut self) -> (Mode, u64) {
        let modes = self.modes.borrow_and_update();
        let contains = |needle: &[u8]| {
            self.head.get().is_some_and(|head| head.windows(needle.len()).any(|window| window == needle))
        };
        let special = modes.special.iter().rev().find(|(needle, _)| contains(needle));
        (special.map_or(modes.general, |(_, mode)| *mode), modes.generation)
    }

    /// Waits for a mode that `suits`. Once the proxy is gone it waits for ever.
    async fn until(&mut self, suits: impl Fn(Mode) -> bool) -> Mode {
        loop {
            let (mode, _) = self.mode();
            if suits(mode) {
                return mode;
            }
            if self.modes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Reason for which a connection ends.
enum End {
    Closed,
    Reset,
}

fn is_fatal(mode: Mode) -> bool {
    matches!(mode, Mode::Cut | Mode::Reset | Mode::Refuse)
}

fn end_of(fatal: Mode) -> End {
    if fatal == Mode::Cut { End::Closed } else { End::Reset }
}

/// Copies both ways until one side ends or the mode ends it.
async fn forward(mut client: TcpStream, target: SocketAddr, modes: watch::Receiver<Modes>, entry: Arc<Entry>) {
    let mut own = Own { modes, head: Arc::default() };
    let mut killed = own.clone();
    let copy = async {
        own.until(|mode| !matches!(mode, Mode::BlackHole(_))).await;
        let Ok(mut server) = TcpStream::connect(target).await else {
            return End::Closed;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let outcome = tokio::select! {
            end = pump(from_client, to_server, Direction::ToServer, own.clone(), &entry.to_server) => end,
            end = pump(from_server, to_client, Direction::ToClient, own.clone(), &entry.to_client) => end,
        };
        if matches!(outcome, End::Reset) {
            let _ = server.set_zero_linger();
        }
        outcome
    };
    let end = tokio::select! {
        biased;
        mode = killed.until(is_fatal) => end_of(mode),
        end = copy => end,
    };
    if matches!(end, End::Reset) {
        let _ = client.set_zero_linger();
    }
    entry.ended.store(true, Ordering::Relaxed);
}

/// Passes one direction on as the mode says.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    own: Own,
    passed: &AtomicU64,
) -> End {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let mut reading = own.clone();
    let read = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if direction == Direction::ToServer {
                reading.head.get_or_init(|| buffer[..count].to_vec());
            }
            let delay = match reading.mode().0 {
                Mode::Delay { delay, jitter } => delay + jitter.mul_f64(fastrand::f64()),
                _ => Duration::ZERO,
            };
            if queue.send((Instant::now() + delay, buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
        drop(queue);
        // The writer goes on with what is queued.
        std::future::pending::<End>().await
    };
    let mut writing = own;
    let write = async {
        let mut counted = (0, 0);
        while let Some((due, chunk)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            let mut left = &chunk[..];
            while !left.is_empty() {
                let holds = |mode: Mode| matches!(mode, Mode::BlackHole(blocked) if blocked.covers(direction));
                let mode = writing.until(|mode| !holds(mode)).await;
                if is_fatal(mode) {
                    return end_of(mode);
                }
                let (_, generation) = writing.mode();
                if counted.0 != generation {
                    counted = (generation, 0);
                }
                let (size, wait, end) = match mode {
                    Mode::Throttle(rate) => {
                        let size = left.len().min(SIP);
                        let share = u32::try_from(size).unwrap_or(u32::MAX);
                        (size, Duration::from_secs(1) * share / rate.max(1), false)
                    }
                    Mode::CutAfter(limit) if direction == Direction::ToClient => {
                        let rest = usize::try_from(limit.saturating_sub(counted.1)).unwrap_or(usize::MAX);
                        (left.len().min(rest), Duration::ZERO, rest <= left.len())
                    }
                    _ => (left.len(), Duration::ZERO, false),
                };
                if to.write_all(&left[..size]).await.is_err() {
                    return End::Closed;
                }
                counted.1 += size as u64;
                passed.fetch_add(size as u64, Ordering::Relaxed);
                left = &left[size..];
                if end {
                    return End::Reset;
                }
                tokio::time::sleep(wait).await;
            }
        }
        // What was sent has to arrive before the end does.
        let _ = to.shutdown().await;
        End::Closed
    };
    tokio::select! {
        end = write => end,
        end = read => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers with what it gets.
    async fn echo() -> (SocketAddr, TaskOwner) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = TaskOwner::new();
        let serve = async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        };
        let stop = tasks.stop_signal();
        tasks
            .spawn("echo", async move {
                stop.run_until_cancelled_owned(serve).await;
            })
            .unwrap();
        (address, tasks)
    }

    async fn ask(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn each_mode_does_what_it_says() {
        let (target, _tasks) = echo().await;
        let proxy = Proxy::start(target).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, b"one").await.unwrap(), b"one");

        for blocked in [Direction::ToServer, Direction::ToClient, Direction::Both] {
            proxy.set(Mode::BlackHole(blocked));
            let (waited, ()) = tokio::join!(
                async {
                    let begun = Moment::now();
                    assert_eq!(ask(&mut stream, b"two").await.unwrap(), b"two");
                    begun.elapsed()
                },
                async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    proxy.heal();
                }
            );
            assert!(waited >= Duration::from_millis(100), "{blocked:?}: {waited:?}");
        }

        let delay = Duration::from_millis(50);
        proxy.set(Mode::Delay { delay, jitter: delay });
        let begun = Moment::now();
        assert_eq!(ask(&mut stream, b"three").await.unwrap(), b"three");
        assert!(begun.elapsed() >= 2 * delay);

        proxy.set(Mode::Throttle(20_000));
        let begun = Moment::now();
        assert_eq!(ask(&mut stream, &[7; 4000]).await.unwrap(), [7; 4000]);
        assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());

        proxy.set(Mode::CutAfter(2));
        assert_eq!(ask(&mut stream, b"four").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        proxy.set(Mode::Refuse);
        crate::eventually("refused", || async {
            match TcpStream::connect(proxy.address()).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                other => Err(other),
            }
        })
        .await;
        proxy.heal();
        let connect = || async { TcpStream::connect(proxy.address()).await };
        let mut stream = crate::eventually("back", connect).await;
        assert_eq!(ask(&mut stream, b"five").await.unwrap(), b"five");

        proxy.set_for(*b"special", Mode::Cut);
        assert_eq!(ask(&mut stream, b"five").await.unwrap(), b"five");
        let mut special = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(ask(&mut special, b"special").await.is_err());
        let log = proxy.connections();
        assert!(log.iter().any(|connection| connection.to_client > 4000 && connection.ended));
    }
}
