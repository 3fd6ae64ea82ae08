//! The command that runs while something is held: in a process group of its own, none of which is left behind.
//!
//! The group's first process is the [reaper](crate::reaper), which ends the group when this process cannot. It is there, and knows how
//! long the group may live, before the command is started.

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
    process::{Pid, Signal as Number, kill_process_group, test_kill_process_group},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
};

use crate::{
    connect::SECRETS,
    output::Failure,
    reaper,
    signals::{self, Signal},
    terminal::Job,
};

/// The exit statuses of shells for a command that is not there, and for one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Folders in which commands are looked for without a `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Bytes of a file that tell how it is executed, as for Linux.
const HEAD: u64 = 256;

/// Interval at which a group that is to end is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A running command and its group.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    id: Pid,
    /// Its terminal, if it has one.
    job: Option<Job>,
    group: Group,
}

/// A process group and its reaper. Dropping it ends the group.
#[derive(Debug)]
struct Group {
    /// Its number, which is the reaper's, and is nobody else's until that is collected.
    id: Pid,
    /// Tells the reaper how long the group may live; its end tells it that the group has to end.
    deadlines: ChildStdin,
    reaper: Child,
}

impl Running {
    /// Starts `command` with `variables` in its environment. Unless it is [allowed](Self::allow) more, it may live for `limit`, also
    /// if this process is frozen at once; `None` is as long as this process.
    pub(crate) async fn start(
        command: &[OsString],
        variables: &[(&str, String)],
        limit: Option<Duration>,
    ) -> Result<Self, Failure> {
        let [program, arguments @ ..] = command else {
            return Err(Failure::usage("there is no command after `--`"));
        };
        let failed = |error: io::Error| unstarted(program, &error);
        let mut group = Group::start().map_err(failed)?;
        if let Some(limit) = limit {
            group.allow(limit).await.map_err(failed)?;
        }
        let mut command = Command::new(program);
        command.args(arguments).process_group(group.id.as_raw_nonzero().get()).kill_on_drop(true);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        for secret in SECRETS {
            command.env_remove(secret);
        }
        // Before it is there, so that it need not wait for the terminal.
        let job = Job::begin(group.id).map_err(failed)?;
        let child = signals::starting_with_terminal_stop(|| command.spawn()).map_err(failed)?;
        let id = process(&child).map_err(failed)?;
        Ok(Self { child, id, job, group })
    }

    /// Lets the group live for so long at most, unless it is told again: should this process be frozen, the reaper acts.
    pub(crate) async fn allow(&mut self, left: Duration) {
        // A reaper that is gone cannot be told, and is not there to act.
        let _ = self.group.allow(left).await;
    }

    /// Waits for the end of the command itself. Until then, what stops it in its terminal stops this process as well.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            let step = async {
                match &mut self.job {
                    Some(job) => job.step(self.id).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = self.child.wait() => return status,
                () = step => {}
            }
        }
    }

    /// Passes a signal on to the whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(number) = Number::from_named_raw(signal.0.as_raw_value()) {
            self.group.signal(number);
        }
    }

    /// Ends the whole group: SIGTERM, and SIGKILL after `grace`. Returns once nobody of it is left, with the command's exit
    /// status: a process that even SIGKILL does not end is one that still runs.
    pub(crate) async fn end(mut self, grace: Duration) -> io::Result<ExitStatus> {
        if has_members(self.group.id) {
            self.group.signal(Number::TERM);
            // One that is stopped has to be told as well.
            self.group.signal(Number::CONT);
        }
        // Too late is dealt with by SIGKILL, which is also for the reaper, and for what was started while nobody looked.
        let _ = tokio::time::timeout(grace, self.gone()).await;
        self.group.signal(Number::KILL);
        let status = self.gone().await;
        // Of a group that exists still: its number could be another's afterwards.
        drop(self.job);
        self.group.reaper.wait().await?;
        status
    }

    async fn gone(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        while has_members(self.group.id) {
            tokio::time::sleep(LOOK).await;
        }
        status
    }
}

impl Group {
    /// Starts the reaper, which needs no environment, and in which all that the group may be sent is blocked from the beginning.
    fn start() -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("reap")
            .env_clear()
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut reaper = signals::starting_with_all_blocked(|| command.spawn())?;
        let deadlines = reaper.stdin.take().ok_or_else(|| io::Error::other("no pipe to the reaper"))?;
        let id = process(&reaper)?;
        Ok(Self { id, deadlines, reaper })
    }

    /// Writes one line, whole or not at all. A reaper that does not read is not waited for.
    async fn allow(&mut self, left: Duration) -> io::Result<()> {
        let line = format!("{}\n", reaper::now().saturating_add(left).as_millis());
        let writing = tokio::time::timeout(LOOK, self.deadlines.write_all(line.as_bytes()));
        writing.await.unwrap_or_else(|late| Err(late.into()))
    }

    fn signal(&self, signal: Number) {
        // A group that is gone needs none.
        let _ = kill_process_group(self.id, signal);
    }
}

/// Checks that a command can be found and executed, as far as that shows before it is tried.
///
/// # Errors
///
/// What [`Running::start`] would say, with the exit status of a shell: 127 if it is not there, 126 if it cannot be executed.
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
            // Others in the path are tried.
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

/// Checks that a file is there, and that this process may execute it.
fn executable(file: &Path) -> Result<(), Errno> {
    if !file.exists() {
        return Err(Errno::NOENT);
    }
    if file.is_file() && access(file, Access::EXEC_OK).is_ok() { Ok(()) } else { Err(Errno::ACCESS) }
}

/// Checks that the system can execute what is in a file: a script whose interpreter is there, or a program, which is no text. A file that
/// cannot be read is not looked at.
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

/// Returns the path after the `#!` of a script; `None` if it begins with none.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| [b' ', b'\t', 0].contains(byte)).find(|word| !word.is_empty()).or(Some(b""))
}

fn has_slash(program: &OsStr) -> bool {
    program.as_encoded_bytes().contains(&b'/')
}

/// The failure to start a program, with the exit status that a shell gives it.
fn unstarted(program: &OsStr, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    Failure::exit(code, format!("{} cannot be started: {error}", program.display()))
}

/// The number of a process that nobody has waited for.
fn process(child: &Child) -> io::Result<Pid> {
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    id.ok_or_else(|| io::Error::other("it has ended already"))
}

/// Returns `true` if somebody of a group still runs, beside the reaper. Those that have ended and whose parent has not yet taken note
/// count for the kernel, and not here. Without `/proc`, nobody is seen.
pub(crate) fn has_members(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let group = group.as_raw_nonzero().to_string();
    processes.flatten().any(|process| {
        if process.file_name() == *group {
            return false;
        }
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { return false };
        // After the name in parentheses: state, parent, group.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, of) = (fields.next(), fields.nth(1));
        state.is_some_and(|state| !["Z", "X"].contains(&state)) && of == Some(&group)
    })
}

/// The exit status of a command, for ourselves: its own, or 128 and the number of the signal that ended it.
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
