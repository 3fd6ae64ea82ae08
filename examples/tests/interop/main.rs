//! Interoperability with the Go libraries of existing services: `cargo xtask interop` builds the programs of
//! `testkit/interop-go` and runs this. Each module has the tests of one program; `both` has the common ones, `settings`
//! those of configuration, `recorded` compares the bytes in etcd with recorded ones, and `fleet` runs several programs
//! together.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod both;
mod dubbo;
mod etcd;
mod fleet;
mod gokit;
mod gomicro;
mod gozero;
mod kitex;
mod kratos;
mod recorded;
mod settings;
#[path = "../support/mod.rs"]
mod support;
mod viper;

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use enlist::{Endpoint, Instance, InstanceId, LockOptions, RegisterOptions, Registration, Registry, ServiceRef};
use enlist_etcd::Etcd;
use enlist_testkit::{BackgroundTask, EtcdServer, Provider, ServerOptions, eventually, soon};
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;

/// Starts an etcd that the test may stop.
async fn own_etcd() -> EtcdServer {
    EtcdServer::start_with(Provider::own(), ServerOptions::new()).await
}

/// A Go program. Dropping it kills it, like `kill -9`.
struct Go {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Go {
    fn start(server: &EtcdServer, program: &str, arguments: &[&str]) -> Self {
        let folder =
            std::env::var_os("ENLIST_INTEROP_BIN").expect("`cargo xtask interop` builds the Go side and runs this");
        let mut command = Command::new(PathBuf::from(folder).join(program));
        command.args(arguments).env("ENLIST_ENDPOINTS", server.address().to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Returns its next line.
    async fn line(&mut self) -> String {
        soon("the Go side prints a line", self.lines.recv()).await.expect("it goes on").trim_end().to_owned()
    }

    /// Lets it continue.
    fn go_on(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
    }

    fn is_silent(&mut self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// Sends SIGTERM, as a service manager does.
    fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }

    async fn ends(&mut self) -> ExitStatus {
        eventually("the Go side ends", || {
            let ended = self.child.try_wait().unwrap();
            async move { ended.ok_or("it runs") }
        })
        .await
    }
}

impl Drop for Go {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our server, which answers gRPC health checks.
struct Server {
    address: SocketAddr,
    _serving: BackgroundTask<()>,
}

impl Server {
    fn start() -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let serve = tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming);
        Self { address, _serving: BackgroundTask::run(async move { serve.await.unwrap() }) }
    }

    /// Registers the server under its address; `scheme` precedes the address in its endpoint.
    async fn register(&self, etcd: &Etcd, service: &ServiceRef, scheme: &str) -> Registration {
        let endpoint = Endpoint::parse(format!("{scheme}{}", self.address)).unwrap();
        let instance = Instance::new(InstanceId::parse(self.address.to_string()).unwrap(), [endpoint]).unwrap();
        let options = RegisterOptions::new().ttl(Duration::from_secs(5));
        soon("registered", etcd.register(service, instance, options)).await.unwrap()
    }
}

fn short() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(5))
}
