//! The meaning of what etcd, TLS and the system say: the only place of the command that looks at texts.
//!
//! Those of etcd are in its `api/v3rpc/rpctypes/error.go`, and are the same in 3.4, 3.5, 3.6 and 3.7.

use std::error::Error as _;

use etcd_client::Error;

/// What is wrong, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) detail: String,
    pub(super) advice: &'static str,
}

impl Cause {
    fn new(detail: impl Into<String>, advice: &'static str) -> Self {
        Self { detail: detail.into(), advice }
    }
}

/// What a failed request says about the way to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// No answer of etcd's: the connection, or what is at its other end.
    NotReached,
    /// etcd answers, and wants a user.
    UserWanted,
    /// etcd answers, and does not know the user, or knows another password.
    UserRefused,
    /// etcd answers, and has no users.
    UsersOff,
    /// etcd answers, and the user may not do this.
    Denied,
    /// etcd answers something else.
    Answered,
}

pub(super) fn meaning(error: &Error) -> Meaning {
    match error {
        // What came over the wire has no source in this process.
        Error::GRpcStatus(status) if status.source().is_none() => meaning_of(status.message()),
        Error::WatchError(reason) => meaning_of(reason),
        _ => Meaning::NotReached,
    }
}

fn meaning_of(text: &str) -> Meaning {
    let has = |part: &str| text.contains(part);
    if has("user name is empty") {
        Meaning::UserWanted
    } else if has("authentication failed") || has("invalid auth token") {
        Meaning::UserRefused
    } else if has("authentication is not enabled") {
        Meaning::UsersOff
    } else if has("permission denied") {
        Meaning::Denied
    } else if has("etcdserver: ") {
        Meaning::Answered
    } else {
        Meaning::NotReached
    }
}

/// The text of an error and of what caused it.
pub(super) fn text(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => {
            let mut texts = vec![status.message().to_owned()];
            let mut source = status.source();
            while let Some(cause) = source {
                let said = cause.to_string();
                if !texts.iter().any(|known| known.contains(&said)) {
                    texts.push(said);
                }
                source = cause.source();
            }
            texts.join(": ")
        }
        other => enlist::error::with_causes(other).to_string(),
    }
}

/// The cause of a connection that cannot be opened.
pub(super) fn of_dialling(text: &str) -> Cause {
    let advice = if text.contains("lookup address") {
        "correct --endpoints, or see whether the name is known here"
    } else {
        "start etcd there, or correct --endpoints"
    };
    Cause::new(text, advice)
}

/// The cause of silence.
pub(super) fn of_silence(limit: std::time::Duration) -> Cause {
    Cause::new(format!("no answer within {limit:?}"), "look for a firewall, or correct --endpoints")
}

/// The cause of a failed request over TLS, on a connection that was opened.
pub(super) fn of_tls(text: &str) -> Cause {
    let has = |part: &str| text.contains(part);
    if !speaks_tls(text) {
        Cause::new(format!("no TLS is spoken there ({text})"), "use http://, or have etcd serve TLS")
    } else if has("UnknownIssuer") {
        Cause::new(text, "give the authority that signed its certificate as --cacert")
    } else if has("NotValidForName") {
        Cause::new(text, "use a name that its certificate has")
    } else if has("Expired") {
        Cause::new(text, "renew the certificate of etcd")
    } else if has("fatal alert") || has("operation was canceled") || has("broken pipe") || has("reset") {
        Cause::new(
            format!("the connection is ended after the handshake ({text})"),
            "etcd may want a certificate: give --cert and --key",
        )
    } else {
        Cause::new(text, "check --cacert, --cert and --key")
    }
}

/// The cause of a failed request without TLS, by what the same request over TLS says.
pub(super) fn of_plain(text: &str, over_tls: Result<(), String>) -> Cause {
    if over_tls.map_or_else(|text| speaks_tls(&text), |()| true) {
        Cause::new(format!("TLS is spoken there ({text})"), "use https://")
    } else {
        let detail = format!("etcd's protocol is not spoken there ({text})");
        Cause::new(detail, "is this another program's port? correct --endpoints")
    }
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
            ("etcdserver: user name is empty", Meaning::UserWanted),
            ("etcdserver: authentication failed, invalid user ID or password", Meaning::UserRefused),
            ("etcdserver: authentication is not enabled", Meaning::UsersOff),
            ("etcdserver: invalid auth token", Meaning::UserRefused),
            ("etcdserver: permission denied", Meaning::Denied),
            ("etcdserver: request timed out", Meaning::Answered),
            ("etcdserver: no leader", Meaning::Answered),
            ("etcdserver: rpc not supported for learner", Meaning::Answered),
            ("grpc-status header missing, mapped from HTTP status code 404", Meaning::NotReached),
        ] {
            assert_eq!(meaning_of(text), expected, "{text}");
        }
    }

    /// As tonic 0.14.9 with rustls 0.23 says it.
    #[test]
    fn each_failure_of_a_connection_has_its_cause() {
        for (text, part) in [
            ("tls handshake eof: transport error", "no TLS"),
            ("received corrupt message of type InvalidContentType: transport error", "no TLS"),
            ("invalid peer certificate: UnknownIssuer: transport error", "UnknownIssuer"),
            ("operation was canceled: transport error: connection closed", "after the handshake"),
            ("transport error: connection error: received fatal alert: BadCertificate", "after the handshake"),
        ] {
            let cause = of_tls(text);
            assert!(cause.detail.contains(part), "{cause:?}");
        }
        let broken = "transport error: connection error: stream closed because of a broken pipe";
        for (over_tls, advice) in [
            (Ok(()), "https"),
            (Err("invalid peer certificate: UnknownIssuer"), "https"),
            (Err("operation was canceled: transport error: connection closed"), "https"),
            (Err("received corrupt message of type InvalidContentType: transport error"), "another program"),
            (Err("tls handshake eof: transport error"), "another program"),
        ] {
            let cause = of_plain(broken, over_tls.map_err(str::to_owned));
            assert!(cause.advice.contains(advice), "{over_tls:?}: {cause:?}");
        }
        assert!(of_dialling("Connection refused (os error 111)").advice.contains("start etcd"));
    }
}
