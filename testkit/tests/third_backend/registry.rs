//! Step 6. The trait `Registry`: starts a task per registration, and writes fixed instances itself.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Entry, Error, Evicted, Instance, InstanceId, LeaseChoice, Owner, RegisterOptions, Registration, Registry, Revision,
    ServiceRef,
    backend::{
        LeaseTerms, check_ttl, evicted, granted_lease, registration, registration_flow, wait_for_start, whole_seconds,
    },
};

use crate::{
    client::MapClient,
    lease::{GrantedLease, OnDrop},
    registration_task::RegistrationTask,
    store::{Cause, Key, Record, Value},
};

#[async_trait]
impl Registry for MapClient {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        let key = (service.clone(), instance.id().clone());
        // The handle for the user, which keeps the client alive, and the driver for the task.
        let (registration, driver) = registration(service.clone(), instance, &options, Arc::clone(&self.0) as _)?;
        self.check_open()?;
        let withdrawal = driver.withdrawal();
        let task = Box::new(RegistrationTask::new(Arc::clone(&self.0), key, driver, options.clone()));
        let run = registration_flow::run(task);
        match options.lease {
            // Closing the client does not end this lease, so it waits until the key is deleted.
            LeaseChoice::Given(_) => {
                let run = self.0.departures.accompany(withdrawal, run);
                self.0.tasks.spawn_until_stopped("registration", run)?;
            }
            _ => self.0.tasks.spawn_until_stopped("registration", run)?,
        }
        wait_for_start(registration, &options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        instance.check()?;
        let key = (service.clone(), instance.id().clone());
        self.ask(|data| {
            let present = data.records.get(&key).cloned();
            if let Some(record) = present.as_ref().filter(|record| record.lease.is_some()) {
                return Err(not_owner(&key, record));
            }
            let guard = present.map(|record| record.modified);
            let value = Value { instance: Arc::new(instance), owner: None, term: 0 };
            let written = data.put(&key, guard, value, None);
            Ok(written.map(|record| record.modified).unwrap_or_default())
        })?
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        let key = (service.clone(), id.clone());
        self.ask(|data| match data.records.get(&key) {
            None => Err(Error::NotRegistered { service: service.clone(), id: id.clone() }),
            Some(record) if record.lease.is_some() => Err(not_owner(&key, record)),
            Some(record) => {
                let entry = record.entry();
                data.delete(&key, Cause::Deregistration, |_| true);
                Ok(entry)
            }
        })?
    }

    async fn evict(&self, s: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        let key = (s.clone(), id.clone());
        self.ask(|data| match data.records.get(&key).map(|record| record.modified) {
            None => Err(Error::NotRegistered { service: s.clone(), id: id.clone() }),
            Some(revision) if modified.is_some_and(|modified| modified != revision) => {
                Err(Error::Conflict { what: format!("{s}/{id}"), revision })
            }
            Some(_) => {
                let record = data.delete(&key, Cause::Eviction, |_| true);
                let lease = record.as_ref().and_then(|record| record.lease);
                Ok(evicted(record.as_ref().map(Record::entry), lease, Revision::new(data.revision)))
            }
        })?
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<enlist::Lease, Error> {
        check_ttl(ttl)?;
        self.check_open()?;
        let lease = self.0.grant(LeaseTerms::new(ttl, None))?;
        Ok(granted_lease(GrantedLease {
            lease,
            ttl: whole_seconds(ttl),
            client: self.clone(),
            on_drop: OnDrop::Revoke,
        }))
    }
}

fn not_owner((service, id): &Key, record: &Record) -> Error {
    let lease = record.lease.unwrap_or_default();
    Error::NotOwner { service: service.clone(), id: id.clone(), owner: Owner::Other, lease }
}
