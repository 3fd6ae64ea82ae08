//! Faults of a run, in the network and in etcd.

use std::time::Duration;

use enlist_testkit::{Direction, Link, Misbehavior};

use crate::world::{INSTANCES, LINE, Told, World, between};

/// A kind of fault. Each run has its own choice of them: what is never mixed is found no more often than what always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Freeze,
    Stall,
    Cut,
    Refuse,
    Compact,
    Revoke,
    DeleteInstance,
    DeletePlace,
    Garbage,
    HoldRenewals,
    HoldRevocations,
    Deny,
    Slow,
    Misbehavior,
}

const ALL: [Fault; 14] = [
    Fault::Freeze,
    Fault::Stall,
    Fault::Cut,
    Fault::Refuse,
    Fault::Compact,
    Fault::Revoke,
    Fault::DeleteInstance,
    Fault::DeletePlace,
    Fault::Garbage,
    Fault::HoldRenewals,
    Fault::HoldRevocations,
    Fault::Deny,
    Fault::Slow,
    Fault::Misbehavior,
];

/// Those that cost no lease, and keep no lease alive.
const CALM: [Fault; 4] = [Fault::Compact, Fault::DeleteInstance, Fault::DeletePlace, Fault::Garbage];

/// Those because of which a client may not hear of what happens.
const CUT_OFF: [Fault; 7] =
    [Fault::Freeze, Fault::Stall, Fault::Cut, Fault::Refuse, Fault::Deny, Fault::Slow, Fault::Misbehavior];

/// A lie, and what a watch is told by it.
fn lie(random: &mut fastrand::Rng) -> (Misbehavior, Told) {
    let lie = match random.u8(..17) {
        0 => Misbehavior::Twice,
        1 => Misbehavior::Again(random.u32(1..20)),
        2 => Misbehavior::Silence,
        3 => Misbehavior::LateWatch(between(random, 100, 15_000)),
        4 | 5 | 13..17 => Misbehavior::LateTxn(between(random, 100, 30_000)),
        6 => Misbehavior::NoList,
        7 => Misbehavior::LeaseGone,
        8 => Misbehavior::UnknownType,
        9 => Misbehavior::NoKey,
        10 => Misbehavior::Lose,
        11 => Misbehavior::EarlyProgress,
        _ => Misbehavior::Refuse("etcdserver: mvcc: required revision has been compacted"),
    };
    let told = match lie {
        Misbehavior::UnknownType | Misbehavior::NoKey | Misbehavior::Lose | Misbehavior::EarlyProgress => Told::Less,
        Misbehavior::Silence => Told::Nothing,
        _ => Told::Everything,
    };
    (lie, told)
}

/// Brings faults about until `end`, and heals what can be healed.
pub(crate) async fn nemesis(world: World, links: Vec<Link>, end: Duration, mut random: fastrand::Rng) {
    let mut kinds: Vec<_> = ALL.into_iter().filter(|_| random.u8(..3) == 0).collect();
    if kinds.is_empty() {
        kinds.extend(ALL);
    }
    world.shared().calm = kinds.iter().all(|kind| CALM.contains(kind));
    world.shared().cut_off = kinds.iter().any(|kind| CUT_OFF.contains(kind));
    let pace = between(&mut random, 500, 8000);
    let bring = async {
        loop {
            tokio::time::sleep(pace.mul_f64(random.f64() * 2.0)).await;
            let kind = kinds[random.usize(..kinds.len())];
            world.log(|| format!("fault: {kind:?}"));
            let link = &links[random.usize(..links.len())];
            bring_about(&world, kind, link, &mut random).await;
        }
    };
    let _ = tokio::time::timeout(end, bring).await;
    world.log(|| "all is healed".to_owned());
    world.fake.thaw();
    world.fake.hold_renewals(false);
    world.fake.hold_revocations(false);
    world.fake.set_denied(false);
    world.fake.slow_down(Duration::ZERO);
    world.fake.be_honest();
    for link in links {
        link.refuse(false);
        link.stall(None);
    }
}

/// Now and then what a client has missed is forgotten before it is back.
fn forget(world: &World, random: &mut fastrand::Rng) {
    if random.u8(..3) == 0 {
        world.fake.compact();
    }
}

async fn bring_about(world: &World, kind: Fault, link: &Link, random: &mut fastrand::Rng) {
    // Mostly short; some outlast leases.
    let most = [500, 3000, 20_000][random.usize(..3)];
    let time = between(random, 50, most);
    let fake = &world.fake;
    match kind {
        Fault::Freeze => {
            fake.freeze();
            tokio::time::sleep(time).await;
            fake.thaw();
        }
        Fault::Stall => {
            let directions = [Direction::ToClient, Direction::ToServer, Direction::Both];
            link.stall(Some(directions[random.usize(..3)]));
            tokio::time::sleep(time).await;
            if random.bool() {
                link.cut();
                forget(world, random);
            }
            link.stall(None);
        }
        Fault::Cut => link.cut(),
        Fault::Refuse => {
            link.refuse(true);
            link.cut();
            tokio::time::sleep(time).await;
            forget(world, random);
            link.refuse(false);
        }
        Fault::Compact => fake.compact(),
        Fault::Revoke => {
            let leases = fake.lease_ids();
            if !leases.is_empty() {
                let lease = leases[random.usize(..leases.len())];
                let now = world.micros();
                world.shared().record.locks.revoked(now, lease);
                world.shared().revoked.insert(lease);
                fake.revoke(lease);
            }
        }
        Fault::DeleteInstance => {
            let there = fake.under(INSTANCES.as_bytes());
            if !there.is_empty() {
                fake.delete(&there[random.usize(..there.len())].0);
            }
        }
        Fault::DeletePlace => {
            let there = fake.under(LINE.as_bytes());
            if !there.is_empty() {
                let (key, _) = &there[random.usize(..there.len())];
                let journal = fake.journal();
                if let Some(put) = journal.iter().rev().find(|written| written.key == *key) {
                    let (now, token) = (world.micros(), u64::try_from(put.created).unwrap_or(0));
                    world.shared().record.locks.deleted(now, token);
                    world.shared().deleted.insert(token);
                    fake.delete(key);
                }
            }
        }
        Fault::Garbage => {
            let place = [INSTANCES, LINE][random.usize(..2)];
            fake.put(format!("{place}garbage-{}", random.u8(..3)), "{\"v\":");
        }
        Fault::HoldRenewals => {
            fake.hold_renewals(true);
            tokio::time::sleep(time).await;
            fake.hold_renewals(false);
        }
        Fault::HoldRevocations => {
            fake.hold_revocations(true);
            tokio::time::sleep(time).await;
            fake.hold_revocations(false);
        }
        Fault::Deny => {
            fake.set_denied(true);
            tokio::time::sleep(time).await;
            fake.set_denied(false);
        }
        Fault::Slow => {
            fake.slow_down(between(random, 10, 500));
            tokio::time::sleep(time).await;
            fake.slow_down(Duration::ZERO);
        }
        Fault::Misbehavior => {
            let (lie, told) = lie(random);
            world.log(|| format!("lie: {lie:?}"));
            let so_far = world.shared().told;
            world.shared().told = so_far.max(told);
            fake.lie(lie);
        }
    }
}
