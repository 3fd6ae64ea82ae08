//! Faults of a run, in the network and in etcd.

use std::time::Duration;

use enlist_testkit::{Direction, EtcdDefect, Link, Misbehaved, Misbehavior, losses::RECOVERY};
use tokio::time::Instant;

use crate::{
    counts::Kind,
    kinds::{Fault, KnownDefect, ServerDefect},
    world::{AUDIT_INTERVAL, Delivery, INSTANCES, LOCK_QUEUE, World, between},
};

/// Maximum delay of a transaction that is executed late.
const MAX_LATENESS: u64 = 30_000;

/// Faults that neither end a lease nor prolong one.
const CALM: [Fault; 4] = [Fault::Compact, Fault::DeleteInstance, Fault::DeleteQueueEntry, Fault::Garbage];

/// Faults that may delay messages to a client.
const CUT_OFF: [Fault; 7] =
    [Fault::Freeze, Fault::Stall, Fault::Cut, Fault::Refuse, Fault::Deny, Fault::Slow, Fault::Misbehavior];

/// Faults that may delay messages to a client, or its requests, while they last. Misbehavior may do so until all faults
/// end, because it waits for its occasion.
const DISTURBANCES: [Fault; 8] = [
    Fault::Freeze,
    Fault::Stall,
    Fault::Cut,
    Fault::Refuse,
    Fault::Deny,
    Fault::Slow,
    Fault::HoldRenewals,
    Fault::HoldRevocations,
];

/// Returns a random misbehavior, and its effect on the delivery of events.
fn misbehavior(random: &mut fastrand::Rng) -> (Misbehavior, Delivery) {
    let misbehavior = match random.u8(..17) {
        0 => Misbehavior::Twice,
        1 => Misbehavior::Again(random.u32(1..20)),
        2 => Misbehavior::Silence,
        3 => Misbehavior::LateWatch(between(random, 100, 15_000)),
        4 | 5 | 13..17 => Misbehavior::LateTxn(between(random, 100, MAX_LATENESS)),
        6 => Misbehavior::NoList,
        7 => Misbehavior::LeaseGone,
        8 => Misbehavior::UnknownType,
        9 => Misbehavior::NoKey,
        10 => Misbehavior::Lose,
        11 => Misbehavior::EarlyProgress,
        _ => Misbehavior::Refuse("etcdserver: mvcc: required revision has been compacted"),
    };
    let delivery = match misbehavior {
        Misbehavior::UnknownType | Misbehavior::NoKey | Misbehavior::Lose | Misbehavior::EarlyProgress => {
            Delivery::Lossy
        }
        Misbehavior::Silence => Delivery::Silent,
        _ => Delivery::Complete,
    };
    (misbehavior, delivery)
}

/// Returns the time from which on all late transactions so far are done, and their number; `None` without one.
pub(crate) fn late_transactions(world: &World) -> Option<(Instant, usize)> {
    let late: Vec<_> = world
        .fake
        .misbehaved()
        .into_iter()
        .filter_map(|it| match it.misbehavior {
            Misbehavior::LateTxn(delay) => Some(it.at + delay),
            _ => None,
        })
        .collect();
    Some((*late.iter().max()?, late.len()))
}

/// Gives the server a known defect, in a quarter of the runs. Clients ask for its version, so it must have it before.
pub(crate) fn set_known_defect(world: &World, random: &mut fastrand::Rng) {
    let Some(kind) = KnownDefect::ALL.get(random.usize(..24)).copied() else { return };
    world.log(|| format!("defect: {kind:?}"));
    world.count(Kind::KnownDefect(kind));
    world.fake.set_defect(match kind {
        KnownDefect::EarlyProgress => EtcdDefect::EarlyProgress,
        KnownDefect::ForgottenDeletion => EtcdDefect::ForgottenDeletion,
        KnownDefect::FormerLeaderRevokes => EtcdDefect::FormerLeaderRevokes,
        KnownDefect::OldEvents => EtcdDefect::OldEvents,
        KnownDefect::StaleReads => EtcdDefect::StaleReads,
        KnownDefect::RevokedLeaseRenewed => EtcdDefect::RevokedLeaseRenewed,
    });
    world.shared().calm = kind != KnownDefect::FormerLeaderRevokes;
    world.shared().stale_reads_of = (kind == KnownDefect::StaleReads).then(|| world.fake.revision());
    if kind == KnownDefect::EarlyProgress {
        // It holds all events back.
        let mut shared = world.shared();
        (shared.delivery, shared.cut_off) = (Delivery::Silent, true);
        (shared.misbehaved_since, shared.misbehavior_recovery) = (Some(0), RECOVERY);
    }
}

/// Returns the time after the end of all faults in which a misbehavior may still have an effect on clients: that of
/// any fault, later for a late transaction, and until the audit for a lost event.
fn recovery(misbehavior: Misbehavior, delivery: Delivery) -> u64 {
    let later = match (misbehavior, delivery) {
        (Misbehavior::LateTxn(_), _) => Duration::from_millis(MAX_LATENESS),
        (_, Delivery::Lossy) => AUDIT_INTERVAL,
        _ => Duration::ZERO,
    };
    RECOVERY + u64::try_from(later.as_micros()).unwrap_or(u64::MAX)
}

/// Injects faults until `end`, and ends all that last.
pub(crate) async fn nemesis(world: World, links: Vec<Link>, end: Duration, mut random: fastrand::Rng) {
    let mut kinds: Vec<_> = Fault::ALL.iter().copied().filter(|_| random.u8(..3) == 0).collect();
    if kinds.is_empty() {
        kinds.extend(Fault::ALL);
    }
    world.shared().calm &= kinds.iter().all(|kind| CALM.contains(kind));
    world.shared().cut_off |= kinds.iter().any(|kind| CUT_OFF.contains(kind));
    let pace = between(&mut random, 500, 8000);
    let faults = async {
        loop {
            tokio::time::sleep(pace.mul_f64(random.f64() * 2.0)).await;
            let kind = kinds[random.usize(..kinds.len())];
            world.log(|| format!("fault: {kind:?}"));
            world.count(Kind::Fault(kind));
            let link = &links[random.usize(..links.len())];
            if DISTURBANCES.contains(&kind) {
                world.shared().disturbed_since = Some(world.micros());
            }
            inject(&world, kind, link, &mut random).await;
            world.end_disturbance();
        }
    };
    let _ = tokio::time::timeout(end, faults).await;
    world.end_disturbance();
    count_misbehavior(&world);
    world.log(|| "all faults have ended".to_owned());
    world.fake.thaw();
    world.fake.release_renewals();
    world.fake.release_revocations();
    world.permit_access();
    world.fake.slow_down(Duration::ZERO);
    world.fake.cancel_misbehavior();
    world.fake.mend();
    for link in links {
        link.accept_connections();
        link.stall(None);
    }
}

/// Counts the defects of the server that have shown, and records the times in which they may have had an effect.
fn count_misbehavior(world: &World) {
    for Misbehaved { misbehavior, .. } in world.fake.misbehaved() {
        let text = format!("{misbehavior:?}");
        let name = text.split('(').next().unwrap_or_default();
        if let Some(kind) = ServerDefect::ALL.iter().find(|kind| format!("{kind:?}") == name) {
            world.count(Kind::ServerDefect(*kind));
        }
    }
    let now = world.micros();
    let mut shared = world.shared();
    if let Some(since) = shared.misbehaved_since {
        let recovery = shared.misbehavior_recovery;
        shared.losses.disturbed(since, now, recovery);
    }
    if let Some(since) = shared.unwatchable_since {
        shared.losses.unwatchable(since, now, RECOVERY);
    }
}

/// Compacts the history in a third of the calls, so that a client that returns has missed events for good.
fn compact_sometimes(world: &World, random: &mut fastrand::Rng) {
    if random.u8(..3) == 0 {
        world.compact();
    }
}

/// Injects one fault. Most are short; some outlast leases.
async fn inject(world: &World, fault: Fault, link: &Link, random: &mut fastrand::Rng) {
    let most = [500, 3000, 20_000][random.usize(..3)];
    let time = between(random, 50, most);
    match fault {
        Fault::Stall | Fault::Cut | Fault::Refuse => disturb_link(world, fault, link, time, random).await,
        Fault::Freeze
        | Fault::HoldRenewals
        | Fault::HoldRevocations
        | Fault::Deny
        | Fault::Slow
        | Fault::Misbehavior => disturb_server(world, fault, time, random).await,
        Fault::Compact | Fault::Revoke | Fault::DeleteInstance | Fault::DeleteQueueEntry | Fault::Garbage => {
            change_store(world, fault, random);
        }
    }
}

async fn disturb_link(world: &World, fault: Fault, link: &Link, time: Duration, random: &mut fastrand::Rng) {
    match fault {
        Fault::Stall => {
            let directions = [Direction::ToClient, Direction::ToServer, Direction::Both];
            link.stall(Some(directions[random.usize(..3)]));
            tokio::time::sleep(time).await;
            if random.bool() {
                link.cut();
                compact_sometimes(world, random);
            }
            link.stall(None);
        }
        Fault::Refuse => {
            link.refuse_connections();
            link.cut();
            tokio::time::sleep(time).await;
            compact_sometimes(world, random);
            link.accept_connections();
        }
        _ => link.cut(),
    }
}

async fn disturb_server(world: &World, fault: Fault, time: Duration, random: &mut fastrand::Rng) {
    let fake = &world.fake;
    match fault {
        Fault::Freeze => {
            fake.freeze();
            tokio::time::sleep(time).await;
            fake.thaw();
        }
        Fault::HoldRenewals => {
            fake.hold_renewals();
            tokio::time::sleep(time).await;
            fake.release_renewals();
        }
        Fault::HoldRevocations => {
            fake.hold_revocations();
            tokio::time::sleep(time).await;
            fake.release_revocations();
        }
        Fault::Deny => {
            world.shared().operations.denied(world.micros());
            fake.deny_access();
            tokio::time::sleep(time).await;
            world.permit_access();
        }
        Fault::Slow => {
            fake.slow_down(between(random, 10, 500));
            tokio::time::sleep(time).await;
            fake.slow_down(Duration::ZERO);
        }
        _ => {
            let (misbehavior, delivery) = misbehavior(random);
            world.log(|| format!("misbehavior: {misbehavior:?}"));
            let now = world.micros();
            let mut shared = world.shared();
            shared.delivery = shared.delivery.max(delivery);
            shared.misbehaved_since.get_or_insert(now);
            shared.misbehavior_recovery = shared.misbehavior_recovery.max(recovery(misbehavior, delivery));
            drop(shared);
            fake.misbehave(misbehavior);
        }
    }
}

/// Changes the store as an operator or a foreign program could.
fn change_store(world: &World, fault: Fault, random: &mut fastrand::Rng) {
    let fake = &world.fake;
    match fault {
        Fault::Revoke => {
            let leases = fake.lease_ids();
            if !leases.is_empty() {
                let lease = leases[random.usize(..leases.len())];
                let now = world.micros();
                world.shared().record.locks.revoked(now, lease);
                world.shared().revoked.insert((lease, now));
                world.shared().operations.removals.insert(now);
                fake.revoke(lease);
            }
        }
        Fault::DeleteInstance => {
            let pairs = fake.under(INSTANCES.as_bytes());
            if !pairs.is_empty() {
                let now = world.micros();
                world.shared().operations.removals.insert(now);
                fake.delete(&pairs[random.usize(..pairs.len())].0);
            }
        }
        Fault::DeleteQueueEntry => {
            let pairs = fake.under(LOCK_QUEUE.as_bytes());
            if !pairs.is_empty() {
                let (key, _) = &pairs[random.usize(..pairs.len())];
                let journal = fake.journal();
                if let Some(put) = journal.iter().rev().find(|change| change.key == *key) {
                    let (now, token) = (world.micros(), u64::try_from(put.created).unwrap_or(0));
                    world.shared().record.locks.deleted(now, token);
                    world.shared().removed.insert(token);
                    fake.delete(key);
                }
            }
        }
        Fault::Garbage => {
            let prefix = [INSTANCES, LOCK_QUEUE][random.usize(..2)];
            fake.put(format!("{prefix}garbage-{}", random.u8(..3)), "{\"v\":");
        }
        _ => world.compact(),
    }
}
