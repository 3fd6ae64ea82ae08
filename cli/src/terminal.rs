//! The terminal of a command, and job control: what stops the command there stops this process, and what continues this process
//! continues the command.
//!
//! SIGTTOU has to be blocked, see [`signals::block_terminal_stop`](crate::signals::block_terminal_stop): this process takes the
//! terminal back from the background.

use std::{io, time::Duration};

use rustix::{
    process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, kill_process_group, waitid},
    termios::{tcgetpgrp, tcsetpgrp},
};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::Instant,
};

/// Wait for this process to be stopped, before the command goes on: where there is no shell that could continue it, the system does not
/// stop it.
const UNSTOPPED: Duration = Duration::from_secs(1);

/// The terminal on the standard input, while a command may use it. Dropping it takes the terminal back.
#[derive(Debug)]
pub(crate) struct Job {
    /// The group of this process.
    own: Pid,
    /// The group of the command.
    group: Pid,
    children: Stream,
    continued: Stream,
    /// Until when a stop of this process is waited for.
    stopping: Option<Instant>,
}

impl Job {
    /// Puts `group` in front, if this process is: it may read then, and gets what the keyboard sends. In the background of a shell the
    /// command is in the background as well. `None` without a terminal.
    pub(crate) fn begin(group: Pid) -> io::Result<Option<Self>> {
        if tcgetpgrp(io::stdin()).is_err() {
            return Ok(None);
        }
        // It has no name in tokio.
        let continued = SignalKind::from_raw(Signal::CONT.as_raw());
        let (children, continued) = (signal(SignalKind::child())?, signal(continued)?);
        let job = Self { own: getpgrp(), group, children, continued, stopping: None };
        job.lend();
        Ok(Some(job))
    }

    /// Waits until the command is stopped, or this process continued, and does to the other what was done to the one.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub(crate) async fn step(&mut self, command: Pid) {
        let stopping = self.stopping;
        let unstopped = async {
            match stopping {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.children.recv() => {
                if let Some(signal) = stopped_by(command) {
                    self.stop(signal);
                }
            }
            _ = self.continued.recv() => self.go_on(),
            () = unstopped => self.go_on(),
        }
    }

    /// Deals with a command that was stopped.
    fn stop(&mut self, signal: Signal) {
        let wants_the_terminal = [Signal::TTIN, Signal::TTOU].contains(&signal);
        if wants_the_terminal && is_in_front(self.own) {
            return self.go_on();
        }
        if wants_the_terminal || signal == Signal::TSTP {
            self.take_back();
            self.stopping = Some(Instant::now() + UNSTOPPED);
            // With everybody of the job, a script for instance, as the keyboard does. The shell sees it, and is back.
            let _ = kill_process_group(self.own, Signal::TSTP);
        }
    }

    fn go_on(&mut self) {
        self.stopping = None;
        self.lend();
        // An error says that nobody is left.
        let _ = kill_process_group(self.group, Signal::CONT);
    }

    fn lend(&self) {
        hand_over(self.own, self.group);
    }

    fn take_back(&self) {
        hand_over(self.group, self.own);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// Puts one group in front if another one is.
fn hand_over(from: Pid, to: Pid) {
    if is_in_front(from) {
        // An error says that the terminal is gone.
        let _ = tcsetpgrp(io::stdin(), to);
    }
}

fn is_in_front(group: Pid) -> bool {
    tcgetpgrp(io::stdin()) == Ok(group)
}

/// The signal that has stopped a process of ours, once for each stop.
fn stopped_by(process: Pid) -> Option<Signal> {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::Pid(process), options).ok()??;
    Signal::from_named_raw(status.stopping_signal()?)
}
