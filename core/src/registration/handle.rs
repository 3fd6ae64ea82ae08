//! A published instance: the handle that keeps it published. Other tasks get an
//! [`InstanceHandle`](crate::InstanceHandle); the backend's end is in `backend/registration_driver.rs`.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    backend::{
        desired_state::{Goal, Shown},
        publisher::OwnerHandle,
    },
    error::Error,
    model::{
        instance::{Health, Instance, InstanceUpdate},
        name::ServiceRef,
        revision::{LeaseId, Revision},
    },
    registration::{
        health,
        instance_handle::InstanceHandle,
        shared::{Shared, set_goal},
        state::{Deregistered, RegistrationState},
        state_stream::RegistrationStates,
    },
};

/// A published instance.
///
/// [`deregister`](Self::deregister) is the orderly end. Dropping it asks for the same without waiting: the session
/// keeps trying to remove the instance until that is confirmed; if the session itself ends first, the lease runs out
/// after its TTL.
#[derive(Debug)]
#[must_use = "dropping it deregisters the instance"]
pub struct Registration {
    handle: InstanceHandle,
    _source: OwnerHandle,
}

impl Registration {
    pub(crate) fn new(shared: Arc<Shared>, source: OwnerHandle) -> Self {
        Self { handle: InstanceHandle::new(shared), _source: source }
    }

    /// A handle to read the state and to change the instance with, for other tasks. It does not keep the instance
    /// registered.
    pub fn handle(&self) -> InstanceHandle {
        self.handle.clone()
    }

    /// The service it is published under.
    pub fn service(&self) -> &ServiceRef {
        self.handle.service()
    }

    /// The instance as it should be; the store follows.
    pub fn instance(&self) -> Arc<Instance> {
        self.handle.instance()
    }

    /// Its state.
    pub fn state(&self) -> RegistrationState {
        self.handle.state()
    }

    /// The states, for a task of its own: the one as it is now comes first.
    pub fn states(&self) -> RegistrationStates {
        self.handle.states()
    }

    /// The lease of the last acknowledged write; `None` before one. It stays after that lease was lost, until there is
    /// another one. With a [`Migration`](crate::Migration) it is that of the first side which is written.
    pub fn lease(&self) -> Option<LeaseId> {
        self.handle.lease()
    }

    /// Changes the instance in place, see [`InstanceHandle::update`].
    ///
    /// # Errors
    ///
    /// Those of [`InstanceHandle::update`].
    ///
    /// # Cancel safety
    ///
    /// The change is made even if the future is never polled.
    pub fn update(
        &self,
        change: impl FnMut(&mut InstanceUpdate),
    ) -> impl Future<Output = Result<Revision, Error>> + Send + 'static {
        self.handle.update(change)
    }

    /// Lets a check drive the health, see [`InstanceHandle::health_check`].
    ///
    /// # Errors
    ///
    /// Those of [`InstanceHandle::health_check`].
    pub fn health_check<F, C>(&self, interval: Duration, check: F) -> Result<(), Error>
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = Health> + Send + 'static,
    {
        self.handle.health_check(interval, check)
    }

    /// Wants the instance in the store or not, without a change of it.
    pub(crate) fn show(&self, shown: Shown) {
        health::show(self.shared(), shown);
    }

    /// Returns `true` if the store can hold an instance, for as long as the session lives.
    pub(crate) fn checker(&self) -> impl Fn(&Instance) -> Result<(), Error> + Send + Sync + use<> {
        let shared = Arc::clone(self.shared());
        move |instance| shared.check(instance)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.handle.shared()
    }

    /// Wants something else than the instance to be present; the checks end.
    fn end(&self, goal: Goal) {
        set_goal(self.shared(), goal);
        self.shared().stop_checks();
    }

    /// Removes the instance and confirms it. After this returns no late write brings it back.
    ///
    /// The removal is guarded: an instance that another client has registered under the id meanwhile is left alone.
    /// What a dead process with an equal `owner` left under the id is removed, also before it could be taken over.
    ///
    /// Without an answer from the store it returns [`Deregistered::LeftBehind`] after a few seconds, and goes on in the
    /// background until the removal is confirmed.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the session ended first; what the registration had given up for, if it had.
    ///
    /// # Cancel safety
    ///
    /// The removal goes on in the background.
    pub async fn deregister(self) -> Result<Deregistered, Error> {
        self.end(Goal::Absent);
        let mut reported = self.shared().reported.subscribe();
        let reported = reported.wait_for(|reported| reported.ended.is_some()).await.map_err(|_| Error::Closed)?;
        reported.ended.clone().unwrap_or(Err(Error::Closed))
    }

    /// Stops renewing the lease, where it is its own, and leaves the instance to run out. For tests and hot restarts.
    /// An instance on a shared or given lease is no longer restored, and lives as long as that lease; a later
    /// registration of the same process needs an equal `owner` to take it over.
    pub fn abandon(self) {
        self.end(Goal::Abandoned);
    }

    /// Error with which the registration ended.
    pub(crate) fn end_cause(&self) -> Error {
        match &self.shared().reported.borrow().ended {
            Some(Err(error)) => error.clone(),
            _ => Error::Closed,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.end(Goal::Dropped);
    }
}
