//! Verdicts at the end of a run: the record is completed from the journal of the store, and the checkers of histories
//! compare it with the guarantees.

use enlist::LockMode;
use enlist_testkit::{
    ConcealedRevocation, KeyChange,
    history::{Version, Violation},
    lock_history::LockViolation,
    losses::EndCause,
};

use crate::{
    configs,
    counts::Kind,
    kinds::Observed,
    verdicts::{Invariant, Verdict},
    world::{Delivery, INSTANCES, LOCK_QUEUE, Notes, World},
};

fn number(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// Returns the violations of the run, followed by those that the checkers of histories find.
pub(crate) fn judge(world: &World, journal: &[KeyChange]) -> Vec<Verdict> {
    let of_config = configs::judge(world, journal);
    let now = world.micros();
    let mut shared = world.shared();
    for ConcealedRevocation { at, lease, .. } in world.fake.concealed_revocations() {
        shared.record.locks.revoked(world.micros_at(at), lease);
        shared.revoked.insert(lease);
        shared.concealed.insert(lease);
    }
    for change in journal {
        complete(&mut shared, world.micros_at(change.at), change);
    }
    shared.losses.ended(now);
    let value = shared.value;
    shared.record.locks.ended(value, Vec::new());
    count_checks(&mut shared);
    let mut verdicts: Vec<Verdict> = shared.broken.iter().cloned().chain(of_config).collect();
    let about_instances = shared.record.instances.check().into_iter().filter(|violation| {
        use Violation::{CameBack, NotConverged, Torn};
        shared.delivery != Delivery::Lossy || matches!(violation, CameBack { .. } | NotConverged { .. } | Torn { .. })
    });
    verdicts.extend(about_instances.map(|violation| Verdict::of_instances(&violation)));
    // A client without a connection notices a deletion later. The checker of losses limits that.
    let about_locks = shared.record.locks.check().into_iter().filter(|violation| {
        let was_deleted = match violation {
            LockViolation::Overlap { token, .. } | LockViolation::OutOfOrder { token, .. } => {
                shared.deleted.contains(token)
            }
            _ => false,
        };
        !(was_deleted && shared.cut_off)
    });
    verdicts.extend(about_locks.map(|violation| Verdict::of_locks(&violation)));
    verdicts.extend(shared.losses.check().iter().map(Verdict::of_losses));
    verdicts
}

/// Completes the record by a change of the store.
fn complete(shared: &mut Notes, micros: u64, change: &KeyChange) {
    let key = String::from_utf8_lossy(&change.key);
    if let Some(id) = key.strip_prefix(INSTANCES) {
        // Watchers do not show values that are no instances.
        let is_one = change.value.as_ref().is_some_and(|value| value.starts_with(b"{\"v\":1"));
        let version = is_one.then(|| Version { created: number(change.created), modified: number(change.revision) });
        shared.record.instances.changed(micros, number(change.revision), id, version);
        match change.value {
            Some(_) => shared.losses.stored(micros, id),
            None => shared.losses.gone(micros, id),
        }
    } else if key.starts_with(LOCK_QUEUE) {
        let created = number(change.created);
        if change.value.is_some() {
            shared.record.locks.queued(created, change.lease);
            shared.queued.insert(change.key.clone(), (created, change.lease));
            if shared.revoked.contains(&change.lease) {
                shared.deleted.insert(created);
            }
        } else if let Some((token, lease)) = shared.queued.remove(&change.key) {
            // Its lease shows no loss, so a holder only learns it from the watch of its entry.
            let cause = if shared.removed.contains(&token) || shared.concealed.contains(&lease) {
                EndCause::Deleted
            } else if shared.revoked.contains(&lease) {
                EndCause::Revoked
            } else {
                EndCause::ExpiredOrRemoved
            };
            shared.losses.entry_ended(micros, token, cause);
        }
    }
}

/// Counts the checks that the checkers of histories make, and the losses that they judge.
fn count_checks(shared: &mut Notes) {
    let judged = shared.losses.judged();
    let locks = &shared.record.locks;
    let (exclusive, in_shared_mode) = (locks.grants(LockMode::Exclusive), locks.grants(LockMode::Shared));
    let writes = locks.writes();
    let watchers = shared.record.instances.watchers();
    let mut add = |kind: Kind, number: usize| {
        shared.counts.add(kind, u64::try_from(number).unwrap_or(u64::MAX));
    };
    add(Observed::HolderLost.into(), judged.holders);
    add(Observed::HolderLostUndisturbed.into(), judged.undisturbed_holders);
    add(Observed::InstanceLost.into(), judged.instances);
    add(Observed::InstanceLostUndisturbed.into(), judged.undisturbed_instances);
    add(Observed::LockGranted.into(), exclusive);
    add(Observed::SharedLockGranted.into(), in_shared_mode);
    for invariant in [Invariant::GrantedOnce, Invariant::QueueOrder, Invariant::Exclusion, Invariant::LossFinal] {
        add(invariant.into(), exclusive + in_shared_mode);
    }
    add(Invariant::LossNoticed.into(), judged.holders);
    add(Invariant::InstanceReturns.into(), judged.instances);
    add(Invariant::FenceHolds.into(), writes);
    add(Invariant::WritesKept.into(), writes);
    add(Invariant::ViewsConverge.into(), watchers);
    add(Invariant::NoPanic.into(), 1);
    add(Invariant::Ends.into(), 1);
}
