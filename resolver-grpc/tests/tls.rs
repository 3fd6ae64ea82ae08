//! Channels over TLS, with settings that depend on the instance.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{Endpoint, Instance, RegisterOptions, Registration, Registry, TaskOwner};
use enlist_grpc::{Channel, ChannelBuilder, InstanceState};
use enlist_testkit::soon;
use futures::{StreamExt as _, stream::BoxStream};
use support::{World, id, say, until, until_ready};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

/// A server with a certificate for `host`, and its authority.
async fn secure(tasks: &TaskOwner, name: &'static str, host: &str) -> (SocketAddr, Certificate) {
    secure_with(tonic::transport::Server::builder(), tasks, name, host).await
}

async fn secure_with(
    builder: tonic::transport::Server,
    tasks: &TaskOwner,
    name: &'static str,
    host: &str,
) -> (SocketAddr, Certificate) {
    let (identity, ca) = certified(host);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tasks.stop_signal();
    let server = builder
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(tonic_health::server::health_reporter().1)
        .add_service(support::echo(name))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned());
    tasks.spawn("server", async move { server.await.unwrap() }).unwrap();
    (address, ca)
}

/// Returns a certificate for `host` with its key, and its authority.
fn certified(host: &str) -> (Identity, Certificate) {
    let own = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
    let identity = Identity::from_pem(own.cert.pem(), own.signing_key.serialize_pem());
    (identity, Certificate::from_pem(own.cert.pem()))
}

/// Returns the options of a channel that trusts `ca` for `greeter.test`.
fn trusting(ca: Certificate) -> ChannelBuilder {
    Channel::builder().settings(move |_, settings| {
        let tls = ClientTlsConfig::new().ca_certificate(ca.clone()).domain_name("greeter.test");
        Ok(settings.tls_config(tls)?)
    })
}

/// Starts a server with a new certificate.
struct Secure {
    address: SocketAddr,
    ca: Certificate,
    tasks: TaskOwner,
}

impl Secure {
    async fn start() -> Self {
        Self::with(tonic::transport::Server::builder()).await
    }

    async fn with(builder: tonic::transport::Server) -> Self {
        let tasks = TaskOwner::new();
        let (address, ca) = secure_with(builder, &tasks, "secure", "greeter.test").await;
        Self { address, ca, tasks }
    }

    /// Returns the options of a channel that trusts it.
    fn trusted(&self) -> ChannelBuilder {
        trusting(self.ca.clone())
    }
}

/// Returns a world with a secure instance at `port`.
async fn secure_world(port: u16) -> World {
    let world = World::new();
    let endpoint = Endpoint::parse(format!("grpcs://127.0.0.1:{port}")).unwrap();
    world.servers.publish(&world.service, Instance::new(id("a"), [endpoint]).unwrap()).await.unwrap();
    world
}

/// Registers an instance with these endpoints.
async fn listed(world: &World, name: &str, endpoints: &[String]) -> Registration {
    let endpoints = endpoints.iter().map(|text| Endpoint::parse(text).unwrap());
    let instance = Instance::new(id(name), endpoints).unwrap();
    world.servers.register(&world.service, instance, RegisterOptions::new()).await.unwrap()
}

/// Forwards both directions to `server`, but no response after the client's second message, which completes a
/// handshake.
async fn handshake_only(client: TcpStream, server: SocketAddr) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
    let done = Arc::new(AtomicBool::new(false));
    let ask = async {
        let mut words = 0;
        let mut word = [0; 16 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut word).await {
            words += 1;
            done.store(words > 1, Ordering::SeqCst);
            to_server.write_all(&word[..length]).await.unwrap();
        }
    };
    let respond = async {
        let mut word = [0; 16 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut word).await {
            if !done.load(Ordering::SeqCst) {
                to_client.write_all(&word[..length]).await.unwrap();
            }
        }
    };
    tokio::join!(ask, respond);
}

#[tokio::test]
async fn a_tls_handshake_alone_is_not_ready() {
    let (server, tasks) = (Secure::start().await, TaskOwner::new());
    let address = server.address;
    let port = support::listen(&tasks, move |client| handshake_only(client, address)).await;
    let world = secure_world(port).await;
    let channel = server.trusted().dial_timeout(Duration::from_millis(500)).build(&world.view()).unwrap();
    until(&channel, "a", InstanceState::Failing).await;
    // A server that responds is ready.
    let world = secure_world(address.port()).await;
    let channel = world.channel(server.trusted(), 1).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "secure");
}

#[tokio::test]
async fn calls_waiting_over_tls_are_bounded() {
    let server = Secure::with(tonic::transport::Server::builder().max_concurrent_streams(4)).await;
    let world = secure_world(server.address.port()).await;
    let builder = server.trusted().connections(1).queue_limit(10).wait_limit(Duration::from_secs(600));
    let channel = world.channel(builder, 1).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = support::stream(&channel).await.unwrap();
        assert!(stream.message().await.unwrap().is_some());
        open.push(stream);
    }
    // 100 wait on the connection and 10 in the channel.
    let mut calls: Vec<_> = (0..150).map(|_| Box::pin(support::begun(say(&channel, String::new())))).collect();
    for _ in 0..40 {
        let (refused, _, others) = soon("a call is refused", futures::future::select_all(calls)).await;
        let refused = refused.unwrap_err();
        assert!(refused.message().contains("too many calls wait"), "{refused}");
        calls = others;
    }
    drop(open);
    let responses = soon("all responses", futures::future::join_all(calls)).await;
    assert!(responses.len() == 110 && responses.iter().all(Result::is_ok), "{responses:?}");
}

#[tokio::test]
async fn an_idle_channel_obeys_goaway_over_tls() {
    let server = Secure::start().await;
    let world = secure_world(server.address.port()).await;
    let channel = world.channel(server.trusted().health_check(""), 1).await;
    server.tasks.stop(Duration::from_secs(20)).await.unwrap();
    until(&channel, "a", InstanceState::Failing).await;
}

/// A health service whose server goes away during any check but the first, which belongs to the dial.
#[derive(Debug)]
struct LeavesWhileChecked {
    checks: Arc<AtomicUsize>,
    leave: CancellationToken,
}

#[async_trait::async_trait]
impl Health for LeavesWhileChecked {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if self.checks.fetch_add(1, Ordering::SeqCst) > 0 {
            self.leave.cancel();
            // On a paused clock: until the client has received the GOAWAY.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let serving = Ok(HealthCheckResponse { status: ServingStatus::Serving.into() });
        Ok(Response::new(futures::stream::iter([serving]).chain(futures::stream::pending()).boxed()))
    }
}

/// In memory, so that the clock can be paused.
#[tokio::test(start_paused = true)]
async fn a_goaway_beside_a_response_is_noticed() {
    let (tasks, checks) = (TaskOwner::new(), Arc::new(AtomicUsize::new(0)));
    let (identity, ca) = certified("greeter.test");
    let (dial, dials) = tokio::sync::mpsc::unbounded_channel();
    let stop = tasks.stop_signal();
    let health = LeavesWhileChecked { checks: Arc::clone(&checks), leave: stop.clone() };
    let server = tonic::transport::Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .unwrap()
        .add_service(HealthServer::new(health))
        .add_service(support::echo("a"))
        .serve_with_incoming_shutdown(
            UnboundedReceiverStream::new(dials).map(Ok::<DuplexStream, std::io::Error>),
            stop.cancelled_owned(),
        );
    tasks.spawn("server", async move { server.await.unwrap() }).unwrap();
    let world = secure_world(1).await;
    let builder = trusting(ca).health_check("").connector(move |_, _| {
        let (client, server) = tokio::io::duplex(64 << 10);
        let dialled = dial.send(server).map_err(|_| "the server has ended".into());
        std::future::ready(dialled.map(|()| client))
    });
    let channel = world.channel(builder, 1).await;
    say(&channel, String::new()).await.unwrap();
    // The response of the call was received on a connection that is idle since, and might have been a GOAWAY.
    tokio::time::sleep(Duration::from_secs(5)).await;
    tasks.stop(Duration::from_secs(20)).await.unwrap();
    until(&channel, "a", InstanceState::Failing).await;
    assert_eq!(checks.load(Ordering::SeqCst), 1, "an idle connection is checked without traffic");
}

#[tokio::test]
async fn each_instance_matches_its_certificate() {
    let tasks = TaskOwner::new();
    let (address, ca) = secure(&tasks, "secure", "greeter.test").await;
    let world = World::new();
    let endpoint = Endpoint::parse(format!("grpcs://{address}")).unwrap();
    let instance = Instance::new(id("a"), [endpoint]).unwrap().with_metadata("tls-name", "greeter.test");
    let _registration = world.servers.register(&world.service, instance, RegisterOptions::new()).await.unwrap();

    // No trusted root has signed the certificate.
    let untrusting = Channel::new(&world.view()).unwrap();
    until(&untrusting, "a", InstanceState::Failing).await;
    let trusting = |name_of: fn(&Instance) -> String| {
        let ca = ca.clone();
        let builder = Channel::builder().settings(move |instance, settings| {
            let tls = ClientTlsConfig::new().ca_certificate(ca.clone()).domain_name(name_of(instance));
            Ok(settings.tls_config(tls)?)
        });
        builder.build(&world.view()).unwrap()
    };
    let channel = trusting(|instance| instance.metadata()["tls-name"].clone());
    until_ready(&channel, 1).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "secure");
    // The name has to match the certificate.
    let misled = trusting(|_| "other.test".to_owned());
    until(&misled, "a", InstanceState::Failing).await;
}

#[tokio::test]
async fn tls_settings_apply_without_a_protocol() {
    let servers = [support::Server::start("a").await];
    let world = World::of(&servers).await;
    let builder = Channel::builder().settings(|_, settings| Ok(settings.tls_config(ClientTlsConfig::new())?));
    let channel = builder.build(&world.view()).unwrap();
    let failed = enlist_testkit::soon("a response", say(&channel, String::new())).await.unwrap_err();
    assert_eq!((failed.code(), servers[0].calls()), (tonic::Code::Unavailable, 0), "{failed}");
}

#[tokio::test]
async fn only_the_expected_server_is_called() {
    let (tasks, world) = (TaskOwner::new(), World::new());
    let (good, good_ca) = secure(&tasks, "good", "greeter.test").await;
    let (other, other_ca) = secure(&tasks, "other", "localhost").await;
    let _good = listed(&world, "good", &[format!("grpcs://{good}")]).await;
    let _other = listed(&world, "other", &[format!("grpcs://localhost:{}", other.port())]).await;
    let trusting = || {
        let tls = ClientTlsConfig::new().ca_certificates([good_ca.clone(), other_ca.clone()]);
        Channel::builder().settings(move |_, settings| Ok(settings.tls_config(tls.clone())?))
    };
    let channel = trusting().authority("greeter.test").build(&world.view()).unwrap();
    until_ready(&channel, 1).await;
    until(&channel, "other", InstanceState::Failing).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "good");
    // Without an explicit name the channel uses that of the registry.
    until(&trusting().build(&world.view()).unwrap(), "other", InstanceState::Ready).await;
    assert!(matches!(trusting().authority("a/b").build(&world.view()), Err(enlist::Error::InvalidConfig { .. })));
}

#[tokio::test]
async fn tls_can_be_required_of_all_endpoints() {
    let (tasks, world) = (TaskOwner::new(), World::new());
    let plain = support::Server::start("plain").await;
    let (secret, ca) = secure(&tasks, "secret", "greeter.test").await;
    let _both = listed(&world, "both", &[format!("grpc://{}", plain.address()), secret.to_string()]).await;
    let _plain = listed(&world, "plain", &[format!("http://{}", plain.address())]).await;
    let tls = ClientTlsConfig::new().ca_certificate(ca);
    let strict = Channel::builder().require_tls().authority("greeter.test");
    let strict = strict.settings(move |_, settings| Ok(settings.tls_config(tls.clone())?));
    let channel = strict.build(&world.view()).unwrap();
    until(&channel, "both", InstanceState::Ready).await;
    until(&channel, "plain", InstanceState::Failing).await;
    assert_eq!(say(&channel, String::new()).await.unwrap(), "secret");
    let refused = channel.instances().into_iter().find(|one| one.id == id("plain")).unwrap();
    assert!(refused.last_failure.unwrap().contains("requires TLS"));
    assert_eq!(plain.dials(), 0);
}
