//! Limits on the connections that a writer of the registry can cause in a channel.

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{Endpoint, Instance, RegisterOptions, Registry};
use enlist_grpc::{CallHead, Channel, InstanceState, Intercept};
use enlist_testkit::soon;
use support::{Server, World, id, say, until};
use tonic::{Code, Status};

/// Adds a token to every call.
struct Token;

#[async_trait]
impl Intercept for Token {
    async fn before(&self, call: CallHead<'_>) -> Result<(), Status> {
        call.headers.insert("authorization", http::HeaderValue::from_static("Bearer token"));
        Ok(())
    }
}

#[tokio::test]
async fn a_plaintext_instance_gets_no_credentials() {
    for protocol in ["", "grpc://"] {
        let servers = [Server::start("a").await];
        let world = World::new();
        let endpoint = Endpoint::parse(format!("{protocol}{}", servers[0].address())).unwrap();
        world.register(&servers[0], Instance::new(id("a"), [endpoint]).unwrap()).await;
        let channel = Channel::builder().intercept(Arc::new(Token)).build(&world.view()).unwrap();
        let refused = soon("a response", say(&channel, "header authorization".to_owned())).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains("allow_plaintext"), "{refused}");
        assert_eq!((servers[0].calls(), servers[0].dials()), (0, 0));
        let reason = channel.instances()[0].last_failure.clone().unwrap();
        assert!(reason.contains("plaintext"), "{reason}");
    }
}

#[tokio::test]
async fn a_socket_in_the_registry_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let world = World::new();
    let instance = Instance::new(id("a"), [Endpoint::unix(path.to_str().unwrap()).unwrap()]).unwrap();
    let _registration = world.servers.register(&world.service, instance, RegisterOptions::new()).await.unwrap();
    let channel = Channel::new(&world.view()).unwrap();
    tokio::select! {
        () = until(&channel, "a", InstanceState::Failing) => {}
        accepted = listener.accept() => panic!("{accepted:?}"),
    }
    let refused = say(&channel, String::new()).await.unwrap_err();
    assert!(refused.message().contains("allow_unix"), "{refused}");
}
