//! Users, tokens, roles and certificates; no output contains a secret.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/harness.rs"]
mod harness;
mod support;

use std::{
    error::Error as _,
    fmt::Debug,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use authority::Authority;
use enlist::{Counter, Error, RegisterOptions, Registry, Resolver, ServiceRef, Start, TaskOwner};
use enlist_etcd::{Etcd, EtcdBuilder, SessionRuntime};
use enlist_testkit::{EtcdServer, Provider, ServerOptions, eventually, soon};
use etcd_client::{Client, Permission, PermissionType};
use support::{instance, service};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

const PASSWORD: &str = "correct-horse-battery";

/// All output: errors with their sources, configurations, logs.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn note(&self, what: &impl Debug) {
        write!(self.clone(), "{what:?} {what:#?}").unwrap();
    }

    fn error(&self, error: &Error) -> String {
        let mut texts = vec![error.to_string()];
        let mut source = error.source();
        while let Some(error) = source {
            texts.push(error.to_string());
            source = error.source();
        }
        let text = texts.join(": ");
        self.note(error);
        self.note(&text);
        text
    }

    fn assert_no(&self, secret: &str) {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        assert!(!text.is_empty() && !text.contains(secret), "the secret is shown");
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An etcd with authentication: `root`, and `reader` with read access below `enlist/` only.
async fn guarded(arguments: &[&str]) -> EtcdServer {
    let options = ServerOptions::new().arguments(arguments.iter().copied());
    let server = EtcdServer::start_with(Provider::Process, options).await;
    let mut raw = Client::connect([server.url()], None).await.unwrap();
    raw.user_add("root", PASSWORD, None).await.unwrap();
    raw.user_grant_role("root", "root").await.unwrap();
    raw.role_add("reading").await.unwrap();
    let permission = Permission::new(PermissionType::Read, "enlist/").with_range_end("enlist0");
    raw.role_grant_permission("reading", permission).await.unwrap();
    raw.user_add("reader", PASSWORD, None).await.unwrap();
    raw.user_grant_role("reader", "reading").await.unwrap();
    raw.auth_enable().await.unwrap();
    server
}

/// Builds a client on the runtime of the test, whose logs are captured.
fn as_user(server: &EtcdServer, user: &str) -> EtcdBuilder {
    Etcd::builder([server.url()]).runtime(SessionRuntime::Caller).user(user, PASSWORD.to_owned())
}

#[tokio::test]
async fn refusals_name_their_cause_without_secrets() {
    let captured = Captured::default();
    let logs = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_writer(Mutex::new(logs))
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let server = guarded(&[]).await;
    let fast = || RegisterOptions::new().start(Start::FailFast);

    let wrong = as_user(&server, "root").user("root", "wrong-password-of-mine".to_owned());
    captured.note(&wrong);
    let error = wrong.connect().await.unwrap_err();
    assert!(matches!(error, Error::AuthFailed(_)), "{error:?}");
    assert!(captured.error(&error).contains("authentication failed"));

    let nobody = Etcd::connect(server.url()).await.unwrap_err();
    assert!(matches!(nobody, Error::AuthFailed(_)), "{nobody:?}");
    assert!(captured.error(&nobody).contains("user name is empty"));

    let reader = as_user(&server, "reader").connect().await.unwrap();
    captured.note(&reader);
    assert!(reader.resolve(&service()).await.unwrap().is_empty());
    let refused = reader.register(&service(), instance("a"), fast()).await.unwrap_err();
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused:?}");
    assert!(captured.error(&refused).contains("default/svc/a"));
    let elsewhere = as_user(&server, "reader").prefix("elsewhere").connect().await.unwrap();
    let refused = elsewhere.resolve(&service()).await.unwrap_err();
    assert!(captured.error(&refused).contains("elsewhere/services/default/svc/"), "{refused:?}");
    let mut watcher = elsewhere.watch(&service()).await.unwrap();
    let refused = soon("refused", watcher.next()).await.unwrap_err();
    assert!(matches!(refused, Error::PermissionDenied { .. }), "{refused:?}");
    captured.error(&refused);

    let root = as_user(&server, "root").connect().await.unwrap();
    let large = instance("a").with_metadata("blob", "x".repeat(2 << 20));
    let refused = root.register(&service(), large, fast()).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused:?}");
    captured.error(&refused);
    let registration = root.register(&service(), instance("a"), fast()).await.unwrap();
    captured.note(&registration);

    let unreachable =
        Etcd::builder(["http://127.0.0.1:9"]).user("root", PASSWORD.to_owned()).connect().await.unwrap_err();
    assert!(matches!(unreachable, Error::Unavailable(_)), "{unreachable:?}");
    let text = captured.error(&unreachable);
    assert!(text.contains("127.0.0.1:9") && text.to_lowercase().contains("refused"), "{text}");

    captured.assert_no(PASSWORD);
    captured.assert_no("wrong-password-of-mine");
}

#[tokio::test]
async fn expired_tokens_are_renewed_unnoticed() {
    // Simple tokens with a lifetime of two seconds.
    let server = guarded(&["--auth-token-ttl=2"]).await;
    let etcd = as_user(&server, "root").connect().await.unwrap();
    let registration = etcd.register(&service(), instance("a"), RegisterOptions::new()).await.unwrap();
    let mut early = etcd.watch(&service()).await.unwrap();
    assert_eq!(soon("a list", early.next()).await.unwrap().snapshot.len(), 1);
    let raw = Client::connect([server.url()], Some(etcd_client::ConnectOptions::new().with_user("root", PASSWORD)))
        .await
        .unwrap();
    eventually("a token of the same age has run out", || async {
        match raw.clone().get("x", None).await {
            Err(error) if error.to_string().contains("invalid auth token") => Ok(()),
            other => {
                // Use extends the life of a simple token, so the next check comes after its expiry.
                tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>()).await.unwrap_err();
                Err(format!("{other:?}"))
            }
        }
    })
    .await;
    raw.refresh_token().await.unwrap();
    let mut late = etcd.watch(&ServiceRef::parse("other").unwrap()).await.unwrap();
    assert!(soon("a list", late.next()).await.unwrap().snapshot.is_empty());
    assert_eq!(etcd.resolve(&service()).await.unwrap().len(), 1);
    let update = registration.update(|update| {
        update.weight(7);
    });
    soon("stored", update).await.unwrap();
    let change = soon("a change", early.next()).await.unwrap();
    assert_eq!(change.events.len(), 1);
    soon("deregistered", registration.deregister()).await.unwrap();
}

/// Proxy that delays the first response of each connection, and with it the TLS handshake.
struct SlowStart {
    address: SocketAddr,
    cuts: watch::Sender<()>,
    _tasks: TaskOwner,
}

impl SlowStart {
    async fn start(target: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = watch::Sender::new(());
        let tasks = TaskOwner::new();
        let cut = cuts.subscribe();
        let serve = async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                connections.spawn(async move {
                    tokio::select! {
                        _ = cut.changed() => {}
                        _ = Self::forward(client, target, delay) => {}
                    }
                });
            }
        };
        tasks.spawn_until_stopped("slow start", serve).unwrap();
        Self { address, cuts, _tasks: tasks }
    }

    async fn forward(mut client: TcpStream, target: SocketAddr, delay: Duration) -> std::io::Result<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut server = TcpStream::connect(target).await?;
        let mut first = vec![0; 16 << 10];
        // The client sends first, and then waits for the response.
        let length = client.read(&mut first).await?;
        server.write_all(&first[..length]).await?;
        let length = server.read(&mut first).await?;
        tokio::time::sleep(delay).await;
        client.write_all(&first[..length]).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
    }

    /// Ends all connections.
    fn cut(&self) {
        self.cuts.send_replace(());
    }
}

/// With this TTL a renewal waits for at most 833 ms, and the handshake takes longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handshake_is_not_begun_anew() {
    let authority = Authority::new();
    authority.sign("server");
    let options = ServerOptions::new().tls().arguments([
        format!("--cert-file={}", authority.path("server.pem")),
        format!("--key-file={}", authority.path("server.key")),
    ]);
    let server = EtcdServer::start_with(Provider::Process, options).await;
    let port: u16 = server.tls_url().rsplit_once(':').unwrap().1.parse().unwrap();
    let way = SlowStart::start(([127, 0, 0, 1], port).into(), Duration::from_millis(1500)).await;
    let etcd = Etcd::builder([format!("https://{}", way.address)]).ca_certificate(authority.path("ca.pem"));
    let etcd = etcd.connect().await.unwrap();
    let options = RegisterOptions::new().ttl(Duration::from_secs(5));
    let _a = soon("registered", etcd.register(&service(), instance("a"), options)).await.unwrap();
    let renewed = async |times: u64| {
        let before = etcd.counters().get(Counter::Renewals);
        eventually("it is renewed", || async {
            let now = etcd.counters().get(Counter::Renewals);
            let lost = etcd.counters().get(Counter::LeaseLosses);
            assert_eq!(lost, 0, "the lease is lost after {now} renewals");
            if now >= before + times { Ok(()) } else { Err(now) }
        })
        .await;
    };
    renewed(1).await;
    way.cut();
    renewed(2).await;
}

/// Addresses in the form of Go's client: `host:port`, over TLS if there are options for it.
#[tokio::test]
async fn an_endpoint_needs_no_scheme() {
    let authority = Authority::new();
    authority.sign("server");
    let options = ServerOptions::new().tls().arguments([
        format!("--cert-file={}", authority.path("server.pem")),
        format!("--key-file={}", authority.path("server.key")),
    ]);
    let server = EtcdServer::start_with(Provider::Process, options).await;
    let plain = Etcd::connect(server.address().to_string()).await.unwrap();
    let _a = plain.register(&service(), instance("a"), RegisterOptions::new()).await.unwrap();
    let address = server.tls_url().replace("https://", "");
    let secure = Etcd::builder([address]).ca_certificate(authority.path("ca.pem")).connect().await.unwrap();
    assert_eq!(secure.resolve(&service()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn mutual_tls_uses_certificate_files() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.sign("server");
    authority.sign("client");
    let options = ServerOptions::new().tls().arguments([
        format!("--cert-file={}", authority.path("server.pem")),
        format!("--key-file={}", authority.path("server.key")),
        format!("--trusted-ca-file={}", authority.path("ca.pem")),
        "--client-cert-auth".to_owned(),
    ]);
    let server = EtcdServer::start_with(Provider::Process, options).await;
    let client = || Etcd::builder([server.tls_url()]).ca_certificate(authority.path("ca.pem"));
    let with_identity =
        |builder: EtcdBuilder| builder.client_certificate(authority.path("client.pem"), authority.path("client.key"));

    let etcd = with_identity(client()).connect().await.unwrap();
    let _a = etcd.register(&service(), instance("a"), RegisterOptions::new()).await.unwrap();
    assert_eq!(etcd.resolve(&service()).await.unwrap().len(), 1);

    let captured = Captured::default();
    let failure = |builder: EtcdBuilder| {
        let captured = captured.clone();
        async move { captured.error(&builder.connect().await.unwrap_err()).to_lowercase() }
    };
    let wrong_ca = with_identity(Etcd::builder([server.tls_url()]).ca_certificate(stranger.path("ca.pem")));
    let text = failure(wrong_ca).await;
    assert!(text.contains("certificate"), "{text}");
    let text = failure(with_identity(client()).server_name("elsewhere.example")).await;
    assert!(text.contains("certificate") || text.contains("name"), "{text}");
    let text = failure(client()).await;
    assert!(text.contains("certificate"), "no client certificate: {text}");
    let port = server.tls_url().rsplit_once(':').unwrap().1.to_owned();
    let plain = failure(Etcd::builder([format!("http://127.0.0.1:{port}")])).await;
    assert!(plain.contains(&port), "plain against TLS: {plain}");
    let secure = failure(with_identity(Etcd::builder([server.url().replace("http:", "https:")]))).await;
    assert!(secure.contains(&server.address().port().to_string()), "TLS against plain: {secure}");

    authority.sign_until("expired", 2020);
    let options = ServerOptions::new().tls().arguments([
        format!("--cert-file={}", authority.path("expired.pem")),
        format!("--key-file={}", authority.path("expired.key")),
    ]);
    let expired = EtcdServer::start_with(Provider::Process, options).await;
    let text = failure(Etcd::builder([expired.tls_url()]).ca_certificate(authority.path("ca.pem"))).await;
    assert!(text.contains("expired") || text.contains("certificate"), "{text}");

    let missing = authority.path("missing.pem");
    assert!(!Path::new(&missing).exists());
    let text = failure(Etcd::builder([server.tls_url()]).ca_certificate(&missing)).await;
    assert!(text.contains("missing.pem"), "{text}");
}
