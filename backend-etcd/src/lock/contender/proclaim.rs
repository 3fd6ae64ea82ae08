//! Writes of a leader's value.

use std::sync::Arc;

use enlist::{Error, LockMode, LockName, Revision, backend::Proclamation};

use crate::{
    client::requests::{guarded_write::Guard, kv::WriteOutcome, queue_requests::OwnEntry},
    layout::{QueueEntryValue, QueueKind},
    lock::context::LockContext,
};

/// Written entry.
pub(super) struct Target {
    pub(super) kind: QueueKind,
    pub(super) name: LockName,
    pub(super) entry: OwnEntry,
    /// Revision of its last known change.
    pub(super) modified: Revision,
}

/// Writes a new value, guarded by the last known change, and answers the proclamation. Returns the revision of the last
/// known change after that. An older proclamation without an answer is refused once this one is applied.
pub(super) async fn proclaim(context: Arc<LockContext>, target: Target, proclamation: Proclamation) -> Revision {
    let Target { kind, name, entry, mut modified } = target;
    let Proclamation { value, reply, .. } = proclamation;
    let written = context.lock_layout.write(kind, &QueueEntryValue { mode: LockMode::Exclusive, text: value });
    let value = match written {
        Ok(value) => value,
        Err(error) => {
            let _ = reply.send(Err(error));
            return modified;
        }
    };
    let key = entry.key[..].into();
    let outcome = loop {
        match context.client.put_in_time(&key, Guard::Modified(modified), &value, Some(entry.lease)).await {
            Ok(WriteOutcome::Done(revision)) => {
                modified = revision;
                break Ok(revision);
            }
            // An older proclamation, or a confirmation, was applied although its answer was lost.
            Ok(WriteOutcome::Refused(Some(found))) if found.created == entry.token => modified = found.modified,
            Ok(WriteOutcome::Refused(_)) => break Err(Error::LeaseLost),
            Err(failure) => break Err(failure.into_error(&format!("the lock {name}"))),
        }
    };
    // The leader may have dropped its request.
    let _ = reply.send(outcome);
    modified
}
