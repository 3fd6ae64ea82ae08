//! Findings of `enlist doctor` about endpoints and versions.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{net::SocketAddr, time::Duration};

use enlist::TaskOwner;
use enlist_testkit::{EtcdCluster, EtcdServer, Provider, ServerOptions, eventually};
use http_body_util::{Either, Empty};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Done, certificate, enlist, raw, run, server};
use tokio::net::{TcpListener, TcpStream};

/// Address without a listener.
const DEAD_ENDPOINT: &str = "http://127.0.0.1:1";

async fn doctor(server: &EtcdServer, arguments: &[&str]) -> Done {
    run(enlist(server, ["doctor"].iter().chain(arguments))).await
}

/// Returns the line of a check.
fn line<'a>(done: &'a Done, check: &str) -> &'a str {
    let check = format!(" {check}: ");
    done.stdout.lines().find(|line| line.contains(&check)).unwrap_or_else(|| panic!("{check}: {done:#?}"))
}

/// The dead member of two is named in any position, and the other one is examined.
#[tokio::test]
async fn a_dead_member_is_named() {
    let server = server().await;
    for endpoints in [[DEAD_ENDPOINT, &server.url()], [&server.url(), DEAD_ENDPOINT]] {
        let done = doctor(&server, &["--endpoints", &endpoints.join(",")]).await;
        assert_eq!(done.code, Some(1), "{done:#?}");
        let failed: Vec<_> = done.stdout.lines().filter(|line| line.starts_with("failed")).collect();
        assert_eq!(failed.len(), 1, "{done:#?}");
        assert!(failed[0].contains(&format!("endpoint: {DEAD_ENDPOINT}: Connection refused")), "{done:#?}");
        assert!(done.stdout.contains(&format!("ok       endpoint: {} answers", server.url())), "{done:#?}");
        assert!(line(&done, "latency").starts_with("ok") && !done.stdout.contains("skipped"), "{done:#?}");
    }
}

/// A member that only serves serializable reads is named in any position, and another one is examined. Users have no
/// effect.
#[tokio::test]
async fn a_member_without_a_leader_is_named() {
    let cluster = EtcdCluster::start().await;
    cluster.isolate(0);
    let [lonely, other] = [0, 1].map(|number| cluster.member(number).url());
    eventually("the others have a leader", || async {
        let asking = async {
            let mut client = etcd_client::Client::connect([&other], None).await?;
            client.get("\0", None).await
        };
        let answer = tokio::time::timeout(Duration::from_secs(2), asking).await;
        if let Ok(Ok(_)) = answer { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    for endpoints in [vec![&*lonely, &other], vec![&other, &lonely], vec![&lonely]] {
        let done = doctor(cluster.member(0), &["--endpoints", &endpoints.join(",")]).await;
        assert_eq!(done.code, Some(1), "{done:#?}");
        let failed: Vec<_> = done.stdout.lines().filter(|line| line.starts_with("failed")).collect();
        assert_eq!(failed.len(), 1, "{done:#?}");
        assert!(failed[0].contains(&format!("endpoint: {lonely}: it answers from its own data only")), "{done:#?}");
        assert!(failed[0].contains("has a leader") && !done.stdout.contains("accept the user"), "{done:#?}");
        let rest = if endpoints.len() > 1 { "ok" } else { "skipped" };
        assert!(line(&done, "latency").starts_with(rest), "{done:#?}");
    }
}

#[tokio::test]
async fn the_cause_of_a_broken_connection_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key] = certificate(directory.path());
    let tls = ServerOptions::new().tls().arguments([
        format!("--cert-file={certificate}"),
        format!("--key-file={key}"),
        format!("--trusted-ca-file={certificate}"),
        "--client-cert-auth".to_owned(),
    ]);
    let server = EtcdServer::start_with(Provider::Process, tls).await;
    let (plain_at_tls, tls_at_plain) =
        (server.tls_url().replace("https:", "http:"), server.url().replace("http:", "https:"));
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = format!("http://{}", web.local_addr().unwrap());
    let tasks = TaskOwner::new();
    let answering = async move {
        while let Ok((stream, _)) = web.accept().await {
            // The client may be gone.
            let _ = stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    };
    let stop = tasks.stop_signal();
    tasks
        .spawn("web server", async move {
            let _ = stop.run_until_cancelled_owned(answering).await;
        })
        .unwrap();
    let good = ["--endpoints", &server.tls_url(), "--cacert", &certificate, "--cert", &certificate, "--key", &key];
    let done = doctor(&server, &good).await;
    assert!(line(&done, "endpoint").starts_with("ok"), "{done:#?}");
    for (arguments, cause, advice) in [
        (vec![DEAD_ENDPOINT], "Connection refused", "start etcd there"),
        (vec!["http://no-such-host.invalid:2379"], "lookup address", "correct --endpoints"),
        (vec![tls_at_plain.as_str()], "no TLS is spoken there", "use http://"),
        (vec![&plain_at_tls], "TLS is spoken there", "use https://"),
        (vec![&server.tls_url()], "UnknownIssuer", "--cacert"),
        (vec![&server.tls_url(), "--cacert", &certificate], "after the handshake", "--cert and --key"),
        (vec![&elsewhere], "etcd's protocol is not spoken there", "correct --endpoints"),
    ] {
        let arguments: Vec<_> = ["--endpoints"].into_iter().chain(arguments).collect();
        let done = doctor(&server, &arguments).await;
        assert_eq!(done.code, Some(1), "{done:#?}");
        let line = line(&done, "endpoint");
        assert!(line.starts_with("failed") && line.contains(cause) && line.contains(advice), "{arguments:?}: {line}");
        assert!(done.stdout.contains("skipped  latency: no endpoint answers"), "{done:#?}");
    }
}

/// Starts a member without TLS that resets a connection on which a TLS handshake begins. etcd does so at times; else it
/// closes the connection in order.
async fn resetting_handshakes(member: SocketAddr) -> (String, TaskOwner) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let tasks = TaskOwner::new();
    let stop = tasks.stop_signal();
    let accepting = async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut first = [0];
                // Closing a connection with unread bytes resets it. 22 is the type of a handshake record.
                if stream.peek(&mut first).await.is_ok_and(|read| read == 1) && first != [22] {
                    let mut upstream = TcpStream::connect(member).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                }
            });
        }
    };
    tasks
        .spawn("member", async move {
            let _ = stop.run_until_cancelled_owned(accepting).await;
        })
        .unwrap();
    (url, tasks)
}

#[tokio::test]
async fn a_reset_handshake_means_no_tls_is_spoken() {
    let server = EtcdServer::start_with(Provider::Process, ServerOptions::new()).await;
    let (url, _member) = resetting_handshakes(server.address()).await;
    let done = doctor(&server, &["--endpoints", &url]).await;
    let line = line(&done, "endpoint");
    assert!(line.contains("no TLS is spoken there") && line.contains("use http://"), "{line}");
}

/// Starts a member that reports its status to root only, like the releases that `docs/faults.md` names. It forwards all
/// other requests.
async fn telling_root_only(member: SocketAddr) -> (String, TaskOwner) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tasks = TaskOwner::new();
    let stop = tasks.stop_signal();
    let accepting = async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(pass_on(stream, member));
        }
    };
    tasks
        .spawn("member", async move {
            let _ = stop.run_until_cancelled_owned(accepting).await;
        })
        .unwrap();
    (url, tasks)
}

async fn pass_on(stream: TcpStream, member: SocketAddr) {
    let upstream = TokioIo::new(TcpStream::connect(member).await.unwrap());
    let (sender, upstream) = hyper::client::conn::http2::handshake(TokioExecutor::new(), upstream).await.unwrap();
    let service = service_fn(move |request: Request<Incoming>| {
        let mut sender = sender.clone();
        async move {
            if request.uri().path() != "/etcdserverpb.Maintenance/Status" {
                return Ok(sender.send_request(request).await?.map(Either::Left));
            }
            let refusal = Response::builder().header("content-type", "application/grpc").header("grpc-status", "7");
            let refusal = refusal.header("grpc-message", "etcdserver: permission denied");
            Ok::<_, hyper::Error>(refusal.body(Either::Right(Empty::new())).unwrap())
        }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // Either side may close the connection.
    tokio::select! {
        _ = serving.serve_connection(TokioIo::new(stream), service) => {}
        _ = upstream => {}
    }
}

#[tokio::test]
async fn a_status_for_root_is_no_failure() {
    let server = server().await;
    let mut root = raw(&server).await;
    root.user_add("root", "secret", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("writer").await.unwrap();
    let write = etcd_client::Permission::read_write("enlist/").with_prefix();
    root.role_grant_permission("writer", write).await.unwrap();
    root.user_add("writer", "secret", None).await.unwrap();
    root.user_grant_role("writer", "writer").await.unwrap();
    root.auth_enable().await.unwrap();
    let (url, _member) = telling_root_only(server.address()).await;
    let mut command = enlist(&server, ["doctor", "--endpoints", &url, "--user", "writer"]);
    command.env("ENLIST_PASSWORD", "secret");
    let done = run(command).await;
    assert_eq!(done.code, Some(0), "{done:#?}");
    for check in ["endpoint", "tls", "auth", "read", "lease", "write", "watch", "latency"] {
        assert!(line(&done, check).starts_with("ok"), "{check}: {done:#?}");
    }
    let version = line(&done, "version");
    assert!(version.starts_with("warning"), "{version}");
    // The advice fits a 3.4.45, too, after which there is none of its line.
    let (_, advice) = version.rsplit_once("; ").unwrap();
    let fixed = "3.5.33, 3.6.14 and 3.7.1 have all fixes";
    assert_eq!(advice.trim_end(), format!("connect as root, or upgrade etcd: {fixed}"));
}
