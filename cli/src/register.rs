//! `enlist register`: an instance that stays registered while a command runs, or until a signal.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use enlist::{
    Deregistered, Endpoint, Health, OnConflict, RegisterOptions, Registration, RegistrationState, Registry, Start,
    advertise, with_causes,
};
use serde_json::json;

use crate::{
    args::{ConflictChoice, Global, Register},
    child::{self, Running, exit_code},
    instances,
    output::{Failure, Output, To},
    signals::{Signal, Signals, ending},
};

/// Time for which the command waits for its signal until clients have been told that the instance is gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Reads `host:port`, `protocol://host:port`, or `:port`.
fn endpoint(text: &str) -> Result<Endpoint, Failure> {
    match text.strip_prefix(':').map(str::parse) {
        Some(Ok(port)) => Ok(advertise(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?.0),
        _ => Ok(Endpoint::parse(text)?),
    }
}

pub(crate) async fn run(global: &Global, register: Register, output: Output) -> Result<u8, Failure> {
    let (etcd, service) = (global.client()?, global.service(&register.service)?);
    let addresses: Result<Vec<_>, _> = register.addresses.iter().map(|text| endpoint(text)).collect();
    let instance = instances::instance(addresses?, &register.details, &etcd)?;
    let on_conflict = match register.on_conflict {
        ConflictChoice::Refuse => OnConflict::Refuse,
        ConflictChoice::Wait => OnConflict::Wait,
        ConflictChoice::TakeOver => OnConflict::TakeOver,
    };
    let mut options = RegisterOptions::new().ttl(register.ttl).on_conflict(on_conflict).start(Start::Background);
    options.owner = register.token()?;
    options.renewal_interval = register.renewals.interval;
    child::check(&register.run.command)?;
    let mut signals = Signals::all()?;
    let registration = etcd.register(&service, instance, options).await?;
    // The output of a command stays its own.
    let to = if register.run.command.is_empty() { To::Stdout } else { To::Stderr };
    let told = Told { output, to, name: format!("{service}/{}", registration.instance().id()) };

    let waits = register.wait_registered && !register.run.command.is_empty();
    if waits && let Some(outcome) = registered(&registration, &told, &mut signals).await {
        leave(registration, &told, Duration::ZERO).await;
        let _ = etcd.close().await;
        return outcome;
    }
    // Beside the registration, which may take its time: a command that serves is better early than late.
    let running = match &register.run.command[..] {
        [] => None,
        command => {
            let id = registration.instance().id().to_string();
            match Running::start(command, &[("ENLIST_INSTANCE_ID", id)], None).await {
                Ok(running) => Some(running),
                Err(failure) => {
                    leave(registration, &told, Duration::ZERO).await;
                    let _ = etcd.close().await;
                    return Err(failure);
                }
            }
        }
    };
    let kept = Kept { registration, running, waited: waits, told, drain: register.drain, grace: register.run.grace };
    let outcome = kept.keep(&mut signals).await;
    // Leases are revoked; nothing is lost if that cannot be said.
    let _ = etcd.close().await;
    outcome
}

/// Says what becomes of the registration.
struct Told {
    output: Output,
    to: To,
    name: String,
}

impl Told {
    fn state(&self, state: &RegistrationState) {
        let (event, revision, cause) = match state {
            RegistrationState::Registering { last } => ("registering", None, last.as_ref()),
            RegistrationState::Registered { revision } => ("registered", Some(revision.get()), None),
            RegistrationState::Suspect { cause } => ("suspect", None, Some(cause)),
            RegistrationState::Reregistering { cause } => ("reregistering", None, Some(cause)),
            RegistrationState::Superseded { cause } => ("superseded", None, Some(cause)),
            RegistrationState::Withdrawn => ("withdrawn", None, None),
            RegistrationState::Refused { cause } => ("refused", None, Some(cause)),
            _ => ("ended", None, None),
        };
        let cause = cause.map(|cause| with_causes(cause).to_string());
        let mut text = format!("enlist: {} {event}", self.name);
        if let Some(revision) = revision {
            text = format!("{text} at revision {revision}");
        }
        if let Some(cause) = &cause {
            text = format!("{text}: {cause}");
        }
        let object = json!({ "event": event, "instance": self.name, "revision": revision, "cause": cause });
        self.output.tell(self.to, text, &object);
    }

    fn deregistered(&self, outcome: &Result<Deregistered, enlist::Error>) {
        let (result, cause) = match outcome {
            Ok(Deregistered::Removed) => ("removed", None),
            Ok(Deregistered::AlreadyGone) => ("already-gone", None),
            Ok(_) => ("left-behind", None),
            Err(error) => ("failed", Some(with_causes(error).to_string())),
        };
        let mut text = format!("enlist: {} deregistered: {result}", self.name);
        if let Some(cause) = &cause {
            text = format!("{text}: {cause}");
        }
        if result == "left-behind" {
            text = format!("{text}, etcd has not answered; it goes at the latest after its TTL");
        }
        let object = json!({ "event": "deregistered", "instance": self.name, "result": result, "cause": cause });
        self.output.tell(self.to, text, &object);
    }
}

/// Waits until the instance is registered. Returns how to end if that does not come about.
async fn registered(registration: &Registration, told: &Told, signals: &mut Signals) -> Option<Result<u8, Failure>> {
    let mut changes = registration.states();
    loop {
        let state = tokio::select! {
            state = changes.next() => state,
            code = ending(signals) => return Some(Ok(code)),
        };
        let state = match state {
            Ok(state) => state,
            Err(error) => return Some(Err(error.into())),
        };
        // That it begins is no news.
        if matches!(state, RegistrationState::Registering { last: None }) {
            continue;
        }
        match state {
            // The failure that is told.
            RegistrationState::Refused { cause } if fatal(&cause) => return Some(Err(cause.into())),
            state => {
                told.state(&state);
                if let RegistrationState::Registered { .. } = state {
                    return None;
                }
            }
        }
    }
}

struct Kept {
    registration: Registration,
    running: Option<Running>,
    /// It was registered, and that was told, before the command was started.
    waited: bool,
    told: Told,
    drain: Duration,
    grace: Duration,
}

/// End of the registration.
enum End {
    Signal(Signal),
    Child(std::process::ExitStatus),
    Refused(enlist::Error),
}

impl Kept {
    async fn keep(mut self, signals: &mut Signals) -> Result<u8, Failure> {
        match self.until_the_end(signals).await? {
            End::Signal(signal) => {
                let Self { registration, running, waited: _, told, drain, grace } = self;
                // Clients first, so that they stop calling before the command stops answering.
                let leaving = leave(registration, &told, drain);
                let Some(mut running) = running else {
                    leaving.await;
                    return Ok(signal.as_exit());
                };
                let status = {
                    let mut leaving = std::pin::pin!(leaving);
                    let left = tokio::time::timeout(drain + PATIENCE, &mut leaving).await.is_ok();
                    running.signal(signal);
                    let ended = pass_on(&mut running, signals);
                    if left { ended.await? } else { tokio::join!(ended, leaving).0? }
                };
                let code = exit_code(status);
                running.end(grace).await?;
                Ok(code)
            }
            End::Child(status) => {
                let Self { registration, running, told, grace, .. } = self;
                leave(registration, &told, Duration::ZERO).await;
                if let Some(running) = running {
                    running.end(grace).await?;
                }
                Ok(exit_code(status))
            }
            End::Refused(error) => {
                let Self { registration, running, grace, .. } = self;
                // Never silently without the registration.
                if let Some(running) = running {
                    running.end(grace).await?;
                }
                // Withdraws whatever there may be.
                drop(registration);
                Err(error.into())
            }
        }
    }

    async fn until_the_end(&mut self, signals: &mut Signals) -> Result<End, Failure> {
        // It may have got somewhere while the command was started.
        let mut changes = self.registration.states();
        let mut begun = false;
        loop {
            tokio::select! {
                state = changes.next() => {
                    let Ok(state) = state else {
                        return Ok(End::Refused(enlist::Error::Closed));
                    };
                    // That it begins is no news, and after a wait for it neither is that it is registered.
                    let is_known = match state {
                        RegistrationState::Registering { .. } => true,
                        RegistrationState::Registered { .. } => self.waited,
                        _ => false,
                    };
                    if !std::mem::replace(&mut begun, true) && is_known {
                        continue;
                    }
                    match state {
                        // Somebody else has the id, or the store will not have it: tried for ever elsewhere, here the failure that is told.
                        RegistrationState::Refused { cause } if fatal(&cause) => {
                            return Ok(End::Refused(cause));
                        }
                        state => {
                            self.told.state(&state);
                            if let RegistrationState::Ended = state {
                                let what = self.told.name.clone();
                                let error = enlist::Error::Conflict { what, revision: enlist::Revision::default() };
                                return Ok(End::Refused(error));
                            }
                        }
                    }
                }
                status = ended(self.running.as_mut()) => return Ok(End::Child(status?)),
                signal = signals.next() => match &self.running {
                    Some(running) if !signal.ends() => running.signal(signal),
                    _ if signal.ends() => return Ok(End::Signal(signal)),
                    _ => {}
                },
            }
        }
    }
}

/// Returns `true` if waiting for better times makes no sense, because the command line has to change.
fn fatal(cause: &enlist::Error) -> bool {
    matches!(cause, enlist::Error::AlreadyRegistered { .. } | enlist::Error::AuthFailed(_))
}

async fn ended(running: Option<&mut Running>) -> std::io::Result<std::process::ExitStatus> {
    match running {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}

/// Passes signals on until the command ends.
async fn pass_on(running: &mut Running, signals: &mut Signals) -> std::io::Result<std::process::ExitStatus> {
    loop {
        let signal = tokio::select! {
            status = running.ended() => return status,
            signal = signals.next() => signal,
        };
        running.signal(signal);
    }
}

/// Marks the instance as draining for a while, if asked, and removes it.
async fn leave(registration: Registration, told: &Told, drain: Duration) {
    if !drain.is_zero() {
        let marked = registration.update(|draft| {
            draft.health(Health::Draining);
        });
        // A layout that cannot say it, or an etcd that does not answer, keeps nobody from leaving.
        let marking = async {
            let _ = marked.await;
        };
        tokio::join!(tokio::time::timeout(drain, marking), tokio::time::sleep(drain)).0.ok();
    }
    told.deregistered(&registration.deregister().await);
}
