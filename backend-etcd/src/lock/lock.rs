//! [`Lock`] of an etcd client, and the start of each acquisition.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Error, Lock, LockGuard, LockMode, LockName, LockOptions,
    backend::{
        contender::{Acquired, Acquisition, Wanted, acquire},
        guard_source,
    },
};
use etcd_client::Compare;

use crate::{
    etcd::Etcd,
    layout::{LockLayout, QueueEntryValue, QueueKind},
    lock::contender::{Contender, GuardSource},
};

#[async_trait]
impl Lock for Etcd {
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error> {
        self.contend(name, Wanted::Lock, options).await?.into_guard()?.ok_or(Error::Closed)
    }

    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error> {
        self.contend(name, Wanted::FreeLock, options).await?.into_guard()
    }
}

/// Returns the condition under which `guard` holds its lock, for a transaction of the caller's own on the same etcd.
///
/// A transaction with this condition writes only while the lock is held. For data in etcd this is the complete
/// protection, without a token to store; see `docs/locks.md`.
///
/// ```no_run
/// # use etcd_client::{Txn, TxnOp};
/// # async fn example(
/// #     guard: &enlist::LockGuard,
/// #     client: &mut etcd_client::Client,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let condition = enlist_etcd::lock_condition(guard)?;
/// let put = TxnOp::put("jobs/last-run", "2026-11-21", None);
/// let written = client.txn(Txn::new().when([condition]).and_then([put])).await?;
/// if !written.succeeded() {
///     return Err("the lock was lost, nothing was written".into());
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Unsupported`] for a guard of another backend.
pub fn lock_condition(guard: &LockGuard) -> Result<Compare, Error> {
    let source = guard_source(guard).downcast_ref::<GuardSource>();
    let condition = source.and_then(|source| source.guard.compare(&source.key));
    condition.ok_or_else(|| Error::Unsupported { what: "a lock that is not held in etcd".to_owned() })
}

impl Etcd {
    /// Acquires a lock or a leadership.
    pub(super) async fn contend(
        &self,
        name: &LockName,
        wanted: Wanted,
        options: LockOptions,
    ) -> Result<Acquired, Error> {
        let acquisition = Acquisition::new(name.clone(), wanted, options)?;
        self.session.check_open()?;
        let Acquisition { wanted, options, .. } = &acquisition;
        let context = &self.session.lock;
        let layout = &context.lock_layout;
        if options.mode == LockMode::Shared && !layout.carries_modes() {
            return Err(Error::Unsupported { what: format!("shared mode in the layout {}", layout.name()) });
        }
        let kind = match wanted {
            Wanted::Lock | Wanted::FreeLock => QueueKind::Lock,
            Wanted::Leadership(_) => QueueKind::Election,
        };
        let marks =
            match options.lock_delay {
                Duration::ZERO => None,
                _ => Some(layout.marks(kind, name).ok_or_else(|| Error::Unsupported {
                    what: format!("a lock_delay in the layout {}", layout.name()),
                })?),
            };
        let queue = layout.queue(kind, name)?;
        let value = layout.write(kind, &QueueEntryValue { mode: options.mode, text: wanted.text().to_owned() })?;
        let contender = Contender {
            context: Arc::clone(context),
            kind,
            queue,
            marks,
            value,
            semaphore: None,
            acquisition: acquisition.clone(),
        };
        acquire(&context.lifecycle().tasks, acquisition, contender).await
    }
}
