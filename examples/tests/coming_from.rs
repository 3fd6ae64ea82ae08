//! `docs/coming-from.md`: its programs are the files of `examples/coming_from`, and they do on etcd what the page says.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{collections::BTreeSet, error::Error, fs, path::Path, time::Duration};

use enlist::{BackoffPolicy, Endpoint, Instance, OnConflict, RegisterOptions, Registry, Resolver, ServiceRef};
use enlist_etcd::{Etcd, Fireflycore, GoKit, Kitex, Layout};
use enlist_examples::greeter;
use enlist_grpc::{ConnectionManager, Invocation, Locator, Schemes};
use enlist_testkit::{Beside, EtcdServer, Provider, ServerOptions, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::transport::server::TcpIncoming;

use self::support::Program;

/// A fragment of the page, in a form that compiles.
async fn options_of_a_client() -> Result<Etcd, enlist::Error> {
    let etcd = Etcd::builder(["https://etcd-1:2379", "https://etcd-2:2379"])
        .user("root", "root")
        .ca_certificate("/path/to/ca.pem")
        .client_certificate("/path/to/client.pem", "/path/to/client.key")
        .connect()
        .await?;
    Ok(etcd)
}

/// A fragment of the page, in a form that compiles.
fn manager_over_dns() -> Result<ConnectionManager, enlist::Error> {
    let mut invocation = Invocation::default();
    invocation.prefer_service_dns = true;
    invocation.default_port = 9000;
    let manager = ConnectionManager::new(Locator::new(invocation)?, Schemes::new())?;
    Ok(manager)
}

/// A fragment of the page, in a form that compiles.
fn options_of_kitex() -> Result<RegisterOptions, enlist::Error> {
    let options = RegisterOptions::new()
        .ttl(Duration::from_secs(60))
        .on_conflict(OnConflict::TakeOver)
        .max_attempts(5)
        .audit(Some(Duration::from_secs(30)))
        .backoff(BackoffPolicy::fixed(Duration::from_secs(10))?);
    Ok(options)
}

/// The code of the page: what stands between a line with three backticks and `rust` and the next one with three backticks.
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
        // The description of the file is for its reader, not for that of the page.
        let program = text.lines().skip_while(|line| line.starts_with("//!")).skip_while(|line| line.is_empty());
        files.push((file, program.collect::<Vec<_>>().join("\n")));
    }
    for (file, program) in &files {
        assert!(of_the_page.contains(program.as_str()), "{} is not on the page as it is", file.display());
    }
    assert_eq!(programs.len(), files.len(), "a program of the page is no file of examples/coming_from");
    assert_eq!(fragments.len(), 3);
    for fragment in fragments {
        let indented = format!("    {}", fragment.replace('\n', "\n    "));
        assert!(include_str!("coming_from.rs").contains(&indented), "a fragment of the page is not here:\n{fragment}");
    }
    // They are compiled; nobody calls them.
    let _ = (options_of_a_client, manager_over_dns, options_of_kitex);
}

/// An etcd of its own: the programs have fixed names.
async fn etcd() -> EtcdServer {
    EtcdServer::start_with(Provider::own(), ServerOptions::new()).await
}

async fn connect(server: &EtcdServer, layout: impl Layout) -> Etcd {
    soon("connected", Etcd::builder([server.url()]).layout(layout).connect()).await.unwrap()
}

/// All that a program says, which ends well.
async fn output(mut program: Program) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = program.says().await {
        lines.push(line);
    }
    assert!(program.ends().await.success(), "{lines:#?}");
    lines
}

#[tokio::test]
async fn the_program_of_go_etcd_calls_the_service_of_its_environment() -> Result<(), Box<dyn Error>> {
    let server = etcd().await;
    let etcd = connect(&server, Fireflycore::new("dev")?).await;
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let instance = Instance::at([Endpoint::try_from(incoming.local_addr()?)?])?;
    let serve = greeter::router("auth", Duration::ZERO).serve_with_incoming(incoming);
    let _serving = Beside::run(async move { serve.await.unwrap() });
    let _registration = etcd.register(&ServiceRef::parse("auth")?, instance, RegisterOptions::new()).await?;
    assert_eq!(output(Program::start("coming_from_go_etcd", &server, &[])).await, ["hello, world"]);
    Ok(())
}

#[tokio::test]
async fn the_program_of_go_kit_calls_its_service() -> Result<(), Box<dyn Error>> {
    let server = etcd().await;
    let etcd = connect(&server, GoKit::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::at([Endpoint::parse(format!("http://{}", listener.local_addr()?))?])?;
    // What Go writes as `http://…/v1`.
    let instance = instance.with_metadata("path", "/v1");
    let _serving = Beside::run(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"GET /v1 ");
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nbar").await.unwrap();
            // A reset could overtake the answer if something of the request were not read.
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let _registration = etcd.register(&ServiceRef::parse("barsvc")?, instance, RegisterOptions::new()).await?;
    assert_eq!(output(Program::start("coming_from_go_kit", &server, &[])).await, ["HTTP/1.0 200 OK", "", "bar"]);
    assert!(etcd.resolve(&ServiceRef::parse("foosvc")?).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_client_of_kitex_calls_its_server() -> Result<(), Box<dyn Error>> {
    let server = etcd().await;
    let etcd = connect(&server, Kitex::default()).await;
    let echo = ServiceRef::parse("echo")?;
    let mut program = Program::start("coming_from_kitex_server", &server, &[]);
    let line = program.says().await.unwrap();
    let address = line.strip_prefix("serving at ").unwrap();
    let mut client = Program::start("coming_from_kitex_client", &server, &[]);
    soon("a call is answered", async { while client.says().await.unwrap() != "hello, Hello" {} }).await;
    // It goes on until somebody ends it.
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
async fn the_program_of_gobase_registers_changes_finds_and_locks() {
    let lines = output(Program::start("coming_from_gobase", &etcd().await, &[])).await;
    let [picked, instance, owner, held] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!(picked, "picked 10.0.0.2:80");
    assert_eq!((instance.as_str(), owner.as_str()), ("10.0.0.1:80 at 10.0.0.2:80, weight 3", "owner blue"));
    assert!(held.starts_with("held with token "), "{held}");
}

#[tokio::test]
async fn the_program_of_etcds_own_packages_ends_with_nothing_left() {
    let server = etcd().await;
    let lines = output(Program::start("coming_from_etcd_client", &server, &[])).await;
    assert!(lines.last().is_some_and(|line| line.starts_with("held with token ")), "{lines:#?}");
    let etcd = connect(&server, enlist_etcd::EtcdNaming::default()).await;
    assert!(etcd.resolve(&ServiceRef::parse("my-service").unwrap()).await.unwrap().is_empty());
}
