//! Causes in logs and errors: they name the endpoint and the system's error. A single test in a separate program,
//! because the interest in an event is decided once per process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{error::Error as _, net::SocketAddr, time::Duration};

use enlist::{
    Endpoint, Instance, InstanceId, Lock, LockName, LockOptions, RegisterOptions, Registry, Resolver, Start,
    with_causes,
};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{eventually, soon};
use support::{logged::Logged, service};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;

fn client(address: SocketAddr) -> Etcd {
    let builder = Etcd::builder([format!("http://{address}")]).runtime(SessionRuntime::Caller);
    builder.request_timeout(Duration::from_millis(300)).build().unwrap()
}

/// Registers, watches and locks until each operation has logged the cause of its failure.
async fn causes(logged: &Logged, address: SocketAddr) -> Vec<String> {
    let etcd = client(address);
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let options = RegisterOptions::new().start(Start::Background);
    let _registration = etcd.register(&service(), instance, options).await.unwrap();
    let _watcher = etcd.watch(&service()).await.unwrap();
    let mut lines = Vec::new();
    for message in ["instance not registered yet", "not registered", "watch broken"] {
        eventually(message, || {
            lines.extend(logged.take("enlist"));
            let found = lines.iter().any(|line| line.contains(message));
            async move { if found { Ok(()) } else { Err("not logged") } }
        })
        .await;
    }
    lines.retain(|line| line.contains("cause=") || line.contains("failure="));
    lines
}

#[tokio::test]
async fn causes_identify_the_failed_connection() {
    let (logged, _logging) = Logged::from(LevelFilter::DEBUG);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    for (address, reason) in [(closed, "Connection refused (os error 111)"), (silent, "no answer within 300 ms")] {
        let lines = causes(&logged, address).await;
        // Background tasks of the previous client name that client's endpoint.
        let other = if address == closed { silent } else { closed };
        for line in lines.iter().filter(|line| !line.contains(&other.to_string())) {
            assert!(line.contains(&address.to_string()) && line.contains(reason), "{line}");
        }
        let error = soon("an error", client(address).resolve(&service())).await.unwrap_err();
        let source = error.source().unwrap().to_string();
        assert!(source.contains(&address.to_string()) && source.contains(reason), "{source}");
        let (lock, options) = (LockName::parse("l").unwrap(), LockOptions::new().deadline(Duration::from_secs(1)));
        let late = soon("a timeout", client(address).acquire(&lock, options)).await.unwrap_err();
        let text = with_causes(&late).to_string();
        assert!(text.starts_with("acquire took longer than 1 s: store unavailable: "), "{text}");
        assert!(text.contains(&address.to_string()) && text.contains(reason), "{text}");
    }
}
