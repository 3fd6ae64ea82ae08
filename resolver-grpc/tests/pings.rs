//! HTTP/2 pings of a channel's connections, counted by a server that reads the frames. The streams are in memory, so
//! that the clock can be paused: an interval of five minutes passes at once, and exactly.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{sync::Arc, time::Duration};

use enlist::{Registry, TaskOwner};
use enlist_grpc::{Channel, ChannelBuilder};
use enlist_testkit::soon;
use support::{SETTINGS, World, addresses, begun, say, until_ready};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};

const HOUR: Duration = Duration::from_secs(3600);

/// Interval that the option allows at least.
const FIVE_MINUTES: Duration = Duration::from_secs(300);

/// Interval of the settings in these tests.
const MINUTE: Duration = Duration::from_secs(60);

/// Length of the text with which a client begins (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Flag of a frame that acknowledges another one.
const ACK: u8 = 1;

/// Type of a frame (RFC 9113, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Headers,
    Reset,
    Settings,
    Ping,
    Other,
}

impl Kind {
    fn of(number: u8) -> Self {
        match number {
            1 => Self::Headers,
            3 => Self::Reset,
            4 => Self::Settings,
            6 => Self::Ping,
            _ => Self::Other,
        }
    }
}

/// Reaction of the server to pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pings {
    Acknowledged,
    Ignored,
}

/// Frames that a server has received, by type.
type Received = watch::Sender<Vec<Kind>>;

/// A channel to a server that answers no call.
struct Observed {
    channel: Channel,
    received: Arc<Received>,
    _world: World,
    _tasks: Arc<TaskOwner>,
}

impl Observed {
    async fn start(builder: ChannelBuilder, pings: Pings) -> Self {
        let (received, tasks) = (Arc::new(Received::default()), Arc::new(TaskOwner::new()));
        let (frames, owner) = (Arc::clone(&received), Arc::clone(&tasks));
        let connect = move |_: &enlist::Instance, _: &enlist::Endpoint| {
            let (client, server) = duplex(1 << 16);
            let frames = Arc::clone(&frames);
            owner.spawn("server", async move { _ = read(server, &frames, pings).await }).unwrap();
            std::future::ready(Ok(client))
        };
        let world = World::new();
        for instance in addresses(1, 1) {
            world.servers.publish(&world.service, instance).await.unwrap();
        }
        // Probes of silent connections are not the subject.
        let channel = builder.silence(100 * HOUR).connector(connect).build(&world.view()).unwrap();
        until_ready(&channel, 1).await;
        Self { channel, received, _world: world, _tasks: tasks }
    }

    fn count(&self, kind: Kind) -> usize {
        self.received.borrow().iter().filter(|received| **received == kind).count()
    }

    /// Waits for the frame of this type with this number.
    async fn until(&self, kind: Kind, number: usize) {
        let mut received = self.received.subscribe();
        let has_come = |frames: &Vec<Kind>| frames.iter().filter(|received| **received == kind).count() >= number;
        soon("the frame", received.wait_for(has_come)).await.unwrap();
    }

    /// Waits for the first ping, which is due within two intervals of the option.
    async fn until_ping(&self) {
        let mut received = self.received.subscribe();
        let pinged = received.wait_for(|frames| frames.contains(&Kind::Ping));
        timeout(2 * FIVE_MINUTES, pinged).await.expect("no ping").unwrap();
    }

    /// Begins a call, and waits until the server has it.
    async fn call(&self) -> impl Future<Output = Result<String, Status>> + use<> {
        let before = self.count(Kind::Headers);
        let call = begun(say(&self.channel, String::new()));
        self.until(Kind::Headers, before + 1).await;
        call
    }

    /// Counts the pings during `time`.
    async fn pings_within(&self, time: Duration) -> usize {
        let before = self.count(Kind::Ping);
        sleep(time).await;
        self.count(Kind::Ping) - before
    }
}

/// Reads the frames of a connection until its end.
async fn read(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    received: &Received,
    pings: Pings,
) -> std::io::Result<()> {
    stream.write_all(&SETTINGS).await?;
    stream.read_exact(&mut [0; PREFACE]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [high, middle, low, number, flags, ..] = head;
        let kind = Kind::of(number);
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap()];
        stream.read_exact(&mut payload).await?;
        let is_request = flags & ACK == 0;
        if is_request && (kind == Kind::Settings || kind == Kind::Ping && pings == Pings::Acknowledged) {
            head[4] = ACK;
            let answer = match kind {
                Kind::Ping => [&head[..], &payload].concat(),
                _ => vec![0, 0, 0, number, ACK, 0, 0, 0, 0],
            };
            stream.write_all(&answer).await?;
        }
        if kind != Kind::Ping || is_request {
            received.send_modify(|received| received.push(kind));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pings_are_sent_while_calls_are_in_flight() {
    // The minimum counts.
    let channel = Channel::builder().http2_keep_alive(Some(Duration::from_secs(1)));
    let observed = Observed::start(channel, Pings::Acknowledged).await;
    assert_eq!(observed.pings_within(HOUR).await, 0, "an idle connection was pinged");
    for call in 1..=2 {
        let in_flight = observed.call().await;
        let pings = observed.pings_within(HOUR).await;
        assert!((11..=12).contains(&pings), "{pings} pings in an hour with a call every {FIVE_MINUTES:?}");
        drop(in_flight);
        observed.until(Kind::Reset, call).await;
        assert_eq!(observed.pings_within(HOUR).await, 0, "an idle connection was pinged after its call");
    }
}

#[tokio::test(start_paused = true)]
async fn no_pings_are_sent_by_default() {
    for builder in [Channel::builder(), Channel::builder().http2_keep_alive(None)] {
        let observed = Observed::start(builder, Pings::Acknowledged).await;
        let _in_flight = observed.call().await;
        assert_eq!(observed.pings_within(HOUR).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_ping_ends_its_connection() {
    let observed = Observed::start(Channel::builder().http2_keep_alive(Some(FIVE_MINUTES)), Pings::Ignored).await;
    let call = observed.call().await;
    observed.until_ping().await;
    let pinged = Instant::now();
    let failed = call.await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    let (waited, limit) = (pinged.elapsed(), Duration::from_secs(20));
    assert!((limit..limit + Duration::from_secs(1)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn pings_of_the_settings_are_not_overridden() {
    let settings = |builder: ChannelBuilder| {
        builder.settings(|_, settings| {
            let pinging = settings.http2_keep_alive_interval(MINUTE).keep_alive_while_idle(true);
            Ok(pinging.keep_alive_timeout(Duration::from_secs(5)))
        })
    };
    for option in [None, Some(FIVE_MINUTES), Some(HOUR)] {
        let builder = settings(Channel::builder().http2_keep_alive(option));
        let observed = Observed::start(builder, Pings::Acknowledged).await;
        let idle = observed.pings_within(HOUR).await;
        assert!((59..=60).contains(&idle), "{idle} pings of an idle connection, with the option at {option:?}");
        let _in_flight = observed.call().await;
        let busy = observed.pings_within(HOUR).await;
        assert!((59..=60).contains(&busy), "{busy} pings, with the option at {option:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn settings_without_pings_leave_the_option() {
    let limit = Duration::from_secs(5);
    let builder = Channel::builder().http2_keep_alive(Some(FIVE_MINUTES));
    let builder = builder.settings(move |_, settings| Ok(settings.keep_alive_timeout(limit)));
    let observed = Observed::start(builder, Pings::Ignored).await;
    let call = observed.call().await;
    observed.until_ping().await;
    let pinged = Instant::now();
    call.await.unwrap_err();
    let waited = pinged.elapsed();
    assert!((limit..limit + Duration::from_secs(1)).contains(&waited), "{waited:?}");
}
