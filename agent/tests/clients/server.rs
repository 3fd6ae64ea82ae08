//! Servers that clients call.

use enlist::{Graceful, Instance, RegisterOptions, Registry as _, ServiceRef, TaskOwner};
use enlist_testkit::soon;
use tokio::{net::TcpListener, sync::oneshot};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{
    greeter::Greeter,
    support::{Store, instance},
};

/// A registered greeter.
#[derive(Debug)]
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    _task: TaskOwner,
}

impl Running {
    /// Starts a greeter, and returns once it is registered.
    pub(crate) async fn start(store: &Store, name: &str) -> Self {
        Self::registered(store, name, |instance| instance).await
    }

    /// Starts a greeter in a zone.
    pub(crate) async fn start_in(store: &Store, zone: &str, name: &str) -> Self {
        Self::registered(store, name, |instance| instance.with_zone(zone)).await
    }

    async fn registered(store: &Store, name: &str, describe: impl FnOnce(Instance) -> Instance) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = ServiceRef::parse("greeter").unwrap();
        let registration = store.services.register(&service, describe(instance(name, port)), RegisterOptions::new());
        let registration = registration.await.unwrap();
        let ((stop, stopped), (end, ended)) = (oneshot::channel(), oneshot::channel());
        let task = TaskOwner::new();
        let router = Server::builder().add_service(Greeter::new(name));
        let serve = async move {
            let incoming = TcpIncoming::from(listener);
            let server = Graceful::new().run(registration, async { _ = stopped.await }, |finish, _| async move {
                router.serve_with_incoming_shutdown(incoming, finish.cancelled()).await
            });
            server.await.served.expect("it ends in time").unwrap();
            let _ = end.send(());
        };
        task.spawn("greeter", serve).unwrap();
        Self { stop, ended, _task: task }
    }

    /// Shuts the greeter down in order.
    pub(crate) async fn leave(self) {
        drop(self.stop);
        soon("the greeter ends", self.ended).await.unwrap();
    }
}
