//! Process of the program that runs while something is held.
//!
//! It starts with SIGTTOU and SIGTSTP unblocked, while they stay blocked in this process. With `std`, a program has the
//! mask of the thread that starts it. If that thread unblocked SIGTSTP, a stop from the keyboard could stop this
//! process and not the program, which may run before `spawn` returns.

use std::{
    ffi::{CString, OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    process::ExitStatus,
};

use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp},
    sys::signal::{SigSet, Signal as Number},
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::{connect::SECRETS, signals};

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct ProgramProcess {
    id: Pid,
    children: Stream,
    status: Option<ExitStatus>,
}

impl ProgramProcess {
    /// Starts a program in `group`, with the environment of this process and `variables`, without secrets.
    pub(crate) fn start(
        program: &OsStr,
        arguments: &[OsString],
        variables: &[(&str, String)],
        group: Pid,
    ) -> io::Result<Self> {
        // Before the start, so that no end is missed.
        let children = signal(SignalKind::child())?;
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        attributes.set_pgroup(nix::unistd::Pid::from_raw(group.as_raw_nonzero().get()))?;
        attributes.set_sigmask(&signals::mask_without_terminal_stops()?)?;
        // The runtime of Rust ignores it.
        attributes.set_sigdefault(&SigSet::from(Number::SIGPIPE))?;
        let program = CString::new(program.as_bytes())?;
        let arguments = arguments.iter().map(|argument| CString::new(argument.as_bytes()));
        let arguments: Vec<_> = std::iter::once(Ok(program.clone())).chain(arguments).collect::<Result<_, _>>()?;
        let id =
            posix_spawnp(&program, &PosixSpawnFileActions::init()?, &attributes, &arguments, &environment(variables)?)?;
        let id = Pid::from_raw(id.as_raw()).ok_or_else(|| io::Error::other("the program has no process id"))?;
        Ok(Self { id, children, status: None })
    }

    pub(crate) fn id(&self) -> Pid {
        self.id
    }

    /// Waits until it ends, and returns its exit status; later calls return the same.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            self.children.recv().await;
        }
    }

    /// Sends it a signal. Nothing happens after its end is known: its id could be reused.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // An error means that it has ended.
            let _ = kill_process(self.id, signal);
        }
    }

    fn poll(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let ended = waitpid(Some(self.id), WaitOptions::NOHANG)?;
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }
}

impl Drop for ProgramProcess {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Returns the environment of the program.
fn environment(variables: &[(&str, String)]) -> io::Result<Vec<CString>> {
    let is_kept = |name: &OsString| {
        !SECRETS.iter().any(|secret| name == secret) && !variables.iter().any(|(given, _)| name == given)
    };
    let own = std::env::vars_os().filter(|(name, _)| is_kept(name));
    let given = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    own.chain(given)
        .map(|(name, value)| Ok(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?))
        .collect()
}
