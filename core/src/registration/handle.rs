//! A published instance: the handle that keeps it published. Other tasks get an
//! [`InstanceHandle`](crate::InstanceHandle); the backend's end is in `backend/registration/registration_driver.rs`.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    backend::{
        discovery::publisher::OwnerHandle,
        registration::desired_state::{Goal, Shown},
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
        registration_cell::{RegistrationCell, set_goal},
        state::{Deregistered, RegistrationState},
        state_stream::RegistrationStates,
    },
};

/// A published instance.
///
/// [`deregister`](Self::deregister) is the orderly end. Dropping the handle requests the same without waiting: the
/// session keeps trying to remove the instance until the removal is confirmed. If the session itself ends first, the
/// lease expires after its TTL.
#[derive(Debug)]
#[must_use = "dropping it deregisters the instance"]
pub struct Registration {
    handle: InstanceHandle,
    _source: OwnerHandle,
}

impl Registration {
    pub(crate) fn new(cell: Arc<RegistrationCell>, source: OwnerHandle) -> Self {
        Self { handle: InstanceHandle::new(cell), _source: source }
    }

    /// A handle for other tasks, which reads the state and changes the instance. It does not keep the instance
    /// registered.
    pub fn handle(&self) -> InstanceHandle {
        self.handle.clone()
    }

    /// The service of the instance.
    pub fn service(&self) -> &ServiceRef {
        self.handle.service()
    }

    /// The desired instance; the store follows.
    pub fn instance(&self) -> Arc<Instance> {
        self.handle.instance()
    }

    /// State of the registration.
    pub fn state(&self) -> RegistrationState {
        self.handle.state()
    }

    /// States of the registration, for one task. The current state comes first.
    pub fn states(&self) -> RegistrationStates {
        self.handle.states()
    }

    /// The lease of the last acknowledged write; `None` before the first one. It remains after a loss of that lease,
    /// until another one replaces it. With a [`Migration`](crate::Migration) it is the lease of the first written side.
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

    /// Sets the health from a periodic check, see [`InstanceHandle::health_check`].
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

    /// Sets whether the instance is to be in the store, without changing it.
    pub(crate) fn show(&self, shown: Shown) {
        health::show(self.cell(), shown);
    }

    /// Returns a check for instances that the store can hold, valid for the life of the session.
    pub(crate) fn checker(&self) -> impl Fn(&Instance) -> Result<(), Error> + Send + Sync + use<> {
        let cell = Arc::clone(self.cell());
        move |instance| cell.check(instance)
    }

    pub(crate) fn cell(&self) -> &Arc<RegistrationCell> {
        self.handle.cell()
    }

    /// Sets a goal other than presence, and ends the checks.
    fn end(&self, goal: Goal) {
        set_goal(self.cell(), goal);
        self.cell().stop_checks();
    }

    /// Removes the instance and confirms it. After the return, no late write restores it.
    ///
    /// The removal is guarded: an instance that another client has registered under the id meanwhile is left alone. A
    /// leftover of a dead process with an equal `owner` is removed as well, even before it could be taken over.
    ///
    /// Without an answer from the store it returns [`Deregistered::LeftBehind`] after a few seconds. The removal goes
    /// on in the background until it is confirmed.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the session ended first; the error with which the registration ended early, if it did.
    ///
    /// # Cancel safety
    ///
    /// The removal goes on in the background.
    pub async fn deregister(self) -> Result<Deregistered, Error> {
        self.end(Goal::Absent);
        let mut reported = self.cell().reported.subscribe();
        let reported = reported.wait_for(|reported| reported.ended.is_some()).await.map_err(|_| Error::Closed)?;
        reported.ended.clone().unwrap_or(Err(Error::Closed))
    }

    /// Stops renewing the lease, if it is separate, and leaves the instance until its lease expires. For tests and hot
    /// restarts. An instance on a shared or given lease is no longer restored, and lives as long as that lease; a later
    /// registration of the same process needs an equal `owner` to take it over.
    pub fn abandon(self) {
        self.end(Goal::Abandoned);
    }

    /// Error with which the registration ended.
    pub(crate) fn end_cause(&self) -> Error {
        match &self.cell().reported.borrow().ended {
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
