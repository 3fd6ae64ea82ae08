//! [`Semaphore`] of a memory client, and the turn of a contender in the queue of a semaphore.

use async_trait::async_trait;
use enlist::{
    Error, LockName, PermitGuard, Semaphore, SemaphoreOptions,
    backend::{
        PermitEntry, PermitPosition, PermitState,
        contender::{Acquisition, Wanted, acquire},
        permit_guard, permit_position,
    },
};

use super::contender::{Contender, Position, Queued, token};
use crate::{
    client::MemoryClient,
    deliberate_defects::DeliberateDefect,
    store::{Group, Key, Kind, Store, Value},
};

#[async_trait]
impl Semaphore for MemoryClient {
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
        self.inner.check_open()?;
        let key = number_key(name);
        self.inner.link.ask(|store, _| permits(store, &key)).await
    }

    async fn set_permits(&self, name: &LockName, permits: u32) -> Result<(), Error> {
        self.inner.check_open()?;
        let key = number_key(name);
        self.inner.link.ask(|store, _| set_permits(store, &key, permits)).await
    }
}

impl MemoryClient {
    async fn contend_for_permits(
        &self,
        name: &LockName,
        wanted: Wanted,
        options: SemaphoreOptions,
    ) -> Result<Option<PermitGuard>, Error> {
        let acquisition = Acquisition::of_permits(name.clone(), wanted, &options)?;
        self.inner.check_open()?;
        let permits = options.permits;
        let contender = Contender::of_semaphore(&self.inner, acquisition.clone(), options);
        let acquired = acquire(&self.inner.tasks, acquisition, contender).await?;
        Ok(acquired.into_guard()?.map(|guard| permit_guard(guard, permits)))
    }
}

impl Contender {
    /// Reads the position of the entry in the queue of a semaphore, and takes its permits if that is possible. This is
    /// one step of the store, so nothing changes between the read and the grant.
    pub(super) async fn take_permits(&self, entry: &Queued, options: &SemaphoreOptions) -> Result<Position, Error> {
        let exceeds = self.client.link.store().has(DeliberateDefect::ExceedsPermits);
        let overtakes = self.client.link.store().has(DeliberateDefect::OvertakesLargeRequests);
        let number = number_key(&self.acquisition.name);
        let read = |store: &mut Store, _| {
            if let (Some(default), None) = (options.permits_if_unset, permits(store, &number)) {
                set_permits(store, &number, default);
            }
            let permits = permits(store, &number).unwrap_or(0);
            let queue = store.range(&entry.key.group).filter_map(|(_, record)| match record.value {
                Value::PermitEntry { permits, state } => Some(PermitEntry { token: token(record), permits, state }),
                _ => None,
            });
            // As if the waiting entries were not there.
            let queue =
                queue.filter(|other| !overtakes || other.state == PermitState::Granted || other.token == entry.token());
            match permit_position(queue, permits, entry.token()) {
                PermitPosition::Holder => Position::Holder,
                PermitPosition::Admissible => grant_permits(store, entry, options),
                PermitPosition::First if exceeds && permits > 0 => grant_permits(store, entry, options),
                PermitPosition::First | PermitPosition::Behind(_) => Position::Waiting,
                PermitPosition::Absent => Position::Absent,
            }
        };
        self.client.link.ask(read).await
    }
}

/// Marks the entry as granted.
fn grant_permits(store: &mut Store, entry: &Queued, options: &SemaphoreOptions) -> Position {
    let Some(record) = store.get(&entry.key) else { return Position::Absent };
    let (modified, lease) = (record.modified, record.lease);
    let value = Value::PermitEntry { permits: options.permits, state: PermitState::Granted };
    // It was read in the same step, and its lease is alive, because the entry exists.
    match store.put(&entry.key, Some(modified), value, lease) {
        Ok(_) => Position::Holder,
        Err(_) => Position::Absent,
    }
}

/// Returns the key of the number of permits of a semaphore.
fn number_key(name: &LockName) -> Key {
    Key { group: Group::queue(Kind::SemaphorePermits, name), member: "".into() }
}

fn permits(store: &Store, key: &Key) -> Option<u32> {
    match store.get(key)?.value {
        Value::Permits(permits) => Some(permits),
        _ => None,
    }
}

fn set_permits(store: &mut Store, key: &Key, permits: u32) {
    let modified = store.get(key).map(|record| record.modified);
    // It was read in the same step, and needs no lease.
    let _ = store.put(key, modified, Value::Permits(permits), None);
}
