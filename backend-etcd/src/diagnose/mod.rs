//! Examination of an etcd for the needs of this library. The `doctor` of the `enlist` command prints it.
//!
//! ```no_run
//! use enlist::{Error, Namespace};
//! use enlist_etcd::{Etcd, diagnose::Status};
//!
//! # async fn example() -> Result<(), Error> {
//! let mut failed = 0;
//! let count = |finding: enlist_etcd::diagnose::Finding| {
//!     failed += usize::from(finding.status() == Status::Failed);
//!     Ok::<_, Error>(())
//! };
//! Etcd::builder(["etcd-1", "etcd-2"]).diagnose(&Namespace::default(), count).await?;
//! println!("{failed} checks failed");
//! # Ok(())
//! # }
//! ```
//!
//! Read `endpoints` next, which examines each endpoint by itself. The other checks use one that answers.

mod endpoints;
pub(crate) mod finding;
mod reply;
mod tls_options;
pub(crate) mod versions;

use std::time::Duration;

use enlist::{Error, LockName, Moment, Namespace, ServiceName, ServiceRef};
use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};

pub use self::finding::{AuthFault, Check, EndpointFault, Finding, SkipReason, Status};
use self::{
    endpoints::{Accepted, Asking, KEY},
    reply::Reply,
};
use crate::{
    Etcd, EtcdBuilder,
    client::connection::endpoint_url::is_clear_text,
    error::answers::{self, Answer, answer},
    layout::{QueueKind, trial_key},
    watch::record::KeyRange,
};

/// Number of reads of which the median is the latency.
const READS: usize = 10;

/// TTL of the leases that keep the keys of a trial, in seconds.
const TRIAL_TTL: i64 = 10;

/// Name of a service and a lock that are not expected to exist.
const UNUSED_NAME: &str = "enlist-doctor";

/// Checks that need an accepted user.
const WITH_USER: [Check; 7] =
    [Check::Version, Check::Read, Check::Lease, Check::Write, Check::Watch, Check::Space, Check::Latency];

impl EtcdBuilder {
    /// Examines etcd with these options, and reports each finding as soon as it exists: on each endpoint, TLS, the
    /// user, the version, the requests of registrations and locks below the keys of `namespace`, alarms, and the
    /// duration of reads.
    ///
    /// Each request has the [`request_timeout`](Self::request_timeout). A key without meaning is put below the keys of
    /// the layouts, under a lease of 10 s that is revoked at once. [Settings](Self::settings), [layers](Self::layer)
    /// and other options of running sessions have no part in it.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build); [`Error::InvalidConfig`] for a TLS file that cannot be read and for a channel that
    /// the caller made; [`Error::InvalidName`] if a layout cannot carry the namespace; and the errors of `report`,
    /// which end it. A fault of etcd is a finding, not an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves at most one key and its lease, for 10 s.
    pub async fn diagnose<E: From<Error>>(
        self,
        namespace: &Namespace,
        mut report: impl FnMut(Finding) -> Result<(), E>,
    ) -> Result<(), E> {
        // Rejects options that every client rejects, such as a password in a URL.
        let etcd = self.clone().build()?;
        let urls = self.urls()?;
        let limit = self.limit();
        let (tls, credentials) = self.security();
        let clear_text: Vec<_> = if credentials.is_some() {
            urls.iter().filter(|url| is_clear_text(url)).cloned().collect()
        } else {
            Vec::new()
        };
        let asking = Asking::new(tls, credentials, limit).await?;
        let (mut answering, mut answers) = (Vec::new(), Vec::new());
        for url in urls {
            report(match asking.probe(&url).await {
                Ok(answer) => {
                    answering.push(url.clone());
                    answers.push(answer);
                    Finding::EndpointAnswers { url }
                }
                Err(none) => Finding::EndpointFails { url, fault: none.fault, cause: none.cause },
            })?;
        }
        report(transport(answering, clear_text))?;
        let client = match first_accepting(answers) {
            Some(Accepted::Yes(client)) => client,
            Some(Accepted::No(error)) => {
                report(not_accepted(&error))?;
                return skip(answer(&error).auth_fault().skips(), &mut report);
            }
            None => {
                report(Finding::Skipped { check: Check::Auth, reason: SkipReason::NoEndpoint })?;
                return skip(SkipReason::NoEndpoint, &mut report);
            }
        };
        examine(Examination { client, limit }, &etcd, namespace, &mut report).await
    }
}

/// Reports the findings that need an accepted user.
async fn examine<E: From<Error>>(
    mut examination: Examination,
    etcd: &Etcd,
    namespace: &Namespace,
    report: &mut impl FnMut(Finding) -> Result<(), E>,
) -> Result<(), E> {
    let auth = examination.auth().await;
    let skipped = if let Finding::NotAccepted { fault, .. } = &auth { Some(fault.skips()) } else { None };
    report(auth)?;
    if let Some(reason) = skipped {
        return skip(reason, report);
    }
    report(examination.version().await)?;
    for range in ranges(etcd, namespace)? {
        examination.permissions(&range, report).await?;
    }
    report(examination.space().await)?;
    report(examination.latency().await)
}

/// Reports all checks that need an accepted user as left out.
fn skip<E>(reason: SkipReason, report: &mut impl FnMut(Finding) -> Result<(), E>) -> Result<(), E> {
    WITH_USER.into_iter().try_for_each(|check| report(Finding::Skipped { check, reason }))
}

/// Returns the finding on encryption. `answering` are the endpoints that answer; `clear_text` get a password
/// unencrypted.
fn transport(answering: Vec<String>, clear_text: Vec<String>) -> Finding {
    if !clear_text.is_empty() {
        return Finding::ClearTextPassword { urls: clear_text };
    }
    if answering.is_empty() {
        return Finding::Skipped { check: Check::Tls, reason: SkipReason::NoEndpoint };
    }
    let (encrypted, plain) = answering.into_iter().partition(|url| url.starts_with("https://"));
    Finding::Transport { encrypted, plain }
}

/// Returns the first answer that accepts the user, else the last refusal; `None` without any.
fn first_accepting<T, E>(answers: Vec<Accepted<T, E>>) -> Option<Accepted<T, E>> {
    let mut refused = None;
    for answer in answers {
        match answer {
            Accepted::Yes(client) => return Some(Accepted::Yes(client)),
            Accepted::No(error) => refused = Some(Accepted::No(error)),
        }
    }
    refused
}

fn not_accepted(error: &etcd_client::Error) -> Finding {
    Finding::NotAccepted { fault: answer(error).auth_fault(), cause: answers::text(error) }
}

/// Returns the ranges below which permissions are tried: that of the namespace's services, or of one of them, and that
/// of a lock.
fn ranges(etcd: &Etcd, namespace: &Namespace) -> Result<[KeyRange; 2], Error> {
    let services = match etcd.layout().services_range(namespace) {
        Some(range) => range,
        None => etcd.layout().service_range(&ServiceRef::new(namespace.clone(), ServiceName::parse(UNUSED_NAME)?))?,
    };
    let queue = etcd.lock_layout().queue(QueueKind::Lock, &LockName::parse(UNUSED_NAME)?.within(namespace.clone()))?;
    Ok([services, queue])
}

/// Checks by requests to an endpoint that accepts the user.
struct Examination {
    client: Client,
    limit: Duration,
}

impl Examination {
    async fn auth(&mut self) -> Finding {
        let read = GetOptions::new().with_count_only();
        match Reply::within(self.limit, self.client.get(KEY, Some(read))).await {
            Reply::Success(_) => Finding::RequestsAccepted,
            // Known, but not allowed to read that key: accepted.
            Reply::Failure(error) if answer(&error) == Answer::Denied => Finding::UserAccepted,
            Reply::Failure(error) => not_accepted(&error),
            Reply::Silence => Finding::NotAccepted { fault: AuthFault::Silent, cause: "no answer in time".to_owned() },
        }
    }

    async fn version(&mut self) -> Finding {
        match Reply::within(self.limit, self.client.status()).await {
            Reply::Success(status) => {
                let version = status.version().to_owned();
                match versions::defects(&version) {
                    None => Finding::Version { version },
                    Some((defects, fixed_in)) => Finding::DefectiveVersion { version, defects, fixed_in },
                }
            }
            Reply::Failure(error) if answer(&error) == Answer::Denied => {
                Finding::VersionHidden { fixed_in: versions::ALL_FIXED }
            }
            failed => Finding::VersionUnknown { cause: failed.verdict().err().unwrap_or_default() },
        }
    }

    /// Tries the requests of registrations and locks below a range, and leaves nothing behind.
    async fn permissions<E>(
        &mut self,
        range: &KeyRange,
        report: &mut impl FnMut(Finding) -> Result<(), E>,
    ) -> Result<(), E> {
        let limit = self.limit;
        let prefix = range.bounds().0;
        let finding = |check, outcome| match outcome {
            Ok(()) => Finding::Permitted { check, prefix: prefix.to_vec() },
            Err(cause) => Finding::Refused { check, prefix: prefix.to_vec(), cause },
        };
        let first = GetOptions::new().with_prefix().with_limit(1).with_keys_only();
        let read = Reply::within(limit, self.client.get(prefix, Some(first))).await;
        report(finding(Check::Read, read.verdict()))?;

        let granted = Reply::within(limit, self.client.lease_grant(TRIAL_TTL, None)).await;
        report(finding(Check::Lease, granted.verdict()))?;
        let Reply::Success(lease) = granted else {
            let skipped = |check| Finding::Skipped { check, reason: SkipReason::NoLease };
            report(skipped(Check::Write))?;
            return report(skipped(Check::Watch));
        };
        let key = trial_key(range, fastrand::u64(..));
        let absent = Compare::create_revision(&key[..], CompareOp::Equal, 0);
        let put = TxnOp::put(&key[..], "doctor", Some(PutOptions::new().with_lease(lease.id())));
        let written = Reply::within(limit, self.client.txn(Txn::new().when([absent]).and_then([put]))).await;
        report(finding(Check::Write, written.verdict()))?;
        let watched = self.watch(&key).await;
        report(finding(Check::Watch, watched))?;
        // Deletes the key, too. If it fails, both expire.
        let _ = Reply::within(limit, self.client.lease_revoke(lease.id())).await;
        Ok(())
    }

    async fn watch(&mut self, key: &[u8]) -> Result<(), String> {
        let watching = async {
            let mut stream = self.client.watch(key, Some(WatchOptions::new())).await?;
            stream.message().await
        };
        match Reply::within(self.limit, watching).await {
            Reply::Success(Some(message)) if message.canceled() => Err(message.cancel_reason().to_owned()),
            Reply::Success(None) => Err("the watch ends".to_owned()),
            outcome => outcome.verdict(),
        }
    }

    async fn space(&mut self) -> Finding {
        match Reply::within(self.limit, self.client.alarm(AlarmAction::Get, AlarmType::None, None)).await {
            Reply::Success(response) => {
                let alarms = response.alarms();
                if alarms.iter().any(|alarm| alarm.alarm() == AlarmType::Nospace) {
                    Finding::OutOfSpace
                } else if alarms.is_empty() {
                    Finding::NoAlarm
                } else {
                    Finding::Alarm
                }
            }
            // Alarms may be hidden from users other than root.
            Reply::Failure(error) => Finding::AlarmsUnknown { cause: Some(answers::text(&error)) },
            Reply::Silence => Finding::AlarmsUnknown { cause: None },
        }
    }

    async fn latency(&mut self) -> Finding {
        let mut times = Vec::new();
        for _ in 0..READS {
            let asked = Moment::now();
            let count = GetOptions::new().with_count_only();
            let read = Reply::within(self.limit, self.client.get(KEY, Some(count))).await;
            // A refusal is an answer.
            if !matches!(read, Reply::Silence) {
                times.push(asked.elapsed());
            }
        }
        latency(times)
    }
}

/// Returns the finding on the times of those of the [`READS`] reads that were answered.
fn latency(mut times: Vec<Duration>) -> Finding {
    times.sort_unstable();
    match times.get(times.len() / 2) {
        Some(median) if times.len() == READS => Finding::Latency { median: *median, reads: READS },
        _ => Finding::ReadsUnanswered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    #[test]
    fn a_password_in_clear_text_outweighs_the_rest_of_the_transport() {
        let both = urls(&["https://a", "http://b"]);
        let expected = Finding::Transport { encrypted: urls(&["https://a"]), plain: urls(&["http://b"]) };
        assert_eq!(transport(both.clone(), Vec::new()), expected);
        assert_eq!(transport(both, urls(&["http://b"])).status(), Status::Failed);
        assert_eq!(transport(Vec::new(), urls(&["http://b"])).status(), Status::Failed);
        assert_eq!(transport(Vec::new(), Vec::new()).status(), Status::Skipped);
    }

    #[test]
    fn the_first_endpoint_that_accepts_the_user_is_examined() {
        use Accepted::{No, Yes};
        assert_eq!(first_accepting(vec![No(1), Yes('a'), Yes('b')]), Some(Yes('a')));
        assert_eq!(first_accepting::<char, _>(vec![No(1), No(2)]), Some(No(2)));
        assert_eq!(first_accepting::<char, i32>(Vec::new()), None);
    }

    #[test]
    fn the_latency_is_the_median_of_reads_that_were_all_answered() {
        let times = |count: u64| (0..count).rev().map(Duration::from_millis).collect();
        assert_eq!(latency(times(10)), Finding::Latency { median: Duration::from_millis(5), reads: READS });
        assert_eq!(latency(times(9)), Finding::ReadsUnanswered);
        assert_eq!(latency(Vec::new()), Finding::ReadsUnanswered);
    }

    #[test]
    fn permissions_are_tried_where_the_layouts_keep_services_and_locks() {
        let namespace = Namespace::parse("blue").unwrap();
        let of = |builder: EtcdBuilder| {
            let ranges = ranges(&builder.build().unwrap(), &namespace).unwrap();
            ranges.map(|range| range.bounds().0.escape_ascii().to_string())
        };
        let native = of(Etcd::builder(["h"]).prefix("p"));
        assert_eq!(native, ["p/services/blue/", "p/locks/blue/enlist-doctor/"]);
    }
}
