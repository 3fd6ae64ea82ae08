//! The lookup of a name in DNS, by the system's resolver or by another one.

use std::{fmt, io, net::SocketAddr};

use async_trait::async_trait;

/// Looks names up. Implemented for the system's resolver; implement it for another one, which may know how long an
/// answer holds.
#[async_trait]
pub trait Lookup: fmt::Debug + Send + Sync + 'static {
    /// The addresses of `host`, with `port`.
    ///
    /// Signature: `async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>`.
    ///
    /// # Errors
    ///
    /// If there was no answer, or the name does not exist: the last known addresses are kept.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has to be harmless.
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}
