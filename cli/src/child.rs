//! The command that runs while something is held: in a process group of its own, none of which is left behind.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal as Number, kill_process_group, test_kill_process_group};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

use crate::{output::Failure, signals::Signal};

/// How often a group that is to end is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A running command and its group.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Pid,
    /// Tells the reaper how long the group may live and that it is not needed; its end tells it that it is.
    reaper: ChildStdin,
    /// Collects the reaper.
    _reaping: Child,
}

impl Running {
    /// Starts `command` with `variables` in its environment.
    pub(crate) async fn start(command: &[OsString], variables: &[(&str, String)]) -> Result<Self, Failure> {
        let [program, arguments @ ..] = command else {
            return Err(Failure::usage("there is no command after `--`"));
        };
        let failed = |error: io::Error| Failure::said(format!("{} cannot be started: {error}", program.display()));
        // First, so that there is no moment without it.
        let (reaping, mut reaper) = reaper().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(arguments).process_group(0).kill_on_drop(true);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let child = command.spawn().map_err(failed)?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let group = group.ok_or_else(|| Failure::said("the command ended before it had begun"))?;
        // A reaper that is gone cannot be told, and is not there to act.
        let _ = reaper.write_all(format!("{}\n", group.as_raw_nonzero()).as_bytes()).await;
        if io::stdin().is_terminal() {
            // The command is in front now: it may read, and gets what the keyboard sends. The shell takes the terminal back.
            let _ = rustix::termios::tcsetpgrp(io::stdin(), group);
        }
        Ok(Self { child, group, reaper, _reaping: reaping })
    }

    /// Lets the group live for so long at most, unless it is told again: should this process be frozen, the reaper acts.
    pub(crate) async fn allow(&mut self, left: Duration) {
        self.tell_reaper(&left.as_millis().to_string()).await;
    }

    /// One line, which is written whole or not at all. A reaper that does not read is not waited for.
    async fn tell_reaper(&mut self, line: &str) {
        let _ = tokio::time::timeout(LOOK, self.reaper.write_all(format!("{line}\n").as_bytes())).await;
    }

    /// Waits for the end of the command itself.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Passes a signal on to the whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(number) = Number::from_named_raw(signal.0.as_raw_value()) {
            // A group that is gone needs none.
            let _ = kill_process_group(self.group, number);
        }
    }

    /// Ends the whole group: SIGTERM, and SIGKILL after `grace`. Returns once nobody of it is left, with the command's exit
    /// status: a process that even SIGKILL does not end is one that still runs.
    pub(crate) async fn end(mut self, grace: Duration) -> io::Result<ExitStatus> {
        // The number of a group that is gone may be another's.
        if has_members(self.group) {
            let _ = kill_process_group(self.group, Number::TERM);
        }
        let in_time = tokio::time::timeout(grace, self.gone()).await;
        let status = if let Ok(status) = in_time {
            status
        } else {
            let _ = kill_process_group(self.group, Number::KILL);
            self.gone().await
        };
        self.tell_reaper("done").await;
        status
    }

    async fn gone(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        while has_members(self.group) {
            tokio::time::sleep(LOOK).await;
        }
        status
    }
}

/// Says whether somebody of a group still runs. Those that have ended and whose parent has not yet taken note count for the kernel,
/// and not here.
pub(crate) fn has_members(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let mut readable = false;
    for process in processes.flatten() {
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        readable = true;
        // After the name in parentheses: state, parent, group.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, of) = (fields.next(), fields.nth(1));
        let runs = state.is_some_and(|state| !["Z", "X"].contains(&state));
        if runs && of.is_some_and(|of| of.parse() == Ok(group.as_raw_nonzero().get())) {
            return true;
        }
    }
    // Without such files the kernel's word has to do.
    !readable
}

/// A process that ends the group should this one be killed.
fn reaper() -> io::Result<(Child, ChildStdin)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("reap").process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let stdin = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to the reaper"))?;
    Ok((child, stdin))
}

/// The exit status of a command, for ourselves: its own, or 128 and the number of the signal that ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
