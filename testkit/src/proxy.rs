//! A TCP proxy between a client and its store, which can be cut and healed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use enlist::TaskOwner;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A proxy on a free port of the loopback interface. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    cut: watch::Sender<bool>,
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let cut = watch::Sender::new(false);
        let tasks = TaskOwner::new();
        let (stop, state) = (tasks.stop_signal(), cut.subscribe());
        let accept = async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        connections.spawn(forward(client, target, state.clone()));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        };
        tasks
            .spawn("proxy", async move {
                stop.run_until_cancelled_owned(accept).await;
            })
            .expect("the caller is in a runtime, and nobody has stopped the owner");
        Ok(Self { address, cut, _tasks: tasks })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and every new one at once, until [`heal`](Self::heal).
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets connections through again.
    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

/// Copies both ways until one side ends or the proxy is cut.
async fn forward(mut client: TcpStream, target: SocketAddr, mut cut: watch::Receiver<bool>) {
    let copy = async {
        if let Ok(mut server) = TcpStream::connect(target).await {
            // A connection that ends in an error has ended.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    };
    tokio::select! {
        biased;
        // An error means that the proxy is gone.
        _ = cut.wait_for(|cut| *cut) => {}
        () = copy => {}
    }
}
