//! Runs examples as programs, against an etcd.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use enlist_testkit::{EtcdServer, soon};
use tokio::sync::mpsc;

/// A running example. Dropping it kills it.
pub(crate) struct Program {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Program {
    /// Starts an example that `cargo test` has built.
    pub(crate) fn start(name: &str, server: &EtcdServer, arguments: &[&str]) -> Self {
        let test = env::current_exe().unwrap();
        let path = test.parent().unwrap().with_file_name("examples").join(name);
        let build = "`cargo build --package enlist-examples --examples --features etcd` builds it";
        assert!(path.is_file(), "there is no {}: {build}", path.display());
        let mut command = Command::new(path);
        command.args(arguments).env("ENLIST_ENDPOINTS", server.address().to_string());
        command.env("ENLIST_ADVERTISE", "127.0.0.1");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Returns the next line; `None` after the end.
    pub(crate) async fn says(&mut self) -> Option<String> {
        soon("a line", self.lines.recv()).await
    }

    /// Sends SIGTERM, as a service manager does.
    pub(crate) fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }

    pub(crate) async fn ends(&mut self) -> ExitStatus {
        soon("the program ends", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // An error means that the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
