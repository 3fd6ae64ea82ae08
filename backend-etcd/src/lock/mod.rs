//! Locks: a line of keys ordered by creation revision, judged by [`enlist::backend::queue_position`].
//!
//! Never the server's own Lock RPC, which hands out false locks. The protocol runs in a task of the session, see `stander`.

pub(crate) mod contender;
pub(crate) mod context;
pub(crate) mod election;
pub(crate) mod key_suffixes;
pub(crate) mod local_queue;
pub(crate) mod queues;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use enlist::{
    Error, Leadership, Lock, LockGuard, LockMode, LockName, LockOptions, Moment, Revision, backend::LastTrouble,
};
use etcd_client::{Compare, CompareOp};
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::{
    client::response::signed,
    etcd::Etcd,
    layout::{LockLayout, PlaceValue, QueueKind},
    lock::contender::{Contender, Source},
};

#[async_trait]
impl Lock for Etcd {
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error> {
        let want = Want { line: QueueKind::Lock, text: String::new(), wait: true };
        match self.stand(name, want, options).await? {
            Won::Lock(guard) => Ok(guard),
            _ => Err(Error::Closed),
        }
    }

    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error> {
        let want = Want { line: QueueKind::Lock, text: String::new(), wait: false };
        match self.stand(name, want, options).await? {
            Won::Lock(guard) => Ok(Some(guard)),
            _ => Ok(None),
        }
    }
}

/// The condition under which a lock is held, for a transaction of the caller's own on the same etcd: what such a transaction
/// writes is written only while `guard` holds the lock. For data in etcd this is the complete protection, without a token to
/// store; see `docs/locks.md`.
///
/// ```no_run
/// # use etcd_client::{Txn, TxnOp};
/// # async fn example(guard: &enlist::LockGuard, client: &mut etcd_client::Client) -> Result<(), Box<dyn std::error::Error>> {
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
    let source = guard.source().downcast_ref::<Source>();
    let source = source.ok_or_else(|| Error::Unsupported { what: "a lock that is not held in etcd".to_owned() })?;
    let created = signed(Revision::new(guard.fencing_token().get()));
    Ok(Compare::create_revision(&source.key[..], CompareOp::Equal, created))
}

/// Lock or election that a caller stands in line for.
pub(crate) struct Want {
    pub(crate) line: QueueKind,
    pub(crate) text: String,
    pub(crate) wait: bool,
}

pub(crate) enum Won {
    Lock(LockGuard),
    Leadership(Leadership),
    Nothing,
}

impl Etcd {
    pub(crate) async fn stand(&self, name: &LockName, want: Want, options: LockOptions) -> Result<Won, Error> {
        options.check()?;
        self.session.check_open()?;
        let layout = &self.session.lock.lock_layout;
        if options.mode == LockMode::Shared && !layout.carries_modes() {
            return Err(Error::Unsupported { what: format!("shared mode in the layout {}", layout.name()) });
        }
        let marks =
            match options.lock_delay {
                Duration::ZERO => None,
                _ => Some(layout.marks(want.line, name).ok_or_else(|| Error::Unsupported {
                    what: format!("a lock_delay in the layout {}", layout.name()),
                })?),
            };
        let range = layout.queue(want.line, name)?;
        let value = layout.write(want.line, &PlaceValue { mode: options.mode, text: want.text.clone() })?;
        let (answer, won) = oneshot::channel();
        let (deadline, trouble) = (options.deadline, LastTrouble::default());
        let stander = Contender {
            context: Arc::clone(&self.session.lock),
            name: name.clone(),
            range,
            marks,
            value,
            want,
            options,
            begun: Moment::now(),
            trouble: trouble.clone(),
        };
        let span = tracing::info_span!("lock", lock = %name);
        self.session.lock.lifecycle().tasks.spawn_until_stopped("lock", stander.run(answer).instrument(span))?;
        // Dropping the receiver tells the task.
        trouble.within("acquire", deadline, async { won.await.map_err(|_| Error::Closed)? }).await
    }
}
