//! Mapping of the errors of etcd and its client to [`Error`]. Only this folder reads their codes and texts.
//!
//! Codes are ambiguous (`OutOfRange` has four meanings, `Unknown` is a dead connection), so a failure is classified by
//! code, text and source together. `texts.rs` has the texts.
//!
//! Read this file first, from [`Failure`] to [`classify`]. `answers.rs` is for diagnoses only, and `transport.rs` has
//! the errors of this crate's own transport.

pub(crate) mod answers;
pub(crate) mod transport;

mod texts;

use std::{error::Error as StdError, fmt, sync::Arc};

use enlist::{Cause, Error, escape::escaped, with_causes};
use tonic::{Code, Status};

use self::{
    texts::{Text, is_of_etcd},
    transport::{DialError, Proxied},
};

/// Meaning of a failed request.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It was never sent. Every request may be repeated.
    NeverSent(Cause),
    /// It may have been sent and applied.
    Lost(Cause),
    /// The member cannot serve at present: it has no leader or no quorum, it is about to stop, or a proxy has no member
    /// behind it. Another member may. The request may have been applied.
    Leaderless(Cause),
    /// The member does not serve the request: it is a learner, or overloaded. Another member may. The request was not
    /// applied.
    Unfit(Cause),
    /// The token has to be renewed. The request was not applied.
    StaleAuthToken(Cause),
    /// A user is required, and the request had none. It was not applied. If a user is configured, this counts as a
    /// stale token: authentication was enabled just now.
    NoUser(Cause),
    /// The lease is unknown. The request was not applied.
    LeaseNotFound,
    /// There is a lease with this id already. The request was not applied.
    LeaseExists,
    /// The requested history has been compacted.
    Compacted,
    /// The requested revision is ahead of the store.
    FutureRevision,
    /// The response is larger than the limit of this client. A request for less may succeed.
    AnswerTooLarge(Cause),
    /// The role does not allow it. The request was not applied.
    Denied,
    /// It cannot succeed until something changes. The request was not applied.
    Final(Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverSent(cause)
            | Self::Lost(cause)
            | Self::Leaderless(cause)
            | Self::Unfit(cause)
            | Self::StaleAuthToken(cause)
            | Self::NoUser(cause)
            | Self::AnswerTooLarge(cause) => with_causes(&**cause).fmt(f),
            Self::LeaseNotFound => f.write_str("lease not found"),
            Self::LeaseExists => f.write_str("lease already exists"),
            Self::Compacted => f.write_str("history compacted"),
            Self::FutureRevision => f.write_str("revision ahead of the store"),
            Self::Denied => f.write_str("permission denied"),
            Self::Final(error) => with_causes(error).fmt(f),
        }
    }
}

impl Failure {
    /// Returns the failure with the endpoint in its cause, unless the cause names it already.
    pub(crate) fn at(self, endpoint: Option<&http::Uri>) -> Self {
        let Some(endpoint) = endpoint.map(ToString::to_string) else {
            return self;
        };
        let there = |cause: Cause| {
            let text = with_causes(&*cause).to_string();
            if text.contains(&endpoint) { cause } else { text_cause(format!("{endpoint}: {text}")) }
        };
        match self {
            Self::NeverSent(cause) => Self::NeverSent(there(cause)),
            Self::Lost(cause) => Self::Lost(there(cause)),
            Self::Leaderless(cause) => Self::Leaderless(there(cause)),
            Self::Unfit(cause) => Self::Unfit(there(cause)),
            Self::StaleAuthToken(cause) => Self::StaleAuthToken(there(cause)),
            Self::NoUser(cause) => Self::NoUser(there(cause)),
            Self::AnswerTooLarge(cause) => Self::AnswerTooLarge(there(cause)),
            of_no_member @ (Self::LeaseNotFound
            | Self::LeaseExists
            | Self::Compacted
            | Self::FutureRevision
            | Self::Denied
            | Self::Final(_)) => of_no_member,
        }
    }

    /// Returns the error for the caller. `what` names the keys or the operation.
    pub(crate) fn into_error(self, what: &str) -> Error {
        match self {
            Self::NeverSent(cause)
            | Self::Lost(cause)
            | Self::Leaderless(cause)
            | Self::Unfit(cause)
            | Self::AnswerTooLarge(cause) => Error::Unavailable(cause),
            Self::StaleAuthToken(cause) | Self::NoUser(cause) => Error::AuthFailed(cause),
            Self::LeaseNotFound => Error::LeaseLost,
            Self::LeaseExists => Error::unavailable("the lease was granted before"),
            // Readers of the history handle both. In other requests they mean that the store is catching up.
            Self::Compacted | Self::FutureRevision => Error::unavailable("the store cannot serve this revision yet"),
            Self::Denied => Error::PermissionDenied { what: what.to_owned() },
            Self::Final(error) => error,
        }
    }

    /// Returns `true` if no member has answered. A refusal is an answer.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::NeverSent(_) | Self::Lost(_) | Self::Leaderless(_) | Self::Unfit(_))
    }

    /// Returns `true` if another member may serve the request.
    pub(crate) fn is_of_the_member(&self) -> bool {
        matches!(self, Self::Leaderless(_) | Self::Unfit(_))
    }

    /// Returns `true` if a write may have been applied although it failed.
    pub(crate) fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Leaderless(_) | Self::AnswerTooLarge(_))
    }
}

/// Text as the source of an error. It is escaped for display, because it may come from another process.
#[derive(Debug)]
struct TextCause(String);

impl fmt::Display for TextCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escaped(&self.0).fmt(f)
    }
}

impl StdError for TextCause {}

pub(crate) fn text_cause(text: impl Into<String>) -> Cause {
    Arc::new(TextCause(text.into()))
}

/// Classifies an error of the client.
pub(crate) fn classify(error: &etcd_client::Error) -> Failure {
    use etcd_client::Error as E;
    match error {
        E::GRpcStatus(status) => classify_status(status),
        E::LeaseKeepAliveError(text) if Text::of(text) == Some(Text::LeaseNotFound) => Failure::LeaseNotFound,
        E::LeaseKeepAliveError(text) | E::WatchError(text) => Failure::Lost(text_cause(text.clone())),
        E::InvalidArgs(text) => Failure::Final(Error::invalid_config("etcd", text.clone())),
        E::InvalidUri(error) => Failure::Final(Error::invalid_config("endpoints", error.to_string())),
        other => Failure::Lost(text_cause(other.to_string())),
    }
}

fn classify_status(status: &Status) -> Failure {
    use Text as T;
    let text = status.message();
    match (status.code(), Text::of(text)) {
        _ if is_never_sent(status) => Failure::NeverSent(cause_of(status)),
        _ if is_caused_by::<Proxied>(status) => Failure::Leaderless(cause_of(status)),
        (Code::OutOfRange, Some(T::Compacted)) => Failure::Compacted,
        (Code::OutOfRange, Some(T::FutureRevision)) => Failure::FutureRevision,
        (Code::OutOfRange, Some(T::ResponseTooLarge)) => Failure::AnswerTooLarge(cause_of(status)),
        (Code::OutOfRange, Some(T::TtlTooLong)) => {
            Failure::Final(Error::invalid_config("ttl", "etcd grants at most 9,000,000,000 s"))
        }
        (Code::InvalidArgument, Some(T::RequestTooLarge)) => too_large(1_572_864),
        (Code::ResourceExhausted, Some(T::MessageTooLarge)) => too_large(2_097_152),
        (Code::ResourceExhausted, Some(T::StorageFull)) => Failure::Final(Error::StorageFull),
        (Code::InvalidArgument, Some(T::OldAuthStore))
        | (Code::Unauthenticated, _)
        | (Code::Unknown, Some(T::InvalidToken)) => Failure::StaleAuthToken(cause_of(status)),
        (Code::InvalidArgument, Some(T::NoUser)) => Failure::NoUser(cause_of(status)),
        (Code::InvalidArgument, Some(T::WrongUser)) | (Code::FailedPrecondition, Some(T::AuthOff)) => {
            Failure::Final(Error::AuthFailed(cause_of(status)))
        }
        (Code::FailedPrecondition, Some(T::LeaseExists)) => Failure::LeaseExists,
        // The code of a learner, and of a member that is not yet capable, is `Unavailable` before etcd 3.6.
        (Code::Unavailable | Code::FailedPrecondition, Some(T::Learner))
        | (Code::ResourceExhausted, Some(T::TooManyRequests)) => Failure::Unfit(cause_of(status)),
        (Code::FailedPrecondition, Some(T::NotCapable)) | (Code::Unknown, Some(T::DeadlineExceeded)) => {
            Failure::Leaderless(cause_of(status))
        }
        // No leader, no quorum, stopping, not yet capable: etcd's own reports of unavailability concern the member.
        (Code::Unavailable, _) if is_of_etcd(text) => Failure::Leaderless(cause_of(status)),
        (Code::PermissionDenied, _) => Failure::Denied,
        (Code::NotFound, Some(T::LeaseNotFound)) => Failure::LeaseNotFound,
        (Code::InvalidArgument | Code::Unimplemented, _) => {
            Failure::Final(Error::Unsupported { what: format!("the request ({text})") })
        }
        _ => Failure::Lost(cause_of(status)),
    }
}

fn too_large(limit: usize) -> Failure {
    // Only the server knows the exact size; it reports that the limit was exceeded.
    Failure::Final(Error::TooLarge { what: "the request", size: limit + 1, limit })
}

/// Returns `true` if the request never left: the connection was refused, or hyper dropped it while it was queued.
fn is_never_sent(status: &Status) -> bool {
    let queued = status.code() == Code::Cancelled && Text::of(status.message()) == Some(Text::Canceled);
    queued || is_caused_by::<tonic::ConnectError>(status) || is_caused_by::<DialError>(status)
}

fn is_caused_by<E: StdError + 'static>(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Returns a cause that contains the innermost reason, such as "connection refused" or "invalid peer certificate".
fn cause_of(status: &Status) -> Cause {
    text_cause(text_of(status))
}

/// Returns the text of a status and of its causes, each once.
fn text_of(status: &Status) -> String {
    let mut texts = vec![status.message().to_owned()];
    let mut source: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        source = error.source();
    }
    texts.join(": ")
}

/// Returns `true` for the answer to an authentication while authentication is disabled.
pub(crate) fn is_auth_off(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    Text::of(status.message()) == Some(Text::AuthOff)
}

/// Classifies the reason in a cancelled watch, which contains the text that other requests have in their status.
pub(crate) fn classify_cancel(reason: &str) -> Failure {
    match Text::of(reason) {
        Some(Text::InvalidToken | Text::OldAuthStore) => Failure::StaleAuthToken(text_cause(reason)),
        Some(Text::NoUser) => Failure::NoUser(text_cause(reason)),
        Some(Text::Denied) => Failure::Denied,
        _ => Failure::Lost(text_cause(if reason.is_empty() { "the watch was cancelled" } else { reason })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn kind(code: Code, text: &str) -> String {
        let failure = classify(&etcd_client::Error::GRpcStatus(Status::new(code, text)));
        let text = format!("{failure:?}");
        text.split(['(', ' ']).next().unwrap_or_default().to_owned()
    }

    /// Each text that etcd 3.4.45, 3.5.33, 3.6.14 and 3.7.1 respond with, by the code of each of them.
    #[test]
    fn each_text_of_each_release_has_its_meaning() {
        let mut releases = [0; 4];
        for line in include_str!("releases.txt").lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.split('|').map(str::trim).collect();
            let [text, codes @ .., failure, answer] = &fields[..] else { panic!("{line}") };
            for ((code, count), release) in codes.iter().zip(&mut releases).zip(["3.4", "3.5", "3.6", "3.7"]) {
                let Some(code) = code_of(code) else { continue };
                *count += 1;
                assert_eq!(kind(code, text), *failure, "{text} with {code:?} of {release}");
                let error = etcd_client::Error::GRpcStatus(Status::new(code, *text));
                let shown = format!("{:?}", answers::answer(&error));
                assert_eq!(shown, *answer, "diagnosis of {text} with {code:?} of {release}");
            }
        }
        assert_eq!(releases, [54, 61, 63, 63]);
    }

    /// The code of this name, or `None` for a release that does not have the text.
    fn code_of(name: &str) -> Option<Code> {
        let name = if name == "Canceled" { "Cancelled" } else { name };
        let code = (0..17).map(Code::from_i32).find(|code| format!("{code:?}") == name);
        assert!(code.is_some() || name == "-", "{name}");
        code
    }

    #[test]
    fn each_error_text_of_etcd_has_its_meaning() {
        for (code, text, expected) in [
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "Compacted"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "FutureRevision"),
            (
                Code::OutOfRange,
                "Error, decoded message length too large: found 6 bytes, the limit is: 4 bytes",
                "AnswerTooLarge",
            ),
            (Code::OutOfRange, "etcdserver: too large lease TTL", "Final"),
            (Code::InvalidArgument, "etcdserver: request is too large", "Final"),
            (Code::InvalidArgument, "etcdserver: user name is empty", "NoUser"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", "Final"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", "StaleAuthToken"),
            (Code::Unauthenticated, "etcdserver: invalid auth token", "StaleAuthToken"),
            (Code::PermissionDenied, "etcdserver: permission denied", "Denied"),
            (Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2097152)", "Final"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "Final"),
            (Code::ResourceExhausted, "etcdserver: too many requests", "Unfit"),
            (Code::NotFound, "etcdserver: requested lease not found", "LeaseNotFound"),
            (Code::FailedPrecondition, "etcdserver: lease already exists", "LeaseExists"),
            (Code::Unavailable, "etcdserver: no leader", "Leaderless"),
            (Code::Unavailable, "etcdserver: request timed out", "Leaderless"),
            (Code::Unavailable, "etcdserver: server stopped", "Leaderless"),
            (Code::Unavailable, "etcdserver: unhealthy cluster", "Leaderless"),
            (Code::Unavailable, "upstream: etcdserver: no leader", "Lost"),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", "Unfit"),
            // From 3.6 on.
            (Code::FailedPrecondition, "etcdserver: rpc not supported for learner", "Unfit"),
            (Code::Unavailable, "etcdserver: not capable", "Leaderless"),
            (Code::FailedPrecondition, "etcdserver: not capable", "Leaderless"),
            (Code::Unavailable, "http2 error", "Lost"),
            (Code::Unknown, "context deadline exceeded", "Leaderless"),
            (Code::Unknown, "transport error", "Lost"),
            (Code::Unknown, "h2 protocol error: error reading a body from connection", "Lost"),
            (Code::Cancelled, "operation was canceled", "NeverSent"),
            (Code::Cancelled, "Timeout expired", "Lost"),
        ] {
            assert_eq!(kind(code, text), expected, "{code:?} {text}");
        }
    }

    #[test]
    fn reasons_of_cancelled_watches_are_distinguished() {
        let kind = |reason: &str| format!("{:?}", classify_cancel(reason));
        assert!(kind("rpc error: code = PermissionDenied desc = etcdserver: permission denied").starts_with("Denied"));
        let stale = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
        assert!(kind(stale).starts_with("StaleAuthToken"));
        assert!(kind("etcdserver: user name is empty").starts_with("NoUser"));
        assert!(kind("").starts_with("Lost"));
    }

    #[test]
    fn a_failure_names_its_endpoint_once() {
        let endpoint = http::Uri::from_static("http://h:1");
        let failure = Failure::Lost(text_cause("no answer")).at(Some(&endpoint));
        assert_eq!(failure.to_string(), "http://h:1/: no answer");
        assert_eq!(failure.at(Some(&endpoint)).to_string(), "http://h:1/: no answer");
        assert_eq!(Failure::Lost(text_cause("no answer")).at(None).to_string(), "no answer");
    }

    #[test]
    fn the_error_names_the_keys_that_were_refused() {
        let error = Failure::Denied.into_error("enlist/services/");
        assert_eq!(error.to_string(), "permission denied for enlist/services/");
    }

    /// The consequences of each failure: no member has answered, another member may serve it, a write may have been
    /// applied, and the caller may repeat it.
    #[test]
    fn failures_have_their_consequences() {
        let cause = || text_cause("why");
        for (failure, [outage, of_the_member, ambiguous, retryable]) in [
            (Failure::NeverSent(cause()), [true, false, false, true]),
            (Failure::Lost(cause()), [true, false, true, true]),
            (Failure::Leaderless(cause()), [true, true, true, true]),
            (Failure::Unfit(cause()), [true, true, false, true]),
            (Failure::StaleAuthToken(cause()), [false, false, false, false]),
            (Failure::NoUser(cause()), [false, false, false, false]),
            (Failure::LeaseNotFound, [false, false, false, true]),
            (Failure::LeaseExists, [false, false, false, true]),
            (Failure::Compacted, [false, false, false, true]),
            (Failure::FutureRevision, [false, false, false, true]),
            (Failure::AnswerTooLarge(cause()), [false, false, true, true]),
            (Failure::Denied, [false, false, false, false]),
            (Failure::Final(Error::StorageFull), [false, false, false, false]),
        ] {
            let found = [failure.is_outage(), failure.is_of_the_member(), failure.is_ambiguous()];
            assert_eq!(found, [outage, of_the_member, ambiguous], "{failure:?}");
            assert_eq!(failure.clone().into_error("a request").is_retryable(), retryable, "{failure:?}");
        }
    }

    #[test]
    fn the_error_names_the_limit_of_a_request() {
        let size_and_limit = |code, text: &str| match classify(&etcd_client::Error::GRpcStatus(Status::new(code, text)))
            .into_error("a request")
        {
            Error::TooLarge { size, limit, .. } => (size, limit),
            other => panic!("{other:?}"),
        };
        let request = size_and_limit(Code::InvalidArgument, "etcdserver: request is too large");
        assert_eq!(request, (1_572_865, 1_572_864));
        let received = "grpc: received message larger than max (3000000 vs. 2097152)";
        assert_eq!(size_and_limit(Code::ResourceExhausted, received), (2_097_153, 2_097_152));
    }

    #[test]
    fn a_request_that_never_left_is_known_by_its_cause() {
        let classify = |status: Status| classify(&etcd_client::Error::GRpcStatus(status));
        let refused = DialError(text_cause("refused"));
        assert!(matches!(classify(Status::from_error(Box::new(refused))), Failure::NeverSent(_)));
        let lost = std::io::Error::other("reset");
        assert!(matches!(classify(Status::from_error(Box::new(lost))), Failure::Lost(_)));
        assert!(matches!(classify(Status::cancelled("operation was canceled")), Failure::NeverSent(_)));
        assert!(matches!(classify(Status::cancelled("another reason")), Failure::Lost(_)));
        assert!(matches!(classify(Status::unknown("operation was canceled")), Failure::Lost(_)));
    }

    #[test]
    fn authentication_that_is_off_is_known_by_its_text() {
        let is_off = |text: &str| is_auth_off(&etcd_client::Error::GRpcStatus(Status::failed_precondition(text)));
        assert!(is_off("etcdserver: authentication is not enabled"));
        assert!(!is_off("etcdserver: authentication failed, invalid user ID or password"));
        assert!(!is_auth_off(&etcd_client::Error::WatchError("authentication is not enabled".to_owned())));
    }

    #[test]
    fn an_ended_renewal_is_a_lost_lease_only_by_its_text() {
        let kind = |text: &str| classify(&etcd_client::Error::LeaseKeepAliveError(text.to_owned()));
        assert!(matches!(kind("etcdserver: requested lease not found"), Failure::LeaseNotFound));
        assert!(matches!(kind("the stream ended"), Failure::Lost(_)));
    }

    #[test]
    fn a_proxy_without_a_member_is_a_member_without_a_leader() {
        let proxied = Proxied { url: None, status: http::StatusCode::BAD_GATEWAY };
        let failure = classify(&etcd_client::Error::GRpcStatus(Status::from_error(Box::new(proxied))));
        assert!(matches!(failure, Failure::Leaderless(_)), "{failure:?}");
    }

    #[test]
    fn failures_with_a_cause_name_the_endpoint() {
        let endpoint = http::Uri::from_static("http://h:1");
        for failure in testing::failures_with_a_cause("why") {
            let there = failure.clone().at(Some(&endpoint));
            assert_eq!(std::mem::discriminant(&there), std::mem::discriminant(&failure));
            assert_eq!(there.to_string(), "http://h:1/: why");
        }
        assert_eq!(Failure::Denied.at(Some(&endpoint)).to_string(), "permission denied");
    }
}
