//! A proxy that understands gRPC: it forwards all requests to etcd, except one, to which it applies a fault.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use enlist::TaskOwner;
use enlist_testkit::{EtcdServer, eventually};
use http_body_util::BodyExt;
use tokio::sync::watch;
use tonic::{
    Status,
    body::Body,
    service::Routes,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{Service, ServiceExt, service_fn};

use super::in_background;

/// Treatment of the chosen request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is executed; the client sees a broken connection.
    Broken,
    /// It is executed; the client receives no response.
    Silent,
    /// It does not reach etcd; the client sees a broken connection.
    Dropped,
    /// It reaches etcd only after [`Between::release`], whether or not the client still waits. The client receives no
    /// response.
    Held,
}

/// The chosen request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Victim {
    /// End of the path of the request.
    pub(crate) method: &'static str,
    /// Number of requests of this kind that are forwarded first.
    pub(crate) after: usize,
    pub(crate) fault: Fault,
}

#[derive(Debug, Default)]
struct Plan {
    victim: Option<Victim>,
    /// Text that the request contains, such as a part of a key.
    text: Option<String>,
    seen: usize,
    spoilt: bool,
}

impl Plan {
    fn concerns(&self, path: &str) -> bool {
        !self.spoilt && self.victim.is_some_and(|victim| path.ends_with(victim.method))
    }

    fn spoils(&mut self, path: &str, body: &[u8]) -> Option<Fault> {
        let victim = self.victim.filter(|_| self.concerns(path))?;
        let contains = |text: &String| body.windows(text.len()).any(|window| window == text.as_bytes());
        if !self.text.as_ref().is_none_or(contains) {
            return None;
        }
        self.seen += 1;
        self.spoilt = self.seen > victim.after;
        self.spoilt.then_some(victim.fault)
    }
}

/// State that the proxy and its handlers share.
#[derive(Debug)]
struct ProxyState {
    etcd: Channel,
    plan: Mutex<Plan>,
    released: watch::Sender<bool>,
    done: watch::Sender<bool>,
    tasks: TaskOwner,
}

/// The proxy. It stops when dropped.
#[derive(Debug)]
pub(crate) struct Between {
    pub(crate) url: String,
    state: Arc<ProxyState>,
    _serving: TaskOwner,
}

impl Between {
    pub(crate) async fn start(server: &EtcdServer) -> Self {
        let etcd = Endpoint::from_shared(server.url()).unwrap().connect().await.unwrap();
        let (released, done) = (watch::Sender::new(false), watch::Sender::new(false));
        let state = Arc::new(ProxyState { etcd, plan: Mutex::default(), released, done, tasks: TaskOwner::new() });
        let handler = Arc::clone(&state);
        let serving = TaskOwner::new();
        let url = serve(&serving, move |request| forward(Arc::clone(&handler), request));
        Self { url, state, _serving: serving }
    }

    /// Chooses the request to spoil, counted from now on.
    pub(crate) fn spoil(&self, victim: Victim) {
        *self.state.plan.lock().unwrap() = Plan { victim: Some(victim), ..Plan::default() };
    }

    /// Chooses the request to spoil among those that contain `text`, counted from now on. The client sends each of them
    /// whole, without waiting for a response.
    pub(crate) fn spoil_naming(&self, victim: Victim, text: &str) {
        let text = Some(text.to_owned());
        *self.state.plan.lock().unwrap() = Plan { victim: Some(victim), text, ..Plan::default() };
    }

    /// Spoils no request any more. Returns `true` if the chosen one has arrived.
    pub(crate) fn spare(&self) -> bool {
        let mut plan = self.state.plan.lock().unwrap();
        plan.victim = plan.victim.filter(|_| plan.spoilt);
        plan.spoilt
    }

    /// Waits until the chosen request is under way: it was executed, or is held. With [`Fault::Silent`] and
    /// [`Fault::Held`] it receives no response.
    pub(crate) async fn under_way(&self, what: &str) {
        let held = |victim: Victim| victim.fault == Fault::Held;
        eventually(what, || async {
            let arrived = self.has_spoilt();
            let held = self.state.plan.lock().unwrap().victim.is_some_and(held);
            if arrived && (held || *self.state.done.borrow()) { Ok(()) } else { Err(arrived) }
        })
        .await;
    }

    /// Returns `true` if the chosen request arrived.
    pub(crate) fn has_spoilt(&self) -> bool {
        self.state.plan.lock().unwrap().spoilt
    }

    /// Returns `true` if a request was left without a response.
    pub(crate) fn is_silent(&self) -> bool {
        let plan = self.state.plan.lock().unwrap();
        plan.spoilt && plan.victim.is_some_and(|victim| matches!(victim.fault, Fault::Silent | Fault::Held))
    }

    /// Waits until the chosen request arrives.
    pub(crate) async fn spoilt(&self, what: &str) {
        eventually(what, || async { if self.has_spoilt() { Ok(()) } else { Err("it did not come") } }).await;
    }

    /// Forwards the held request to etcd, and waits for the response.
    pub(crate) async fn release(&self) {
        assert!(self.has_spoilt(), "no request is held");
        self.state.released.send_replace(true);
        eventually("etcd has answered the request that was held", || async {
            if *self.state.done.borrow() { Ok(()) } else { Err("no answer") }
        })
        .await;
    }
}

/// Serves gRPC calls with `answer` until the owner is dropped. Returns the URL.
pub(crate) fn serve<F, R>(tasks: &TaskOwner, answer: F) -> String
where
    F: Fn(http::Request<axum::body::Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<http::Response<Body>, Infallible>> + Send + 'static,
{
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", incoming.local_addr().unwrap());
    let routes = Routes::from(axum::Router::new().fallback_service(service_fn(answer)));
    let serving = Server::builder().add_routes(routes).serve_with_incoming(incoming);
    in_background(tasks, async move { serving.await.unwrap() });
    url
}

async fn forward(
    state: Arc<ProxyState>,
    request: http::Request<axum::body::Body>,
) -> Result<http::Response<Body>, Infallible> {
    let (request, fault) = judged(&state, request).await;
    if fault == Some(Fault::Held) {
        // Reads the whole request, so that etcd receives it after its client has gone.
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let request = http::Request::from_parts(head, axum::body::Body::from(body));
        let (etcd, mut released, owner) = (state.etcd.clone(), state.released.subscribe(), Arc::clone(&state));
        in_background(&state.tasks, async move {
            let _ = released.wait_for(|released| *released).await;
            let answer = send(etcd, request).await.unwrap().into_body().collect().await;
            answer.unwrap();
            owner.done.send_replace(true);
        });
        return std::future::pending().await;
    }
    if fault == Some(Fault::Dropped) {
        return Ok(broken());
    }
    let mut response = match send(state.etcd.clone(), request).await {
        Ok(response) => response,
        Err(error) => return Ok(Status::unavailable(error.to_string()).into_http()),
    };
    if fault.is_some() {
        // The first frame of the response has arrived, so the request was executed.
        let _ = response.body_mut().frame().await;
        state.done.send_replace(true);
    }
    match fault {
        Some(Fault::Broken) => Ok(broken()),
        Some(_) => std::future::pending().await,
        None => Ok(response),
    }
}

/// Returns the request, and its fault if it is the chosen one. Reads it only if that depends on its contents.
async fn judged(
    state: &ProxyState,
    request: http::Request<axum::body::Body>,
) -> (http::Request<axum::body::Body>, Option<Fault>) {
    let path = request.uri().path().to_owned();
    let reads = {
        let mut plan = state.plan.lock().unwrap();
        if plan.text.is_none() {
            return (request, plan.spoils(&path, &[]));
        }
        plan.concerns(&path)
    };
    if !reads {
        return (request, None);
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let fault = state.plan.lock().unwrap().spoils(&path, &body);
    (http::Request::from_parts(head, axum::body::Body::from(body)), fault)
}

/// Returns the response that a client sees when its connection breaks.
fn broken() -> http::Response<Body> {
    Status::unavailable("the connection broke").into_http()
}

/// Forwards a request to etcd.
pub(crate) async fn send(
    mut etcd: Channel,
    request: http::Request<axum::body::Body>,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    etcd.ready().await?.call(request.map(Body::new)).await
}
