//! The program that runs while a lock is held or an instance is registered. It has a process group of its own, which
//! ends as a whole.
//!
//! The first process of the group is the [reaper](crate::reaper), which ends the group when this process cannot. It is
//! started, and has the first deadline, before the program is started.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{Access, access},
    io::Errno,
    process::{Pid, Signal as Number, kill_process_group},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

use crate::{
    exit,
    output::Failure,
    process_group::has_members,
    program_process::ProgramProcess,
    reaper::ReaperTime,
    signals::{self, Signal, Signals},
    terminal::Job,
};

/// Folders in which programs are searched without a `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Bytes of a file that decide how it is executed, as in Linux.
const HEAD: u64 = 256;

/// Interval of checks for the end of a group, and maximum wait for a reaper that does not read.
const GROUP_END_POLL: Duration = Duration::from_millis(20);

/// A running program and its group.
#[derive(Debug)]
pub(crate) struct Running {
    program: ProgramProcess,
    job: Job,
    group: Group,
}

/// A process group and its reaper. Dropping it ends the group.
#[derive(Debug)]
struct Group {
    /// Process id of the reaper. It cannot be reused until the reaper is waited for.
    id: Pid,
    /// Sends the reaper the deadline of the group. When it is closed, the reaper ends the group.
    deadlines: ChildStdin,
    reaper: Child,
}

impl Running {
    /// Starts `command` with `variables` in its environment. The reaper ends it at `deadline`, unless that is
    /// [moved](Self::allow). `None` stands for the lifetime of this process.
    pub(crate) async fn start(
        command: &[OsString],
        variables: &[(&str, String)],
        deadline: Option<ReaperTime>,
    ) -> Result<Self, Failure> {
        let [program, arguments @ ..] = command else {
            return Err(Failure::usage("the program after `--` is missing"));
        };
        let failed = |error: io::Error| unstarted(program, &error);
        let mut group = Group::start().map_err(failed)?;
        if let Some(deadline) = deadline {
            group.allow(deadline).await.map_err(failed)?;
        }
        // Before the program starts, so that it does not wait for the terminal.
        let job = Job::begin(group.id).map_err(failed)?;
        let program = ProgramProcess::start(program, arguments, variables, group.id).map_err(failed)?;
        Ok(Self { program, job, group })
    }

    /// Sets the deadline of the group, at which the reaper ends it if this process is frozen.
    pub(crate) async fn allow(&mut self, deadline: ReaperTime) {
        // An error means that the reaper has ended.
        let _ = self.group.allow(deadline).await;
    }

    /// Waits until the program itself ends. A stop of the program in its terminal stops this process as well.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let id = self.program.id();
        loop {
            tokio::select! {
                status = self.program.wait() => return status,
                () = self.job.step(id) => {}
            }
        }
    }

    /// Sends a signal to the whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(number) = Number::from_named_raw(signal.0.as_raw_value()) {
            self.group.signal(number);
        }
    }

    /// Sends a signal to the program itself. Nothing happens after [`ended`](Self::ended) has returned.
    pub(crate) fn signal_program(&self, signal: Signal) {
        if let Some(number) = Number::from_named_raw(signal.0.as_raw_value()) {
            self.program.signal(number);
        }
    }

    /// Forwards signals until the program itself ends.
    pub(crate) async fn ended_with(&mut self, signals: &mut Signals) -> io::Result<ExitStatus> {
        loop {
            let signal = tokio::select! {
                status = self.ended() => return status,
                signal = signals.next() => signal,
            };
            self.signal(signal);
        }
    }

    /// Ends the whole group: SIGTERM, and SIGKILL after `grace`. Returns the program's exit status once no process of
    /// the group is left.
    pub(crate) async fn end(mut self, grace: Duration) -> io::Result<ExitStatus> {
        if has_members(self.group.id) {
            self.group.signal(Number::TERM);
            // A stopped process handles SIGTERM only after it continues.
            self.group.signal(Number::CONT);
        }
        // After a timeout, SIGKILL follows. It also ends the reaper, and processes started since the last check.
        let _ = tokio::time::timeout(grace, self.gone()).await;
        self.group.signal(Number::KILL);
        let status = self.gone().await;
        // Before the reaper is waited for: after that, the id of the group could be reused.
        drop(self.job);
        self.group.reaper.wait().await?;
        status
    }

    async fn gone(&mut self) -> io::Result<ExitStatus> {
        let status = self.program.wait().await;
        while has_members(self.group.id) {
            tokio::time::sleep(GROUP_END_POLL).await;
        }
        status
    }
}

impl Group {
    /// Starts the reaper, without environment and with all signals blocked.
    fn start() -> io::Result<Self> {
        let mut command = Command::new(own_program()?);
        command
            .arg0("enlist")
            .arg("reap")
            .env_clear()
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Another kind of error, because the missing program is not the user's.
        let failed = |error| io::Error::other(format!("its reaper cannot be started: {error}"));
        let mut reaper = signals::starting_with_all_blocked(|| command.spawn()).map_err(failed)?;
        let deadlines = reaper.stdin.take().ok_or_else(|| io::Error::other("no pipe to the reaper"))?;
        let id = process(&reaper)?;
        Ok(Self { id, deadlines, reaper })
    }

    /// Writes one deadline. Does not wait for a reaper that does not read.
    async fn allow(&mut self, deadline: ReaperTime) -> io::Result<()> {
        let line = deadline.line();
        let writing = tokio::time::timeout(GROUP_END_POLL, self.deadlines.write_all(line.as_bytes()));
        writing.await.unwrap_or_else(|late| Err(late.into()))
    }

    fn signal(&self, signal: Number) {
        // An error means that the group has ended.
        let _ = kill_process_group(self.id, signal);
    }
}

/// Returns the path of the running program. On Linux the path also works after an upgrade has replaced the file.
fn own_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}

/// Checks that a program exists and can be executed, as far as that is known before it is started.
///
/// # Errors
///
/// The error of [`Running::start`], with the exit status of a shell: 127 if the program does not exist, 126 if it
/// cannot be executed.
pub(crate) fn check(command: &[OsString]) -> Result<(), Failure> {
    let Some(program) = command.first() else { return Ok(()) };
    let candidates: Vec<PathBuf> = if has_slash(program) {
        vec![program.into()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        std::env::split_paths(&path).map(|directory| directory.join(program)).collect()
    };
    let mut error = Errno::NOENT;
    for candidate in candidates.iter().filter(|_| !program.is_empty()) {
        match executable(candidate).and_then(|()| content(candidate)) {
            Ok(()) => return Ok(()),
            // The next folder of the path is tried.
            Err(Errno::NOENT) => {}
            Err(Errno::ACCESS) => error = Errno::ACCESS,
            Err(last) => {
                error = last;
                break;
            }
        }
    }
    Err(unstarted(program, &error.into()))
}

/// Checks that a file exists, and that this process may execute it.
fn executable(file: &Path) -> Result<(), Errno> {
    if !file.exists() {
        return Err(Errno::NOENT);
    }
    if file.is_file() && access(file, Access::EXEC_OK).is_ok() { Ok(()) } else { Err(Errno::ACCESS) }
}

/// Checks that the system can execute the content of a file: a script with an existing interpreter, or a binary. A file
/// that cannot be read passes.
fn content(file: &Path) -> Result<(), Errno> {
    let mut head = Vec::new();
    if File::open(file).and_then(|file| file.take(HEAD).read_to_end(&mut head)).is_err() {
        return Ok(());
    }
    match interpreter(&head) {
        Some(b"") => Err(Errno::NOEXEC),
        Some(path) => executable(Path::new(OsStr::from_bytes(path))),
        None if head.contains(&0) => Ok(()),
        None => Err(Errno::NOEXEC),
    }
}

/// Returns the path after the `#!` of a script; `None` if there is no `#!`.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| [b' ', b'\t', 0].contains(byte)).find(|word| !word.is_empty()).or(Some(b""))
}

fn has_slash(program: &OsStr) -> bool {
    program.as_encoded_bytes().contains(&b'/')
}

/// Returns the failure to start a program, with the exit status of a shell.
fn unstarted(program: &OsStr, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::NOT_EXECUTABLE };
    Failure::with_code(code, format!("{} cannot be started: {error}", program.display()))
}

/// Returns the id of a process that has not been waited for.
fn process(child: &Child) -> io::Result<Pid> {
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    id.ok_or_else(|| io::Error::other("the process has ended"))
}

/// Returns the exit status of a program: its own, or 128 plus the number of the signal that ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_its_interpreter() {
        for (head, expected) in [
            (&b"#!/bin/sh\necho"[..], Some(&b"/bin/sh"[..])),
            (b"#! \t/usr/bin/env -S sh\n", Some(b"/usr/bin/env")),
            (b"#!sh", Some(b"sh")),
            (b"#!\n/bin/sh", Some(b"")),
            (b"# !/bin/sh", None),
            (b"\x7fELF", None),
            (b"", None),
        ] {
            assert_eq!(interpreter(head), expected, "{head:?}");
        }
    }
}
