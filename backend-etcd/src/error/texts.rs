//! Texts of errors, and the only place where they are compared: those of etcd, of its client, of TLS and of the system.
//! [`crate::error`] and [`answers`](crate::error::answers) decide by their meanings.
//!
//! The texts of etcd are in `api/v3rpc/rpctypes/error.go` of its releases (in 3.4 below `etcdserver`). `releases.txt`
//! has all of them, with the codes of 3.4, 3.5, 3.6 and 3.7: the texts are the same, some codes are not.

/// Text of hyper for a request that it dropped before it was sent.
const CANCELED: &str = "operation was canceled";

/// Begin of etcd's own texts.
const OF_ETCD: &str = "etcdserver: ";

/// Meaning of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// The requested history has been compacted.
    Compacted,
    /// The requested revision is ahead of the store.
    FutureRevision,
    /// The response is larger than the limit of this client, by tonic.
    ResponseTooLarge,
    /// etcd grants no lease of this TTL.
    TtlTooLong,
    /// The request is larger than etcd's limit.
    RequestTooLarge,
    /// The request is larger than the limit of etcd's gRPC server.
    MessageTooLarge,
    StorageFull,
    /// Users or roles were changed since the token was made.
    OldAuthStore,
    InvalidToken,
    /// A user is required.
    NoUser,
    /// User or password is wrong.
    WrongUser,
    AuthOff,
    Denied,
    LeaseExists,
    LeaseNotFound,
    /// A member that is a learner serves only some requests.
    Learner,
    /// The member does not know yet what its cluster can do.
    NotCapable,
    TooManyRequests,
    /// A member without a quorum has waited in vain.
    DeadlineExceeded,
    /// The request was dropped before it was sent, by hyper.
    Canceled,
}

/// The parts by which texts are recognized, the first one that a text contains.
const TEXTS: [(&str, Text); 22] = [
    ("has been compacted", Text::Compacted),
    ("future revision", Text::FutureRevision),
    ("decoded message length too large", Text::ResponseTooLarge),
    ("too large lease TTL", Text::TtlTooLong),
    ("request is too large", Text::RequestTooLarge),
    ("received message larger than max", Text::MessageTooLarge),
    ("space exceeded", Text::StorageFull),
    ("auth store is old", Text::OldAuthStore),
    ("invalid auth token", Text::InvalidToken),
    ("user name is empty", Text::NoUser),
    ("authentication failed", Text::WrongUser),
    ("authentication is not enabled", Text::AuthOff),
    ("permission denied", Text::Denied),
    // The reason of a cancelled watch begins with the name of its code.
    ("code = PermissionDenied", Text::Denied),
    ("code = Unauthenticated", Text::InvalidToken),
    ("lease already exists", Text::LeaseExists),
    ("lease not found", Text::LeaseNotFound),
    ("not supported for learner", Text::Learner),
    ("not capable", Text::NotCapable),
    ("too many requests", Text::TooManyRequests),
    ("context deadline exceeded", Text::DeadlineExceeded),
    (CANCELED, Text::Canceled),
];

/// Meaning of the text with which a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkText {
    UnknownHost,
    /// The other end does not speak TLS, or nothing.
    NoTls,
    UnknownIssuer,
    NotValidForName,
    ExpiredCertificate,
    /// The other end has reset the connection.
    Reset,
    /// The other end has closed the connection, or refused the certificate of this one.
    Closed,
}

/// The parts by which texts of connections are recognized, as tonic 0.14.9 with rustls 0.23 has them.
const LINK_TEXTS: [(&str, LinkText); 11] = [
    ("lookup address", LinkText::UnknownHost),
    ("InvalidContentType", LinkText::NoTls),
    ("handshake eof", LinkText::NoTls),
    ("no answer", LinkText::NoTls),
    ("UnknownIssuer", LinkText::UnknownIssuer),
    ("NotValidForName", LinkText::NotValidForName),
    ("Expired", LinkText::ExpiredCertificate),
    ("reset", LinkText::Reset),
    ("fatal alert", LinkText::Closed),
    (CANCELED, LinkText::Closed),
    ("broken pipe", LinkText::Closed),
];

impl Text {
    /// The meaning of `text`, if it is known.
    pub(super) fn of(text: &str) -> Option<Self> {
        meaning(&TEXTS, text)
    }
}

impl LinkText {
    /// The meaning of `text`, if it is known.
    pub(super) fn of(text: &str) -> Option<Self> {
        meaning(&LINK_TEXTS, text)
    }
}

fn meaning<M: Copy>(parts: &[(&str, M)], text: &str) -> Option<M> {
    parts.iter().find(|(part, _)| text.contains(part)).map(|(_, meaning)| *meaning)
}

/// Returns `true` if etcd has written the text, not gRPC or a proxy.
pub(super) fn is_of_etcd(text: &str) -> bool {
    text.starts_with(OF_ETCD)
}

/// Returns `true` if the text is etcd's, or quotes one, as the reason of a cancelled watch may do.
pub(super) fn quotes_etcd(text: &str) -> bool {
    text.contains(OF_ETCD)
}
