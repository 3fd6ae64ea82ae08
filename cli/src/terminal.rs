//! Job control for the program: a stop of the program in its terminal stops this process, and continuing this process
//! continues the program.
//!
//! SIGTTOU has to be blocked ([`signals::block_terminal_stop`](crate::signals::block_terminal_stop)), because this
//! process becomes the foreground process again while it is in the background.

use std::{io, time::Duration};

use rustix::{
    process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, kill_process_group, waitid},
    termios::{tcgetpgrp, tcsetpgrp},
};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::Instant,
};

/// Maximum wait for this process to be stopped, after which the program continues. The system does not stop a process
/// that no shell could continue.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The terminal on the standard input while the program uses it. On drop, this process becomes the foreground process
/// again.
#[derive(Debug)]
pub(crate) struct Job {
    /// Group of this process.
    own: Pid,
    /// Group of the program.
    group: Pid,
    children: Stream,
    continued: Stream,
    /// Deadline of the wait for a stop of this process.
    stopping: Option<Instant>,
}

impl Job {
    /// Makes `group` the foreground group if this process is in it: the program can then read, and receives the signals
    /// of the keyboard. In the background of a shell the program is in the background as well. Returns `None` without a
    /// terminal.
    pub(crate) fn begin(group: Pid) -> io::Result<Option<Self>> {
        if tcgetpgrp(io::stdin()).is_err() {
            return Ok(None);
        }
        // tokio has no name for it.
        let continued = SignalKind::from_raw(Signal::CONT.as_raw());
        let (children, continued) = (signal(SignalKind::child())?, signal(continued)?);
        let job = Self { own: getpgrp(), group, children, continued, stopping: None };
        job.lend();
        Ok(Some(job))
    }

    /// Waits until the program is stopped or this process is continued, and stops or continues the other one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no signal.
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

    /// Handles a stop of the program.
    fn stop(&mut self, signal: Signal) {
        let wants_the_terminal = [Signal::TTIN, Signal::TTOU].contains(&signal);
        if wants_the_terminal && is_in_front(self.own) {
            return self.go_on();
        }
        if wants_the_terminal || signal == Signal::TSTP {
            self.take_back();
            self.stopping = Some(Instant::now() + STOP_TIMEOUT);
            // For the whole job, for example a script, as the keyboard does, so that the shell continues.
            let _ = kill_process_group(self.own, Signal::TSTP);
        }
    }

    fn go_on(&mut self) {
        self.stopping = None;
        self.lend();
        // An error means that no process is left.
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

/// Makes `to` the foreground group if `from` is.
fn hand_over(from: Pid, to: Pid) {
    if is_in_front(from) {
        // An error means that the terminal is gone.
        let _ = tcsetpgrp(io::stdin(), to);
    }
}

fn is_in_front(group: Pid) -> bool {
    tcgetpgrp(io::stdin()) == Ok(group)
}

/// Returns the signal that stopped a child process, once for each stop.
fn stopped_by(process: Pid) -> Option<Signal> {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::Pid(process), options).ok()??;
    Signal::from_named_raw(status.stopping_signal()?)
}
