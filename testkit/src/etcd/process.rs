//! An `etcd` process that ends with the test process.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::wait::eventually;

/// Starts `etcd`, prints its pid, and kills it when standard input is closed, which happens when the test process ends.
/// The script ends when the kernel has released all resources of the process: a process without its first thread can
/// still have open ports.
const GUARD: &str = r#"log="$1"; shift; "$@" >"$log" 2>&1 </dev/null & echo $!; cat >/dev/null; kill -9 $!; wait $!"#;

/// A running `etcd`, and the shell that kills it after the end of this process.
#[derive(Debug)]
pub(super) struct Running {
    guard: Child,
    pid: Pid,
    log: PathBuf,
}

impl Running {
    pub(super) async fn start(binary: &Path, arguments: &[String], directory: &Path) -> Result<Self, String> {
        let log = directory.join("log");
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(&log)
            .arg(binary)
            .args(arguments)
            .envs((env::consts::ARCH == "aarch64").then_some(("ETCD_UNSUPPORTED_ARCH", "arm64")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // In a process group of its own: when a group loses its shell, the kernel continues its stopped members, so
            // a frozen server would continue.
            .process_group(0)
            // The shell reports the kill.
            .stderr(Stdio::null())
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| format!("sh: {error}"))?;
        let stdout = guard.stdout.take().ok_or("no pipe")?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line).await;
        let pid = read.ok().and_then(|_| Pid::from_raw(line.trim().parse().ok()?)).ok_or("the shell printed no pid")?;
        Ok(Self { guard, pid, log })
    }

    /// Returns the output, if the process has ended.
    pub(super) fn ended(&self) -> Option<String> {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).ok();
        let running = state.is_some_and(|state| !state.contains(") Z "));
        (!running).then(|| format!("etcd ended: {}", std::fs::read_to_string(&self.log).unwrap_or_default()))
    }

    /// Sends a signal. It is sent on return, so that signals arrive in the order of the calls, also of dropped ones.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process(self.pid, signal) {
            panic!("{signal:?} to {:?}: {error}: {}", self.pid, self.ended().unwrap_or_default());
        }
    }

    pub(super) async fn kill(self) {
        self.signal(Signal::KILL);
        self.end().await;
    }

    /// Sends SIGTERM, as a service manager does, and waits until the process has ended.
    pub(super) async fn terminate(self) {
        self.signal(Signal::TERM);
        eventually("etcd ends after SIGTERM", || async { self.ended().map(drop).ok_or("it still runs") }).await;
        self.end().await;
    }

    /// Ends the process through the shell, whether or not it still runs.
    pub(super) async fn end(mut self) {
        drop(self.guard.stdin.take());
        // The status is that of the killed etcd.
        let _ = self.guard.wait().await;
    }
}
