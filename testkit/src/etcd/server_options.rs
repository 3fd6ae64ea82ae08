//! Options of an etcd server for tests.

use std::path::PathBuf;

/// Options of a server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Additional arguments for `etcd`.
    pub arguments: Vec<String>,
    /// Serve TLS on a port of its own, in addition to plain text.
    pub tls: bool,
    /// The `etcd` that a local process runs; `None` for that of the environment.
    pub binary: Option<PathBuf>,
}

impl ServerOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds arguments for `etcd`.
    #[must_use]
    pub fn arguments<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Serves TLS in addition to plain text. The certificates are given as arguments.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Runs this `etcd`, whatever the environment names. Only for local processes.
    #[must_use]
    pub fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = Some(binary.into());
        self
    }
}
