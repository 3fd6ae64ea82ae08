//! tonic's own channels, fed by a view.

mod support;

use enlist_grpc::{balance_channel, pick_first};
use enlist_memory::MemoryStore;
use enlist_testkit::{eventually, soon};
use support::{Server, World, say};
use tonic::{Code, transport::Endpoint};

#[tokio::test]
async fn a_balanced_channel_follows_the_view() {
    let servers = [Server::start("first").await, Server::start("second").await];
    let world = World::of(&servers[..1]).await;
    let view = world.view();
    soon("ready", view.ready()).await.unwrap();
    let balanced = balance_channel(&view).unwrap();
    let channel = balanced.channel();
    assert_eq!(soon("a response", say(&channel, String::new())).await.unwrap(), "first");
    world.register(&servers[1], servers[1].instance()).await;
    world.deregister(&servers[0]).await;
    eventually("only the second one answers", || async {
        let responses = [say(&channel, String::new()).await, say(&channel, String::new()).await];
        if responses.iter().flatten().filter(|response| *response == "second").count() == 2 {
            Ok(())
        } else {
            Err(responses)
        }
    })
    .await;
}

#[test]
fn a_balanced_channel_outside_a_runtime_is_refused() {
    let store = MemoryStore::new();
    let directory = enlist::Directory::new(std::sync::Arc::new(store.client()));
    assert!(balance_channel(&directory.view(&enlist::ServiceRef::parse("s").unwrap())).is_err());
}

#[tokio::test]
async fn pick_first_moves_once_its_instance_fails() {
    let servers = [Server::start("a").await, Server::start("b").await, Server::start("c").await];
    let world = World::of(&servers).await;
    servers[0].kill();
    let channel = pick_first(&world.view(), &Endpoint::from_static("http://echo"));
    let first = soon("a response", say(&channel, String::new())).await.unwrap();
    for _ in 0..20 {
        assert_eq!(say(&channel, String::new()).await.unwrap(), first);
    }
    let chosen = servers.iter().find(|server| server.name == first).unwrap();
    chosen.kill();
    let other = eventually("another one answers", || say(&channel, String::new())).await;
    assert!(other != first && other != "a", "{other}");
    servers.iter().for_each(Server::kill);
    eventually("no instance responds", || async {
        match say(&channel, String::new()).await {
            Err(status) if status.code() == Code::Unavailable => Ok(()),
            response => Err(response),
        }
    })
    .await;
}
