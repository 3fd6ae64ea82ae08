//! A TCP proxy that misbehaves on demand, between a client and its store or between members of a cluster.
//!
//! `modes.rs` lists the faults, `forwarding.rs` applies them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use enlist::{Moment, TaskOwner, backend::MutexExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    forwarding::{Record, forward},
    modes::{Mode, Modes},
};
use crate::ports::free_port;

/// Record of one connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxyConnection {
    /// Time at which the proxy accepted it.
    pub opened: Moment,
    /// Bytes forwarded to the server.
    pub to_server: u64,
    /// Bytes forwarded to the client.
    pub to_client: u64,
    /// `true` if the connection has ended.
    pub ended: bool,
}

/// A proxy on a port of the loopback interface. Dropping it ends the proxy and its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    modes: watch::Sender<Modes>,
    log: Arc<Mutex<Vec<Arc<Record>>>>,
    _tasks: TaskOwner,
}

impl Proxy {
    /// Starts a proxy to `target`.
    ///
    /// # Errors
    ///
    /// If no port is free.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        // Below the range of outgoing connections, which could take the port while connections are refused.
        let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).await;
        for _ in 0..8 {
            if listener.is_err() {
                listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).await;
            }
        }
        let listener = listener?;
        let address = listener.local_addr()?;
        let modes = watch::Sender::new(Modes::default());
        let log = Arc::<Mutex<Vec<Arc<Record>>>>::default();
        let tasks = TaskOwner::new();
        let stop = tasks.stop_signal();
        let accepting = accept(listener, address, target, modes.subscribe(), Arc::clone(&log));
        tasks
            .spawn("proxy", async move {
                stop.run_until_cancelled_owned(accepting).await;
            })
            .expect("the caller is in a runtime, and the owner is not stopped yet");
        Ok(Self { address, modes, log, _tasks: tasks })
    }

    /// Returns the address of the proxy.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of the proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the mode of all present and future connections.
    pub fn set(&self, mode: Mode) {
        self.modes.send_modify(|modes| {
            *modes = Modes { general: mode, special: Vec::new(), generation: modes.generation + 1 };
        });
    }

    /// Sets the mode of connections whose first bytes contain `head`. The others keep theirs.
    pub fn set_for(&self, head: impl Into<Vec<u8>>, mode: Mode) {
        self.modes.send_modify(|modes| {
            modes.special.push((head.into(), mode));
            modes.generation += 1;
        });
    }

    /// Ends all connections, and new ones at once, until [`heal`](Self::heal).
    pub fn cut(&self) {
        self.set(Mode::Cut);
    }

    /// Forwards everything again.
    pub fn heal(&self) {
        self.set(Mode::Pass);
    }

    /// Returns the connections so far.
    pub fn connections(&self) -> Vec<ProxyConnection> {
        let log = self.log.locked();
        let copy = |entry: &Arc<Record>| ProxyConnection {
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
    log: Arc<Mutex<Vec<Arc<Record>>>>,
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
                let entry = Arc::new(Record::new());
                log.locked().push(Arc::clone(&entry));
                let modes = modes.clone();
                connections.spawn(async move { forward(client, target, modes, &entry).await });
            },
            Some(_) = connections.join_next() => {}
            changed = modes.changed() => if changed.is_err() {
                return;
            },
            // A port that is in use is tried again.
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::faults::modes::Direction;

    /// Starts a server that answers with the bytes that it receives.
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
