//! Job control for the program: a stop of the program in its terminal stops this process, and continuing this process
//! continues the program.
//!
//! SIGTTOU has to be blocked ([`signals::block_terminal_stops`](crate::signals::block_terminal_stops)), because this
//! process becomes the foreground process again while it is in the background. A stop from the keyboard that only this
//! process receives is passed on ([`keyboard_stop`](crate::keyboard_stop)).

use std::{io, time::Duration};

use rustix::{
    process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, kill_process_group, waitid},
    termios::{tcgetpgrp, tcsetpgrp},
};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    time::Instant,
};

use crate::{keyboard_stop::KeyboardStops, signals::stop_this_process};

/// Maximum wait for this process to be stopped, after which the program continues. The system does not stop a process
/// that no shell could continue.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Job control for a program. If the standard input is a terminal, the program uses it; on drop, this process becomes
/// the foreground process again.
#[derive(Debug)]
pub(crate) struct Job {
    /// Group of this process.
    own: Pid,
    /// Group of the program.
    group: Pid,
    children: Stream,
    continued: Stream,
    keyboard: KeyboardStops,
    state: State,
}

/// State of the program and of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// A stop from the keyboard was passed on to the program.
    PassedOn,
    /// The program is stopped, and this process is to be stopped before this time.
    Stopping(Instant),
}

impl Job {
    /// Makes `group` the foreground group if this process is in it: the program can then read, and receives the signals
    /// of the keyboard. In the background of a shell the program is in the background as well.
    pub(crate) fn begin(group: Pid) -> io::Result<Self> {
        // tokio has no name for it.
        let continued = SignalKind::from_raw(Signal::CONT.as_raw());
        let (children, continued) = (signal(SignalKind::child())?, signal(continued)?);
        let keyboard = KeyboardStops::begin();
        let job = Self { own: getpgrp(), group, children, continued, keyboard, state: State::Running };
        job.lend();
        Ok(job)
    }

    /// Waits until the program or this process is stopped, or this process is continued, and stops or continues the
    /// other one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no signal.
    pub(crate) async fn step(&mut self, command: Pid) {
        let state = self.state;
        let unstopped = async {
            match state {
                State::Stopping(until) => tokio::time::sleep_until(until).await,
                State::Running | State::PassedOn => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.children.recv() => {
                if let Some(signal) = stopped_by(command) {
                    self.stop(signal);
                }
            }
            () = self.keyboard.next() => self.stop_from_keyboard(),
            _ = self.continued.recv() => self.go_on(),
            () = unstopped => self.go_on(),
        }
    }

    /// Handles a stop of this process, either by its own [`stop`](Self::stop) or from elsewhere. The program is stopped
    /// first, so that it does not run without its lock.
    fn stop_from_keyboard(&mut self) {
        match self.state {
            State::Stopping(_) => {
                // An error counts as a stop that no shell could end.
                let _ = stop_this_process();
            }
            State::Running | State::PassedOn => {
                self.state = State::PassedOn;
                // An error means that no process is left.
                let _ = kill_process_group(self.group, Signal::TSTP);
            }
        }
    }

    /// Handles a stop of the program. Without a terminal, only one that was passed on concerns this process.
    fn stop(&mut self, signal: Signal) {
        if tcgetpgrp(io::stdin()).is_err() && self.state != State::PassedOn {
            return;
        }
        let wants_the_terminal = [Signal::TTIN, Signal::TTOU].contains(&signal);
        if wants_the_terminal && is_in_front(self.own) {
            return self.go_on();
        }
        if wants_the_terminal || signal == Signal::TSTP {
            self.take_back();
            self.state = State::Stopping(Instant::now() + STOP_TIMEOUT);
            // For the whole job, for example a script, as the keyboard does, so that the shell continues.
            let _ = kill_process_group(self.own, Signal::TSTP);
        }
    }

    fn go_on(&mut self) {
        self.state = State::Running;
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
