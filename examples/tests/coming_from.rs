//! Programs of `docs/coming-from.md`: they are the files of `examples/coming_from`, and have the effects on etcd that
//! the page states.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::BTreeSet, error::Error as StdError, fs, path::Path, sync::Arc, time::Duration};

use enlist::{
    BackoffPolicy, Directory, DirectoryOptions, Election, Endpoint, Error, Instance, InstanceId, LockName, Namespace,
    OnConflict, Pool, PoolOptions, RawEntry, RawEvent, RawRegistration, RawValues, RegisterOptions, Registration,
    Registry, Resolver, ServiceName, ServiceRef,
};
use enlist_etcd::{Etcd, EtcdConcurrency, EtcdNaming, Fireflycore, GoKit, Kitex, layout::Layout};
use enlist_examples::greeter;
use enlist_grpc::{ConnectionManager, Invocation, Locator, Schemes};
use enlist_testkit::{BackgroundTask, EtcdServer, Provider, ServerOptions, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::transport::server::TcpIncoming;

use self::support::Program;

/// A fragment of the page, in a form that compiles.
async fn options_of_a_client() -> Result<Etcd, Error> {
    let etcd = Etcd::builder(["https://etcd-1:2379", "https://etcd-2:2379"])
        .user("root", "root")
        .ca_certificate("/path/to/ca.pem")
        .client_certificate("/path/to/client.pem", "/path/to/client.key")
        .connect()
        .await?;
    Ok(etcd)
}

/// A fragment of the page, in a form that compiles.
fn options_of_views_and_pools(etcd: Etcd) -> Result<Pool<String>, Error> {
    let options = DirectoryOptions::new().hold(Duration::ZERO).max_age(Duration::from_secs(30));
    let view = Directory::with_options(Arc::new(etcd), options).view(&ServiceRef::parse("barsvc")?);
    let pool = Pool::with_options(view, PoolOptions::new().ejection(None), |entry| {
        let endpoint = &entry.instance().endpoints()[0];
        match endpoint.protocol() {
            Some("http") => Ok(endpoint.to_string()),
            _ => Err(Error::invalid_config("endpoint", "only http is spoken here")),
        }
    })?;
    Ok(pool)
}

/// A fragment of the page, in a form that compiles.
async fn server_of_fireflycore(etcd: &Etcd) -> Result<Registration, Error> {
    let service = ServiceRef::new(Namespace::parse("default/dev")?, ServiceName::parse("auth")?);
    let instance = Instance::new(InstanceId::parse("auth-1")?, [Endpoint::parse("10.0.0.1:9000")?])?;
    let registration = etcd.register(&service, instance, RegisterOptions::new()).await?;
    Ok(registration)
}

/// A fragment of the page, which a test runs. Returns the observed and the kept entries.
async fn raw_values(etcd: &Etcd) -> Result<(Option<RawEntry>, Vec<String>, RawRegistration), Box<dyn StdError>> {
    let mut seen = Vec::new();
    let mut apply = |key: &[u8], value: Option<&[u8]>| {
        seen.push(format!("{} = {:?}", key.escape_ascii(), value.map(String::from_utf8_lossy)));
    };
    // etcd.GetAll("/config/", clientv3.WithPrefix())
    let listed = etcd.list_prefix(b"/config/").await?;
    let level = listed.get(b"/config/level");

    // Follows the same keys: first all of them as `Added`, then what changed since the last call.
    let mut watcher = etcd.watch_prefix(b"/config/").await?;
    for event in watcher.next().await?.events {
        match event {
            RawEvent::Added(entry) | RawEvent::Updated { new: entry, .. } => apply(&entry.key, Some(&entry.value)),
            RawEvent::Removed(entry) => apply(&entry.key, None),
        }
    }

    // reg.Register("service", "node-1", info) with an info that is no JSON: Go stores it as a JSON string.
    let value = serde_json::to_vec("10.0.0.1:80")?;
    let options = RegisterOptions::new().ttl(Duration::from_secs(10));
    let registration = etcd.register_value(b"/cluster_name/service/node-1", value, options).await?;
    Ok((level.cloned(), seen, registration))
}

/// A fragment of the page, in a form that compiles.
fn manager_over_dns() -> Result<ConnectionManager, Error> {
    let mut invocation = Invocation::default();
    invocation.prefer_service_dns = true;
    invocation.default_port = 9000;
    let manager = ConnectionManager::new(Locator::new(invocation)?, Schemes::new())?;
    Ok(manager)
}

/// A fragment of the page, in a form that compiles.
fn options_of_kitex() -> Result<RegisterOptions, Error> {
    let options = RegisterOptions::new()
        .ttl(Duration::from_secs(60))
        .on_conflict(OnConflict::TakeOver)
        .max_attempts(5)
        .audit(Some(Duration::from_secs(30)))
        .backoff(BackoffPolicy::fixed(Duration::from_secs(10))?);
    Ok(options)
}

/// Returns the code blocks of the page in Rust.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while lines.by_ref().any(|line| line == "```rust") {
        blocks.push(lines.by_ref().take_while(|line| *line != "```").collect::<Vec<_>>().join("\n"));
    }
    blocks
}

#[test]
fn the_page_has_the_programs_as_they_are() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(examples.join("../docs/coming-from.md")).unwrap();
    let (programs, fragments): (Vec<_>, Vec<_>) =
        blocks(&page).into_iter().partition(|block| block.contains("fn main"));
    let of_the_page: BTreeSet<_> = programs.iter().map(String::as_str).collect();
    let mut files = Vec::new();
    for file in fs::read_dir(examples.join("coming_from")).unwrap() {
        let file = file.unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        // The description of the file is not part of the page.
        let program = text.lines().skip_while(|line| line.starts_with("//!")).skip_while(|line| line.is_empty());
        files.push((file, program.collect::<Vec<_>>().join("\n")));
    }
    for (file, program) in &files {
        assert!(of_the_page.contains(program.as_str()), "{} is not on the page as it is", file.display());
    }
    assert_eq!(programs.len(), files.len(), "a program of the page is no file of examples/coming_from");
    assert_eq!(fragments.len(), 6);
    for fragment in fragments {
        let indented = format!("    {}", fragment.replace('\n', "\n    ")).replace("\n    \n", "\n\n");
        assert!(include_str!("coming_from.rs").contains(&indented), "a fragment of the page is not here:\n{fragment}");
    }
    // The fragments are compiled and not called.
    let _ = (options_of_a_client, options_of_views_and_pools, manager_over_dns, options_of_kitex);
}

/// Starts an etcd, because the programs have fixed names.
async fn etcd() -> EtcdServer {
    EtcdServer::start_with(Provider::own(), ServerOptions::new()).await
}

async fn connect(server: &EtcdServer, layout: impl Layout) -> Etcd {
    soon("connected", Etcd::builder([server.url()]).layout(layout).connect()).await.unwrap()
}

/// Returns the output of a program, which has to succeed.
async fn output(mut program: Program) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = program.says().await {
        lines.push(line);
    }
    assert!(program.ends().await.success(), "{lines:#?}");
    lines
}

#[tokio::test]
async fn the_go_etcd_program_calls_its_environment() -> Result<(), Box<dyn StdError>> {
    let server = etcd().await;
    let etcd = connect(&server, Fireflycore::new("dev")?).await;
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let instance = Instance::at([Endpoint::try_from(incoming.local_addr()?)?])?;
    let serve = greeter::router("auth", Duration::ZERO).serve_with_incoming(incoming);
    let _serving = BackgroundTask::run(async move { serve.await.unwrap() });
    let registration = etcd.register(&ServiceRef::parse("auth")?, instance, RegisterOptions::new()).await?;
    assert_eq!(output(Program::start("coming_from_go_etcd", &server, &[])).await, ["hello, world"]);
    registration.deregister().await?;
    // The environment of a namespace precedes that of the layout.
    let of_the_page = server_of_fireflycore(&connect(&server, Fireflycore::new("prod")?).await).await?;
    let listed = etcd.list_prefix(b"default/").await?;
    let keys: Vec<_> = listed.entries().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect();
    assert_eq!(keys, ["default/dev/auth/auth-1"]);
    of_the_page.deregister().await?;
    Ok(())
}

#[tokio::test]
async fn the_program_of_go_kit_calls_its_service() -> Result<(), Box<dyn StdError>> {
    let server = etcd().await;
    let etcd = connect(&server, GoKit::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::at([Endpoint::parse(format!("http://{}", listener.local_addr()?))?])?;
    // What Go writes as `http://…/v1`.
    let instance = instance.with_metadata("path", "/v1");
    let _serving = BackgroundTask::run(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"GET /v1 ");
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nbar").await.unwrap();
            // The whole request is read, because a reset could overtake the answer.
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let _registration = etcd.register(&ServiceRef::parse("barsvc")?, instance, RegisterOptions::new()).await?;
    assert_eq!(output(Program::start("coming_from_go_kit", &server, &[])).await, ["HTTP/1.0 200 OK", "", "bar"]);
    assert!(etcd.resolve(&ServiceRef::parse("foosvc")?).await?.is_empty());
    Ok(())
}

/// The deregistration runs like `defer registrar.Deregister()` in Go, and a call to a service that is known to be empty
/// does not wait.
#[tokio::test]
async fn the_go_kit_program_deregisters_without_serving() -> Result<(), Box<dyn StdError>> {
    let server = etcd().await;
    let etcd = connect(&server, GoKit::default()).await;
    let foosvc = ServiceRef::parse("foosvc")?;
    let before = etcd.resolve(&foosvc).await?.revision();
    let mut program = Program::start("coming_from_go_kit", &server, &[]);
    assert_eq!(program.says().await, None);
    assert!(!program.ends().await.success());
    let after = etcd.resolve(&foosvc).await?;
    assert!(after.is_empty(), "{after:?}");
    assert!(after.revision().get() >= before.get() + 2, "it was not registered");
    Ok(())
}

#[tokio::test]
async fn the_client_of_kitex_calls_its_server() -> Result<(), Box<dyn StdError>> {
    let server = etcd().await;
    let etcd = connect(&server, Kitex::default()).await;
    let echo = ServiceRef::parse("echo")?;
    let mut program = Program::start("coming_from_kitex_server", &server, &[]);
    let line = program.says().await.unwrap();
    let address = line.strip_prefix("serving at ").unwrap();
    let mut client = Program::start("coming_from_kitex_client", &server, &[]);
    soon("a call is answered", async { while client.says().await.unwrap() != "hello, Hello" {} }).await;
    // The program runs until it is killed.
    client.terminate();
    assert!(!client.ends().await.success());
    let listed = etcd.resolve(&echo).await?;
    let ids: Vec<_> = listed.entries().map(|entry| entry.instance().id().as_str()).collect();
    assert_eq!(ids, [address]);
    program.terminate();
    assert_eq!(output(program).await, ["deregistered: Removed"]);
    assert!(etcd.resolve(&echo).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_gobase_program_runs() {
    let lines = output(Program::start("coming_from_gobase", &etcd().await, &[])).await;
    let [picked, instance, owner, held] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!(picked, "picked 10.0.0.2:80");
    assert_eq!((instance.as_str(), owner.as_str()), ("node-1 at 10.0.0.2:80, weight 3", "owner blue"));
    assert!(held.starts_with("held with token "), "{held}");
}

#[tokio::test]
async fn the_etcd_packages_program_leaves_nothing() {
    let server = etcd().await;
    let lines = output(Program::start("coming_from_etcd_client", &server, &[])).await;
    assert!(lines.last().is_some_and(|line| line.starts_with("held with token ")), "{lines:#?}");
    let etcd = connect(&server, EtcdNaming::default()).await;
    assert!(etcd.resolve(&ServiceRef::parse("my-service").unwrap()).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_etcd_election_program_runs() {
    let server = etcd().await;
    let lines = output(Program::start("coming_from_etcd_election", &server, &[])).await;
    let [before, leads, proclaimed, resigned] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!((before.as_str(), resigned.as_str()), ("nobody leads", "resigned: Released"));
    assert!(leads.starts_with("leads with token "), "{leads}");
    // The token is the revision of the creation, which a proclamation does not change.
    assert_eq!(proclaimed, &format!("10.0.0.1:9001 {leads}"));
    let etcd = soon("connected", Etcd::builder([server.url()]).lock_layout(EtcdConcurrency).connect()).await.unwrap();
    assert!(etcd.leader(&LockName::parse("/my-election").unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn custom_values_are_followed() -> Result<(), Box<dyn StdError>> {
    let server = etcd().await;
    let etcd = connect(&server, EtcdNaming::default()).await;
    let level = etcd.register_value(b"/config/level", b"debug".to_vec(), RegisterOptions::new()).await?;
    let (listed, seen, kept) = raw_values(&etcd).await?;
    assert_eq!(listed.map(|entry| entry.value.to_vec()), Some(b"debug".to_vec()));
    assert_eq!(seen, [r#"/config/level = Some("debug")"#]);
    let stored = etcd.list_prefix(kept.key()).await?;
    assert_eq!(stored.get(kept.key()).map(|entry| &*entry.value), Some(&br#""10.0.0.1:80""#[..]));
    kept.deregister().await?;
    level.deregister().await?;
    Ok(())
}
