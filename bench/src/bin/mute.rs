//! A server that accepts every connection, sends the HTTP/2 preface, and nothing else: the peer of a channel to many
//! instances, in a process of its own because of the limit of open files. It prints its port, and ends when its input
//! is closed.

use enlist_bench::{measure::Result, world::most_files};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// SETTINGS without a setting (RFC 9113, section 6.5).
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    most_files()?;
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    println!("{}", listener.local_addr()?.port());
    let mut connections = JoinSet::new();
    let mut input = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(hold(accepted?.0));
            }
            Some(_) = connections.join_next() => {}
            _ = &mut input => {
                // Neither side cleans up.
                std::process::exit(0);
            }
        }
    }
}

async fn hold(mut connection: TcpStream) -> std::io::Result<()> {
    connection.write_all(&SETTINGS).await?;
    tokio::io::copy(&mut connection, &mut tokio::io::sink()).await?;
    Ok(())
}
