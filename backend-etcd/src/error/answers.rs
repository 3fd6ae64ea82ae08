//! Answers of etcd, of TLS and of the system to a diagnosis, classified by their texts.
//!
//! Those of etcd are in its `api/v3rpc/rpctypes/error.go`, and are the same in 3.4, 3.5, 3.6 and 3.7.

use std::error::Error as _;

use enlist::with_causes;
use etcd_client::Error;

use crate::diagnose::finding::{AuthFault, EndpointFault};

/// Origin of a failed request's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Not etcd: the connection, or another program at its other end.
    NotEtcd,
    /// etcd, which accepts no request.
    Refusal(AuthFault),
    /// etcd, and the user may not do this.
    Denied,
    /// etcd, with another answer.
    Other,
}

impl Answer {
    /// Returns the reason for which no request is accepted, if the answer contains it.
    pub(crate) fn auth_fault(self) -> AuthFault {
        match self {
            Self::Refusal(fault) => fault,
            Self::NotEtcd | Self::Denied | Self::Other => AuthFault::Other,
        }
    }
}

/// Classifies the failure of a request.
pub(crate) fn answer(error: &Error) -> Answer {
    match error {
        // A status that was received has no source in this process.
        Error::GRpcStatus(status) if status.source().is_none() => answer_of(status.message()),
        Error::WatchError(reason) => answer_of(reason),
        _ => Answer::NotEtcd,
    }
}

fn answer_of(text: &str) -> Answer {
    let has = |part: &str| text.contains(part);
    if has("user name is empty") {
        Answer::Refusal(AuthFault::UserRequired)
    } else if has("authentication failed") || has("invalid auth token") {
        Answer::Refusal(AuthFault::WrongUser)
    } else if has("authentication is not enabled") {
        Answer::Refusal(AuthFault::AuthenticationOff)
    } else if has("permission denied") {
        Answer::Denied
    } else if has("etcdserver: ") {
        Answer::Other
    } else {
        Answer::NotEtcd
    }
}

/// Text of an error and of its causes.
pub(crate) fn text(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => super::text_of(status),
        other => with_causes(other).to_string(),
    }
}

/// Classifies the failure to open a connection.
pub(crate) fn dial_fault(text: &str) -> EndpointFault {
    if text.contains("lookup address") { EndpointFault::UnknownHost } else { EndpointFault::NotReachable }
}

/// Classifies the failure of a request over TLS, on a connection that was opened.
pub(crate) fn tls_fault(text: &str) -> EndpointFault {
    let has = |part: &str| text.contains(part);
    if !speaks_tls(text) {
        EndpointFault::NoTls
    } else if has("UnknownIssuer") {
        EndpointFault::UntrustedCertificate
    } else if has("NotValidForName") {
        EndpointFault::WrongName
    } else if has("Expired") {
        EndpointFault::ExpiredCertificate
    } else if has("fatal alert") || has("operation was canceled") || has("broken pipe") || is_reset(text) {
        EndpointFault::ClosedAfterHandshake
    } else {
        EndpointFault::Tls
    }
}

/// Returns `true` if the other end reset the connection.
pub(crate) fn is_reset(text: &str) -> bool {
    text.contains("reset")
}

/// Classifies the failure of a request without TLS, by the outcome of the same request over TLS.
pub(crate) fn plain_fault(over_tls: Result<(), String>) -> EndpointFault {
    let speaks_tls = over_tls.map_or_else(|text| speaks_tls(&text), |()| true);
    if speaks_tls { EndpointFault::TlsExpected } else { EndpointFault::NotEtcd }
}

/// Returns `false` if a failed request over TLS shows that its other end speaks something else.
fn speaks_tls(text: &str) -> bool {
    !["InvalidContentType", "handshake eof", "no answer"].iter().any(|part| text.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As each of 3.4.23, 3.5.30 and 3.6.10 answers.
    #[test]
    fn each_answer_of_etcd_has_its_meaning() {
        for (text, expected) in [
            ("etcdserver: user name is empty", Answer::Refusal(AuthFault::UserRequired)),
            ("etcdserver: authentication failed, invalid user ID or password", Answer::Refusal(AuthFault::WrongUser)),
            ("etcdserver: authentication is not enabled", Answer::Refusal(AuthFault::AuthenticationOff)),
            ("etcdserver: invalid auth token", Answer::Refusal(AuthFault::WrongUser)),
            ("etcdserver: permission denied", Answer::Denied),
            ("etcdserver: request timed out", Answer::Other),
            ("etcdserver: no leader", Answer::Other),
            ("etcdserver: rpc not supported for learner", Answer::Other),
            ("grpc-status header missing, mapped from HTTP status code 404", Answer::NotEtcd),
        ] {
            assert_eq!(answer_of(text), expected, "{text}");
        }
    }

    /// As tonic 0.14.9 with rustls 0.23 says it.
    #[test]
    fn each_failure_of_a_connection_has_its_fault() {
        use EndpointFault as F;
        for (text, fault) in [
            ("tls handshake eof: transport error", F::NoTls),
            ("received corrupt message of type InvalidContentType: transport error", F::NoTls),
            ("invalid peer certificate: UnknownIssuer: transport error", F::UntrustedCertificate),
            ("invalid peer certificate: NotValidForName", F::WrongName),
            ("invalid peer certificate: Expired", F::ExpiredCertificate),
            ("operation was canceled: transport error: connection closed", F::ClosedAfterHandshake),
            ("transport error: connection error: received fatal alert: BadCertificate", F::ClosedAfterHandshake),
            ("transport error", F::Tls),
        ] {
            assert_eq!(tls_fault(text), fault, "{text}");
        }
        for (over_tls, fault) in [
            (Ok(()), F::TlsExpected),
            (Err("invalid peer certificate: UnknownIssuer"), F::TlsExpected),
            (Err("operation was canceled: transport error: connection closed"), F::TlsExpected),
            (Err("received corrupt message of type InvalidContentType: transport error"), F::NotEtcd),
            (Err("tls handshake eof: transport error"), F::NotEtcd),
            (Err("no answer"), F::NotEtcd),
        ] {
            assert_eq!(plain_fault(over_tls.map_err(str::to_owned)), fault, "{over_tls:?}");
        }
        assert_eq!(dial_fault("Connection refused (os error 111)"), F::NotReachable);
        assert_eq!(dial_fault("failed to lookup address information"), F::UnknownHost);
    }
}
