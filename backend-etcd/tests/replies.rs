//! Row 30 for locks: the reply of each request of the protocol is lost in turn, after etcd has done what was asked. Whatever is
//! lost, there is one key for each place and one lease for each session, and everybody is told what is so.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Election, Lock, LockName, LockOptions, Released, TaskOwner};
use enlist_etcd::Etcd;
use enlist_testkit::{Beside, EtcdServer, eventually, soon};
use etcd_client::GetOptions;
use http_body_util::BodyExt;
use support::{beside, raw, server};
use tonic::{
    Status,
    body::Body,
    service::Routes,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{Service, ServiceExt, service_fn};

/// Which reply is lost.
#[derive(Clone, Copy, Debug)]
struct Victim {
    /// The end of the path of the request.
    method: &'static str,
    /// How many of the kind get through before.
    after: usize,
}

#[derive(Debug)]
struct Plan {
    victim: Victim,
    seen: usize,
    lost: bool,
}

/// Stands between the clients and etcd, and loses one reply.
struct Between {
    url: String,
    plan: Arc<Mutex<Plan>>,
    _tasks: TaskOwner,
}

impl Between {
    async fn start(server: &EtcdServer, victim: Victim) -> Self {
        let plan = Arc::new(Mutex::new(Plan { victim, seen: 0, lost: false }));
        let etcd = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
        let shared = Arc::clone(&plan);
        let forward = service_fn(move |request| forward(etcd.clone(), Arc::clone(&shared), request));
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let tasks = TaskOwner::new();
        let routes = Routes::from(axum::Router::new().fallback_service(forward));
        let serve = Server::builder().add_routes(routes).serve_with_incoming(incoming);
        beside(&tasks, async move { serve.await.unwrap() });
        Self { url, plan, _tasks: tasks }
    }

    fn has_lost(&self) -> bool {
        self.plan.lock().unwrap().lost
    }
}

async fn forward(
    mut etcd: Channel,
    plan: Arc<Mutex<Plan>>,
    request: http::Request<axum::body::Body>,
) -> Result<http::Response<Body>, Infallible> {
    let loses = {
        let mut plan = plan.lock().unwrap();
        let hit = request.uri().path().ends_with(plan.victim.method);
        plan.seen += usize::from(hit);
        let loses = hit && plan.seen > plan.victim.after && !plan.lost;
        plan.lost |= loses;
        loses
    };
    let answer = async {
        let etcd = etcd.ready().await?;
        let mut response = etcd.call(request.map(Body::new)).await?;
        if loses {
            // The first frame of the answer is there, so it was done.
            let _ = response.body_mut().frame().await;
            return Ok(Status::unavailable("the connection broke").into_http());
        }
        Ok::<_, tonic::transport::Error>(response)
    };
    Ok(answer.await.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http()))
}

const LINE: &str = "enlist/locks/default/l/";

async fn count(server: &EtcdServer, prefix: &str) -> usize {
    let options = GetOptions::new().with_prefix().with_count_only();
    usize::try_from(raw(server).await.get(prefix, Some(options)).await.unwrap().count()).unwrap()
}

async fn leases(server: &EtcdServer) -> usize {
    raw(server).await.leases().await.unwrap().leases().len()
}

async fn becomes(what: &str, wanted: usize, now: impl AsyncFn() -> usize) {
    let now = &now;
    eventually(what, || async move {
        let now = now().await;
        if now == wanted { Ok(()) } else { Err(now) }
    })
    .await;
}

/// A long TTL, so that nothing is mended by running out.
fn options() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(60))
}

/// Everything that the protocol does, with two processes, all of which goes through `between`.
async fn everything(server: &EtcdServer, between: &Between) {
    let (one, two) = (Etcd::builder([&between.url]).build().unwrap(), Etcd::builder([&between.url]).build().unwrap());
    let name = LockName::parse("l").unwrap();
    let waits = |etcd: &Etcd, options: LockOptions| {
        let (etcd, name) = (etcd.clone(), name.clone());
        Beside::run(async move { etcd.acquire(&name, options).await.unwrap() })
    };
    let first = soon("acquired", one.acquire(&name, options())).await.unwrap();
    assert_eq!((count(server, LINE).await, leases(server).await), (1, 1));
    let mut second = waits(&two, options());
    becomes("the second is in line", 2, || count(server, LINE)).await;
    let mut third = waits(&two, options());
    becomes("the third is in line", 3, || count(server, LINE)).await;
    assert_eq!(leases(server).await, 2, "one for each process");
    // To another process, within one, and to nobody.
    let mut token = first.fencing_token();
    assert_eq!(soon("released", first.release()).await.unwrap(), Released::Released);
    for (next, left) in [(&mut second, 2), (&mut third, 1)] {
        let guard = next.done("its turn").await;
        assert!(guard.is_held() && guard.fencing_token() > token);
        token = guard.fencing_token();
        assert_eq!(count(server, LINE).await, left);
        assert_eq!(soon("released", guard.release()).await.unwrap(), Released::Released);
    }
    becomes("nobody is in line", 0, || count(server, LINE)).await;

    // A shared place has to know who of those before it is exclusive.
    let writer = soon("acquired", one.acquire(&name, options())).await.unwrap();
    let mut reader = waits(&two, options().shared());
    becomes("the reader is in line", 2, || count(server, LINE)).await;
    assert_eq!(soon("released", writer.release()).await.unwrap(), Released::Released);
    let guard = reader.done("its turn").await;
    assert!(guard.is_held());
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::Released);
    becomes("nobody is in line", 0, || count(server, LINE)).await;

    // An attempt gives up at the first failure, and leaves nothing either way.
    let held = soon("acquired", one.acquire(&name, options().own_lease())).await.unwrap();
    assert!(!matches!(soon("tried", two.try_acquire(&name, options())).await, Ok(Some(_))));
    becomes("only the holder is in line", 1, || count(server, LINE)).await;
    assert_eq!(leases(server).await, 3);
    assert_eq!(soon("released", held.release()).await.unwrap(), Released::Released);
    becomes("its own lease is gone", 2, || leases(server)).await;

    // With a delay each holder has a mark, which its release removes.
    let delayed = || options().lock_delay(Duration::from_secs(3600));
    let first = soon("acquired", one.acquire(&name, delayed())).await.unwrap();
    assert_eq!(count(server, "enlist/lock-marks/").await, 1);
    let mut second = waits(&two, delayed());
    becomes("the second is in line", 2, || count(server, LINE)).await;
    assert_eq!(soon("released", first.release()).await.unwrap(), Released::Released);
    let guard = second.done("its turn, without a delay").await;
    assert_eq!(count(server, "enlist/lock-marks/").await, 1);
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::Released);
    becomes("nobody is in line", 0, || count(server, LINE)).await;
    assert_eq!(count(server, "enlist/lock-marks/").await, 0);

    let leading = soon("elected", one.campaign(&name, "one", options())).await.unwrap();
    let proclaimed = soon("proclaimed", leading.proclaim("still one")).await;
    assert!(proclaimed.is_ok() || between.has_lost(), "{proclaimed:?}");
    becomes("one candidate", 1, || count(server, "enlist/elections/")).await;
    assert_eq!(soon("resigned", leading.resign()).await.unwrap(), Released::Released);
    becomes("no candidate", 0, || count(server, "enlist/elections/")).await;
    one.close().await.unwrap();
    two.close().await.unwrap();
    // A revocation whose reply is lost was done.
    becomes("no lease", 0, || leases(server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_reply_is_lost_there_is_one_key_one_lease_and_the_right_answer() {
    let server = server().await;
    let mut told = Vec::new();
    for method in ["Txn", "Range", "LeaseGrant", "LeaseRevoke", "Watch"] {
        for after in 0.. {
            let victim = Victim { method, after };
            println!("losing {victim:?}");
            let between = Between::start(&server, victim).await;
            everything(&server, &between).await;
            if !between.has_lost() {
                // There are no more of the kind.
                told.push((method, after));
                break;
            }
        }
    }
    println!("replies lost, one at a time: {told:?}");
    let lost = |method| told.iter().any(|(kind, count)| *kind == method && *count > 0);
    assert!(lost("Txn") && lost("Range") && lost("LeaseGrant") && lost("LeaseRevoke") && lost("Watch"), "{told:?}");
}
