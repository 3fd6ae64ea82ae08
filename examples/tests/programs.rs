//! The examples that meet in etcd as programs of Go do, run as programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use enlist::{Resolver, ServiceRef};
use enlist_etcd::{Etcd, GoKit, Kitex, Layout};
use enlist_testkit::{EtcdServer, eventually, soon};
use tokio::sync::mpsc;

/// A running example. Dropping it kills it.
struct Program {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Program {
    /// Starts an example that `cargo test` has built beside this test.
    fn start(name: &str, server: &EtcdServer, layout: &str, prefix: &str) -> Self {
        let test = env::current_exe().unwrap();
        let path = test.parent().unwrap().with_file_name("examples").join(name);
        let build = "`cargo build --package enlist-examples --examples --features etcd` builds it";
        assert!(path.is_file(), "there is no {}: {build}", path.display());
        let mut command = Command::new(path);
        command.args(["--etcd", &server.address().to_string(), "--layout", layout, "--prefix", prefix]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// The next line; `None` once it has ended.
    async fn says(&mut self) -> Option<String> {
        soon("a line", self.lines.recv()).await
    }

    async fn ends(&mut self) -> ExitStatus {
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
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A prefix that no other run uses, should the etcd be shared.
fn prefix(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

async fn connect(server: &EtcdServer, layout: impl Layout) -> Etcd {
    soon("connected", Etcd::builder([server.url()]).layout(layout).connect()).await.unwrap()
}

#[tokio::test]
async fn a_greeter_and_its_client_meet_as_programs_of_kitex_do() {
    let server = EtcdServer::start().await;
    let (prefix, service) = (prefix("kitex/greeters"), ServiceRef::parse("greeter").unwrap());
    let etcd = connect(&server, Kitex::with_prefix(&prefix).unwrap()).await;
    let mut greeter = Program::start("greeter_server", &server, "kitex", &prefix);
    let line = greeter.says().await.unwrap();
    let address = line.strip_prefix("serving as ").unwrap();
    let listed = || async {
        let ids: Vec<_> =
            etcd.resolve(&service).await.unwrap().entries().map(|one| one.instance().id().to_string()).collect();
        if ids == [address] { Ok(()) } else { Err(ids) }
    };
    eventually("it is listed by its address", listed).await;
    let payloads = etcd.payloads(&service).await.unwrap();
    assert_eq!(payloads[0].key, format!("{prefix}/greeter/{address}"));
    assert!(payloads[0].text.contains(r#""network":"tcp""#), "{}", payloads[0].text);

    let mut client = Program::start("greeter_client", &server, "kitex", &prefix);
    assert_eq!(client.says().await.unwrap(), format!("{address}: hello, world"));

    assert!(Command::new("kill").args(["-TERM", &greeter.child.id().to_string()]).status().unwrap().success());
    let line = greeter.says().await.unwrap();
    assert!(line.contains("deregistered: Removed"), "{line}");
    assert!(greeter.ends().await.success());
    assert!(etcd.resolve(&service).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pool_with_retries_waits_and_tells_every_attempt() {
    let server = EtcdServer::start().await;
    let prefix = format!("/{}/", prefix("services"));
    let mut example = Program::start("pool_retry", &server, "go-kit", &prefix);
    let mut lines = Vec::new();
    while let Some(line) = example.says().await {
        lines.push(line);
    }
    assert!(example.ends().await.success(), "{lines:#?}");
    let [answers @ .., failed, first, second] = &lines[..] else { panic!("{lines:#?}") };
    assert!(answers.len() == 5 && answers.iter().all(|line| line.starts_with("hello from 127.0.0.1:")), "{lines:#?}");
    assert!(failed.starts_with("the call failed after 3 attempts"), "{lines:#?}");
    assert!(first.starts_with("before: ") && second.starts_with("before: "), "{lines:#?}");
    let etcd = connect(&server, GoKit::with_prefix(&prefix).unwrap()).await;
    let left = etcd.resolve(&ServiceRef::parse("barsvc").unwrap()).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}
