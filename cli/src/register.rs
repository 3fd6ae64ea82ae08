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

/// Maximum wait for the deregistration before the signal is forwarded to the program.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(1);

/// Parses `host:port`, `protocol://host:port`, or `:port`.
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
    // Standard output belongs to the program, if there is one.
    let to = if register.run.command.is_empty() { To::Stdout } else { To::Stderr };
    let reporter = Reporter { output, to, name: format!("{service}/{}", registration.instance().id()) };

    let waits = register.wait_registered && !register.run.command.is_empty();
    if waits && let Some(outcome) = registered(&registration, &reporter, &mut signals).await {
        leave(registration, &reporter, Duration::ZERO).await;
        let _ = etcd.close().await;
        return outcome;
    }
    // Without waiting for the registration, so that an outage of etcd does not delay the program.
    let running = match &register.run.command[..] {
        [] => None,
        command => {
            let id = registration.instance().id().to_string();
            match Running::start(command, &[("ENLIST_INSTANCE_ID", id)], None).await {
                Ok(running) => Some(running),
                Err(failure) => {
                    leave(registration, &reporter, Duration::ZERO).await;
                    let _ = etcd.close().await;
                    return Err(failure);
                }
            }
        }
    };
    let first = if waits { FirstReport::AfterRegistered } else { FirstReport::Registered };
    let (drain, grace) = (register.drain, register.run.grace);
    let kept = KeptRegistration { registration, running, first, reporter, drain, grace };
    let outcome = kept.keep(&mut signals).await;
    // Revokes the leases. A failure is harmless: they expire.
    let _ = etcd.close().await;
    outcome
}

/// Prints the states of the registration.
struct Reporter {
    output: Output,
    to: To,
    name: String,
}

impl Reporter {
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
            text = format!("{text}, etcd has not answered; the instance is removed after its TTL at the latest");
        }
        let object = json!({ "event": "deregistered", "instance": self.name, "result": result, "cause": cause });
        self.output.tell(self.to, text, &object);
    }
}

/// Waits until the instance is registered. Returns the outcome of the command if it cannot be, or on a signal.
async fn registered(
    registration: &Registration,
    reporter: &Reporter,
    signals: &mut Signals,
) -> Option<Result<u8, Failure>> {
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
        // The first state is not reported.
        if matches!(state, RegistrationState::Registering { last: None }) {
            continue;
        }
        match state {
            // The failure itself is reported.
            RegistrationState::Refused { cause } if fatal(&cause) => return Some(Err(cause.into())),
            state => {
                reporter.state(&state);
                if let RegistrationState::Registered { .. } = state {
                    return None;
                }
            }
        }
    }
}

/// A registration, and the program that runs meanwhile.
struct KeptRegistration {
    registration: Registration,
    running: Option<Running>,
    /// First state that is reported.
    first: FirstReport,
    reporter: Reporter,
    drain: Duration,
    grace: Duration,
}

/// First state that is reported while the program runs.
#[derive(Clone, Copy, PartialEq)]
enum FirstReport {
    Registered,
    /// `Registered` was reported before the program started.
    AfterRegistered,
}

/// Reason for which the registration ends.
enum RegistrationEnd {
    Signal(Signal),
    Child(std::process::ExitStatus),
    Refused(enlist::Error),
}

impl KeptRegistration {
    async fn keep(mut self, signals: &mut Signals) -> Result<u8, Failure> {
        match self.until_the_end(signals).await? {
            RegistrationEnd::Signal(signal) => {
                let Self { registration, running, reporter, drain, grace, .. } = self;
                // The instance is removed first, so that clients stop calling before the program ends.
                let leaving = leave(registration, &reporter, drain);
                let Some(mut running) = running else {
                    leaving.await;
                    return Ok(signal.as_exit());
                };
                let status = {
                    let mut leaving = std::pin::pin!(leaving);
                    let deregistered = tokio::time::timeout(drain + DEREGISTER_TIMEOUT, &mut leaving).await.is_ok();
                    running.signal(signal);
                    let ended = running.ended_with(signals);
                    if deregistered { ended.await? } else { tokio::join!(ended, leaving).0? }
                };
                let code = exit_code(status);
                running.end(grace).await?;
                Ok(code)
            }
            RegistrationEnd::Child(status) => {
                let Self { registration, running, reporter, grace, .. } = self;
                leave(registration, &reporter, Duration::ZERO).await;
                if let Some(running) = running {
                    running.end(grace).await?;
                }
                Ok(exit_code(status))
            }
            RegistrationEnd::Refused(error) => {
                let Self { registration, running, grace, .. } = self;
                // The program does not run without its registration.
                if let Some(running) = running {
                    running.end(grace).await?;
                }
                // Withdraws the registration.
                drop(registration);
                Err(error.into())
            }
        }
    }

    async fn until_the_end(&mut self, signals: &mut Signals) -> Result<RegistrationEnd, Failure> {
        // Its state may have changed while the program was started.
        let mut changes = self.registration.states();
        let mut is_first = true;
        loop {
            tokio::select! {
                state = changes.next() => {
                    let Ok(state) = state else {
                        return Ok(RegistrationEnd::Refused(enlist::Error::Closed));
                    };
                    // The first state is not reported, except for a registration that has not been reported before.
                    let is_known = match state {
                        RegistrationState::Registering { .. } => true,
                        RegistrationState::Registered { .. } => self.first == FirstReport::AfterRegistered,
                        _ => false,
                    };
                    if std::mem::replace(&mut is_first, false) && is_known {
                        continue;
                    }
                    match state {
                        // The library retries for ever. Here, the failure ends the command.
                        RegistrationState::Refused { cause } if fatal(&cause) => {
                            return Ok(RegistrationEnd::Refused(cause));
                        }
                        state => {
                            self.reporter.state(&state);
                            if let RegistrationState::Ended = state {
                                let what = self.reporter.name.clone();
                                let error = enlist::Error::Conflict { what, revision: enlist::Revision::default() };
                                return Ok(RegistrationEnd::Refused(error));
                            }
                        }
                    }
                }
                status = ended(self.running.as_mut()) => return Ok(RegistrationEnd::Child(status?)),
                signal = signals.next() => match &self.running {
                    Some(running) if !signal.ends() => running.signal(signal),
                    _ if signal.ends() => return Ok(RegistrationEnd::Signal(signal)),
                    _ => {}
                },
            }
        }
    }
}

/// Returns `true` if only a change of the command line can remove the cause.
fn fatal(cause: &enlist::Error) -> bool {
    matches!(cause, enlist::Error::AlreadyRegistered { .. } | enlist::Error::AuthFailed(_))
}

async fn ended(running: Option<&mut Running>) -> std::io::Result<std::process::ExitStatus> {
    match running {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}

/// Marks the instance as draining for `drain`, and removes it.
async fn leave(registration: Registration, reporter: &Reporter, drain: Duration) {
    if !drain.is_zero() {
        let marked = registration.update(|update| {
            update.health(Health::Draining);
        });
        // A layout without health, or an etcd that does not answer, does not prevent the removal.
        let marking = async {
            let _ = marked.await;
        };
        tokio::join!(tokio::time::timeout(drain, marking), tokio::time::sleep(drain)).0.ok();
    }
    reporter.deregistered(&registration.deregister().await);
}
