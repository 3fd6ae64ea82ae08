//! Runs the `enlist` command against a separate etcd.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub(crate) mod pty;

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

use enlist_testkit::{EtcdServer, Provider, ServerOptions, eventually, soon};
use tokio::sync::mpsc;

/// Starts a server that the test may stop.
pub(crate) async fn server_with(arguments: &[&str]) -> EtcdServer {
    EtcdServer::start_with(Provider::own(), ServerOptions::new().arguments(arguments.iter().copied())).await
}

pub(crate) async fn server() -> EtcdServer {
    server_with(&[]).await
}

pub(crate) async fn raw(server: &EtcdServer) -> etcd_client::Client {
    etcd_client::Client::connect([server.url()], None).await.unwrap()
}

/// Returns a command that runs a program with the default handling of the keyboard's signals. A shell without job
/// control starts a background process with SIGINT and SIGQUIT ignored, which the tests would inherit and pass on.
pub(crate) fn with_default_signals(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=INT,QUIT,HUP").arg(program);
    command
}

/// Returns the command without options from the environment of the test.
pub(crate) fn bare() -> Command {
    let mut command = with_default_signals(env!("CARGO_BIN_EXE_enlist"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ENLIST_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn enlist<A: AsRef<OsStr>>(server: &EtcdServer, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = bare();
    command.env("ENLIST_ENDPOINTS", server.url()).args(arguments);
    command
}

/// Output and exit status of a finished command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs a command to its end.
pub(crate) async fn run(mut command: Command) -> Done {
    let running = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap());
    soon("the command ends", running).await.unwrap().into()
}

/// A command that runs in the background. Dropping it kills it.
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: mpsc::UnboundedReceiver<String>,
    stderr: mpsc::UnboundedReceiver<String>,
}

fn lines(stream: impl std::io::Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (send, receive) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
    });
    receive
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, stdout, stderr }
    }

    /// Returns the next line of the output, or `None` at its end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        soon("a line, or the end", self.stdout.recv()).await
    }

    /// Waits for a line of the output that contains `part`, and returns all lines up to it.
    pub(crate) async fn says_all(&mut self, part: &str) -> String {
        let mut all = String::new();
        loop {
            let line = soon(&format!("it says {part:?}"), self.stdout.recv()).await;
            let line = line.unwrap_or_else(|| panic!("it ended without {part:?}: {all:?}"));
            all = format!("{all}{line}\n");
            if line.contains(part) {
                return all;
            }
        }
    }

    /// Waits for a line of the output that contains `part`.
    pub(crate) async fn says(&mut self, part: &str) -> String {
        Self::wait(&mut self.stdout, part).await
    }

    /// Waits for a line of the errors that contains `part`.
    pub(crate) async fn warns(&mut self, part: &str) -> String {
        Self::wait(&mut self.stderr, part).await
    }

    async fn wait(lines: &mut mpsc::UnboundedReceiver<String>, part: &str) -> String {
        let mut before = Vec::new();
        soon(&format!("it says {part:?}"), async {
            loop {
                match lines.recv().await {
                    Some(line) if line.contains(part) => return line,
                    Some(line) => before.push(line),
                    None => panic!("it ended without {part:?}: {before:#?}"),
                }
            }
        })
        .await
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub(crate) async fn code(&mut self) -> Option<i32> {
        soon("the command ends", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    use std::os::unix::process::ExitStatusExt;
                    return status.code().or_else(|| status.signal().map(|number| -number));
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// Returns the state of a process, as in `/proc/…/stat`; `None` if there is none.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
}

/// Waits until a process handles SIGTERM.
pub(crate) async fn hears_signals(pid: u32) {
    eventually("it handles SIGTERM", || async {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap_or(0);
        if caught >> 14 & 1 == 1 { Ok(()) } else { Err(status) }
    })
    .await;
}

/// Returns `true` if a process runs. Zombies do not count.
pub(crate) fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !"ZX".contains(state))
}

/// Compares with the file of that name in `tests/snapshots`; `ENLIST_UPDATE_SNAPSHOTS=1` writes it.
pub(crate) fn assert_snapshot(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var_os("ENLIST_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "ENLIST_UPDATE_SNAPSHOTS=1 accepts the new text of {name}");
}

/// Creates a self-signed certificate for localhost, and its key.
pub(crate) fn certificate(directory: &std::path::Path) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = ["cert.pem", "key.pem"].map(|name| directory.join(name).display().to_string());
    std::fs::write(&files[0], made.cert.pem()).unwrap();
    std::fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    files
}
