//! Examples that share an etcd, run as programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use enlist::{Resolver, ServiceRef};
use enlist_etcd::{Etcd, GoKit, Kitex, layout::Layout};
use enlist_testkit::{EtcdServer, eventually, soon};

use self::support::Program;

/// Returns a prefix that no other run uses, in case the etcd is shared.
fn prefix(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

async fn connect(server: &EtcdServer, layout: impl Layout) -> Etcd {
    soon("connected", Etcd::builder([server.url()]).layout(layout).connect()).await.unwrap()
}

#[tokio::test]
async fn a_greeter_meets_its_client_like_kitex() {
    let server = EtcdServer::start().await;
    let (prefix, service) = (prefix("kitex/greeters"), ServiceRef::parse("greeter").unwrap());
    let etcd = connect(&server, Kitex::with_prefix(&prefix).unwrap()).await;
    let address = server.address().to_string();
    let arguments = ["--etcd", &address, "--layout", "kitex", "--prefix", &prefix];
    let mut greeter = Program::start("greeter_server", &server, &arguments);
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

    let mut client = Program::start("greeter_client", &server, &arguments);
    assert_eq!(client.says().await.unwrap(), format!("{address}: hello, world"));

    greeter.terminate();
    let line = greeter.says().await.unwrap();
    assert!(line.contains("deregistered: Removed"), "{line}");
    assert!(greeter.ends().await.success());
    assert!(etcd.resolve(&service).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_retrying_pool_reports_every_attempt() {
    let server = EtcdServer::start().await;
    let prefix = format!("/{}/", prefix("services"));
    let arguments = ["--etcd", &server.address().to_string(), "--layout", "go-kit", "--prefix", &prefix];
    let mut example = Program::start("pool_retry", &server, &arguments);
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
