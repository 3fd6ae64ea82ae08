//! `enlist doctor`: what enlist needs of etcd, looked at piece by piece, with a word on what to do.
//!
//! Read [`endpoints`] next, which asks each endpoint by itself; the other checks use one that answers.

mod causes;
mod endpoints;
mod versions;

use std::time::Duration;

use enlist::Moment;
use enlist_etcd::layout::Line;
use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use serde_json::json;

use self::{
    causes::Meaning,
    endpoints::{Answer, Found},
};
use crate::{
    args::Global,
    output::{Failure, Output, Paint, Text, To},
};

/// A round trip that takes longer is told as slow.
const SLOW: Duration = Duration::from_millis(100);

/// How many reads the latency is measured with.
const READS: usize = 10;

/// What needs an endpoint that answers; all but the first needs a user that is accepted.
const CHECKS: [&str; 8] = ["auth", "version", "read", "lease", "write", "watch", "space", "latency"];

const NO_ANSWER: &str = "no endpoint answers";

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
        let advice_text = if advice.is_empty() { String::new() } else { format!("; {advice}") };
        let object = json!({
            "check": check, "status": status.word(), "detail": detail,
            "advice": Some(advice).filter(|advice| !advice.is_empty()),
        });
        let line = Text::painted(paint, format!("{:<8}", status.word()), format!(" {check}: {detail}{advice_text}"));
        self.output.line(To::Stdout, line, &object)?;
        Ok(())
    }

    fn skip(&mut self, checks: &[&str], why: &str) -> Result<(), Failure> {
        checks.iter().try_for_each(|check| self.tell(check, Status::Skipped, why, ""))
    }
}

pub(crate) async fn run(global: &Global, output: Output) -> Result<u8, Failure> {
    // What every command refuses is refused here as well, a password in a URL for instance.
    global.client()?;
    let mut report = Report { output, failed: false };
    let found = endpoints::examine(global, &mut report).await?;
    transport(&found, &global.clear_text()?, &mut report)?;
    if found.is_empty() {
        report.skip(&CHECKS, NO_ANSWER)?;
        return Ok(1);
    }
    let client = match connected(found) {
        Ok(client) => client,
        Err(error) => {
            let (detail, advice) = refusal(&error);
            report.tell("auth", Status::Failed, &detail, advice)?;
            report.skip(&CHECKS[1..], NOT_ACCEPTED)?;
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

/// Whether TLS is in use where it has to be.
fn transport(found: &[Found], clear_text: &[String], report: &mut Report) -> Result<(), Failure> {
    if !clear_text.is_empty() {
        let detail = format!("the password is sent in clear text to {}", clear_text.join(", "));
        return report.tell("tls", Status::Failed, &detail, "use https://, and have etcd serve TLS");
    }
    let plain: Vec<_> = found.iter().map(|found| &*found.url).filter(|url| !url.starts_with("https://")).collect();
    let detail = match plain.len() {
        _ if found.is_empty() => return report.skip(&["tls"], NO_ANSWER),
        0 => "in use".to_owned(),
        count if count == found.len() => "not in use".to_owned(),
        _ => format!("in use, but not at {}", plain.join(", ")),
    };
    report.tell("tls", Status::Ok, &detail, "")
}

/// The client of an endpoint that accepts the user, or a refusal.
fn connected(found: Vec<Found>) -> Answer {
    let mut refused = etcd_client::Error::InvalidArgs("no endpoint".to_owned());
    for found in found {
        match found.answer {
            Ok(client) => return Ok(client),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// What to do about requests that are not accepted.
fn refusal(error: &etcd_client::Error) -> (String, &'static str) {
    match causes::meaning(error) {
        Meaning::UserWanted => ("etcd wants a user".to_owned(), "give --user and --password-file"),
        Meaning::UserRefused => (causes::text(error), "check --user and --password-file"),
        Meaning::UsersOff => (causes::text(error), "leave --user out, or enable authentication in etcd"),
        _ => (causes::text(error), "see whether there is a leader"),
    }
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
        Ok(Err(error)) => Err(causes::text(error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

impl Doctor {
    /// Returns `true` if requests are accepted at all.
    async fn auth(&mut self) -> Result<bool, Failure> {
        let read = GetOptions::new().with_count_only();
        let asked = tokio::time::timeout(self.limit, self.client.get("\0", Some(read))).await;
        let (detail, advice) = match asked {
            Ok(Ok(_)) => {
                self.report.tell("auth", Status::Ok, "requests are accepted", "")?;
                return Ok(true);
            }
            // Known, but not allowed to read that key: accepted.
            Ok(Err(error)) if causes::meaning(&error) == Meaning::Denied => {
                self.report.tell("auth", Status::Ok, "the user is accepted", "")?;
                return Ok(true);
            }
            Ok(Err(error)) => refusal(&error),
            Err(_) => ("no answer in time".to_owned(), "see whether there is a leader"),
        };
        self.report.tell("auth", Status::Failed, &detail, advice)?;
        Ok(false)
    }

    async fn version(&mut self) -> Result<(), Failure> {
        let status = match tokio::time::timeout(self.limit, self.client.status()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) if causes::meaning(&error) == Meaning::Denied => {
                let advice =
                    "3.5.28 to 3.5.31 and 3.6.9 to 3.6.11 tell it to root only: ask as root, or take a later one";
                return self.report.tell("version", Status::Warning, "etcd does not tell it to this user", advice);
            }
            Ok(Err(error)) => {
                let text = causes::text(&error);
                return self.report.tell("version", Status::Warning, &text, "ask again");
            }
            Err(_) => return self.report.tell("version", Status::Warning, "no answer in time", "ask again"),
        };
        let version = status.version().to_owned();
        match versions::defects(&version) {
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
            Ok(Err(error)) => Err(causes::text(&error)),
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
                self.report.tell("space", Status::Warning, &causes::text(&error), "ask as root to see alarms")
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
