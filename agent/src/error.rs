//! Errors of the agent.

use std::{io, net::SocketAddr, path::PathBuf};

/// An error that prevents the agent from serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// Reason of the operating system.
        #[source]
        source: io::Error,
    },
    /// Programs on other hosts could reach the address, and nothing restricts its use.
    #[error("{address} can be reached from other hosts: configure TLS or a token, or permit it as insecure")]
    Exposed {
        /// The configured address.
        address: SocketAddr,
    },
    /// A file with a secret cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Reason of the operating system.
        #[source]
        source: io::Error,
    },
    /// A token is empty or contains characters that no HTTP header can carry.
    #[error("a token consists of visible ASCII characters, and has at least one")]
    InvalidToken,
    /// A certificate or key cannot be used.
    #[error("the certificate or key for TLS cannot be used")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A listener of Envoy refers to a service by a name that no service can have, or exists twice.
    #[error("listener {listener:?} of Envoy: {reason}")]
    InvalidListener {
        /// Name of the listener.
        listener: String,
        /// The fault.
        reason: &'static str,
    },
    /// An option has a value that the agent cannot use.
    #[error("option {option}: {reason}")]
    InvalidOption {
        /// Name of the option.
        option: &'static str,
        /// The fault.
        reason: &'static str,
    },
}
