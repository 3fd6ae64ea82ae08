//! The `Registry` of the backend. Each registration has a task, see `registration_task.rs`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Entry, Error, Evicted, Instance, InstanceId, LeaseChoice, RegisterOptions, Registration, Registry, Revision,
    ServiceRef,
    backend::{
        LeaseTerms, RawCell, check_ttl, evicted, granted_lease, registration, registration_flow, wait_for_start,
    },
};

use crate::{
    client::{Inner, MemoryClient},
    registration::registration_task::RegistrationTask,
    session::granted_lease::GrantedLease,
    store::{Key, Record, Refusal, Store, Value},
};

#[async_trait]
impl Registry for MemoryClient {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        let key = Key::instance(service, instance.id());
        let registration = self.begin(service, instance, key, None, &options)?;
        wait_for_start(registration, &options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        instance.check()?;
        self.inner.check_open()?;
        let key = Key::instance(service, instance.id());
        let value = Value::Instance { instance: Arc::new(instance), owner: None, term: 0 };
        let outcome = self.inner.link.ask(|store, _| {
            let present = store.get(&key);
            match present.and_then(|record| record.lease) {
                Some(_) => Err(Refusal::Guard(present.cloned())),
                None => store.put(&key, present.map(|record| record.modified), value, None),
            }
        });
        outcome.await?.map_err(|refusal| refused(service, &key, refusal))
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.inner.check_open()?;
        let key = Key::instance(service, id);
        let outcome = self.inner.link.ask(|store, _| store.leave(&key, |record| record.lease.is_none())).await?;
        let record = outcome.map_err(|refusal| refused(service, &key, refusal))?;
        record.entry().ok_or_else(|| not_registered(service, &key))
    }

    async fn evict(&self, service: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.inner.check_open()?;
        let key = Key::instance(service, id);
        let guard = |record: &Record| modified.is_none_or(|modified| modified == record.modified);
        let evict = |store: &mut Store, _| store.delete(&key, guard).map(|record| (record, store.revision()));
        match self.inner.link.ask(evict).await? {
            Ok((record, removed)) => Ok(evicted(record.entry(), record.lease, removed)),
            Err(Refusal::Guard(Some(record))) => {
                Err(Error::Conflict { what: format!("{service}/{id}"), revision: record.modified })
            }
            Err(_) => Err(not_registered(service, &key)),
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<enlist::Lease, Error> {
        check_ttl(ttl)?;
        self.inner.check_open()?;
        let Inner { link, tasks, leases, .. } = &*self.inner;
        let lease = leases.own(link, tasks, LeaseTerms::new(ttl, None)).await?;
        Ok(granted_lease(GrantedLease::new(lease, &self.inner)))
    }
}

impl MemoryClient {
    /// Starts the task of a registration, of an instance or of the content of `raw`.
    pub(crate) fn begin(
        &self,
        service: &ServiceRef,
        instance: Instance,
        key: Key,
        raw: Option<RawCell>,
        options: &RegisterOptions,
    ) -> Result<Registration, Error> {
        let (registration, driver) = registration(service.clone(), instance, options, self.keep_alive())?;
        self.inner.check_open()?;
        let client = Arc::clone(&self.inner);
        let withdrawal = driver.withdrawal();
        let id = registration.instance().id().clone();
        let task = Box::new(RegistrationTask::new(&client, id, key, raw, driver, options.clone()));
        let run = registration_flow::run(task);
        match options.lease {
            LeaseChoice::Given(_) => {
                let run = client.departures.accompany(withdrawal, run);
                client.tasks.spawn_until_stopped("registration", run)?;
            }
            _ => client.tasks.spawn_until_stopped("registration", run)?,
        }
        Ok(registration)
    }
}

fn not_registered(service: &ServiceRef, key: &Key) -> Error {
    Error::NotRegistered { service: service.clone(), id: key.id() }
}

fn refused(service: &ServiceRef, key: &Key, refusal: Refusal) -> Error {
    let Refusal::Guard(Some(record)) = refusal else {
        return not_registered(service, key);
    };
    match record.lease {
        Some(lease) => Error::NotOwner { service: service.clone(), id: key.id(), owner: enlist::Owner::Other, lease },
        None => Error::Conflict { what: format!("{service}/{}", key.member), revision: record.modified },
    }
}
