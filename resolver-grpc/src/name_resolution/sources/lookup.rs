//! Lookup of names in DNS, by the system's resolver or another one.

use std::{fmt, io, net::SocketAddr};

use async_trait::async_trait;

/// Looks up names. Implemented for the system's resolver. Implement it for another one, for instance one that respects
/// the lifetime of answers.
#[async_trait]
pub trait Lookup: fmt::Debug + Send + Sync + 'static {
    /// The addresses of `host`, with `port`.
    ///
    /// Signature: `async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>`.
    ///
    /// # Errors
    ///
    /// If there was no answer, or the name does not exist. The last known addresses are kept.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future must have no effect.
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}
