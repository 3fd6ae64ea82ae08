//! [`Semaphore`] of an etcd client.

use std::sync::Arc;

use async_trait::async_trait;
use enlist::{
    Error, LockName, PermitGuard, Semaphore, SemaphoreOptions,
    backend::{
        PermitState,
        contender::{Acquisition, Wanted, acquire},
        permit_guard,
    },
};

use crate::{
    client::requests::{guarded_write::Guard, kv::WriteOutcome},
    etcd::Etcd,
    layout::{LockLayout, PermitEntryValue, QueueKind},
    lock::contender::{Contender, queued::PermitRequest},
    watch::record::KeyRange,
};

#[async_trait]
impl Semaphore for Etcd {
    async fn acquire_permits(&self, name: &LockName, options: SemaphoreOptions) -> Result<PermitGuard, Error> {
        self.contend_for_permits(name, Wanted::Lock, options).await?.ok_or(Error::Closed)
    }

    async fn try_acquire_permits(
        &self,
        name: &LockName,
        options: SemaphoreOptions,
    ) -> Result<Option<PermitGuard>, Error> {
        self.contend_for_permits(name, Wanted::FreeLock, options).await
    }

    async fn permits(&self, name: &LockName) -> Result<Option<u32>, Error> {
        self.session.check_open()?;
        let layout = &self.session.lock.lock_layout;
        let key = layout.of_semaphores(|layout| layout.permits_key(name))?;
        let read = self.session.client.get(&key).await;
        let (record, _) = read.map_err(|failure| failure.into_error(&describe(name)))?;
        let Some(record) = record else { return Ok(None) };
        layout.of_semaphores(|layout| Ok(layout.decode_permits(&record.value)))
    }

    async fn set_permits(&self, name: &LockName, permits: u32) -> Result<(), Error> {
        self.session.check_open()?;
        let (layout, client) = (&self.session.lock.lock_layout, &self.session.client);
        let key: Arc<[u8]> = layout.of_semaphores(|layout| layout.permits_key(name))?.into();
        let read = client.get(&key).await;
        let (mut stored, _) = read.map_err(|failure| failure.into_error(&describe(name)))?;
        // Guarded, so that unknown fields are kept and a newer version is never overwritten.
        loop {
            let previous = stored.as_ref().map(|record| &record.value[..]);
            let value = layout.of_semaphores(|layout| layout.encode_permits(permits, previous))?;
            let guard = stored.as_ref().map_or(Guard::Absent, |record| Guard::Modified(record.modified));
            let written = client.put_in_time(&key, guard, &value, None).await;
            match written.map_err(|failure| failure.into_error(&describe(name)))? {
                WriteOutcome::Done(_) => return Ok(()),
                WriteOutcome::Refused(found) => stored = found,
            }
        }
    }
}

fn describe(name: &LockName) -> String {
    format!("the permits of {name}")
}

impl Etcd {
    async fn contend_for_permits(
        &self,
        name: &LockName,
        wanted: Wanted,
        options: SemaphoreOptions,
    ) -> Result<Option<PermitGuard>, Error> {
        let acquisition = Acquisition::of_permits(name.clone(), wanted, &options)?;
        self.session.check_open()?;
        let context = &self.session.lock;
        let (permits, layout) = (options.permits, &context.lock_layout);
        let encoded =
            |state| layout.of_semaphores(|layout| Ok(layout.encode_permit_entry(PermitEntryValue { permits, state })));
        let number_key = layout.of_semaphores(|layout| layout.permits_key(name))?;
        let contender = Contender {
            context: Arc::clone(context),
            kind: QueueKind::Semaphore,
            queue: layout.queue(QueueKind::Semaphore, name)?,
            marks: Some(KeyRange::key(&number_key[..])),
            value: encoded(PermitState::Waiting)?,
            semaphore: Some(PermitRequest { granted_value: encoded(PermitState::Granted)?, number_key, options }),
            acquisition: acquisition.clone(),
        };
        let acquired = acquire(&context.lifecycle().tasks, acquisition, contender).await?;
        Ok(acquired.into_guard()?.map(|guard| permit_guard(guard, permits)))
    }
}
