//! `enlist once`, `enlist jobs` and `enlist forget`: jobs that run once, and their records.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{
    Config as _, ConfigScope, Error, Forgotten, JobRecord, Lock as _, LockName, LockOptions, Namespace, Once, Revision,
};
use enlist_etcd::Etcd;
use serde_json::json;

use crate::{
    args::{Forget, Global, RunOnce},
    child,
    holding::{Held, Holding, Kind},
    output::{Failure, Output, To, time},
    table,
};

const HEAD: [&str; 5] = ["JOB", "STATE", "TOKEN", "BEGUN", "DONE"];

/// Connects for a command that uses the records of jobs.
fn client(global: &Global) -> Result<Etcd, Failure> {
    if global.config_prefix.is_some() {
        return Err(Failure::usage(
            "records of jobs need a namespace, which the plain keys of --config-prefix do not have; omit that option \
             and ENLIST_CONFIG_PREFIX for `once`, `jobs` and `forget`",
        ));
    }
    global.client()
}

fn once(etcd: &Etcd) -> Once {
    let etcd = Arc::new(etcd.clone());
    Once::new(Arc::clone(&etcd) as Arc<dyn enlist::Lock>, etcd)
}

pub(crate) async fn run(global: &Global, job: RunOnce, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (client(global)?, global.lock(&job.name)?);
    if job.run.command.is_empty() {
        return Err(Failure::usage("a job needs a command: `enlist once NAME -- COMMAND`"));
    }
    child::check(&job.run.command)?;
    let once = once(&etcd);
    let done = match once.record(&name).await {
        Ok(record) => record.filter(|record| record.done.is_some() && !job.again),
        // The acquisition waits for an etcd that does not answer.
        Err(error) if error.is_retryable() => None,
        Err(error) => return Err(error.into()),
    };
    let mut options = LockOptions::new().ttl(job.ttl).lock_delay(job.delay);
    (options.deadline, options.renewal_interval) = (job.wait, job.renewals.interval);
    let kind = Kind::Job(if job.again { once.again() } else { once });
    let holding = Holding::new(&etcd, &name, kind, job.ttl, &job.run, job.reporting, output);
    if let Some(record) = done {
        holding.report_already_done(&record);
        let _ = etcd.close().await;
        return Ok(0);
    }
    let acquiring = async {
        if job.attempt {
            Ok(etcd.try_acquire(&name, options).await?.map(Held::Lock))
        } else {
            etcd.acquire(&name, options).await.map(|guard| Some(Held::Lock(guard)))
        }
    };
    holding.run(acquiring).await
}

pub(crate) async fn jobs(global: &Global, name: Option<&str>, output: Output) -> Result<u8, Failure> {
    let etcd = client(global)?;
    let jobs = match name {
        None => all(&etcd, &global.namespace()?).await?,
        Some(name) => {
            let name = global.lock(name)?;
            let Some(record) = once(&etcd).record(&name).await? else {
                let to = if output.json { To::Stdout } else { To::Stderr };
                output.line(to, format!("{name} has not run"), &unknown(&name))?;
                return Ok(1);
            };
            vec![Job::of(&record)]
        }
    };
    if output.json {
        for job in &jobs {
            output.line(To::Stdout, "", &job.object)?;
        }
    } else if !jobs.is_empty() {
        for line in table::arrange(HEAD, jobs.iter().map(|job| job.row.clone())) {
            output.line(To::Stdout, line, &())?;
        }
    }
    Ok(u8::from(name.is_some() && jobs.iter().any(|job| job.object["done"].is_null())))
}

/// A job as it is shown.
struct Job {
    name: LockName,
    row: [String; 5],
    object: serde_json::Value,
}

impl Job {
    fn of(record: &JobRecord) -> Self {
        Self { name: record.name.clone(), row: row(record), object: object(record) }
    }

    fn unreadable(name: LockName, revision: Revision) -> Self {
        let row = [&name.to_string(), "unreadable", "-", "-", "-"].map(str::to_owned);
        Self { row, object: unreadable(&name, revision), name }
    }
}

/// Reads all jobs of a namespace, in the order of their names, including those whose record cannot be read.
async fn all(etcd: &Etcd, namespace: &Namespace) -> Result<Vec<Job>, Failure> {
    let once = once(etcd);
    let stored = etcd.list(&Namespace::parse(format!("once:{namespace}"))?, &ConfigScope::All).await?;
    let mut jobs: Vec<_> = once.records(namespace).await?.iter().map(Job::of).collect();
    let readable: HashSet<LockName> = jobs.iter().map(|job| job.name.clone()).collect();
    for entry in stored.entries() {
        let Ok(name) = LockName::parse(&entry.path) else { continue };
        let name = name.within(namespace.clone());
        if readable.contains(&name) {
            continue;
        }
        // The record may have been removed since the list.
        match once.record(&name).await {
            Err(Error::Unsupported { .. }) => jobs.push(Job::unreadable(name, entry.modified)),
            Ok(record) => jobs.extend(record.as_ref().map(Job::of)),
            Err(error) => return Err(error.into()),
        }
    }
    jobs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(jobs)
}

pub(crate) async fn forget(global: &Global, forget: &Forget, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (client(global)?, global.lock(&forget.name)?);
    let once = once(&etcd);
    let Some(age) = forget.older_than else {
        return match once.forget(&name).await? {
            Forgotten::Record(record) => report_forgotten(&record, output).map(|()| 0),
            Forgotten::Unreadable { revision } => report_unreadable(&name, revision, output).map(|()| 0),
            Forgotten::Nothing => Err(Failure::new(format!("there is no record of the job {name}"))),
        };
    };
    let now = SystemTime::now();
    for record in once.records(name.namespace()).await? {
        if !is_old(&record, &name, now, age) {
            continue;
        }
        match once.forget(&record.name).await {
            Ok(Forgotten::Record(record)) => report_forgotten(&record, output)?,
            Ok(Forgotten::Unreadable { revision }) => report_unreadable(&record.name, revision, output)?,
            // It was removed meanwhile, or it runs again.
            Ok(Forgotten::Nothing) | Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(0)
}

/// Returns `true` if the job is below `above` and was marked as done longer ago than `age`.
fn is_old(record: &JobRecord, above: &LockName, now: SystemTime, age: Duration) -> bool {
    let below = record.name.name().strip_prefix(above.name()).is_some_and(|rest| rest.starts_with('/'));
    let done = record.done.and_then(|done| now.duration_since(done).ok());
    below && done.is_some_and(|passed| passed > age)
}

fn report_forgotten(record: &JobRecord, output: Output) -> Result<(), Failure> {
    let mut object = object(record);
    object["event"] = "forgotten".into();
    output.line(
        To::Stdout,
        format!("{} is forgotten: {} at token {}", record.name, state(record), record.token),
        &object,
    )?;
    Ok(())
}

fn report_unreadable(name: &LockName, revision: Revision, output: Output) -> Result<(), Failure> {
    let mut object = unreadable(name, revision);
    object["event"] = "forgotten".into();
    Ok(output.line(To::Stdout, format!("{name} is forgotten: its record could not be read"), &object)?)
}

fn state(record: &JobRecord) -> &'static str {
    if record.done.is_some() { "done" } else { "begun" }
}

fn row(record: &JobRecord) -> [String; 5] {
    let JobRecord { name, token, begun, done, .. } = record;
    let done = done.map_or_else(|| "-".to_owned(), time);
    [name.to_string(), state(record).to_owned(), token.to_string(), time(*begun), done]
}

fn object(record: &JobRecord) -> serde_json::Value {
    json!({
        "job": record.name.to_string(),
        "state": state(record),
        "token": record.token.get(),
        "begun": time(record.begun),
        "done": record.done.map(time),
        "revision": record.revision.get(),
    })
}

/// Object of a job whose record cannot be read.
fn unreadable(name: &LockName, revision: Revision) -> serde_json::Value {
    json!({
        "job": name.to_string(),
        "state": "unreadable",
        "token": null,
        "begun": null,
        "done": null,
        "revision": revision.get(),
    })
}

/// Object of a job without a record.
fn unknown(name: &LockName) -> serde_json::Value {
    json!({ "job": name.to_string(), "state": null, "token": null, "begun": null, "done": null, "revision": null })
}
