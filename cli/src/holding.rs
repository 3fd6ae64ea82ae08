//! A held lock, leadership or permits: it is acquired, a program runs while it is held, and it is released. A job that
//! runs once is marked before the release.

use std::time::Duration;

use enlist::{
    Begun, Election, Error, JobRecord, JobRun, Leadership, LockGuard, LockName, Loss, Moment, Once, PermitGuard,
    Queues, Released, with_causes,
};
use enlist_etcd::Etcd;
use serde_json::json;

use crate::{
    args::{Reporting, Run},
    child::{Running, exit_code},
    deadlines::{self, DEADLINE_INTERVAL},
    output::{Failure, Output, To, time},
    reaper::ReaperTime,
    signals::{Signals, ending},
};

/// Maximum wait for the confirmation of a release. The release continues in the background until the process ends.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum wait for the name of the holder after an acquisition that failed.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(1);

/// A lock, permits or a leadership.
pub(crate) enum Held {
    Lock(LockGuard),
    Permits(PermitGuard),
    Leadership(Leadership),
}

impl Held {
    fn guard(&self) -> &LockGuard {
        match self {
            Self::Lock(guard) => guard,
            Self::Permits(permits) => permits,
            Self::Leadership(leadership) => leadership,
        }
    }

    async fn release(self) -> Result<Released, Error> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Permits(permits) => permits.release().await,
            Self::Leadership(leadership) => leadership.resign().await,
        }
    }
}

/// Kind of what is held, or is done while it is held.
pub(crate) enum Kind {
    Lock,
    Semaphore,
    Election,
    /// A job that runs once, under the lock of its name.
    Job(Once),
}

impl Kind {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Semaphore => "semaphore",
            Self::Election => "election",
            Self::Job(_) => "job",
        }
    }
}

/// One acquisition, from the command line to the exit status.
pub(crate) struct Holding<'a> {
    etcd: &'a Etcd,
    name: &'a LockName,
    kind: Kind,
    ttl: Duration,
    run: &'a Run,
    reporting: Reporting,
    output: Output,
}

/// End of a program, or of a wait without one.
enum Outcome {
    Done(u8),
    Lost,
}

/// Beginning of a job that runs once.
enum Start {
    /// The program runs. A job has a run, whose end is to be marked.
    Run(Option<JobRun>),
    /// The job is done.
    Skip(JobRecord),
    /// The lock was lost.
    Lost(Loss),
    /// A signal came first.
    Signal(u8),
}

/// Reason for which a contender did not acquire a lock.
enum Obstacle {
    /// A holder, with its name.
    Holder(Option<String>),
    /// The lock delay of an earlier holder.
    Delay,
    /// The number of permits of a semaphore without a holder, if it has one.
    Permits(Option<u32>),
}

impl<'a> Holding<'a> {
    pub(crate) fn new(
        etcd: &'a Etcd,
        name: &'a LockName,
        kind: Kind,
        ttl: Duration,
        run: &'a Run,
        reporting: Reporting,
        output: Output,
    ) -> Self {
        Self { etcd, name, kind, ttl, run, reporting, output }
    }

    /// Acquires, runs the program while the lock is held, and releases. Returns the exit status.
    pub(crate) async fn run(
        &self,
        acquiring: impl Future<Output = Result<Option<Held>, Error>>,
    ) -> Result<u8, Failure> {
        let mut signals = Signals::all()?;
        let acquired = tokio::select! {
            acquired = acquiring => acquired,
            signal = ending(&mut signals) => {
                // The queue entry is given up; the end of the session revokes the rest.
                let _ = self.etcd.close().await;
                return Ok(signal);
            }
        };
        let code = match acquired {
            Ok(Some(held)) => self.hold(held, &mut signals).await,
            Ok(None) | Err(Error::Timeout { op: "acquire", .. }) => Ok(tokio::select! {
                () = self.report_obstacle() => self.reporting.not_acquired,
                signal = ending(&mut signals) => signal,
            }),
            Err(error) => return Err(error.into()),
        };
        let _ = self.etcd.close().await;
        code
    }

    /// Runs the program while the lock is held, and releases it.
    async fn hold(&self, held: Held, signals: &mut Signals) -> Result<u8, Failure> {
        let token = held.guard().fencing_token();
        self.report_expected("acquired", &format!(" with token {token}"), json!({ "token": token.get() }));
        let job = match self.begin(held.guard(), signals).await? {
            Start::Run(job) => job,
            Start::Skip(record) => {
                self.report_already_done(&record);
                return Ok(self.release(held, 0).await);
            }
            Start::Lost(loss) => {
                self.report_loss(loss);
                return Ok(self.reporting.lost);
            }
            Start::Signal(code) => return Ok(self.release(held, code).await),
        };
        let outcome = if self.run.command.is_empty() {
            self.wait(held.guard(), signals).await
        } else {
            let variables = [("ENLIST_FENCING_TOKEN", token.to_string()), ("ENLIST_LOCK", self.name.to_string())];
            // If the validity is over, the reaper ends the program at once.
            let deadline = deadlines::while_held(held.guard(), self.ttl, ReaperTime::now());
            // On a failure the guard is dropped here, so that other contenders need not wait for the lease to expire.
            let running = Running::start(&self.run.command, &variables, Some(deadline)).await?;
            self.supervise(held.guard(), running, deadline, signals).await?
        };
        let Outcome::Done(mut code) = outcome else { return Ok(self.reporting.lost) };
        if let Some(job) = job {
            code = self.finish(job, code, signals).await?;
        }
        // No process of the program is left, so another holder may start.
        Ok(self.release(held, code).await)
    }

    /// Records the beginning of a job.
    async fn begin(&self, guard: &LockGuard, signals: &mut Signals) -> Result<Start, Failure> {
        let Kind::Job(once) = &self.kind else { return Ok(Start::Run(None)) };
        let begun = tokio::select! {
            begun = guard.run(once.begin(guard)) => begun,
            signal = ending(signals) => return Ok(Start::Signal(signal)),
        };
        match begun {
            Ok(Ok(Begun::Run(run))) => Ok(Start::Run(Some(run))),
            Ok(Ok(Begun::AlreadyDone(record))) => Ok(Start::Skip(record)),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(_)) => Err(Failure::new("the job has an unknown state")),
            Err(loss) => Ok(Start::Lost(loss)),
        }
    }

    /// Marks a job whose program ended with 0. Returns the exit status.
    async fn finish(&self, job: JobRun, code: u8, signals: &mut Signals) -> Result<u8, Failure> {
        if code != 0 {
            self.report("failed", &format!(" with status {code}; it is not marked as done"), json!({ "status": code }));
            return Ok(code);
        }
        let marked = tokio::select! {
            marked = job.finish() => marked,
            signal = ending(signals) => {
                let text = "; its mark is not confirmed, and it may run again";
                self.report("unconfirmed", text, json!({}));
                return Ok(signal);
            }
        };
        match marked {
            Ok(record) => {
                let token = record.token;
                self.report_expected("done", &format!(" at token {token}"), json!({ "token": token.get() }));
                Ok(code)
            }
            Err(Error::Conflict { revision, .. }) => {
                let text = ": another run began meanwhile, or the job was forgotten; this run is not marked";
                self.report("overtaken", text, json!({ "revision": revision.get() }));
                Ok(self.reporting.lost)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn report_already_done(&self, record: &JobRecord) {
        let token = record.token;
        let fields = json!({ "token": token.get(), "done": record.done.map(time) });
        if !self.reporting.quiet {
            self.report_as("already-done", &format!("already done at token {token}"), fields);
        }
    }

    /// Releases the lock. Returns `code`, or the status of a loss if the lock had been lost.
    async fn release(&self, held: Held, code: u8) -> u8 {
        match tokio::time::timeout(RELEASE_TIMEOUT, held.release()).await {
            Ok(Ok(Released::Released)) => {
                self.report_expected("released", "", json!({ "result": "released" }));
                code
            }
            Ok(Ok(_)) => {
                self.report("released", ", but it had been lost before", json!({ "result": "already-lost" }));
                self.reporting.lost
            }
            Ok(Err(_)) | Err(_) => {
                let text = ", not confirmed by etcd; the lock is free after its TTL at the latest";
                self.report("released", text, json!({ "result": "unconfirmed" }));
                code
            }
        }
    }

    /// Waits for a signal or for the loss.
    async fn wait(&self, guard: &LockGuard, signals: &mut Signals) -> Outcome {
        tokio::select! {
            code = ending(signals) => Outcome::Done(code),
            loss = guard.lost() => {
                self.report_loss(loss);
                Outcome::Lost
            }
        }
    }

    /// Waits until the program ends, whose deadline the reaper has. A loss ends it.
    async fn supervise(
        &self,
        guard: &LockGuard,
        mut running: Running,
        mut deadline: ReaperTime,
        signals: &mut Signals,
    ) -> Result<Outcome, Failure> {
        let grace = self.run.grace;
        let mut ticks = tokio::time::interval(DEADLINE_INTERVAL);
        loop {
            tokio::select! {
                // A loss takes precedence over every other event.
                biased;
                loss = guard.lost() => {
                    let begun = Moment::now();
                    self.report_loss(loss);
                    let end = deadlines::after_loss(loss, self.ttl, grace, ReaperTime::now(), deadline);
                    running.allow(end.deadline).await;
                    running.end(end.grace).await?;
                    let after = begun.elapsed().as_secs_f64();
                    self.report("stopped", &format!(" {after:.3} s after the loss"), json!({ "seconds": after }));
                    return Ok(Outcome::Lost);
                }
                status = running.ended() => {
                    let code = exit_code(status?);
                    // Processes that the program left behind do not hold the lock; the reaper bounds their lifetime
                    // meanwhile.
                    running.end(grace).await?;
                    return Ok(Outcome::Done(code));
                }
                signal = signals.next() => running.signal(signal),
                // If this process is frozen, the reaper ends the program before another contender can acquire the lock.
                _ = ticks.tick() => {
                    deadline = deadlines::while_held(guard, self.ttl, deadline);
                    running.allow(deadline).await;
                }
            }
        }
    }

    /// Reports an event that is part of a normal run; `--quiet` suppresses it.
    fn report_expected(&self, event: &str, text: &str, fields: serde_json::Value) {
        if !self.reporting.quiet {
            self.report(event, text, fields);
        }
    }

    fn report(&self, event: &str, text: &str, fields: serde_json::Value) {
        self.report_as(event, &format!("{event}{text}"), fields);
    }

    fn report_as(&self, event: &str, text: &str, fields: serde_json::Value) {
        // Standard output belongs to the program, if there is one.
        let to = if self.run.command.is_empty() { To::Stdout } else { To::Stderr };
        let (kind, name) = (self.kind.as_str(), self.name);
        let mut object = json!({ "event": event, kind: name.to_string() });
        if let (Some(object), serde_json::Value::Object(fields)) = (object.as_object_mut(), fields) {
            object.extend(fields);
        }
        self.output.tell(to, format!("enlist: {kind} {name} {text}"), &object);
    }

    fn report_loss(&self, loss: Loss) {
        let cause = match loss {
            Loss::Expired => "no renewal was acknowledged in time",
            Loss::LeaseGone => "its lease is gone",
            Loss::KeyGone => "its key was deleted",
            _ => "the session has ended",
        };
        self.report("lost", &format!(": {cause}"), json!({ "cause": cause }));
    }

    /// Reports the reason for which the lock was not acquired: another holder, a lock delay, or an etcd that does not
    /// answer.
    async fn report_obstacle(&self) {
        let obstacle = tokio::time::timeout(HOLDER_TIMEOUT, self.obstacle()).await;
        let late = Error::Timeout { op: "asking for the holder", limit: HOLDER_TIMEOUT, cause: None };
        match obstacle.unwrap_or(Err(late)) {
            Err(error) if error.is_retryable() => {
                let cause = with_causes(&error).to_string();
                let fields = json!({ "holder": null, "cause": cause });
                self.report("not-acquired", &format!(": etcd does not answer: {cause}"), fields);
            }
            Ok(Obstacle::Delay) => {
                let cause = "a holder did not release, and its lock delay has not passed";
                self.report_expected("not-acquired", &format!(": {cause}"), json!({ "holder": null, "cause": cause }));
            }
            Ok(Obstacle::Permits(permits)) => {
                let cause = match permits {
                    Some(permits) => format!("the semaphore has {permits} permits, and nothing overtakes"),
                    None => "the semaphore has no number of permits: set it, or use --of".to_owned(),
                };
                self.report_expected("not-acquired", &format!(": {cause}"), json!({ "holder": null, "cause": cause }));
            }
            obstacle => {
                let holder = if let Ok(Obstacle::Holder(holder)) = obstacle { holder } else { None };
                let by = holder.as_deref().unwrap_or("another client");
                let fields = json!({ "holder": holder, "cause": null });
                self.report_expected("not-acquired", &format!(": held by {by}"), fields);
            }
        }
    }

    async fn obstacle(&self) -> Result<Obstacle, Error> {
        match &self.kind {
            Kind::Lock | Kind::Job(_) => {
                let queue = self.etcd.lock_queue(self.name).await?;
                let holder = || queue.holders().first().and_then(|holder| holder.process.clone());
                Ok(if queue.delayed { Obstacle::Delay } else { Obstacle::Holder(holder()) })
            }
            Kind::Semaphore => {
                let queue = self.etcd.semaphore_queue(self.name).await?;
                let first = queue.holders().next();
                Ok(match first {
                    Some(holder) => Obstacle::Holder(holder.process.clone()),
                    None => Obstacle::Permits(queue.permits),
                })
            }
            Kind::Election => Ok(Obstacle::Holder(self.etcd.leader(self.name).await?.map(|leader| leader.value))),
        }
    }
}
