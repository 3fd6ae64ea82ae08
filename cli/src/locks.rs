//! `enlist lock`, `elect`, `leader` and `observe`.

use std::time::Duration;

use enlist::{
    Election, Error, Freshness, Leader, LeaderWatcher, Leadership, LockGuard, LockMode, LockName, LockOptions, Loss,
    Moment, Released, backend::safe_validity, with_causes,
};
use enlist_etcd::Etcd;
use serde_json::json;

use crate::{
    args::{Elect, Global, Lock, Run, Telling},
    child::{self, Running, exit_code},
    output::{Failure, Output, To},
    signals::{Signals, ending},
};

/// Interval at which the reaper is told how long the command may live.
const PULSE: Duration = Duration::from_millis(100);

/// Time for which a release is waited for; it goes on without anybody waiting for as long as the process lives.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time for which the name of the holder is waited for by whoever does not get the lock.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(1);

/// Something that is held.
enum Held {
    Lock(LockGuard),
    Leadership(Leadership),
}

impl Held {
    fn guard(&self) -> &LockGuard {
        match self {
            Self::Lock(guard) => guard,
            Self::Leadership(leadership) => leadership,
        }
    }

    async fn release(self) -> Result<Released, Error> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leadership(leadership) => leadership.resign().await,
        }
    }
}

pub(crate) async fn lock(global: &Global, lock: Lock, output: Output) -> Result<u8, Failure> {
    use enlist::Lock as _;
    let (etcd, name) = (global.client()?, global.lock(&lock.name)?);
    child::check(&lock.run.command)?;
    let mut options = LockOptions::new().ttl(lock.ttl).lock_delay(lock.delay);
    if lock.shared {
        options.mode = LockMode::Shared;
    }
    (options.deadline, options.renewal_interval) = (lock.wait, lock.renewals.interval);
    let acquiring = async {
        if lock.attempt {
            Ok(etcd.try_acquire(&name, options).await?.map(Held::Lock))
        } else {
            etcd.acquire(&name, options).await.map(|guard| Some(Held::Lock(guard)))
        }
    };
    hold(&etcd, &name, acquiring, ("lock", lock.ttl), &lock.run, lock.telling, output).await
}

pub(crate) async fn elect(global: &Global, elect: Elect, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (global.client()?, global.lock(&elect.name)?);
    child::check(&elect.run.command)?;
    let mut options = LockOptions::new().ttl(elect.ttl);
    (options.deadline, options.renewal_interval) = (elect.wait, elect.renewals.interval);
    let campaigning =
        async { etcd.campaign(&name, &elect.value, options).await.map(|won| Some(Held::Leadership(won))) };
    hold(&etcd, &name, campaigning, ("election", elect.ttl), &elect.run, elect.telling, output).await
}

/// Says what becomes of the lock.
struct Told<'a> {
    output: Output,
    to: To,
    /// As expected is not told.
    quiet: bool,
    what: &'static str,
    name: &'a LockName,
}

impl Told<'_> {
    /// Says what was to be expected.
    fn mention(&self, event: &str, text: &str, more: serde_json::Value) {
        if !self.quiet {
            self.tell(event, text, more);
        }
    }

    fn tell(&self, event: &str, text: &str, more: serde_json::Value) {
        let mut object = json!({ "event": event, self.what: self.name.to_string() });
        if let (Some(object), serde_json::Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        self.output.tell(self.to, format!("enlist: {} {} {event}{text}", self.what, self.name), &object);
    }
}

/// Acquires, runs the command while it is held, and gives it back.
async fn hold(
    etcd: &Etcd,
    name: &LockName,
    acquiring: impl Future<Output = Result<Option<Held>, Error>>,
    (what, ttl): (&'static str, Duration),
    run: &Run,
    telling: Telling,
    output: Output,
) -> Result<u8, Failure> {
    // The output of a command stays its own.
    let to = if run.command.is_empty() { To::Stdout } else { To::Stderr };
    let told = Told { output, to, quiet: telling.quiet, what, name };
    let mut signals = Signals::all()?;
    let acquired = tokio::select! {
        acquired = acquiring => acquired,
        signal = ending(&mut signals) => {
            // The place in line is given up; the end of the session revokes what is left of it.
            let _ = etcd.close().await;
            return Ok(signal);
        }
    };
    let held = match acquired {
        Ok(Some(held)) => held,
        Ok(None) | Err(Error::Timeout { op: "acquire", .. }) => {
            let code = tokio::select! {
                () = tell_why_not(etcd, &told) => telling.not_acquired,
                signal = ending(&mut signals) => signal,
            };
            let _ = etcd.close().await;
            return Ok(code);
        }
        Err(error) => return Err(error.into()),
    };
    let token = held.guard().fencing_token();
    told.mention("acquired", &format!(" with token {token}"), json!({ "token": token.get() }));
    let outcome = if run.command.is_empty() {
        Ok(wait(held.guard(), &mut signals, &told).await)
    } else {
        let variables = [("ENLIST_FENCING_TOKEN", token.to_string()), ("ENLIST_LOCK", name.to_string())];
        let limit = allowed(held.guard().remaining(), ttl);
        match Running::start(&run.command, &variables, Some(limit)).await {
            Ok(running) => work(held.guard(), running, (ttl, run.grace), &mut signals, &told).await,
            Err(failure) => Err(failure),
        }
    };
    let code = match outcome {
        Err(failure) => {
            // Whoever waits need not wait for the lease to run out.
            drop(held);
            let _ = etcd.close().await;
            return Err(failure);
        }
        Ok(Outcome::Done(code)) => {
            // Nobody of the command is left, so another may begin.
            match tokio::time::timeout(PATIENCE, held.release()).await {
                Ok(Ok(Released::Released)) => {
                    told.mention("released", "", json!({ "result": "released" }));
                    code
                }
                Ok(Ok(_)) => {
                    told.tell("released", ", though it had been lost before", json!({ "result": "already-lost" }));
                    telling.lost
                }
                Ok(Err(_)) | Err(_) => {
                    let text = ", which etcd has not confirmed; it is free at the latest after its TTL";
                    told.tell("released", text, json!({ "result": "unconfirmed" }));
                    code
                }
            }
        }
        Ok(Outcome::Lost) => telling.lost,
    };
    let _ = etcd.close().await;
    Ok(code)
}

/// Obstacle of a contender.
enum Obstacle {
    /// A holder, as it names itself.
    Holder(Option<String>),
    /// The delay that a holder left behind.
    Delay,
}

/// Says why it was not acquired: another holds it, or etcd was not there to be asked, which was not to be expected.
async fn tell_why_not(etcd: &Etcd, told: &Told<'_>) {
    let obstacle = tokio::time::timeout(HOLDER_TIMEOUT, obstacle(etcd, told.what, told.name)).await;
    let late = Error::Timeout { op: "asking for the holder", limit: HOLDER_TIMEOUT, cause: None };
    match obstacle.unwrap_or(Err(late)) {
        Err(error) if error.is_retryable() => {
            let cause = with_causes(&error).to_string();
            let more = json!({ "holder": null, "cause": cause });
            told.tell("not-acquired", &format!(": etcd does not answer: {cause}"), more);
        }
        Ok(Obstacle::Delay) => {
            let cause = "a holder did not release, and its lock delay has not passed";
            told.mention("not-acquired", &format!(": {cause}"), json!({ "holder": null, "cause": cause }));
        }
        obstacle => {
            let holder = if let Ok(Obstacle::Holder(holder)) = obstacle { holder } else { None };
            let by = holder.as_deref().unwrap_or("somebody else");
            told.mention("not-acquired", &format!(": held by {by}"), json!({ "holder": holder, "cause": null }));
        }
    }
}

async fn obstacle(etcd: &Etcd, what: &str, name: &LockName) -> Result<Obstacle, Error> {
    if what == "lock" {
        let queue = etcd.lock_queue(name).await?;
        let holder = || queue.holders().first().and_then(|holder| holder.process.clone());
        return Ok(if queue.delayed { Obstacle::Delay } else { Obstacle::Holder(holder()) });
    }
    Ok(Obstacle::Holder(etcd.leader(name).await?.map(|leader| leader.value)))
}

enum Outcome {
    Done(u8),
    Lost,
}

fn tell_loss(told: &Told<'_>, loss: Loss) {
    let cause = match loss {
        Loss::Expired => "no renewal was acknowledged in time",
        Loss::LeaseGone => "its lease is gone",
        Loss::KeyGone => "its key was deleted",
        _ => "the session has ended",
    };
    told.tell("lost", &format!(": {cause}"), json!({ "cause": cause }));
}

/// Holds it until a signal.
async fn wait(guard: &LockGuard, signals: &mut Signals, told: &Told<'_>) -> Outcome {
    tokio::select! {
        code = ending(signals) => Outcome::Done(code),
        loss = guard.lost() => {
            tell_loss(told, loss);
            Outcome::Lost
        }
    }
}

/// Runs the command until it ends or the lock is lost, which ends it.
async fn work(
    guard: &LockGuard,
    mut running: Running,
    (ttl, grace): (Duration, Duration),
    signals: &mut Signals,
    told: &Told<'_>,
) -> Result<Outcome, Failure> {
    let mut pulse = tokio::time::interval(PULSE);
    loop {
        tokio::select! {
            // Loss first: nothing else is worth anything after it.
            biased;
            loss = guard.lost() => {
                let begun = Moment::now();
                tell_loss(told, loss);
                let grace = grace_after(loss, ttl, grace);
                running.allow(grace + PULSE).await;
                running.end(grace).await?;
                let after = begun.elapsed().as_secs_f64();
                told.tell("stopped", &format!(" {after:.3} s after the loss"), json!({ "seconds": after }));
                return Ok(Outcome::Lost);
            }
            status = running.ended() => {
                let code = exit_code(status?);
                // What the command started and left behind holds no lock of its own; the reaper keeps it from outliving this one.
                running.end(grace).await?;
                return Ok(Outcome::Done(code));
            }
            signal = signals.next() => running.signal(signal),
            // Should this process be frozen, the reaper ends the command before the lock can be another's.
            _ = pulse.tick() => running.allow(allowed(guard.remaining(), ttl)).await,
        }
    }
}

/// Time between SIGTERM and SIGKILL for the command. An expiry is known before the lock can be another's, and the command
/// has to end before that too; whoever was robbed is late already.
fn grace_after(loss: Loss, ttl: Duration, grace: Duration) -> Duration {
    if loss == Loss::Expired { grace.min(margin(ttl) / 2) } else { grace }
}

/// Time for which the command may live if nothing more is heard of this process: a little longer than the lock is believed in, which is
/// when this process would act, and less than until the lease can run out.
fn allowed(left: Duration, ttl: Duration) -> Duration {
    left + margin(ttl) * 3 / 4
}

/// Time before the possible end of the lease at which the lock counts as lost.
fn margin(ttl: Duration) -> Duration {
    ttl.saturating_sub(safe_validity(ttl))
}

fn leader_object(name: &LockName, leader: Option<&Leader>) -> serde_json::Value {
    json!({
        "election": name.to_string(),
        "leader": leader.map(|leader| &leader.value),
        "token": leader.map(|leader| leader.token.get()),
        "modified": leader.map(|leader| leader.modified.get()),
    })
}

pub(crate) async fn leader(global: &Global, name: &str, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (global.client()?, global.lock(name)?);
    let leader = etcd.leader(&name).await?;
    let object = leader_object(&name, leader.as_ref());
    if let Some(leader) = &leader {
        output.line(To::Stdout, &leader.value, &object)?;
    } else {
        let to = if output.json { To::Stdout } else { To::Stderr };
        output.line(to, format!("nobody leads {name}"), &object)?;
    }
    Ok(u8::from(leader.is_none()))
}

pub(crate) async fn observe(global: &Global, name: &str, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (global.client()?, global.lock(name)?);
    let mut signals = Signals::ending()?;
    let mut watcher: LeaderWatcher = etcd.observe(&name).await?;
    loop {
        let change = tokio::select! {
            change = watcher.next() => change?,
            signal = signals.next() => return Ok(signal.as_exit()),
        };
        let cause = match &change.freshness {
            Freshness::Stale { cause, .. } => Some(with_causes(cause).to_string()),
            _ => None,
        };
        let mut text = match &change.leader {
            Some(leader) => format!("{} (token {})", leader.value, leader.token),
            None => "nobody leads".to_owned(),
        };
        if let Some(cause) = &cause {
            text = format!("{text}, not up to date: {cause}");
        }
        let mut object = leader_object(&name, change.leader.as_ref());
        object["live"] = cause.is_none().into();
        object["cause"] = cause.into();
        output.line(To::Stdout, text, &object)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ends_before_the_lock_can_be_anothers() {
        for ttl in [2, 5, 15, 600].map(Duration::from_secs) {
            let hour = Duration::from_secs(3600);
            assert!(safe_validity(ttl) + grace_after(Loss::Expired, ttl, hour) < ttl);
            assert!(allowed(safe_validity(ttl), ttl) < ttl);
            // This process acts first, if it can.
            assert!(allowed(Duration::ZERO, ttl) > grace_after(Loss::Expired, ttl, hour));
            assert_eq!(grace_after(Loss::LeaseGone, ttl, hour), hour);
        }
    }
}
