//! Answers of etcd, of TLS and of the system to a diagnosis, classified by the meanings of their texts.

use std::error::Error as _;

use enlist::with_causes;
use etcd_client::Error;

use super::texts::{LinkText, Text, quotes_etcd};
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
    match Text::of(text) {
        Some(Text::NoUser) => Answer::Refusal(AuthFault::UserRequired),
        Some(Text::WrongUser | Text::InvalidToken) => Answer::Refusal(AuthFault::WrongUser),
        Some(Text::AuthOff) => Answer::Refusal(AuthFault::AuthenticationOff),
        Some(Text::Denied) => Answer::Denied,
        _ if quotes_etcd(text) => Answer::Other,
        _ => Answer::NotEtcd,
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
    if LinkText::of(text) == Some(LinkText::UnknownHost) {
        EndpointFault::UnknownHost
    } else {
        EndpointFault::NotReachable
    }
}

/// Classifies the failure of a request over TLS, on a connection that was opened.
pub(crate) fn tls_fault(text: &str) -> EndpointFault {
    match LinkText::of(text) {
        Some(LinkText::NoTls) => EndpointFault::NoTls,
        Some(LinkText::UnknownIssuer) => EndpointFault::UntrustedCertificate,
        Some(LinkText::NotValidForName) => EndpointFault::WrongName,
        Some(LinkText::ExpiredCertificate) => EndpointFault::ExpiredCertificate,
        Some(LinkText::Reset | LinkText::Closed) => EndpointFault::ClosedAfterHandshake,
        Some(LinkText::UnknownHost) | None => EndpointFault::Tls,
    }
}

/// Returns `true` if the other end reset the connection.
pub(crate) fn is_reset(text: &str) -> bool {
    LinkText::of(text) == Some(LinkText::Reset)
}

/// Classifies the failure of a request without TLS, by the outcome of the same request over TLS.
pub(crate) fn plain_fault(over_tls: Result<(), String>) -> EndpointFault {
    match over_tls {
        Err(text) if LinkText::of(&text) == Some(LinkText::NoTls) => EndpointFault::NotEtcd,
        Ok(()) | Err(_) => EndpointFault::TlsExpected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_answers_are_not_those_of_etcd() {
        assert_eq!(answer_of("grpc-status header missing, mapped from HTTP status code 404"), Answer::NotEtcd);
        assert_eq!(answer_of("grpc: received message larger than max (3 vs. 2097152)"), Answer::NotEtcd);
    }

    #[test]
    fn only_received_texts_are_answers() {
        let denied = "etcdserver: permission denied";
        let received = tonic::Status::unknown(denied);
        let mut own = received.clone();
        own.set_source(std::sync::Arc::from(Box::<dyn std::error::Error + Send + Sync>::from("of this process")));
        assert_eq!(answer(&Error::GRpcStatus(received)), Answer::Denied);
        assert_eq!(answer(&Error::WatchError(denied.to_owned())), Answer::Denied);
        assert_eq!(answer(&Error::GRpcStatus(own.clone())), Answer::NotEtcd);
        assert_eq!(answer(&Error::InvalidArgs(denied.to_owned())), Answer::NotEtcd);
        assert_eq!(text(&Error::GRpcStatus(own)), "etcdserver: permission denied: of this process");
        assert!(text(&Error::InvalidArgs("no key".to_owned())).contains("no key"));
    }

    #[test]
    fn only_the_texts_of_resets_are_resets() {
        assert!(is_reset("connection error: Connection reset by peer (os error 104)"));
        assert!(!is_reset("operation was canceled: transport error: connection closed"));
        assert!(!is_reset("transport error"));
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
