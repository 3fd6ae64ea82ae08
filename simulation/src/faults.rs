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

/// Time after which an event has reached each watch that works.
const DELIVERED: Duration = Duration::from_millis(1);

/// Part of the keys without a meaning.
const GARBAGE: &str = "garbage";

/// Faults that neither end a lease nor prolong one. A revocation does if there is a lease, and misbehavior when it
/// happens.
const CALM: [Fault; 6] =
    [Fault::Compact, Fault::DeleteInstance, Fault::DeleteQueueEntry, Fault::Garbage, Fault::Revoke, Fault::Misbehavior];

/// Faults that may delay messages to a client while they last.
const CUT_OFF: [Fault; 6] = [Fault::Freeze, Fault::Stall, Fault::Cut, Fault::Refuse, Fault::Deny, Fault::Slow];

/// Faults that may delay messages to a client, or its requests, while they last.
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

/// Returns a random misbehavior.
fn misbehavior(random: &mut fastrand::Rng) -> Misbehavior {
    match random.u8(..17) {
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
    }
}

/// Returns the effect of a misbehavior on the delivery of events.
fn delivery(misbehavior: Misbehavior) -> Delivery {
    match misbehavior {
        Misbehavior::UnknownType | Misbehavior::NoKey | Misbehavior::Lose | Misbehavior::EarlyProgress => {
            Delivery::Lossy
        }
        Misbehavior::Silence => Delivery::Silent,
        _ => Delivery::Complete,
    }
}

/// Returns the time from the beginning of a misbehavior until it may last delay messages or requests, recovery aside:
/// until the audit for a lost event. `None` if it delays nothing.
fn delay(misbehavior: Misbehavior) -> Option<Duration> {
    match misbehavior {
        Misbehavior::Twice | Misbehavior::Again(_) => None,
        Misbehavior::LateWatch(delay) | Misbehavior::LateTxn(delay) => Some(delay),
        _ if delivery(misbehavior) == Delivery::Lossy => Some(AUDIT_INTERVAL),
        _ => Some(Duration::ZERO),
    }
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

/// Fault that is being injected.
#[derive(Debug)]
struct PresentFault {
    kind: Fault,
    link: Link,
    since: u64,
    /// Its effects on requests, messages or connections when it began.
    before: Option<usize>,
}

impl PresentFault {
    fn begin(world: &World, kind: Fault, link: &Link) -> Self {
        let mut fault = Self { kind, link: link.clone(), since: world.micros(), before: None };
        fault.before = fault.effects(world);
        let mut shared = world.shared();
        shared.calm &= CALM.contains(&kind);
        shared.cut_off |= CUT_OFF.contains(&kind);
        drop(shared);
        fault
    }

    /// Records the end of the fault, and counts it if it had an effect.
    fn end(&self, world: &World) {
        if self.effects(world) > self.before {
            world.count(Kind::Fault(self.kind));
        }
        if DISTURBANCES.contains(&self.kind) {
            let now = world.micros();
            world.shared().losses.disturbed(self.since, now, RECOVERY);
        }
    }

    /// Returns a number that grows when a fault of this kind has an effect; `None` for one that has it at once, or when
    /// the server misbehaves.
    fn effects(&self, world: &World) -> Option<usize> {
        match self.kind {
            Fault::Freeze | Fault::HoldRenewals | Fault::HoldRevocations | Fault::Slow => Some(world.fake.delays()),
            Fault::Deny => Some(world.fake.requests().denied),
            Fault::Stall | Fault::Cut | Fault::Refuse => Some(self.link.disturbed()),
            Fault::Compact
            | Fault::Revoke
            | Fault::DeleteInstance
            | Fault::DeleteQueueEntry
            | Fault::Garbage
            | Fault::Misbehavior => None,
        }
    }
}

/// Gives the server a known defect, in a quarter of the runs. Clients ask for its version, so it must have it before.
pub(crate) fn set_known_defect(world: &World, random: &mut fastrand::Rng) {
    let Some(kind) = KnownDefect::ALL.get(random.usize(..24)).copied() else { return };
    world.log(|| format!("defect: {kind:?}"));
    world.fake.set_defect(defect_of_etcd(kind));
    let mut shared = world.shared();
    shared.known_defect = Some(kind);
    shared.calm = kind != KnownDefect::FormerLeaderRevokes;
    shared.stale_reads_of = (kind == KnownDefect::StaleReads).then(|| world.fake.revision());
    if kind == KnownDefect::EarlyProgress {
        // It holds all events back.
        (shared.delivery, shared.cut_off) = (Delivery::Silent, true);
    }
}

fn defect_of_etcd(kind: KnownDefect) -> EtcdDefect {
    match kind {
        KnownDefect::EarlyProgress => EtcdDefect::EarlyProgress,
        KnownDefect::ForgottenDeletion => EtcdDefect::ForgottenDeletion,
        KnownDefect::FormerLeaderRevokes => EtcdDefect::FormerLeaderRevokes,
        KnownDefect::OldEvents => EtcdDefect::OldEvents,
        KnownDefect::StaleReads => EtcdDefect::StaleReads,
        KnownDefect::RevokedLeaseRenewed => EtcdDefect::RevokedLeaseRenewed,
    }
}

/// Injects faults until `end`, and ends all that last.
pub(crate) async fn nemesis(world: World, links: Vec<Link>, end: Duration, mut random: fastrand::Rng) {
    let mut kinds: Vec<_> = Fault::ALL.iter().copied().filter(|_| random.u8(..3) == 0).collect();
    if kinds.is_empty() {
        kinds.extend(Fault::ALL);
    }
    let pace = between(&mut random, 500, 8000);
    let mut present = None;
    let faults = async {
        loop {
            tokio::time::sleep(pace.mul_f64(random.f64() * 2.0)).await;
            let kind = kinds[random.usize(..kinds.len())];
            world.log(|| format!("fault: {kind:?}"));
            let link = &links[random.usize(..links.len())];
            let fault = present.insert(PresentFault::begin(&world, kind, link));
            inject(&world, kind, link, &mut random).await;
            fault.end(&world);
            present = None;
        }
    };
    let _ = tokio::time::timeout(end, faults).await;
    if let Some(fault) = present {
        fault.end(&world);
    }
    record_misbehavior(&world);
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
fn record_misbehavior(world: &World) {
    for Misbehaved { at, misbehavior, .. } in world.fake.misbehaved() {
        world.count(Kind::Fault(Fault::Misbehavior));
        let text = format!("{misbehavior:?}");
        let name = text.split('(').next().unwrap_or_default();
        if let Some(kind) = ServerDefect::ALL.iter().find(|kind| format!("{kind:?}") == name) {
            world.count(Kind::ServerDefect(*kind));
        }
        let mut shared = world.shared();
        shared.delivery = shared.delivery.max(delivery(misbehavior));
        shared.calm &= misbehavior != Misbehavior::LeaseGone;
        if let Some(delay) = delay(misbehavior) {
            shared.cut_off = true;
            shared.losses.disturbed(world.micros_at(at), world.micros_at(at + delay), RECOVERY);
        }
    }
    let shown = world.fake.shown_defects();
    for kind in KnownDefect::ALL.iter().filter(|kind| shown.contains(&defect_of_etcd(**kind))) {
        world.count(Kind::KnownDefect(*kind));
    }
    let now = world.micros();
    let mut shared = world.shared();
    if shared.known_defect == Some(KnownDefect::EarlyProgress) {
        shared.losses.disturbed(0, now, RECOVERY);
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
            if change_store(world, fault, random) {
                world.count(Kind::Fault(fault));
            }
            if world.shared().known_defect == Some(KnownDefect::ForgottenDeletion) {
                // It concerns a deletion at the compacted revision, and watches that have not received it by then.
                tokio::time::sleep(DELIVERED).await;
                world.compact();
            }
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
            let misbehavior = misbehavior(random);
            world.log(|| format!("misbehavior: {misbehavior:?}"));
            fake.misbehave(misbehavior);
        }
    }
}

/// Changes the store as an operator or a foreign program could. Returns `true` if there was something to change.
fn change_store(world: &World, fault: Fault, random: &mut fastrand::Rng) -> bool {
    match fault {
        Fault::Revoke => revoke_lease(world, random),
        Fault::DeleteInstance => delete_instance(world, random),
        Fault::DeleteQueueEntry => delete_queue_entry(world, random),
        Fault::Garbage => {
            let prefix = [INSTANCES, LOCK_QUEUE][random.usize(..2)];
            world.fake.put(format!("{prefix}{GARBAGE}-{}", random.u8(..3)), "{\"v\":");
            true
        }
        _ => world.compact(),
    }
}

fn revoke_lease(world: &World, random: &mut fastrand::Rng) -> bool {
    let leases = world.fake.lease_ids();
    if leases.is_empty() {
        return false;
    }
    let lease = leases[random.usize(..leases.len())];
    let now = world.micros();
    let mut shared = world.shared();
    shared.calm = false;
    shared.record.locks.revoked(now, lease);
    shared.revoked.insert((lease, now));
    shared.operations.removals.insert(now);
    drop(shared);
    world.fake.revoke(lease)
}

fn delete_instance(world: &World, random: &mut fastrand::Rng) -> bool {
    let pairs = world.fake.under(INSTANCES.as_bytes());
    if pairs.is_empty() {
        return false;
    }
    let (key, _) = &pairs[random.usize(..pairs.len())];
    if !is_garbage(key) {
        let now = world.micros();
        world.shared().operations.removals.insert(now);
    }
    world.fake.delete(key) && !is_garbage(key)
}

fn delete_queue_entry(world: &World, random: &mut fastrand::Rng) -> bool {
    let pairs = world.fake.under(LOCK_QUEUE.as_bytes());
    if pairs.is_empty() {
        return false;
    }
    let (key, _) = &pairs[random.usize(..pairs.len())];
    let journal = world.fake.journal();
    let Some(put) = journal.iter().rev().find(|change| change.key == *key) else { return false };
    let (now, token) = (world.micros(), u64::try_from(put.created).unwrap_or(0));
    let mut shared = world.shared();
    shared.record.locks.deleted(now, token);
    shared.removed.insert(token);
    drop(shared);
    world.fake.delete(key) && !is_garbage(key)
}

/// Returns `true` for a key that [`Fault::Garbage`] put.
pub(crate) fn is_garbage(key: &[u8]) -> bool {
    String::from_utf8_lossy(key).contains(GARBAGE)
}

#[cfg(test)]
mod tests {
    use enlist::Resolver as _;

    use super::*;
    use crate::world::{Logs, service};

    fn is_counted(world: &World, fault: Fault) -> bool {
        !world.shared().counts.missing().contains(&format!("fault {fault:?}"))
    }

    async fn inject_at_once(world: &World, fault: Fault) {
        let (link, mut random) = (world.client().1, fastrand::Rng::with_seed(1));
        inject(world, fault, &link, &mut random).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_nothing_is_not_counted() {
        let world = World::new(0, Logs::Omitted);
        let faults = [Fault::Revoke, Fault::DeleteInstance, Fault::DeleteQueueEntry];
        for fault in faults {
            inject_at_once(&world, fault).await;
            assert!(!is_counted(&world, fault), "{fault:?}");
        }
        assert!(world.shared().calm && world.shared().operations.removals.is_empty());
        world.fake.put(format!("{INSTANCES}{GARBAGE}-1"), "");
        inject_at_once(&world, Fault::DeleteInstance).await;
        assert!(!is_counted(&world, Fault::DeleteInstance), "it was no instance");
        let (etcd, _) = world.client();
        let lock = enlist::LockName::parse("sim").unwrap();
        let _guard = enlist::Lock::acquire(&etcd, &lock, enlist::LockOptions::new()).await.unwrap();
        world.fake.put(format!("{INSTANCES}a"), "");
        for fault in [Fault::DeleteInstance, Fault::DeleteQueueEntry, Fault::Revoke] {
            inject_at_once(&world, fault).await;
            assert!(is_counted(&world, fault), "{fault:?}");
        }
        assert!(!world.shared().calm && !world.shared().operations.removals.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_compaction_is_counted_once_per_revision() {
        let world = World::new(0, Logs::Omitted);
        let mut random = fastrand::Rng::with_seed(1);
        assert!(change_store(&world, Fault::Compact, &mut random));
        assert!(!change_store(&world, Fault::Compact, &mut random), "there is nothing new");
    }

    /// Returns `true` if a fault is counted during which a client resolves, or nobody does anything.
    async fn counts(fault: Fault, resolves: bool) -> bool {
        let world = World::new(0, Logs::Omitted);
        let (etcd, link) = world.client();
        if fault == Fault::Cut && resolves {
            etcd.resolve(&service()).await.unwrap();
        }
        let present = PresentFault::begin(&world, fault, &link);
        let mut random = fastrand::Rng::with_seed(1);
        let during = async {
            tokio::task::yield_now().await;
            if resolves {
                drop(etcd.resolve(&service()).await);
            }
        };
        tokio::join!(inject(&world, fault, &link, &mut random), during);
        present.end(&world);
        is_counted(&world, fault)
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_nobody_notices_is_not_counted() {
        for fault in [Fault::Freeze, Fault::Deny, Fault::Refuse, Fault::Cut] {
            assert!(counts(fault, true).await, "{fault:?}");
            assert!(!counts(fault, false).await, "{fault:?}");
        }
        assert!(!counts(Fault::HoldRenewals, true).await, "there is no lease");
    }

    #[tokio::test(start_paused = true)]
    async fn misbehavior_excuses_from_its_occurrence_on() {
        const SECOND: u64 = 1_000_000;
        let world = World::new(0, Logs::Omitted);
        world.fake.misbehave(Misbehavior::NoList);
        world.fake.misbehave(Misbehavior::Lose);
        world.fake.misbehave(Misbehavior::LateTxn(Duration::ZERO));
        let (etcd, _) = world.client();
        tokio::time::sleep(Duration::from_secs(5)).await;
        etcd.resolve(&service()).await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(40)).await;
        record_misbehavior(&world);
        assert!(is_counted(&world, Fault::Misbehavior));
        let shared = world.shared();
        assert_eq!((shared.delivery, shared.calm, shared.cut_off), (Delivery::Complete, true, true));
        let is_disturbed = |second| shared.losses.is_disturbed(second * SECOND, second * SECOND);
        assert_eq!([4, 5, 20, 21].map(is_disturbed), [false, true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn misbehavior_that_never_happens_excuses_nothing() {
        let world = World::new(0, Logs::Omitted);
        inject_at_once(&world, Fault::Misbehavior).await;
        record_misbehavior(&world);
        let shared = world.shared();
        assert_eq!((shared.delivery, shared.calm, shared.cut_off), (Delivery::Complete, true, false));
        assert!(!shared.losses.is_disturbed(0, u64::MAX));
        drop(shared);
        assert!(!is_counted(&world, Fault::Misbehavior));
    }

    #[test]
    fn repeated_events_delay_nothing() {
        assert_eq!((delay(Misbehavior::Twice), delay(Misbehavior::Again(3))), (None, None));
        assert_eq!(delay(Misbehavior::LateTxn(AUDIT_INTERVAL)), Some(AUDIT_INTERVAL));
        assert_eq!(delay(Misbehavior::Lose), Some(AUDIT_INTERVAL));
        assert_eq!(delay(Misbehavior::Silence), Some(Duration::ZERO));
    }
}
