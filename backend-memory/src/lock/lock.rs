//! [`Lock`] of a memory client.

use async_trait::async_trait;
use enlist::{
    Error, Lock, LockGuard, LockName, LockOptions,
    backend::contender::{Acquired, Acquisition, Wanted, acquire},
};

use crate::{client::MemoryClient, lock::contender::Contender};

#[async_trait]
impl Lock for MemoryClient {
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error> {
        self.contend(name, Wanted::Lock, options).await?.into_guard()?.ok_or(Error::Closed)
    }

    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error> {
        self.contend(name, Wanted::FreeLock, options).await?.into_guard()
    }
}

impl MemoryClient {
    pub(super) async fn contend(
        &self,
        name: &LockName,
        wanted: Wanted,
        options: LockOptions,
    ) -> Result<Acquired, Error> {
        let acquisition = Acquisition::new(name.clone(), wanted, options)?;
        self.inner.check_open()?;
        let contender = Contender::new(&self.inner, acquisition.clone());
        acquire(&self.inner.tasks, acquisition, contender).await
    }
}
