//! Faults of the host of a process: its clocks jump, and a name in the endpoints resolves to another address. Each test
//! runs in a separate process, with a preloaded library (`host/interpose.c`) that affects only that process. The C
//! compiler of the dependencies builds the library.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    env,
    future::Future,
    io::{Seek, SeekFrom, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use enlist::{Counter, Lock, LockName, LockOptions, Moment, RegisterOptions, RegistrationState, Resolver, TaskOwner};
use enlist_etcd::Etcd;
use enlist_testkit::{EtcdServer, Provider, ServerOptions, eventually, soon};
use support::{TTL, in_background, listed, register, register_with, service};
use tokio::net::{TcpListener, TcpStream};

/// Variable with the directory that the preloaded library reads.
const HOST: &str = "ENLIST_TEST_HOST";

const HOUR: i64 = 3600;

/// Runs `test` in a child process, which executes this program again.
fn on_a_host_of_its_own<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Host) -> F) {
    if let Some(directory) = env::var_os(HOST) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        return runtime.block_on(body(Host(directory.into())));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/interpose.c");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut compile = Command::new(compiler);
    compile.args(["-shared", "-fPIC", "-O2", "-o"]).arg(path("interpose.so")).arg(source).arg("-ldl");
    assert!(compile.status().expect("the C compiler that ring needs is there").success());
    std::fs::write(path("clocks"), [0; 16]).unwrap();
    std::fs::write(path("address"), "127.0.0.1").unwrap();
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env("LD_PRELOAD", path("interpose.so")).env(HOST, directory.path());
    child.env("ENLIST_TEST_CLOCKS", path("clocks")).env("ENLIST_TEST_ADDRESS", path("address"));
    let output = child.output().unwrap();
    let printed = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

struct Host(PathBuf);

impl Host {
    /// Offsets a clock by `seconds`.
    fn set_clock(&self, clock: u64, seconds: i64) {
        let mut file = std::fs::OpenOptions::new().write(true).open(self.0.join("clocks")).unwrap();
        file.seek(SeekFrom::Start(clock * 8)).unwrap();
        file.write_all(&seconds.to_ne_bytes()).unwrap();
    }

    fn set_wall_clock(&self, seconds: i64) {
        let before = SystemTime::now();
        self.set_clock(0, seconds);
        let moved = SystemTime::now().duration_since(before).unwrap_or_else(|error| error.duration());
        assert!(moved > Duration::from_secs(3000), "the control: the clock moves by {moved:?}");
    }

    /// Simulates a suspension: its time passes only on the boot-time clock.
    fn suspend(&self, seconds: i64) {
        self.set_clock(1, seconds);
    }

    /// Makes the name resolve to another address from now on.
    fn set_address(&self, address: Ipv4Addr) {
        let new = self.0.join("address.new");
        std::fs::write(&new, address.to_string()).unwrap();
        std::fs::rename(new, self.0.join("address")).unwrap();
    }
}

async fn own_server() -> EtcdServer {
    EtcdServer::start_with(Provider::Process, ServerOptions::new()).await
}

/// The wall clock jumps an hour ahead, and then to an hour before its initial time. Leases, locks and ages do not
/// depend on it, and a successor with the older clock replaces its predecessor. Then the machine is suspended for two
/// TTLs, which a lock and an age have to count although etcd has not noticed.
#[test]
fn only_suspensions_count_as_elapsed_time() {
    on_a_host_of_its_own("only_suspensions_count_as_elapsed_time", async |host: Host| {
        let server = own_server().await;
        let etcd = Etcd::connect(server.url()).await.unwrap();
        let owned = || RegisterOptions::new().owner("o");
        let first = register_with(&etcd, "a", owned()).await;
        let mut watcher = etcd.watch(&service()).await.unwrap();
        let last = soon("a list", watcher.next()).await.unwrap();
        let name = LockName::parse("l").unwrap();
        let guard = soon("acquired", etcd.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap();
        for wall_clock in [HOUR, -HOUR] {
            host.set_wall_clock(wall_clock);
            let renewals = etcd.counters().get(Counter::Renewals);
            eventually("leases are renewed", || async {
                let now = etcd.counters().get(Counter::Renewals);
                assert!(guard.is_held());
                assert!(last.freshness.age() < Duration::from_secs(60), "{:?}", last.freshness);
                if now >= renewals + 4 { Ok(()) } else { Err(now) }
            })
            .await;
        }
        let other = Etcd::connect(server.url()).await.unwrap();
        let second = register_with(&other, "a", owned()).await;
        eventually("the newer one stands", || async {
            match (first.state(), second.state()) {
                (RegistrationState::Superseded { .. }, RegistrationState::Registered { .. }) => Ok(()),
                states => Err(states),
            }
        })
        .await;
        for etcd in [&etcd, &other] {
            assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
        }

        assert!(guard.is_held());
        let before = Moment::now();
        host.suspend(2 * i64::try_from(TTL.as_secs()).unwrap());
        assert!(before.elapsed() >= 2 * TTL, "the control: {before:?}");
        assert!(last.freshness.age() >= 2 * TTL, "no answer is as new: {:?}", last.freshness);
        assert!(!guard.is_held(), "it may have been granted to another meanwhile");
        listed(&other, 1).await;
        let guard = soon("acquired", other.acquire(&name, LockOptions::new().ttl(TTL))).await.unwrap();
        assert!(guard.is_held());
    });
}

/// Forwards connections to `address` to `target` until it is dropped.
async fn pass_on(address: SocketAddr, target: SocketAddr) -> TaskOwner {
    let listener = TcpListener::bind(address).await.unwrap();
    let tasks = TaskOwner::new();
    in_background(&tasks, async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = TcpStream::connect(target).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    tasks
}

/// The name of the only endpoint resolves to a new address, and the former address is gone. Control: a client with the
/// former address as its endpoint is cut off.
#[test]
fn a_host_with_a_new_address_is_found() {
    on_a_host_of_its_own("a_host_with_a_new_address_is_found", async |host: Host| {
        let server = own_server().await;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        let [old, new] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
        let former = pass_on((old, port).into(), server.address()).await;
        let etcd = Etcd::connect(format!("http://etcd.enlist.test:{port}")).await.unwrap();
        let fixed = Etcd::connect(format!("http://{old}:{port}")).await.unwrap();
        let registration = register(&etcd, "a").await;
        let mut watcher = etcd.watch(&service()).await.unwrap();
        soon("a list", watcher.next()).await.unwrap();

        former.stop(Duration::from_secs(5)).await.unwrap();
        let _present = pass_on((new, port).into(), server.address()).await;
        host.set_address(new);
        let update = registration.update(|update| {
            update.weight(2);
        });
        soon("stored", update).await.unwrap();
        let seen = async { while watcher.next().await.unwrap().events.is_empty() {} };
        soon("the change is seen", seen).await;
        assert_eq!(etcd.counters().get(Counter::LeaseLosses), 0);
        fixed.resolve(&service()).await.unwrap_err();
    });
}
