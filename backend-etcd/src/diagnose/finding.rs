//! Findings of a diagnosis.

use std::{fmt, time::Duration};

use super::versions;

/// Median of reads above which the latency is a warning.
const SLOW_READ: Duration = Duration::from_millis(100);

/// Subject of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// Each endpoint by itself: it can be reached, and etcd answers there.
    Endpoint,
    /// Encryption of the connections.
    Tls,
    /// Acceptance of the user, or of requests without one.
    Auth,
    /// Version of etcd.
    Version,
    /// Permission to read.
    Read,
    /// Grant of a lease.
    Lease,
    /// Permission to write.
    Write,
    /// Permission to watch.
    Watch,
    /// Alarms of the cluster, such as that of a full database.
    Space,
    /// Time that a linearizable read takes.
    Latency,
}

impl AuthFault {
    /// Returns the reason for leaving out the checks that need an accepted user.
    pub(super) fn skips(self) -> SkipReason {
        match self {
            Self::UserRequired | Self::WrongUser | Self::AuthenticationOff => SkipReason::NotAccepted,
            Self::Silent | Self::Other => SkipReason::NotServed,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoint => "endpoint",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Version => "version",
            Self::Read => "read",
            Self::Lease => "lease",
            Self::Write => "write",
            Self::Watch => "watch",
            Self::Space => "space",
            Self::Latency => "latency",
        })
    }
}

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// As it has to be.
    Ok,
    /// It works, and a person should look at it.
    Warning,
    /// It does not work.
    Failed,
    /// Not examined, because something before it failed.
    Skipped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}

/// Fault of an endpoint at which etcd does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndpointFault {
    /// The host name has no address here.
    UnknownHost,
    /// The connection was refused, or failed otherwise.
    NotReachable,
    /// Nothing answered in time.
    Silent,
    /// TLS is asked for, and the other end speaks none.
    NoTls,
    /// The other end speaks TLS, and none is asked for.
    TlsExpected,
    /// The authority of the certificate is not trusted.
    UntrustedCertificate,
    /// The certificate is for another name.
    WrongName,
    /// The certificate has expired.
    ExpiredCertificate,
    /// The connection ended after the handshake: a client certificate may be wanted.
    ClosedAfterHandshake,
    /// Another failure of TLS.
    Tls,
    /// The other end speaks neither TLS nor etcd's protocol. In a build without TLS it may speak TLS.
    NotEtcd,
    /// etcd answers from its own data only: the member has no leader, is a learner, or has too much to do.
    NotServing,
}

/// Reason for which etcd accepts no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuthFault {
    /// A user is required, and none is configured.
    UserRequired,
    /// User or password is wrong.
    WrongUser,
    /// A user is configured, and etcd has no authentication.
    AuthenticationOff,
    /// Nothing answered in time.
    Silent,
    /// Another answer, of a member without a leader for instance.
    Other,
}

/// Reason for which a check was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SkipReason {
    /// No endpoint answers.
    NoEndpoint,
    /// etcd does not accept the user.
    NotAccepted,
    /// etcd accepts no request for another reason.
    NotServed,
    /// No lease was granted.
    NoLease,
}

/// Result of one check. `Display` is a short text for people, without its check and status.
///
/// Texts in it come from the other end of the connection: pass them through [`enlist::escape`] before they reach a
/// terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// etcd answers at an endpoint.
    EndpointAnswers {
        /// URL of the endpoint.
        url: String,
    },
    /// etcd does not answer at an endpoint.
    EndpointFails {
        /// URL of the endpoint.
        url: String,
        /// Class of the failure.
        fault: EndpointFault,
        /// Text of the failure.
        cause: String,
    },
    /// The connections are encrypted, or not, as the endpoints are configured.
    Transport {
        /// URLs of answering endpoints that are reached over TLS.
        encrypted: Vec<String>,
        /// URLs of the others.
        plain: Vec<String>,
    },
    /// The password is sent over a network without TLS.
    ClearTextPassword {
        /// URLs that it is sent to.
        urls: Vec<String>,
    },
    /// Requests are accepted.
    RequestsAccepted,
    /// The user is accepted, and may not read everything.
    UserAccepted,
    /// No request is accepted.
    NotAccepted {
        /// Class of the refusal.
        fault: AuthFault,
        /// Text of the refusal.
        cause: String,
    },
    /// A version without known defects.
    Version {
        /// Version of etcd.
        version: String,
    },
    /// A version with defects that concern this library.
    DefectiveVersion {
        /// Version of etcd.
        version: String,
        /// Known defects, as a text that follows the version.
        defects: String,
        /// Releases that have all fixes.
        fixed_in: &'static [&'static str],
    },
    /// The version is shown to root only.
    VersionHidden {
        /// Newest releases with all fixes, which show it to every user.
        fixed_in: &'static [&'static str],
    },
    /// The version could not be asked for.
    VersionUnknown {
        /// Text of the failure.
        cause: String,
    },
    /// Registrations or locks below a prefix are permitted.
    Permitted {
        /// [`Check::Read`], [`Check::Lease`], [`Check::Write`] or [`Check::Watch`].
        check: Check,
        /// First bytes of the keys.
        prefix: Vec<u8>,
    },
    /// Registrations or locks below a prefix are not permitted.
    Refused {
        /// [`Check::Read`], [`Check::Lease`], [`Check::Write`] or [`Check::Watch`].
        check: Check,
        /// First bytes of the keys.
        prefix: Vec<u8>,
        /// Text of the failure.
        cause: String,
    },
    /// No member has an alarm.
    NoAlarm,
    /// The database is full: etcd accepts no new keys.
    OutOfSpace,
    /// A member has another alarm.
    Alarm,
    /// Alarms could not be asked for: some releases show them to root only.
    AlarmsUnknown {
        /// Text of the refusal; `None` without an answer in time.
        cause: Option<String>,
    },
    /// All reads were answered.
    Latency {
        /// Median of their times.
        median: Duration,
        /// Number of reads.
        reads: usize,
    },
    /// Not all reads were answered.
    ReadsUnanswered,
    /// A check was left out.
    Skipped {
        /// The check.
        check: Check,
        /// Its reason.
        reason: SkipReason,
    },
}

impl Finding {
    /// Returns the subject.
    pub fn check(&self) -> Check {
        match self {
            Self::EndpointAnswers { .. } | Self::EndpointFails { .. } => Check::Endpoint,
            Self::Transport { .. } | Self::ClearTextPassword { .. } => Check::Tls,
            Self::RequestsAccepted | Self::UserAccepted | Self::NotAccepted { .. } => Check::Auth,
            Self::Version { .. }
            | Self::DefectiveVersion { .. }
            | Self::VersionHidden { .. }
            | Self::VersionUnknown { .. } => Check::Version,
            Self::NoAlarm | Self::OutOfSpace | Self::Alarm | Self::AlarmsUnknown { .. } => Check::Space,
            Self::Latency { .. } | Self::ReadsUnanswered => Check::Latency,
            Self::Permitted { check, .. } | Self::Refused { check, .. } | Self::Skipped { check, .. } => *check,
        }
    }

    /// Returns the severity.
    pub fn status(&self) -> Status {
        match self {
            Self::EndpointAnswers { .. }
            | Self::Transport { .. }
            | Self::RequestsAccepted
            | Self::UserAccepted
            | Self::Version { .. }
            | Self::Permitted { .. }
            | Self::NoAlarm => Status::Ok,
            Self::Latency { median, .. } => {
                if *median > SLOW_READ {
                    Status::Warning
                } else {
                    Status::Ok
                }
            }
            Self::DefectiveVersion { .. }
            | Self::VersionHidden { .. }
            | Self::VersionUnknown { .. }
            | Self::AlarmsUnknown { .. } => Status::Warning,
            Self::EndpointFails { .. }
            | Self::ClearTextPassword { .. }
            | Self::NotAccepted { .. }
            | Self::Refused { .. }
            | Self::OutOfSpace
            | Self::Alarm
            | Self::ReadsUnanswered => Status::Failed,
            Self::Skipped { .. } => Status::Skipped,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndpointAnswers { url } => write!(f, "{url} answers"),
            Self::EndpointFails { url, fault, cause } => {
                write!(f, "{url}: ")?;
                describe_fault(*fault, cause, f)
            }
            Self::Transport { plain, .. } if plain.is_empty() => f.write_str("in use"),
            Self::Transport { encrypted, .. } if encrypted.is_empty() => f.write_str("not in use"),
            Self::Transport { plain, .. } => write!(f, "in use, but not at {}", plain.join(", ")),
            Self::ClearTextPassword { urls } => {
                write!(f, "the password is sent in clear text to {}", urls.join(", "))
            }
            Self::RequestsAccepted => f.write_str("requests are accepted"),
            Self::UserAccepted => f.write_str("the user is accepted"),
            Self::NotAccepted { fault: AuthFault::UserRequired, .. } => f.write_str("etcd wants a user"),
            Self::NotAccepted { cause, .. } | Self::VersionUnknown { cause } => f.write_str(cause),
            Self::Version { version } => write!(f, "etcd {version}"),
            Self::DefectiveVersion { version, defects, .. } => write!(f, "etcd {version} {defects}"),
            Self::VersionHidden { .. } => {
                write!(f, "it is not shown to this user; {} show it to root only", versions::status_for_root())
            }
            Self::Permitted { prefix, .. } => write!(f, "below {}", prefix.escape_ascii()),
            Self::Refused { prefix, cause, .. } => write!(f, "below {}: {cause}", prefix.escape_ascii()),
            Self::NoAlarm => f.write_str("no alarms"),
            Self::OutOfSpace => f.write_str("etcd is out of space and takes no new keys"),
            Self::Alarm => f.write_str("a member has an alarm"),
            Self::AlarmsUnknown { cause } => f.write_str(cause.as_deref().unwrap_or("no answer in time")),
            Self::Latency { median, reads } => {
                let millis = median.as_secs_f64() * 1000.0;
                write!(f, "a linearizable read takes {millis:.1} ms (median of {reads})")
            }
            Self::ReadsUnanswered => f.write_str("not every read is answered"),
            Self::Skipped { reason, .. } => f.write_str(match reason {
                SkipReason::NoEndpoint => "no endpoint answers",
                SkipReason::NotAccepted => "etcd does not accept the user",
                SkipReason::NotServed => "etcd does not serve requests",
                SkipReason::NoLease => "there is no lease",
            }),
        }
    }
}

fn describe_fault(fault: EndpointFault, cause: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match fault {
        EndpointFault::NoTls => write!(f, "no TLS is spoken there ({cause})"),
        EndpointFault::TlsExpected => write!(f, "TLS is spoken there ({cause})"),
        EndpointFault::ClosedAfterHandshake => write!(f, "the connection is ended after the handshake ({cause})"),
        EndpointFault::NotEtcd => write!(f, "etcd's protocol is not spoken there ({cause})"),
        EndpointFault::NotServing => write!(f, "it answers from its own data only ({cause})"),
        EndpointFault::UnknownHost
        | EndpointFault::NotReachable
        | EndpointFault::Silent
        | EndpointFault::UntrustedCertificate
        | EndpointFault::WrongName
        | EndpointFault::ExpiredCertificate
        | EndpointFault::Tls => f.write_str(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_check_status_and_text() {
        let (url, cause) = ("http://h:1".to_owned(), "reset".to_owned());
        let prefix = b"a/\xff".to_vec();
        for (finding, check, status, text) in [
            (Finding::EndpointAnswers { url: url.clone() }, Check::Endpoint, Status::Ok, "http://h:1 answers"),
            (
                Finding::EndpointFails { url: url.clone(), fault: EndpointFault::NoTls, cause: cause.clone() },
                Check::Endpoint,
                Status::Failed,
                "http://h:1: no TLS is spoken there (reset)",
            ),
            (Finding::ClearTextPassword { urls: vec![url] }, Check::Tls, Status::Failed, "clear text to http://h:1"),
            (
                Finding::NotAccepted { fault: AuthFault::UserRequired, cause: cause.clone() },
                Check::Auth,
                Status::Failed,
                "etcd wants a user",
            ),
            (
                Finding::VersionHidden { fixed_in: versions::ALL_FIXED },
                Check::Version,
                Status::Warning,
                "3.4.42 to 3.4.45, 3.5.28 to 3.5.31 and 3.6.0 to 3.6.11 show it to root only",
            ),
            (
                Finding::Permitted { check: Check::Read, prefix: prefix.clone() },
                Check::Read,
                Status::Ok,
                "below a/\\xff",
            ),
            (
                Finding::Refused { check: Check::Watch, prefix, cause },
                Check::Watch,
                Status::Failed,
                "below a/\\xff: reset",
            ),
            (Finding::AlarmsUnknown { cause: None }, Check::Space, Status::Warning, "no answer in time"),
            (
                Finding::Skipped { check: Check::Write, reason: SkipReason::NoLease },
                Check::Write,
                Status::Skipped,
                "there is no lease",
            ),
        ] {
            assert_eq!((finding.check(), finding.status()), (check, status), "{finding:?}");
            assert!(finding.to_string().contains(text), "{finding}");
        }
    }

    #[test]
    fn the_transport_follows_from_the_endpoints() {
        let text = |encrypted: &[&str], plain: &[&str]| {
            let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
            Finding::Transport { encrypted: owned(encrypted), plain: owned(plain) }.to_string()
        };
        assert_eq!(text(&["https://a"], &[]), "in use");
        assert_eq!(text(&[], &["http://a"]), "not in use");
        assert_eq!(text(&["https://a"], &["http://b", "http://c"]), "in use, but not at http://b, http://c");
    }

    #[test]
    fn only_a_refusal_of_the_user_is_reported_as_one() {
        assert_eq!(AuthFault::WrongUser.skips(), SkipReason::NotAccepted);
        assert_eq!(AuthFault::Silent.skips(), SkipReason::NotServed);
        assert_eq!(AuthFault::Other.skips(), SkipReason::NotServed);
    }

    #[test]
    fn slow_reads_are_a_warning() {
        let of = |median| Finding::Latency { median, reads: 10 };
        assert_eq!(of(SLOW_READ).status(), Status::Ok);
        assert_eq!(of(SLOW_READ + Duration::from_millis(1)).status(), Status::Warning);
        assert_eq!(of(Duration::from_micros(1300)).to_string(), "a linearizable read takes 1.3 ms (median of 10)");
    }
}
