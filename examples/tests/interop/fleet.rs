//! A fleet of six on one etcd: a server each of go-zero, kratos and go-kit, and one of ours beside each of them.
//! Callers in both languages call all of them, while every member is restarted once and etcd is upgraded once.
//! `cargo xtask interop fleet` builds everything and runs this.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use enlist::{Directory, Moment, ServiceRef, backend::MutexExt as _};
use enlist_etcd::{Etcd, EtcdBuilder, GoKit, GoZero, Kratos};
use enlist_examples::greeter::{GreeterClient, HelloRequest};
use enlist_grpc::Channel;
use enlist_testkit::{BackgroundTask, EtcdServer, LIMIT, Provider, ServerOptions, eventually, soon};
use tonic::Request;

use super::{Go, support::Program};

/// Releases before and after the upgrade: the variable with the path of the `etcd`, and the release line.
const RELEASES: [(&str, &str); 2] = [("ENLIST_ETCD_3_5_BIN", "3.5."), ("ENLIST_ETCD_3_6_BIN", "3.6.")];

const SERVICE: &str = "greeter";

/// Concurrent callers of each kind in this process. Each Go program has as many.
const CALLERS: usize = 2;

/// Pause of a caller between two calls.
const PAUSE: Duration = Duration::from_millis(10);

/// Deadline of a call.
const DEADLINE: Duration = Duration::from_secs(5);

/// Interval of looks at the leases.
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Number of calls that each caller has to make to each member before the next step. go-zero's balancer may prefer one
/// of two members, and calls the other one only once a second.
const CALLS: usize = 2;

/// A framework, and our layout for it.
struct Framework {
    program: &'static str,
    layout: &'static str,
    builder: fn(EtcdBuilder) -> EtcdBuilder,
    /// Prefix of the keys of the service.
    prefix: &'static str,
}

const FRAMEWORKS: [Framework; 3] = [
    Framework { program: "gozero", layout: "go-zero", builder: |etcd| etcd.layout(GoZero), prefix: "greeter/" },
    Framework {
        program: "kratos",
        layout: "kratos",
        builder: |etcd| etcd.layout(Kratos::default()),
        prefix: "/microservices/greeter/",
    },
    Framework {
        program: "gokit",
        layout: "go-kit",
        builder: |etcd| etcd.layout(GoKit::default()),
        prefix: "/services/greeter/",
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Language {
    Go,
    Rust,
}

/// A server or a caller: its number in [`FRAMEWORKS`], and its language.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Role {
    framework: usize,
    language: Language,
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:?}", FRAMEWORKS[self.framework].layout, self.language)
    }
}

fn roles() -> impl Iterator<Item = Role> {
    (0..FRAMEWORKS.len())
        .flat_map(|framework| [Language::Go, Language::Rust].map(|language| Role { framework, language }))
}

/// Process of a member.
enum Process {
    Go(Go),
    Rust(Program),
}

/// A server of the fleet, at the address that it has until its restart.
struct Member {
    role: Role,
    process: Process,
    address: String,
}

impl Member {
    async fn start(server: &EtcdServer, role: Role) -> Self {
        let framework = &FRAMEWORKS[role.framework];
        let (process, line) = match role.language {
            Language::Go => {
                let mut go = Go::start(server, framework.program, &["member", SERVICE]);
                let line = go.line().await;
                (Process::Go(go), line.strip_prefix("serves ").map(str::to_owned).ok_or(line))
            }
            Language::Rust => {
                let arguments = ["--etcd", &server.address().to_string(), "--layout", framework.layout];
                let mut program = Program::start("greeter_server", server, &arguments);
                let line = program.says().await.unwrap_or_default();
                (Process::Rust(program), line.strip_prefix("serving as ").map(str::to_owned).ok_or(line))
            }
        };
        let address = line.unwrap_or_else(|line| panic!("{role:?} says {line:?}"));
        Self { role, process, address }
    }

    /// Sends SIGTERM, and waits until the process has left in order.
    async fn leave(self) {
        match self.process {
            Process::Go(mut go) => {
                go.terminate();
                assert!(go.ends().await.success(), "{:?}", self.role);
            }
            Process::Rust(mut program) => {
                program.terminate();
                let line = program.says().await.unwrap_or_default();
                assert!(line.contains("deregistered: Removed"), "{line}");
                assert!(program.ends().await.success());
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    /// Number of answered calls of a caller, by the address of the server.
    calls: BTreeMap<(Role, String), usize>,
    failed: Vec<(Role, String)>,
}

/// Record of all calls, shared by the callers.
#[derive(Clone)]
struct Recorder {
    tally: Arc<Mutex<Tally>>,
    begun: Moment,
}

impl Recorder {
    fn new() -> Self {
        Self { tally: Arc::default(), begun: Moment::now() }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.locked()
    }

    /// Prints a line with the time since the beginning, which is shown when the test fails.
    fn log(&self, line: &str) {
        println!("{:6.2} s  {line}", self.begun.elapsed().as_secs_f64());
    }

    fn called(&self, caller: Role, outcome: Result<String, String>) {
        let mut tally = self.tally();
        match outcome {
            Ok(address) => *tally.calls.entry((caller, address)).or_default() += 1,
            Err(why) => tally.failed.push((caller, format!("at {:?}: {why}", self.begun.elapsed()))),
        }
    }

    fn calls(&self, caller: Role, address: &str) -> usize {
        self.tally().calls.get(&(caller, address.to_owned())).copied().unwrap_or_default()
    }

    /// Waits until the callers of a member's framework, in both languages, have called each of the members.
    async fn calls_reach<'a>(&self, members: impl IntoIterator<Item = &'a Member>) {
        let pairs: Vec<_> = members
            .into_iter()
            .flat_map(|member| {
                let callers = roles().filter(|role| role.framework == member.role.framework);
                callers.map(|caller| (caller, &member.address, self.calls(caller, &member.address)))
            })
            .collect();
        eventually("calls from both languages arrive", || async {
            let missing: Vec<_> = pairs
                .iter()
                .filter(|(caller, address, before)| self.calls(*caller, address) < before + CALLS)
                .collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}, failed: {:?}", self.tally().failed)) }
        })
        .await;
    }

    /// Returns the sum of the calls that `counts` selects by caller and by address.
    fn sum(&self, counts: impl Fn(Role, &str) -> bool) -> usize {
        self.tally()
            .calls
            .iter()
            .filter(|((caller, address), _)| counts(*caller, address))
            .map(|(_, calls)| calls)
            .sum()
    }
}

/// Records the calls of a Go program.
async fn read_calls(mut go: Go, caller: Role, recorder: Recorder) {
    while let Some(line) = go.lines.recv().await {
        let outcome = match line.split_once(' ') {
            Some(("from", address)) => Ok(address.to_owned()),
            _ => Err(line),
        };
        recorder.called(caller, outcome);
    }
    recorder.called(caller, Err("the program has ended".to_owned()));
}

async fn call(channel: Channel, caller: Role, recorder: Recorder) {
    loop {
        let mut request = Request::new(HelloRequest { name: "world".to_owned() });
        request.set_timeout(DEADLINE);
        let answer = GreeterClient::new(channel.clone()).hello(request).await;
        recorder.called(caller, answer.map(|reply| reply.into_inner().from).map_err(|status| status.to_string()));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Starts the callers of a kind.
async fn start_callers(server: &EtcdServer, caller: Role, recorder: &Recorder) -> Vec<BackgroundTask<()>> {
    let framework = &FRAMEWORKS[caller.framework];
    if caller.language == Language::Go {
        let go = Go::start(server, framework.program, &["call", SERVICE]);
        return vec![BackgroundTask::run(read_calls(go, caller, recorder.clone()))];
    }
    let etcd = (framework.builder)(Etcd::builder([server.url()])).connect().await.unwrap();
    let view = Directory::new(Arc::new(etcd)).view(&ServiceRef::parse(SERVICE).unwrap());
    let channel = Channel::new(&view).unwrap();
    channel.ready(LIMIT).await.unwrap();
    (0..CALLERS).map(|_| BackgroundTask::run(call(channel.clone(), caller, recorder.clone()))).collect()
}

/// Restarts a member in order. Returns the new one.
async fn restart(server: &EtcdServer, member: Member, recorder: &Recorder) -> Member {
    recorder.calls_reach([&member]).await;
    let (role, former, begun) = (member.role, member.address.clone(), Moment::now());
    member.leave().await;
    let left = begun.elapsed();
    let next = Member::start(server, role).await;
    recorder.calls_reach([&next]).await;
    let took = begun.elapsed();
    recorder.log(&format!("{role:?}: {former} ended after {left:.1?}, {} was called after {took:.1?}", next.address));
    next
}

/// Returns the registrations in etcd: their keys, and their leases.
async fn registrations(raw: &mut etcd_client::Client) -> BTreeMap<String, i64> {
    let mut found = BTreeMap::new();
    for framework in &FRAMEWORKS {
        let options = etcd_client::GetOptions::new().with_prefix();
        let answer = raw.get(framework.prefix, Some(options)).await.unwrap();
        found.extend(answer.kvs().iter().map(|pair| (pair.key_str().unwrap().to_owned(), pair.lease())));
    }
    found
}

/// Waits until all members are registered and every lease has been renewed. Returns the registrations.
async fn all_are_renewed(raw: &mut etcd_client::Client, members: usize) -> BTreeMap<String, i64> {
    let (mut remaining, mut renewed) = (BTreeMap::new(), BTreeSet::new());
    soon("every registration is renewed", async {
        loop {
            let found = registrations(raw).await;
            for lease in found.values() {
                let ttl = raw.lease_time_to_live(*lease, None).await.unwrap().ttl();
                if remaining.insert(*lease, ttl).is_some_and(|before| ttl > before) {
                    renewed.insert(*lease);
                }
            }
            if found.len() == members && found.values().all(|lease| renewed.contains(lease)) {
                return found;
            }
            tokio::time::sleep(LEASE_POLL_INTERVAL).await;
        }
    })
    .await
}

/// Returns the path of an `etcd` that the environment names.
fn binary((variable, line): (&str, &str)) -> PathBuf {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else {
        panic!("{variable} has to be the path of an etcd {line}x: `cargo xtask interop fleet` builds one and sets it")
    };
    assert!(path.is_file(), "{variable}: there is no file {}", path.display());
    path
}

/// An upgrade of etcd.
struct Upgrade {
    from: String,
    to: String,
    /// Time without an etcd.
    down: Duration,
    /// Number of registrations that their owners made again, under another key or lease.
    replaced: usize,
}

/// Upgrades etcd in place. While it is down, calls go to the last known members.
///
/// A member whose client got no renewal for the TTL of its lease registers again. That of go-zero is absent for a
/// second then, so the next restart has to wait until all of them are there.
async fn upgrade(server: &mut EtcdServer, members: &[Member], recorder: &Recorder) -> Upgrade {
    let (from, _) = server.versions().await.unwrap();
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let before = registrations(&mut raw).await;
    assert_eq!(before.len(), members.len(), "{before:?}");
    drop(raw);
    // An etcd that is ended serves open streams for up to 7 s.
    let asked = Moment::now();
    server.terminate().await;
    let (ending, ended) = (asked.elapsed(), Moment::now());
    recorder.calls_reach(members).await;
    server.upgrade(&binary(RELEASES[1])).await;
    let down = ended.elapsed();
    let (to, _) = server.versions().await.unwrap();
    assert!(from.starts_with(RELEASES[0].1) && to.starts_with(RELEASES[1].1), "{from}, {to}");
    recorder.log(&format!("etcd {from} ended after {ending:.1?}, {to} answered {down:.1?} later"));
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let after = all_are_renewed(&mut raw, members.len()).await;
    let replaced = after.iter().filter(|(key, lease)| before.get(*key) != Some(lease)).count();
    recorder.log(&format!("all are registered, {replaced} of them again"));
    recorder.calls_reach(members).await;
    Upgrade { from, to, down, replaced }
}

/// Shows that failed calls are counted: with all members killed, each caller reports some.
async fn control(members: Vec<Member>, recorder: &Recorder) {
    drop(members);
    eventually("each caller reports failed calls", || async {
        let failed: BTreeSet<_> = recorder.tally().failed.iter().map(|(caller, _)| *caller).collect();
        if roles().all(|caller| failed.contains(&caller)) { Ok(()) } else { Err(failed) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Go and two releases of etcd: `cargo xtask interop fleet` builds them and runs this"]
async fn six_members_in_two_languages_serve_all_callers() {
    let options = ServerOptions::new().binary(binary(RELEASES[0]));
    let mut server = EtcdServer::start_with(Provider::Process, options).await;
    let recorder = Recorder::new();
    let mut members = Vec::new();
    for role in roles() {
        members.push(Member::start(&server, role).await);
    }
    let mut callers = Vec::new();
    for role in roles() {
        callers.extend(start_callers(&server, role, &recorder).await);
    }
    recorder.calls_reach(&members).await;
    recorder.log("all members are called in both languages");

    // Half of the members, in turn of the languages, before the upgrade, and the others after it.
    let mut addresses = Vec::new();
    let mut upgraded = None;
    for number in [0, 3, 4, 1, 2, 5] {
        if number == 1 {
            upgraded = Some(upgrade(&mut server, &members, &recorder).await);
        }
        let member = members.remove(number);
        addresses.push((member.role, member.address.clone()));
        let next = restart(&server, member, &recorder).await;
        members.insert(number, next);
    }
    let Upgrade { from, to: newer, down, replaced } = upgraded.unwrap();
    recorder.calls_reach(&members).await;
    addresses.extend(members.iter().map(|member| (member.role, member.address.clone())));

    let by = |language| recorder.sum(|caller, _| caller.language == language);
    let to = |language| {
        let own = |one: &str| addresses.iter().any(|(role, address)| role.language == language && address == one);
        recorder.sum(|_, address| own(address))
    };
    let failed = recorder.tally().failed.clone();
    println!(
        "members=6 restarts=6 in {:.0} s; etcd {from} → {newer}, down for {:.1} s, registered again={replaced}; calls \
         from Go={} from Rust={}; calls to Go={} to Rust={}; failed={}",
        recorder.begun.elapsed().as_secs_f64(),
        down.as_secs_f64(),
        by(Language::Go),
        by(Language::Rust),
        to(Language::Go),
        to(Language::Rust),
        failed.len(),
    );
    for (role, address) in &addresses {
        for caller in roles().filter(|caller| caller.framework == role.framework) {
            assert!(recorder.calls(caller, address) >= CALLS, "{caller:?} called {role:?} at {address}");
        }
    }
    assert_eq!(failed, Vec::new(), "every call is answered");
    control(members, &recorder).await;
}
