//! Errors of this crate's own transport. They are found among the causes of a status.

use std::{error::Error as StdError, fmt};

use enlist::Cause;

/// Failure to reach any endpoint. Nothing was sent.
#[derive(Clone, Debug)]
pub(crate) struct DialError(pub(crate) Cause);

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no endpoint could be reached")
    }
}

impl StdError for DialError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// Answer of a proxy instead of a member: the answer of a member has the HTTP status 200.
#[derive(Debug)]
pub(crate) struct Proxied {
    pub(crate) url: Option<http::Uri>,
    pub(crate) status: http::StatusCode,
}

impl Proxied {
    /// Returns `true` for the status of a proxy that has no member behind it, or too many requests.
    pub(crate) fn refuses(status: http::StatusCode) -> bool {
        use http::StatusCode as S;
        matches!(status, S::TOO_MANY_REQUESTS | S::BAD_GATEWAY | S::SERVICE_UNAVAILABLE | S::GATEWAY_TIMEOUT)
    }
}

impl fmt::Display for Proxied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.url {
            Some(url) => write!(f, "a proxy at {url} answered {}", self.status),
            None => write!(f, "a proxy answered {}", self.status),
        }
    }
}

impl StdError for Proxied {}
