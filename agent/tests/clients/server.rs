//! Servers that clients call.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use enlist::{Moment, TaskOwner};
use enlist_testkit::soon;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
    transport::{Server as Router, server::TcpIncoming},
};

use crate::{
    caller::Caller,
    greeter::Greeter,
    world::{Offer, World},
};

/// Maximum time until calls avoid a server that has deregistered.
const AVOIDED: Duration = Duration::from_secs(5);

/// A greeter on a free port.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) port: u16,
    hold: watch::Sender<Hold>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    _task: TaskOwner,
}

/// State of the call that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    Off,
    /// The next call will be held.
    Next,
    /// A call is held.
    Holding,
}

impl Server {
    pub(crate) async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ((stop, stopped), (end, ended)) = (oneshot::channel(), oneshot::channel());
        let (task, hold) = (TaskOwner::new(), watch::Sender::new(Hold::Off));
        let router = Router::builder().add_service(HeldGreeter { greeter: Greeter::new(name), hold: hold.clone() });
        let serve = async move {
            let stopped = async { _ = stopped.await };
            router.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped).await.unwrap();
            let _ = end.send(());
        };
        task.spawn("greeter", serve).unwrap();
        Self { port, hold, stop, ended, _task: task }
    }

    /// Stops the server once its calls have ended.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        soon("the greeter ends", self.ended).await.unwrap();
    }
}

/// A greeter of which one call can be held.
#[derive(Clone)]
struct HeldGreeter {
    greeter: Greeter,
    hold: watch::Sender<Hold>,
}

impl HeldGreeter {
    /// Waits until the hold ends, if it concerns this call.
    async fn wait(&self) {
        let is_held = self.hold.send_if_modified(|hold| {
            let is_next = *hold == Hold::Next;
            if is_next {
                *hold = Hold::Holding;
            }
            is_next
        });
        if is_held {
            let _ = self.hold.subscribe().wait_for(|hold| *hold == Hold::Off).await;
        }
    }
}

impl NamedService for HeldGreeter {
    const NAME: &'static str = Greeter::NAME;
}

impl Service<http::Request<Body>> for HeldGreeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut greeter = self.clone();
        Box::pin(async move {
            greeter.wait().await;
            greeter.greeter.call(request).await
        })
    }
}

/// A registered greeter.
pub(crate) struct Running<W: World> {
    name: String,
    server: Server,
    registration: W::Registration,
}

impl<W: World> Running<W> {
    /// Starts a greeter, and returns once it is registered.
    pub(crate) async fn start(world: &W, name: &str) -> Self {
        Self::with(world, name, |_| {}).await
    }

    /// Starts a greeter with these details.
    pub(crate) async fn with(world: &W, name: &str, describe: impl FnOnce(&mut Offer<'_>)) -> Self {
        let server = Server::start(name).await;
        let mut offer = Offer::new(name, server.port);
        describe(&mut offer);
        let registration = world.register(offer).await;
        Self { name: name.to_owned(), server, registration }
    }

    /// Holds the next call, and returns once there is one.
    pub(crate) async fn hold_a_call(&self) -> HeldCall {
        let hold = self.server.hold.clone();
        hold.send_replace(Hold::Next);
        let mut changes = hold.subscribe();
        soon("a call is held", changes.wait_for(|hold| *hold == Hold::Holding)).await.unwrap();
        HeldCall(hold)
    }

    /// Removes the instance. Returns the server, which continues to serve.
    pub(crate) async fn deregister(self, world: &W) -> Server {
        world.deregister(self.registration).await;
        self.server
    }

    /// Removes the instance and stops the server: at once where it was draining before, as [`enlist::Graceful`] does,
    /// otherwise once calls no longer reach it, within [`AVOIDED`]. Returns the failures until calls avoid it.
    pub(crate) async fn leave(self, world: &W, caller: &mut Caller) -> Vec<String> {
        let name = self.name.clone();
        let server = self.deregister(world).await;
        if W::DRAINS {
            server.stop().await;
            return caller.avoids(&name).await;
        }
        let deregistered = Moment::now();
        let failures = caller.avoids(&name).await;
        assert!(deregistered.elapsed() < AVOIDED, "calls avoid {name} after {:?}", deregistered.elapsed());
        server.stop().await;
        failures
    }
}

/// A call that a server holds.
pub(crate) struct HeldCall(watch::Sender<Hold>);

impl HeldCall {
    /// Lets the call end.
    pub(crate) fn end(self) {
        self.0.send_replace(Hold::Off);
    }
}
