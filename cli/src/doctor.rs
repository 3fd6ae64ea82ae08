//! `enlist doctor`: what enlist needs of etcd, looked at piece by piece, with a word on what to do.

use std::time::Duration;

use enlist::Moment;
use enlist_etcd::layout::Line;
use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, PutOptions,
    TlsOptions, Txn, TxnOp, WatchOptions,
};
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    args::Global,
    output::{Failure, Output, Paint, To},
};

/// A round trip that takes longer is told as slow.
const SLOW: Duration = Duration::from_millis(100);

/// How many reads the latency is measured with.
const READS: usize = 10;

/// What needs a connection; all but the first needs a user that is accepted.
const CHECKS: [&str; 8] = ["auth", "version", "read", "lease", "write", "watch", "space", "latency"];

const NOT_ACCEPTED: &str = "etcd does not accept the user";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Failed,
    /// Not looked at, because something before it failed.
    Skipped,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// What the checks have found so far.
struct Report {
    output: Output,
    failed: bool,
}

impl Report {
    fn tell(&mut self, check: &str, status: Status, detail: &str, advice: &str) -> Result<(), Failure> {
        self.failed |= status == Status::Failed;
        let paint = match status {
            Status::Ok => Paint::Good,
            Status::Warning | Status::Failed => Paint::Bad,
            Status::Skipped => Paint::Faint,
        };
        let word = self.output.paint(To::Stdout, paint, &format!("{:<8}", status.word()));
        let advice_text = if advice.is_empty() { String::new() } else { format!("; {advice}") };
        let object = json!({
            "check": check, "status": status.word(), "detail": detail,
            "advice": Some(advice).filter(|advice| !advice.is_empty()),
        });
        self.output.line(To::Stdout, format!("{word} {check}: {detail}{advice_text}"), &object)?;
        Ok(())
    }

    fn skip(&mut self, checks: &[&str], why: &str) -> Result<(), Failure> {
        checks.iter().try_for_each(|check| self.tell(check, Status::Skipped, why, ""))
    }
}

pub(crate) async fn run(global: &Global, output: Output) -> Result<u8, Failure> {
    let mut report = Report { output, failed: false };
    endpoints(global, &mut report).await?;
    let client = match connected(global, &mut report).await? {
        Ok(client) => client,
        Err(Missing { checks, why }) => {
            report.skip(checks, why)?;
            return Ok(1);
        }
    };
    let limit = global.timeout;
    let mut doctor = Doctor { client, limit, report };
    if doctor.auth().await? {
        doctor.version().await?;
        doctor.permissions(&prefixes(global)?).await?;
        doctor.space().await?;
        doctor.latency().await?;
    } else {
        doctor.report.skip(&CHECKS[1..], NOT_ACCEPTED)?;
    }
    Ok(u8::from(doctor.report.failed))
}

/// What cannot be looked at, and why.
struct Missing {
    checks: &'static [&'static str],
    why: &'static str,
}

/// Whether each endpoint accepts a connection.
async fn endpoints(global: &Global, report: &mut Report) -> Result<(), Failure> {
    for url in global.urls() {
        let address = url.split_once("://").map_or(&*url, |(_, rest)| rest).trim_end_matches('/').to_owned();
        let dialled = tokio::time::timeout(global.timeout, TcpStream::connect(&address)).await;
        match dialled {
            Ok(Ok(_)) => report.tell("endpoint", Status::Ok, &format!("{url} accepts connections"), "")?,
            Ok(Err(error)) => report.tell(
                "endpoint",
                Status::Failed,
                &format!("{url}: {error}"),
                "start etcd there, or correct --endpoints",
            )?,
            Err(_) => report.tell(
                "endpoint",
                Status::Failed,
                &format!("{url} does not answer within {:?}", global.timeout),
                "look for a firewall, or correct --endpoints",
            )?,
        }
    }
    Ok(())
}

fn pem(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
}

/// A client that has seen an answer, which shows that TLS works where it is used.
async fn connected(global: &Global, report: &mut Report) -> Result<Result<Client, Missing>, Failure> {
    let urls = global.urls();
    let tls = urls.iter().any(|url| url.starts_with("https://"));
    let mut options = ConnectOptions::new().with_connect_timeout(global.timeout).with_timeout(global.timeout);
    if tls {
        let mut config = TlsOptions::new();
        if let Some(path) = &global.cacert {
            config = config.ca_certificate(Certificate::from_pem(pem(path)?));
        }
        if let (Some(cert), Some(key)) = (&global.cert, &global.key) {
            config = config.identity(Identity::from_pem(pem(cert)?, pem(key)?));
        }
        options = options.with_tls(config);
    }
    if let Some((user, password)) = global.credentials()? {
        options = options.with_user(user, password);
    }
    let connecting = async {
        let mut client = Client::connect(&urls, Some(options)).await?;
        // The status of a member needs no permission, so a refusal is a refusal of the connection.
        client.status().await.map(|_| client)
    };
    let (kind, good) = if tls { ("tls", "the handshake succeeds") } else { ("tls", "not in use") };
    let plain = |error: &etcd_client::Error| one_line(error);
    match tokio::time::timeout(global.timeout * 2, connecting).await {
        Ok(Ok(client)) => {
            report.tell(kind, Status::Ok, good, "")?;
            Ok(Ok(client))
        }
        Ok(Err(error)) if is_about_users(&error) => {
            report.tell(kind, Status::Ok, good, "")?;
            report.tell("auth", Status::Failed, &plain(&error), "check --user and --password-file")?;
            Ok(Err(Missing { checks: &CHECKS[1..], why: NOT_ACCEPTED }))
        }
        Ok(Err(error)) => {
            let advice = if tls {
                "check --cacert, --cert and --key, and that the certificate names the endpoint"
            } else {
                "does etcd want https:// there?"
            };
            report.tell(kind, Status::Failed, &plain(&error), advice)?;
            Ok(Err(Missing { checks: &CHECKS, why: "there is no connection" }))
        }
        Err(_) => {
            report.tell(
                kind,
                Status::Failed,
                "no answer in time",
                "does the endpoint speak etcd's protocol, and TLS or not?",
            )?;
            Ok(Err(Missing { checks: &CHECKS, why: "there is no connection" }))
        }
    }
}

fn one_line(error: &etcd_client::Error) -> String {
    let text = match error {
        etcd_client::Error::GRpcStatus(status) => {
            let mut texts = vec![status.message().to_owned()];
            let mut source = std::error::Error::source(status);
            while let Some(cause) = source {
                let said = cause.to_string();
                if !texts.iter().any(|known| known.contains(&said)) {
                    texts.push(said);
                }
                source = cause.source();
            }
            texts.join(": ")
        }
        other => crate::output::with_causes(other),
    };
    text.replace('\n', " ")
}

fn is_about_users(error: &etcd_client::Error) -> bool {
    let text = error.to_string();
    ["authentication", "user name", "auth token"].iter().any(|part| text.contains(part))
}

/// The name of a service and a lock that nobody has.
const NOBODY: &str = "enlist-doctor";

/// Below which keys the permissions are tried: where the layouts in use keep the namespace's services, or one of them, and a lock.
fn prefixes(global: &Global) -> Result<Vec<Vec<u8>>, Failure> {
    let etcd = global.client()?;
    let (namespace, service, lock) = (global.namespace()?, global.service(NOBODY)?, global.lock(NOBODY)?);
    let services = match etcd.layout().services_range(&namespace) {
        Some(range) => range,
        None => etcd.layout().service_range(&service)?,
    };
    let line = etcd.lock_layout().line(Line::Lock, &lock)?;
    Ok([services, line].iter().map(|range| range.bounds().0.to_vec()).collect())
}

struct Doctor {
    client: Client,
    limit: Duration,
    report: Report,
}

/// What came of a request.
fn verdict<T>(outcome: &Result<Result<T, etcd_client::Error>, tokio::time::error::Elapsed>) -> Result<(), String> {
    match outcome {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(one_line(error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

impl Doctor {
    /// Says whether requests are accepted at all.
    async fn auth(&mut self) -> Result<bool, Failure> {
        let asked =
            tokio::time::timeout(self.limit, self.client.get("\0", Some(GetOptions::new().with_count_only()))).await;
        match verdict(&asked) {
            Ok(()) => self.report.tell("auth", Status::Ok, "requests are accepted", "")?,
            // Known, but not allowed to read that key: accepted.
            Err(text) if text.contains("permission denied") => {
                self.report.tell("auth", Status::Ok, "the user is accepted", "")?;
            }
            Err(text) if text.contains("user name is empty") => {
                self.report.tell("auth", Status::Failed, "etcd wants a user", "give --user and --password-file")?;
                return Ok(false);
            }
            Err(text) => {
                self.report.tell(
                    "auth",
                    Status::Failed,
                    &text,
                    "check --user and --password-file, and that there is a leader",
                )?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn version(&mut self) -> Result<(), Failure> {
        let status = tokio::time::timeout(self.limit, self.client.status()).await;
        let Ok(Ok(status)) = status else {
            return self.report.tell("version", Status::Warning, "the member does not tell", "");
        };
        let version = status.version().to_owned();
        match defects(&version) {
            None => self.report.tell("version", Status::Ok, &format!("etcd {version}"), ""),
            Some((defects, advice)) => {
                self.report.tell("version", Status::Warning, &format!("etcd {version} {defects}"), advice)
            }
        }
    }

    /// Tries what enlist does, below each prefix, and leaves nothing behind.
    async fn permissions(&mut self, prefixes: &[Vec<u8>]) -> Result<(), Failure> {
        let limit = self.limit;
        for prefix in prefixes {
            let shown = prefix.escape_ascii().to_string();
            let advice = format!("grant the user's role readwrite on everything that begins with {shown}");
            let range = GetOptions::new().with_prefix().with_limit(1).with_keys_only();
            let read = tokio::time::timeout(limit, self.client.get(&prefix[..], Some(range))).await;
            self.tell("read", &shown, &verdict(&read), &advice)?;

            let granted = tokio::time::timeout(limit, self.client.lease_grant(10, None)).await;
            self.tell("lease", &shown, &verdict(&granted), "leases need no permission: is there a leader and room?")?;
            let Ok(Ok(lease)) = granted else {
                self.report.skip(&["write", "watch"], "there is no lease")?;
                continue;
            };
            let key = [&prefix[..], format!(".doctor-{:016x}", fastrand::u64(..)).as_bytes()].concat();
            let absent = Compare::create_revision(&key[..], CompareOp::Equal, 0);
            let put = TxnOp::put(&key[..], "doctor", Some(PutOptions::new().with_lease(lease.id())));
            let written = tokio::time::timeout(limit, self.client.txn(Txn::new().when([absent]).and_then([put]))).await;
            self.tell("write", &shown, &verdict(&written), &advice)?;
            let watched = self.watch(&key).await;
            self.tell("watch", &shown, &watched, &advice)?;
            // Takes the key along; where it fails, both run out.
            let _ = tokio::time::timeout(limit, self.client.lease_revoke(lease.id())).await;
        }
        Ok(())
    }

    async fn watch(&mut self, key: &[u8]) -> Result<(), String> {
        let watching = async {
            let mut stream = self.client.watch(key, Some(WatchOptions::new())).await?;
            stream.message().await
        };
        match tokio::time::timeout(self.limit, watching).await {
            Ok(Ok(Some(message))) if message.canceled() => Err(message.cancel_reason().to_owned()),
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err("the watch ends".to_owned()),
            Ok(Err(error)) => Err(one_line(&error)),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    fn tell(&mut self, check: &str, prefix: &str, outcome: &Result<(), String>, advice: &str) -> Result<(), Failure> {
        match outcome {
            Ok(()) => self.report.tell(check, Status::Ok, &format!("below {prefix}"), ""),
            Err(text) => self.report.tell(check, Status::Failed, &format!("below {prefix}: {text}"), advice),
        }
    }

    async fn space(&mut self) -> Result<(), Failure> {
        let asked = tokio::time::timeout(self.limit, self.client.alarm(AlarmAction::Get, AlarmType::None, None)).await;
        match asked {
            Ok(Ok(response)) if response.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Nospace) => {
                self.report.tell(
                    "space",
                    Status::Failed,
                    "etcd is out of space and takes no new keys",
                    "compact and defragment it, then `etcdctl alarm disarm`",
                )
            }
            Ok(Ok(response)) if !response.alarms().is_empty() => {
                self.report.tell("space", Status::Failed, "a member has an alarm", "see `etcdctl alarm list`")
            }
            Ok(Ok(_)) => self.report.tell("space", Status::Ok, "no alarms", ""),
            // Alarms may be kept from users that are not root.
            Ok(Err(error)) => {
                self.report.tell("space", Status::Warning, &one_line(&error), "ask as root to see alarms")
            }
            Err(_) => self.report.tell("space", Status::Warning, "no answer in time", ""),
        }
    }

    async fn latency(&mut self) -> Result<(), Failure> {
        let mut times = Vec::new();
        for _ in 0..READS {
            let asked = Moment::now();
            let key = GetOptions::new().with_count_only();
            let read = tokio::time::timeout(self.limit, self.client.get("enlist/", Some(key))).await;
            // A refusal is an answer.
            if read.is_ok() {
                times.push(asked.elapsed());
            }
        }
        times.sort_unstable();
        let Some(median) = times.get(times.len() / 2).copied().filter(|_| times.len() == READS) else {
            return self.report.tell(
                "latency",
                Status::Failed,
                "not every read is answered",
                "look at etcd's disk and network",
            );
        };
        let detail = format!("a linearizable read takes {:.1} ms (median of {READS})", median.as_secs_f64() * 1000.0);
        if median > SLOW {
            return self.report.tell("latency", Status::Warning, &detail, "use a closer member, or longer TTLs");
        }
        self.report.tell("latency", Status::Ok, &detail, "")
    }
}

/// What is known to be wrong with a version of etcd, and what to do. The bounds are those of etcd's changelogs and issues: renewals
/// that are answered though the lease is gone (#15247, and in 3.4.38 and 3.5.23), deletions lost at a compaction (#18089, #19179),
/// reads that are not linearizable while a member is paused (#20418).
fn defects(version: &str) -> Option<(&'static str, &'static str)> {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let [major, minor, patch] = [numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)];
    let fixed = match (major, minor) {
        (3, 0..=3) => {
            return Some(("is older than what enlist is tested with", "use 3.4.42 or 3.5.28, or a later one"));
        }
        (3, 4) => 42,
        (3, 5) => 28,
        _ => return None,
    };
    if patch >= fixed {
        return None;
    }
    let known = "can lose leases that are renewed, forget deletions and answer stale reads; enlist watches its own keys, audits and \
                 confirms by writes";
    Some((known, if minor == 4 { "3.4.42 or 3.5.28 have the fixes" } else { "3.5.28 has the fixes" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_defects_are_told_apart() {
        for bad in ["3.3.27", "3.4.23", "3.5.1", "3.5.27", "3.4.41"] {
            assert!(defects(bad).is_some(), "{bad}");
        }
        for good in ["3.4.42", "3.5.28", "3.6.0", "3.6.0-rc.1", "4.0.0"] {
            assert!(defects(good).is_none(), "{good}");
        }
    }
}
