//! A tonic server with orderly registration and shutdown.

use std::{future::Future, io, pin::Pin};

use bytes::Bytes;
use enlist::{Error, Graceful, Instance, InstanceHandle, RegisterOptions, Registry, ServiceRef, Shutdown, with_causes};
use tokio::net::TcpListener;
use tonic::{
    body::Body,
    service::Routes,
    transport::server::{Router, TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::{Layer, Service, layer::util::Identity};

use crate::retry::failure::BoxError;

/// A tonic server that is not registered and run yet. See [`serve`].
#[must_use = "it does nothing until `register_and_run`"]
pub struct Serve<L = Identity> {
    listener: TcpListener,
    router: Router<L>,
    graceful: Graceful,
    /// `None` for the signals.
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    registered: Box<dyn FnOnce(InstanceHandle) + Send>,
    health: HealthReporter,
    /// Services of the health service, besides the whole server.
    services: Vec<String>,
}

impl<L> std::fmt::Debug for Serve<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serve")
            .field("listener", &self.listener)
            .field("graceful", &self.graceful)
            .finish_non_exhaustive()
    }
}

/// Serves `router` on `listener`, which listens already, with a gRPC health service added. The order: register; serve
/// until SIGTERM or SIGINT (or [`Serve::until`]), which are handled from the beginning; health `NOT_SERVING` and
/// draining; wait for clients to see that; deregister; finish calls in flight; stop. The deadline of [`Graceful`]
/// bounds the shutdown.
///
/// ```no_run
/// # async fn f(
/// #     registry: &dyn enlist::Registry,
/// #     router: tonic::transport::server::Router,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use enlist::{Instance, InstanceId, RegisterOptions, ServiceRef, advertise};
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
/// let (endpoint, _) = advertise(listener.local_addr()?)?;
/// let instance = Instance::new(InstanceId::parse("greeter-1")?, [endpoint])?;
/// let serve = enlist_grpc::serve(listener, router).services(["hello.Greeter"]);
/// let service = ServiceRef::parse("greeter")?;
/// let report = serve.register_and_run(registry, &service, instance, RegisterOptions::new()).await?;
/// println!("drained: {}", report.drained);
/// # Ok(())
/// # }
/// ```
pub fn serve<L>(listener: TcpListener, router: Router<L>) -> Serve<L> {
    let (health, service) = tonic_health::server::health_reporter();
    Serve {
        listener,
        router: router.add_service(service),
        graceful: Graceful::new(),
        stop: None,
        registered: Box::new(drop),
        health,
        services: Vec::new(),
    }
}

impl<L> Serve<L> {
    /// Names the gRPC services (`package.Service`) whose health is reported, besides the whole server (the empty name).
    pub fn services(mut self, services: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.services.extend(services.into_iter().map(Into::into));
        self
    }

    /// Sets the times of the shutdown. Default: [`Graceful::new`].
    pub fn graceful(mut self, graceful: Graceful) -> Self {
        self.graceful = graceful;
        self
    }

    /// Shuts down when `stop` completes. Default: SIGTERM or SIGINT.
    pub fn until(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Some(Box::pin(stop));
        self
    }

    /// Gives `registered` a handle of the instance, to change it and to read its state while the server runs: once
    /// [`Registry::register`] has returned, before the first call is served. Default: nothing.
    ///
    /// ```no_run
    /// # fn f(server: enlist_grpc::Serve) {
    /// let (handle, registered) = tokio::sync::oneshot::channel();
    /// let server = server.on_registered(|instance| _ = handle.send(instance));
    /// // In another task: `registered.await?.update(|update| _ = update.weight(50)).await?`.
    /// # let _: (enlist_grpc::Serve, tokio::sync::oneshot::Receiver<enlist::InstanceHandle>) = (server, registered);
    /// # }
    /// ```
    pub fn on_registered(mut self, registered: impl FnOnce(InstanceHandle) + Send + 'static) -> Self {
        self.registered = Box::new(registered);
        self
    }

    /// Reporter of the health service, to change the health while the server runs.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Registers `instance`, serves until the signal to stop, and shuts down in order. It returns a report when the
    /// server has stopped. If the signal comes during the registration, that is awaited and undone, and nothing is
    /// served.
    ///
    /// # Errors
    ///
    /// Those of [`Registry::register`], and [`Error::Timeout`] if it did not end within the deadline of a shutdown;
    /// nothing was served then. The result of the server itself is in the report.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the server, and the registration, which is withdrawn in the background.
    pub async fn register_and_run<ResBody>(
        self,
        registry: &dyn Registry,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Shutdown<Result<(), tonic::transport::Error>>, Error>
    where
        L: Layer<Routes>,
        L::Service: Service<http::Request<Body>, Response = http::Response<ResBody>> + Clone + Send + 'static,
        <L::Service as Service<http::Request<Body>>>::Future: Send,
        <L::Service as Service<http::Request<Body>>>::Error: Into<BoxError> + Send,
        ResBody: http_body::Body<Data = Bytes> + Send + 'static,
        ResBody::Error: Into<BoxError>,
    {
        let Self { listener, router, graceful, stop, registered, health, mut services } = self;
        // Before the first wait: until it is handled, a signal ends the process and leaves the instance registered.
        let stop = stop.unwrap_or_else(|| Box::pin(signalled()));
        // The empty name is the whole server.
        services.push(String::new());
        say(&health, &services, ServingStatus::Serving).await;
        let register = registry.register(service, instance, options);
        let stop = async {
            stop.await;
            say(&health, &services, ServingStatus::NotServing).await;
        };
        let (mut ended, known) = (health.clone(), services.clone());
        let report = graceful.register_and_run(register, stop, |finish, instance| {
            registered(instance);
            let finish = async move {
                finish.cancelled().await;
                // Open health streams would keep the server from stopping.
                for service in known {
                    ended.clear_service_status(&service).await;
                }
            };
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, finish)
        });
        report.await
    }
}

async fn say(health: &HealthReporter, services: &[String], status: ServingStatus) {
    for service in services {
        health.set_service_status(service, status).await;
    }
}

/// Handles SIGTERM and SIGINT from now on. The future waits for one. If no handler can be installed, it logs an error
/// and never completes.
fn signalled() -> impl Future<Output = ()> + Send {
    let handled = handled();
    async move {
        let waited = match handled {
            Ok(wait) => wait.await,
            Err(error) => Err(error),
        };
        if let Err(error) = waited {
            tracing::error!(
                cause = %with_causes(&error),
                "no signal can be waited for, the server will not stop by one"
            );
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(unix)]
fn handled() -> io::Result<impl Future<Output = io::Result<()>> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "as on unix")]
fn handled() -> io::Result<impl Future<Output = io::Result<()>> + Send> {
    Ok(tokio::signal::ctrl_c())
}
