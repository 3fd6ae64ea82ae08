//! The command of `enlist config watch`, and the file that it reads.

use std::{io, process::ExitStatus};

use enlist::ConfigSnapshot;
use serde_json::json;
use tokio::{signal::unix::SignalKind, time::Instant};

use super::{
    decision::{Action, FileState, Mode, Program, Trigger, decide},
    reruns::Reruns,
    value_file::ValueFile,
};
use crate::{
    args::{ConfigWatch, ReloadSignal, Run},
    child::{Running, exit_code},
    output::{Failure, Output, To},
    signals::{Signal, Signals},
};

/// Reaction to changes: the file is replaced, and the command is started or gets a signal.
#[derive(Debug)]
pub(crate) struct Reaction {
    /// Path on the command line.
    path: String,
    run: Run,
    /// Signal instead of a run.
    reload: Option<Signal>,
    postponed: bool,
    file: Option<ValueFile>,
    output: Output,
    reruns: Reruns,
    /// Reason for the next reaction.
    trigger: Option<Trigger>,
    /// The last values.
    snapshot: Option<ConfigSnapshot>,
    running: Option<Running>,
    program: Program,
}

/// Event of the reaction.
#[derive(Debug)]
pub(crate) enum Event {
    Due,
    Ended(io::Result<ExitStatus>),
}

impl Reaction {
    pub(crate) fn new(watch: ConfigWatch, file: Option<ValueFile>, output: Output) -> Self {
        let reload = watch.signal.map(|signal| {
            Signal(match signal {
                ReloadSignal::Hup => SignalKind::hangup(),
                ReloadSignal::Usr1 => SignalKind::user_defined1(),
                ReloadSignal::Usr2 => SignalKind::user_defined2(),
            })
        });
        Self {
            path: watch.path.unwrap_or_default(),
            run: watch.run,
            reload,
            postponed: watch.postpone,
            file,
            output,
            reruns: Reruns::new(watch.debounce),
            trigger: None,
            snapshot: None,
            running: None,
            program: Program::NeverStarted,
        }
    }

    /// Notes the first values, or a change.
    pub(crate) fn changed(&mut self, snapshot: &ConfigSnapshot) {
        let first = if self.postponed { Trigger::KnownPostponed } else { Trigger::Known };
        self.trigger = Some(match (&self.snapshot, self.trigger) {
            (None, _) => first,
            // The first values have not been handled yet.
            (Some(_), Some(Trigger::Known)) => Trigger::Known,
            (Some(_), _) => Trigger::Changed,
        });
        self.snapshot = Some(snapshot.clone());
        self.reruns.changed();
    }

    /// Notes that the store does not answer at the start.
    pub(crate) fn unanswered(&mut self) {
        self.trigger = Some(Trigger::Unanswered);
        self.reruns.changed();
    }

    /// Waits until a reaction is due or the command has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn next(&mut self) -> Event {
        let due = self.reruns.due(Instant::now());
        let waiting = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match &mut self.running {
                Some(running) => running.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = ended => Event::Ended(status),
            () = waiting => Event::Due,
        }
    }

    /// Handles an event. Returns the exit status if the watch ends with it.
    pub(crate) async fn handle(&mut self, event: Event) -> Result<Option<u8>, Failure> {
        match event {
            Event::Due => self.react().await.map(|()| None),
            Event::Ended(status) => self.ended(status?).await,
        }
    }

    async fn react(&mut self) -> Result<(), Failure> {
        self.reruns.begun(Instant::now());
        let Some(trigger) = self.trigger.take() else { return Ok(()) };
        let file = match (&self.file, &self.snapshot) {
            (None, _) => FileState::NotUsed,
            (Some(file), Some(snapshot)) => file.update(snapshot),
            (Some(file), None) => file.state(),
        };
        let mode = if self.reload.is_some() { Mode::Signal } else { Mode::Run };
        let action =
            if self.run.command.is_empty() { Action::Nothing } else { decide(mode, trigger, file, self.program) };
        match (action, self.reload, &self.running) {
            (Action::Start, ..) => {
                self.running = Some(Running::start(&self.run.command, &self.variables(), None).await?);
                self.program = Program::Running;
                if mode == Mode::Run {
                    return Ok(());
                }
            }
            (Action::Signal, Some(reload), Some(running)) => running.signal_program(reload),
            _ => {}
        }
        self.reruns.ended();
        Ok(())
    }

    /// Returns variables for the command.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("ENLIST_CONFIG_PATH", self.path.clone())];
        if let Some(snapshot) = &self.snapshot {
            variables.push(("ENLIST_CONFIG_REVISION", snapshot.revision().to_string()));
        }
        if let Some(file) = &self.file {
            variables.push(("ENLIST_CONFIG_FILE", file.place().display().to_string()));
        }
        variables
    }

    /// Handles the end of the command. Returns the exit status if the watch ends with it.
    async fn ended(&mut self, status: ExitStatus) -> Result<Option<u8>, Failure> {
        let code = exit_code(status);
        self.program = Program::Ended;
        if let Some(running) = self.running.take() {
            running.end(self.run.grace).await?;
        }
        self.reruns.ended();
        if self.reload.is_some() {
            return Ok(Some(code));
        }
        if code != 0 {
            let warning = format!("the command has exited with {code}; it is run again after the next change");
            self.output.tell(To::Stderr, format!("enlist: {warning}"), &json!({ "warning": warning }));
        }
        Ok(None)
    }

    /// Handles a signal. Returns the exit status if the watch ends with it.
    pub(crate) async fn signal(&mut self, signal: Signal, signals: &mut Signals) -> Result<Option<u8>, Failure> {
        match &self.running {
            None => return Ok(signal.ends().then(|| signal.as_exit())),
            // The request to reload is not one to end.
            Some(running) if Some(signal) == self.reload => {
                running.signal_program(signal);
                return Ok(None);
            }
            Some(running) => running.signal(signal),
        }
        if !signal.ends() {
            return Ok(None);
        }
        let Some(mut running) = self.running.take() else { return Ok(None) };
        let code = exit_code(running.ended_with(signals).await?);
        running.end(self.run.grace).await?;
        Ok(Some(code))
    }
}
