//! What a channel does with its connections: how many there are, which of them are watched, and when they are given up.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::time::Duration;

use enlist_grpc::Channel;
use enlist_testkit::{Direction, Mode, soon};
use support::{Server, World, begun, say, stream};
use tokio::time::timeout;
use tonic::Streaming;

/// Long enough for a connection that is judged wrongly to be given up.
const WRONGLY_CUT: Duration = Duration::from_secs(3);

/// Opens streams side by side, and waits until each was answered.
async fn streams(channel: &Channel, count: usize) -> Vec<Streaming<String>> {
    let open = || async {
        let mut stream = stream(channel).await.unwrap();
        assert!(stream.message().await.unwrap().is_some());
        stream
    };
    soon("all streams are answered", futures::future::join_all((0..count).map(|_| open()))).await
}

/// Waits whether any of these ends within `limit`.
async fn any_ends(streams: &mut [Streaming<String>], limit: Duration) -> bool {
    let ends = streams.iter_mut().map(|stream| Box::pin(stream.message()));
    timeout(limit, futures::future::select_all(ends)).await.is_ok()
}

#[tokio::test]
async fn a_connection_whose_streams_are_all_taken_is_not_given_up() {
    let servers = [Server::limited("a", 4).await];
    let world = World::of(&servers).await;
    let channel = world.channel(Channel::builder().silence(Duration::from_millis(300)), 1).await;
    let mut idle = streams(&channel, 4).await;
    assert!(!any_ends(&mut idle, WRONGLY_CUT).await, "an idle stream was cut");
    assert_eq!(channel.instances()[0].in_flight, 4);
}

#[tokio::test]
async fn a_limit_of_tonics_own_is_no_reason_to_give_a_connection_up() {
    let servers = [Server::start("a").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder()
        .silence(Duration::from_millis(300))
        .settings(|_, settings| Ok(settings.concurrency_limit(1)));
    let channel = world.channel(builder, 1).await;
    // tonic counts a call until its headers arrive.
    let slow = begun(say(&channel, "sleep 3000".to_owned()));
    assert_eq!(soon("an answer", slow).await.unwrap(), "a");
}

#[tokio::test]
async fn a_silent_instance_whose_streams_are_not_all_taken_is_given_up() {
    let servers = [Server::limited("a", 4).await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().silence(Duration::from_millis(300)).probe_timeout(Duration::from_millis(200));
    let channel = world.channel(builder, 1).await;
    let mut idle = streams(&channel, 3).await;
    servers[0].proxy.set(Mode::BlackHole(Direction::Both));
    for stream in &mut idle {
        soon("the stream breaks", stream.message()).await.unwrap_err();
    }
}
