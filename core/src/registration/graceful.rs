//! Startup and shutdown of a server in an order in which no client calls it too early or too late.
//!
//! Listen → register → serve … → draining → propagation delay → deregister → finish the calls in flight → stop. The
//! shutdown has one deadline, and a report of its result.

use std::{future::Future, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    model::instance::Health,
    registration::{handle::Registration, instance_handle::InstanceHandle, state::Deregistered},
    runtime::clock::Moment,
};

/// Time for clients to notice the draining mark, by default.
pub const DEFAULT_PROPAGATION: Duration = Duration::from_millis(1500);

/// Maximum duration of the whole shutdown, by default.
pub const DEFAULT_SHUTDOWN: Duration = Duration::from_secs(30);

/// Shuts a server down in order. It suits any server that stops accepting on a signal and then finishes its calls.
#[derive(Clone, Copy, Debug)]
pub struct Graceful {
    propagation: Duration,
    deadline: Duration,
}

impl Default for Graceful {
    fn default() -> Self {
        Self { propagation: DEFAULT_PROPAGATION, deadline: DEFAULT_SHUTDOWN }
    }
}

/// Result of a shutdown.
#[derive(Debug)]
#[non_exhaustive]
pub struct Shutdown<T> {
    /// Result of the server. `None` if it was still busy at the deadline and was dropped, or if it was not started
    /// because the stop came during the registration.
    pub served: Option<T>,
    /// `true` if clients had the chance to see the draining mark.
    pub drained: bool,
    /// Outcome of the deregistration.
    pub deregistered: Result<Deregistered, Error>,
}

impl Graceful {
    /// The defaults: 1.5 s for the draining mark to spread, 30 s in total.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time for clients to notice the draining mark.
    #[must_use]
    pub fn propagation(mut self, propagation: Duration) -> Self {
        self.propagation = propagation;
        self
    }

    /// Sets the maximum duration of the whole shutdown, counted from the stop signal.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs the server that `serve` creates until `stop` completes, then shuts it down in order. The token given to
    /// `serve` signals the server to stop accepting and to finish the calls in flight. The handle can change the
    /// instance while the server runs; it works until the instance is deregistered. An update that sets the health
    /// while the server drains overrides the mark. The server must listen already, or requests right after registration
    /// are refused.
    ///
    /// A server that ends by itself is deregistered at once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the server and the registration, which is then withdrawn in the background.
    pub async fn run<S: Future>(
        self,
        registration: Registration,
        stop: impl Future<Output = ()>,
        serve: impl FnOnce(CancellationToken, InstanceHandle) -> S,
    ) -> Shutdown<S::Output> {
        let finish = CancellationToken::new();
        let mut serving = std::pin::pin!(serve(finish.clone(), registration.handle()));
        let served = tokio::select! {
            output = &mut serving => Some(output),
            () = stop => None,
        };
        let begun = Moment::now();
        if let Some(output) = served {
            let deregistered = self.within(begun, registration.deregister()).await;
            return Shutdown { served: Some(output), drained: false, deregistered };
        }
        let leave = async {
            let drained = self.drain(begun, &registration).await;
            let deregistered = self.within(begun, registration.deregister()).await;
            finish.cancel();
            (drained, deregistered)
        };
        let leave_and_serve = async {
            tokio::pin!(leave);
            tokio::select! {
                ended = &mut leave => (ended, None),
                output = &mut serving => (leave.await, Some(output)),
            }
        };
        let ((drained, deregistered), mut served) = leave_and_serve.await;
        if served.is_none() {
            served = tokio::time::timeout(begun.remaining(self.deadline), serving).await.ok();
        }
        Shutdown { served, drained, deregistered }
    }

    /// Awaits the registration, which `register` makes, and then [runs](Self::run) the server. It watches `stop`
    /// throughout: if `stop` completes during the registration, that is awaited within the deadline and undone, and the
    /// server is not started.
    ///
    /// ```
    /// # use enlist::{Graceful, Instance, InstanceId, Endpoint, RegisterOptions, Registry, ServiceRef};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = enlist_memory::MemoryStore::new().client();
    /// # let instance = Instance::new(InstanceId::parse("a")?, [Endpoint::parse("10.0.0.1:80")?])?;
    /// # let (service, stop) = (ServiceRef::parse("greeter")?, async {});
    /// let register = registry.register(&service, instance, RegisterOptions::new());
    /// let server = Graceful::new();
    /// let report = server.register_and_run(register, stop, |end, _| async move { end.cancelled().await }).await?;
    /// assert!(report.deregistered.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `register`. [`Error::Timeout`] if it was still under way at the deadline of a shutdown: it was dropped,
    /// and the registration is withdrawn in the background.
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Self::run); a registration that is under way is withdrawn in the background.
    pub async fn register_and_run<S: Future>(
        self,
        register: impl Future<Output = Result<Registration, Error>>,
        stop: impl Future<Output = ()>,
        serve: impl FnOnce(CancellationToken, InstanceHandle) -> S,
    ) -> Result<Shutdown<S::Output>, Error> {
        let (mut register, mut stop) = (Box::pin(register), std::pin::pin!(stop));
        tokio::select! {
            registered = &mut register => return Ok(self.run(registered?, stop, serve).await),
            () = &mut stop => {}
        }
        let begun = Moment::now();
        // A drop would withdraw the registration in the background, and the end of the process would cut that short.
        let registered = tokio::time::timeout(self.deadline, register).await;
        let late = Error::Timeout { op: "registering while the server is stopped", limit: self.deadline, cause: None };
        let deregistered = self.within(begun, registered.map_err(|_| late)??.deregister()).await;
        Ok(Shutdown { served: None, drained: false, deregistered })
    }

    /// Marks the instance as draining and gives clients time to see it. Returns `true` if the mark was stored.
    async fn drain(self, begun: Moment, registration: &Registration) -> bool {
        let marked = registration.update(|update| {
            update.health(Health::Draining);
        });
        let marked = tokio::time::timeout(self.propagation.min(begun.remaining(self.deadline)), marked).await;
        let stored = matches!(marked, Ok(Ok(_)));
        if stored {
            tokio::time::sleep(self.propagation.min(begun.remaining(self.deadline))).await;
        }
        stored
    }

    async fn within(
        self,
        begun: Moment,
        deregister: impl Future<Output = Result<Deregistered, Error>>,
    ) -> Result<Deregistered, Error> {
        match tokio::time::timeout(begun.remaining(self.deadline), deregister).await {
            Ok(outcome) => outcome,
            // The session continues it in the background.
            Err(_) => Ok(Deregistered::LeftBehind),
        }
    }
}
