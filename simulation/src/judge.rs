//! Verdicts at the end of a run: the record is completed from the journal of the store, and the checkers of histories
//! compare it with the guarantees.

use enlist::LockMode;
use enlist_testkit::{
    ConcealedRevocation, KeyChange,
    history::{Record, Version, Versions},
    lock_history::{LockHistory, LockViolation},
    losses::{EndCause, LossHistory},
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
        let at = world.micros_at(at);
        shared.record.locks.revoked(at, lease);
        shared.revoked.insert((lease, at));
        shared.concealed.insert((lease, at));
        shared.operations.removals.insert(at);
    }
    for change in journal {
        complete(&mut shared, world.micros_at(change.at), change);
    }
    shared.losses.ended(now);
    let of_operations = shared.operations.judge(&shared.losses, journal, INSTANCES);
    let value = shared.value;
    shared.record.locks.ended(value, Vec::new());
    count_checks(&mut shared);
    let mut verdicts: Vec<Verdict> = shared.broken.iter().cloned().chain(of_config).chain(of_operations).collect();
    let violations = shared.record.instances.check().into_iter().map(|violation| Verdict::of_instances(&violation));
    verdicts.extend(violations.filter(|verdict| !is_left_out(verdict.invariant, shared.delivery)));
    let Notes { record: Record { locks, .. }, losses, cut_off, .. } = &*shared;
    let about_locks =
        locks.check().into_iter().filter(|violation| !(*cut_off && is_late_notice(locks, losses, violation)));
    verdicts.extend(about_locks.map(|violation| Verdict::of_locks(&violation)));
    verdicts.extend(shared.losses.check().iter().map(Verdict::of_losses));
    verdicts
}

/// Invariants that are left out in a run in which a watch lost an event: its views may be wrong until the next audit.
const NOT_IN_LOSSY_RUNS: [Invariant; 3] = [Invariant::ViewsExist, Invariant::ViewsNotEmpty, Invariant::AgesHonest];

fn is_left_out(invariant: Option<Invariant>, delivery: Delivery) -> bool {
    delivery == Delivery::Lossy && invariant.is_some_and(|invariant| NOT_IN_LOSSY_RUNS.contains(&invariant))
}

/// Returns `true` if the holder, or the contender that was granted the lock too late, need not have noticed yet that
/// another client had ended its queue entry before the other grant. The checker of losses limits the time of the
/// notice: a client without a connection notices the end later.
fn is_late_notice(locks: &LockHistory, losses: &LossHistory, violation: &LockViolation) -> bool {
    let (token, other) = match violation {
        LockViolation::Overlap { token, successor, .. } => (token, successor),
        LockViolation::OutOfOrder { token, overtaken_by } => (token, overtaken_by),
        _ => return false,
    };
    let (ended, granted) = (losses.ended_by_others(*token), locks.granted_at(*other));
    matches!((ended, granted), (Some(ended), Some(granted)) if ended <= granted)
}

/// Returns the version that watchers show after a change of the key of an instance; `None` for a deletion, or a value
/// that is no instance.
fn version_of(change: &KeyChange) -> Option<Version> {
    let is_one = change.value.as_ref().is_some_and(|value| value.starts_with(b"{\"v\":1"));
    is_one.then(|| Version { created: number(change.created), modified: number(change.revision) })
}

/// Returns the instances that watchers show after these changes.
pub(crate) fn content(journal: &[KeyChange]) -> Versions {
    let mut content = Versions::new();
    for change in journal {
        if let Some(id) = String::from_utf8_lossy(&change.key).strip_prefix(INSTANCES) {
            match version_of(change) {
                Some(version) => content.insert(id.to_owned(), version),
                None => content.remove(id),
            };
        }
    }
    content
}

/// Completes the record by a change of the store.
fn complete(shared: &mut Notes, micros: u64, change: &KeyChange) {
    let key = String::from_utf8_lossy(&change.key);
    if let Some(id) = key.strip_prefix(INSTANCES) {
        let version = version_of(change);
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
        } else if let Some((token, lease)) = shared.queued.remove(&change.key) {
            // Its lease shows no loss, so a holder only learns it from the watch of its entry.
            let cause = if shared.removed.contains(&token) || shared.concealed.contains(&(lease, micros)) {
                EndCause::Deleted
            } else if shared.revoked.contains(&(lease, micros)) {
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
    let instances = &shared.record.instances;
    let (watchers, views, ages) = (instances.watchers(), instances.views(), instances.ages());
    let delivery = shared.delivery;
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
    for (invariant, checks) in [
        (Invariant::EventsComplete, views),
        (Invariant::ViewsInOrder, views),
        (Invariant::ViewsExist, views),
        (Invariant::ViewsNotEmpty, views),
        (Invariant::AgesHonest, ages),
        (Invariant::ViewsConverge, watchers),
    ] {
        add(invariant.into(), if is_left_out(Some(invariant), delivery) { 0 } else { checks });
    }
    add(Invariant::NoPanic.into(), 1);
    add(Invariant::Ends.into(), 1);
}

#[cfg(test)]
mod tests {
    use enlist_testkit::lock_history::Step;

    use super::*;
    use crate::{counts::Counts, world::Logs};

    /// Returns `true` for a holder that holds the lock from 10 s to 60 s, while another contender is granted it after
    /// 30 s, and whose entry ended at a time. Neither has another violation.
    fn is_excused(ended: u64, cause: EndCause) -> bool {
        const SECOND: u64 = 1_000_000;
        let (mut locks, mut losses) = (LockHistory::default(), LossHistory::default());
        losses.entry_ended(ended * SECOND, 1, cause);
        for (second, contender, step) in [
            (10, 0, Step::Granted { token: 1, shared: false }),
            (30, 1, Step::Granted { token: 2, shared: false }),
            (60, 0, Step::Believed { token: 1 }),
        ] {
            locks.step(second * SECOND, contender, step);
        }
        let [overlap] = locks.check().try_into().expect("one violation");
        is_late_notice(&locks, &losses, &overlap)
    }

    /// Returns the invariants that a watcher violates which goes back to an empty view, in a run with this delivery,
    /// and the counted checks.
    fn judged(delivery: Delivery) -> (Vec<Invariant>, Counts) {
        let world = World::new(1, Logs::Omitted);
        world.fake.put(format!("{INSTANCES}a"), r#"{"v":1}"#);
        let stored = Versions::from([("a".to_owned(), Version { created: 2, modified: 2 })]);
        {
            let mut shared = world.shared();
            shared.delivery = delivery;
            let instances = &mut shared.record.instances;
            instances.shown(0, 4, stored.clone());
            instances.shown(0, 3, Versions::new());
            instances.shown(0, 5, stored);
            instances.aged(0, 0, 5, 0);
        }
        let verdicts = judge(&world, &world.fake.journal());
        let counts = world.shared().counts.clone();
        (verdicts.iter().filter_map(|verdict| verdict.invariant).collect(), counts)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lossy_run_judges_the_order_of_views_only() {
        use Invariant::{AgesHonest, EventsComplete, ViewsExist, ViewsInOrder, ViewsNotEmpty};
        let missing = |counts: &Counts| {
            let missing = counts.missing();
            let is_missing = |check: &Invariant| missing.contains(&format!("check {check:?}"));
            let checks = [EventsComplete, ViewsInOrder, ViewsExist, ViewsNotEmpty, AgesHonest];
            checks.into_iter().filter(is_missing).collect::<Vec<_>>()
        };
        let (violated, counts) = judged(Delivery::Lossy);
        assert_eq!((violated, missing(&counts)), (vec![ViewsInOrder], vec![ViewsExist, ViewsNotEmpty, AgesHonest]));
        let (violated, counts) = judged(Delivery::Silent);
        assert_eq!((violated, missing(&counts)), (vec![ViewsInOrder, ViewsExist, ViewsNotEmpty], vec![]));
    }

    #[test]
    fn only_an_entry_that_had_ended_excuses_an_overlap() {
        assert!(is_excused(30, EndCause::Revoked) && is_excused(29, EndCause::Deleted));
        assert!(!is_excused(31, EndCause::Revoked), "two held the lock before");
        assert!(!is_excused(29, EndCause::ExpiredOrRemoved));
    }
}
