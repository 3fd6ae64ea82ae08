//! The `Registry` of the backend. Each registration has a task, see `registration_task.rs`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Entry, Error, Evicted, Instance, InstanceId, LeaseChoice, LeaseId, RegisterOptions, Registration, Registry,
    Revision, ServiceRef,
    backend::{LeaseTerms, check_ttl, evicted, granted_lease, registration, registration_flow, wait_for_start},
    escape::escaped,
};
use tracing::Instrument;

use crate::{
    client::requests::{guarded_write::Guard, kv::WriteOutcome},
    error::Failure,
    etcd::Etcd,
    layout::{Decoded, Layout, LeaseScope, Writing},
    registration::{
        context::RegistrationContext,
        registration_task::{RegistrationTask, marked_leaving},
    },
    session::granted_lease::GrantedLease,
    watch::record::Record,
};

/// TTL of the lease under which a fixed instance is created. It is revoked once the instance is detached from it.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum number of attempts to write the key of a fixed instance that is changed concurrently: detached from its
/// lease, or deleted with it.
const MAX_ATTEMPTS: usize = 3;

#[async_trait]
impl Registry for Etcd {
    async fn register(
        &self,
        service: &ServiceRef,
        instance: Instance,
        options: RegisterOptions,
    ) -> Result<Registration, Error> {
        // Started outside of the future, which stays small.
        let registration = self.begin(&self.session.registration.layout, service, instance, &options)?;
        wait_for_start(registration, &options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        instance.check()?;
        self.session.check_open()?;
        let RegistrationContext { layout, client, .. } = &*self.session.registration;
        let key: Arc<[u8]> = layout.key(service, instance.id(), None)?.into();
        let failed = |failure: Failure| failure.into_error(&format!("publishing {service}/{}", instance.id()));
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (present, attachment) = self.fixed(service, instance.id(), &key, failed).await?;
            let previous = present.as_ref().map(|record| &*record.value);
            let value = layout.encode(service, &instance, &Writing { previous, ..Writing::default() })?;
            let written = match &present {
                // This detaches a key that is still under its lease.
                Some(record) => client.put_in_time(&key, Guard::Modified(record.modified), &value, None).await,
                None => self.create_fixed(&key, &value).await,
            };
            match written.map_err(failed)? {
                WriteOutcome::Done(revision) => return Ok(revision),
                WriteOutcome::Refused(found) if attempts < MAX_ATTEMPTS && attachment.may_change(found.as_ref()) => {}
                WriteOutcome::Refused(found) => return Err(Self::changed(service, instance.id(), found.as_ref())),
            }
        }
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.session.check_open()?;
        let RegistrationContext { layout, client, .. } = &*self.session.registration;
        let key = layout.key(service, id, None)?;
        let failed = |failure: Failure| failure.into_error(&format!("removing {service}/{id}"));
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (present, attachment) = self.fixed(service, id, &key, failed).await?;
            let Some(record) = present else {
                return Err(Self::changed(service, id, None));
            };
            let decoded = layout.decode(service, &key, &record.value);
            let Decoded { instance, .. } = decoded.map_err(|_| Error::Unsupported {
                what: format!("removing {service}/{id}, whose value is no instance of this layout,"),
            })?;
            let mut guard = Guard::Modified(record.modified);
            if let Some(value) = marked_leaving(&**layout, service, &record) {
                // A failure does not prevent the removal.
                if let Ok(WriteOutcome::Done(revision)) = client.put_in_time(&record.key, guard, &value, None).await {
                    guard = Guard::Modified(revision);
                }
            }
            match client.delete_in_time(&key, guard).await.map_err(failed)? {
                WriteOutcome::Done(_) => return Ok(record.entry(instance)),
                WriteOutcome::Refused(found) if attempts < MAX_ATTEMPTS && attachment.may_change(found.as_ref()) => {}
                WriteOutcome::Refused(found) => return Err(Self::changed(service, id, found.as_ref())),
            }
        }
    }

    async fn evict(&self, service: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.session.check_open()?;
        let RegistrationContext { layout, client, .. } = &*self.session.registration;
        let key = layout.key(service, id, None)?;
        let failed = |failure: Failure| failure.into_error(&format!("evicting {service}/{id}"));
        let (mut present, _) = client.get(&key).await.map_err(failed)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Some(record) = present else {
                return Err(Error::NotRegistered { service: service.clone(), id: id.clone() });
            };
            let at = modified.unwrap_or(record.modified);
            if at != record.modified || attempts > MAX_ATTEMPTS {
                return Err(Error::Conflict { what: format!("{service}/{id}"), revision: record.modified });
            }
            // Without the mark of a departure: the registration would attribute the marked value to another
            // registration, whose removal is no eviction.
            match client.delete_in_time(&key, Guard::Modified(at)).await.map_err(failed)? {
                WriteOutcome::Done(removed) => {
                    let decoded = layout.decode(service, &key, &record.value).ok();
                    let entry = decoded.map(|decoded| record.entry(decoded.instance));
                    let lease = record.lease.map(LeaseId::get);
                    tracing::info!(service = %escaped(service), instance = %escaped(id), lease, "instance evicted");
                    return Ok(evicted(entry, record.lease, removed));
                }
                WriteOutcome::Refused(found) => present = found,
            }
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<enlist::Lease, Error> {
        check_ttl(ttl)?;
        self.session.check_open()?;
        let leases = &self.session.leases;
        let granted = leases.own(LeaseTerms::new(ttl, None)).await;
        let lease = granted.map_err(|failure| failure.into_error("granting a lease"))?;
        Ok(granted_lease(GrantedLease::new(lease, leases)))
    }
}

impl Etcd {
    /// Starts the task of a registration with the key and value format of `layout`.
    pub(crate) fn begin(
        &self,
        layout: &Arc<dyn Layout>,
        service: &ServiceRef,
        instance: Instance,
        options: &RegisterOptions,
    ) -> Result<Registration, Error> {
        let context = &self.session.registration;
        let source = Arc::clone(context) as enlist::backend::OwnerHandle;
        let (registration, driver) = registration(service.clone(), instance, options, source)?;
        let instance = registration.instance();
        self.session.check_open()?;
        // A refusal of the layout is reported now, not in the background.
        let slot = layout.key(service, instance.id(), Some(LeaseId::new(0)))?;
        let slot = match layout.lease_scope() {
            LeaseScope::Shared => slot,
            LeaseScope::PerKey => format!("{service}\n{}", instance.id()).into_bytes(),
        };
        layout.accepts(service, &instance, options.owner.as_deref())?;
        let (accepting, named, owner) = (Arc::clone(layout), service.clone(), options.owner.clone());
        driver.accept_only(move |instance| accepting.accepts(&named, instance, owner.as_deref()));
        let withdrawal = driver.withdrawal();
        let task = RegistrationTask::new(context, layout, slot.into(), instance.id(), driver, options);
        let lifecycle = context.lifecycle();
        context.registrations.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("registration", service = %escaped(service), instance = %escaped(instance.id()));
        let task = registration_flow::run(task).instrument(span);
        match options.lease {
            LeaseChoice::Given(_) => {
                lifecycle
                    .tasks
                    .spawn_until_stopped("registration", lifecycle.departures.accompany(withdrawal, task))?;
            }
            _ => lifecycle.tasks.spawn_until_stopped("registration", task)?,
        }
        Ok(registration)
    }

    /// Reads the key of a fixed instance.
    async fn fixed(
        &self,
        service: &ServiceRef,
        id: &InstanceId,
        key: &[u8],
        failed: impl Fn(Failure) -> Error,
    ) -> Result<(Option<Record>, Attachment), Error> {
        let RegistrationContext { leases, client, .. } = &*self.session.registration;
        // A lease that is gone when the answer arrives may have existed at the time of the read.
        let detaching = leases.all_detaching();
        let (present, _) = client.get(key).await.map_err(failed)?;
        match present.as_ref().and_then(|record| record.lease) {
            Some(lease) if !detaching.contains(&lease) && !leases.is_detaching(lease) => {
                Err(Self::not_owner(service, id, lease))
            }
            Some(_) => Ok((present, Attachment::Detaching)),
            None => Ok((present, Attachment::Detached)),
        }
    }

    /// Creates a key without a lease: first under a lease, from which it is then detached. Otherwise a creation without
    /// an answer could be applied after a removal; here its effect ends with the lease.
    async fn create_fixed(&self, key: &Arc<[u8]>, value: &[u8]) -> Result<WriteOutcome, Failure> {
        let RegistrationContext { leases, client, .. } = &*self.session.registration;
        // Also if this future is dropped: a key that is not detached is deleted with the lease.
        let lease = leases.detaching(LeaseTerms::new(DETACH_TIMEOUT, None)).await?;
        match client.put_in_time(key, Guard::Absent, value, Some(lease.id())).await? {
            WriteOutcome::Done(revision) => client.put_in_time(key, Guard::Modified(revision), value, None).await,
            refused @ WriteOutcome::Refused(_) => Ok(refused),
        }
    }

    fn not_owner(service: &ServiceRef, id: &InstanceId, lease: LeaseId) -> Error {
        Error::NotOwner { service: service.clone(), id: id.clone(), owner: enlist::Owner::Other, lease }
    }

    fn changed(service: &ServiceRef, id: &InstanceId, record: Option<&Record>) -> Error {
        match record {
            None => Error::NotRegistered { service: service.clone(), id: id.clone() },
            Some(Record { lease: Some(lease), .. }) => Self::not_owner(service, id, *lease),
            Some(record) => Error::Conflict { what: format!("{service}/{id}"), revision: record.modified },
        }
    }
}

/// Lease of the key of a fixed instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attachment {
    /// The key has no lease.
    Detached,
    /// The key is not detached yet from the lease under which this session created it: the detaching write is in
    /// flight, or its answer was lost. The key is written like any other, but may be deleted with that lease.
    Detaching,
}

impl Attachment {
    /// Returns `true` if a guarded write can be refused only because the key was detached meanwhile, or deleted with
    /// its lease.
    fn may_change(self, found: Option<&Record>) -> bool {
        self == Self::Detaching || found.is_some_and(|record| record.lease.is_some())
    }
}
