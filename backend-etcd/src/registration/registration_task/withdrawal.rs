//! Temporary withdrawal of an instance with a failing health check, in a layout without health: its key is removed
//! under a guard, and created again under the same lease when the check passes. Compare [`super::removal`], which is
//! final.

use std::sync::Arc;

use enlist::{
    Error, RegistrationState, Revision,
    backend::{
        Claim, permanent_error_delay,
        registration_flow::{DEREGISTER_TIMEOUT, StepOutcome},
    },
};

use super::{Known, RegistrationTask, comparison::unwanted_for, removal::proved, wake_reason::WakeReason};
use crate::{
    client::requests::{guarded_write::Guard, kv::WriteOutcome},
    session::{lease, sweep::shows},
    watch::record::Record,
};

impl RegistrationTask {
    /// Removes the key, if it is `own`. `at` is the revision of the read; `None` without one.
    pub(super) async fn withdraw(
        &mut self,
        own: Option<Record>,
        at: Option<Revision>,
    ) -> Result<StepOutcome<Record>, Error> {
        let at = match (own, at) {
            (Some(own), _) => {
                self.writes.withdrawing = true;
                // The removal of an unwanted registration follows.
                let given_up = unwanted_for(&self.driver, DEREGISTER_TIMEOUT);
                match self.context.client.delete_unless(&own.key, Guard::Modified(own.modified), given_up).await {
                    Ok(WriteOutcome::Done(at)) => {
                        self.context.note_departure();
                        at
                    }
                    Ok(WriteOutcome::Refused(record)) => {
                        self.known = record.into();
                        return Ok(StepOutcome::Repeat);
                    }
                    Err(failure) => return Err(self.failed(failure)),
                }
            }
            (None, Some(at)) => at,
            // Its absence is only assumed. The next comparison reads the key.
            (None, None) => return Ok(StepOutcome::Repeat),
        };
        self.writes.withdrawing = false;
        // Its absence is no eviction, and no key has to be moved off its lease.
        self.disown();
        self.writes.forget_changes();
        self.monitor = None;
        self.driver.report(RegistrationState::Withdrawn);
        Ok(StepOutcome::Withdrawn(at))
    }

    /// Waits until the instance is to be shown again, or the desired state changes otherwise. Notices a creation of
    /// unknown outcome that is applied meanwhile.
    pub(super) async fn wait_until_shown(&mut self, claim: &Claim<Arc<[u8]>>, at: Revision) -> WakeReason {
        let context = Arc::clone(&self.context);
        let unknown = self.writes.last_unknown().filter(|_| self.writes.may_claim());
        let key = unknown.and_then(|lease| self.key_under(lease).ok());
        let mut proof = self.writes.late_claim().cloned();
        loop {
            let late = async {
                match &key {
                    Some(key) => {
                        shows(&context.range_watches, key, Some((None, at)), |record| self.writes.is_own(record)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = claim.superseded() => return WakeReason::Superseded,
                () = self.driver.changed() => {
                    if key.is_none() {
                        self.known = Known::Absent;
                    }
                    return WakeReason::Wanted;
                }
                () = proved(&context.client, proof.as_mut()) => {
                    self.writes.impossible();
                    return WakeReason::Look;
                }
                () = late => return WakeReason::Look,
                () = tokio::time::sleep(permanent_error_delay()), if key.is_some() => return WakeReason::Look,
                () = lease::unusable(self.lease.as_ref()) => self.lease = None,
            }
        }
    }
}
