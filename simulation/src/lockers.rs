//! Contenders for one lock, and the resource that it guards.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Error, Fence, Lock, LockGuard, LockMode, LockName, LockOptions, Released, backend::MutexExt as _};
use enlist_etcd::Etcd;
use enlist_testkit::lock_history::Step;

use crate::{
    kinds::{Observed, Operation},
    operations::{BeforeRelease, Deadline, Excuse, of_acquire, of_release},
    verdicts::Invariant,
    world::{World, between},
};

/// Maximum time for which a contender holds the lock without a write, and the interval of its checks.
const LONG_HOLD: Duration = Duration::from_secs(20);
const HELD_POLL: Duration = Duration::from_millis(300);

/// Time in which a task that was woken runs.
const WAKING: Duration = Duration::from_millis(1);

/// Minimum TTL that etcd grants.
const MIN_TTL: Duration = Duration::from_secs(2);

/// A number that a fence guards.
#[derive(Default)]
pub(crate) struct Resource {
    fence: Fence,
    value: u64,
}

fn options(random: &mut fastrand::Rng) -> LockOptions {
    let mut options = LockOptions::new().ttl(Duration::from_secs(random.u64(2..7)));
    options.own_lease = random.u8(..4) == 0;
    options.deadline = (random.u8(..4) == 0).then(|| between(random, 0, 4000));
    if random.u8(..3) == 0 {
        options.mode = LockMode::Shared;
    }
    options
}

/// A contender that acquires the lock repeatedly, as writer or reader, until the run stops.
pub(crate) struct Locker {
    pub(crate) world: World,
    pub(crate) etcd: Etcd,
    pub(crate) number: usize,
    pub(crate) resource: Arc<Mutex<Resource>>,
    pub(crate) random: fastrand::Rng,
}

impl Locker {
    pub(crate) async fn run(mut self) {
        let name = LockName::parse("sim").expect("a valid name");
        while !self.world.is_stopping() {
            let options = options(&mut self.random);
            let (mode, ttl, deadline) = (options.mode, options.ttl.max(MIN_TTL), options.deadline);
            self.count_acquisition(&options);
            let from = self.world.micros();
            self.world.step(self.number, Step::Asked);
            let acquiring = self.etcd.acquire(&name, options);
            let granted = if self.random.u8(..6) == 0 {
                // Drops the future after a random time.
                self.world.count(Operation::DropAcquiring);
                tokio::time::timeout(between(&mut self.random, 0, 2000), acquiring).await.ok()
            } else {
                Some(acquiring.await)
            };
            if let Some(Err(error)) = &granted {
                self.check_refusal(error, deadline, from);
            }
            if let Some(Ok(guard)) = granted {
                self.hold(guard, mode, ttl).await;
            } else {
                self.world.count(Observed::LockNotGranted);
                self.world.step(self.number, Step::GaveUp);
            }
            tokio::time::sleep(between(&mut self.random, 0, 1000)).await;
        }
    }

    fn count_acquisition(&self, options: &LockOptions) {
        let world = &self.world;
        world.count(match options.mode {
            LockMode::Exclusive => Operation::AcquireExclusive,
            LockMode::Shared => Operation::AcquireShared,
        });
        if options.own_lease {
            world.count(Operation::AcquireUnderOwnLease);
        }
        if options.deadline.is_some() {
            world.count(Operation::AcquireWithDeadline);
        }
        world.count(Invariant::ContendersServed);
    }

    /// Checks the error of an acquisition that began at `from`.
    fn check_refusal(&self, error: &Error, deadline: Option<Duration>, from: u64) {
        let Self { world, number, .. } = self;
        let took = Duration::from_micros(world.micros() - from);
        let deadline = match deadline {
            None => Deadline::Unlimited,
            Some(limit) if took < limit => Deadline::Running,
            Some(_) => Deadline::Over,
        };
        let detail = format!("locker {number} after {took:?}: {error:?}");
        world.suspect(Invariant::ErrorsJustified, of_acquire(error, deadline), from, detail);
    }

    async fn hold(&mut self, guard: LockGuard, mode: LockMode, ttl: Duration) {
        let Self { world, number, .. } = self;
        let (world, number) = (world.clone(), *number);
        let token = guard.fencing_token().get();
        let ttl = u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX);
        let from = world.micros();
        world.shared().losses.granted(token, ttl);
        world.step(number, Step::Granted { token, shared: mode == LockMode::Shared });
        if self.random.u8(..8) == 0 {
            self.hold_long(&guard).await;
        }
        for _ in 0..self.random.u8(1..8) {
            if !world.check_held(number, &guard) {
                break;
            }
            self.increment(&guard, mode).await;
        }
        let held = world.check_held(number, &guard);
        let excuse = (!held).then_some(Excuse::EntryEnded(token));
        world.suspect(Invariant::LocksKept, excuse, from, format!("the lock {token} is lost"));
        if !held {
            world.count_loss(&guard);
        }
        if self.random.bool() {
            world.count(Operation::Release);
            let before = if held { BeforeRelease::Held { token } } else { BeforeRelease::Lost };
            let from = world.micros();
            let released = guard.release().await;
            world.log(|| format!("locker {number}: released, {released:?}"));
            let detail = format!("the release of {token} returned {released:?}");
            world.suspect(Invariant::ErrorsJustified, of_release(before, &released), from, detail);
            if let Ok(Released::Released) = released {
                world.count(Invariant::ReleaseConfirmed);
                if has_queue_entry(&world, token) {
                    let detail = format!("the queue entry {token} exists although its release was confirmed");
                    world.broken(Invariant::ReleaseConfirmed, detail);
                }
            }
        } else {
            world.count(Operation::DropGuard);
            drop(guard);
        }
        world.step(number, Step::Ended { token });
    }

    /// Holds the lock until it is lost, the run stops, or a time is over.
    async fn hold_long(&self, guard: &LockGuard) {
        self.world.count(Operation::HoldLong);
        let begun = tokio::time::Instant::now();
        let mut lost = std::pin::pin!(guard.lost());
        while begun.elapsed() < LONG_HOLD && !self.world.is_stopping() {
            let held = self.world.check_held(self.number, guard);
            let limit = if held { HELD_POLL } else { WAKING };
            let signalled = tokio::time::timeout(limit, lost.as_mut()).await.ok();
            if held && signalled.is_none() {
                continue;
            }
            let held = held && self.world.check_held(self.number, guard);
            return self.world.check_signal(guard.fencing_token().get(), held, signalled);
        }
    }

    /// Waits, and increments the resource meanwhile if the lock is exclusive.
    async fn increment(&mut self, guard: &LockGuard, mode: LockMode) {
        let token = guard.fencing_token();
        let pause = between(&mut self.random, 0, 1500);
        let read = {
            let mut resource = self.resource.locked();
            let admitted = if mode == LockMode::Shared { None } else { resource.fence.admit(token).ok() };
            admitted.map(|()| resource.value)
        };
        tokio::time::sleep(pause).await;
        if let Some(value) = read {
            let mut resource = self.resource.locked();
            if resource.fence.admit(token).is_ok() {
                resource.value = value + 1;
                self.world.shared().value = resource.value;
                self.world.count(Operation::WriteResource);
                self.world.step(self.number, Step::Wrote { token: token.get() });
            }
        }
    }
}

/// Returns `true` if the queue entry of a token is in the store.
fn has_queue_entry(world: &World, token: u64) -> bool {
    let created = i64::try_from(token).unwrap_or(i64::MAX);
    let journal = world.fake.journal();
    let Some(put) = journal.iter().find(|change| change.created == created && change.value.is_some()) else {
        return false;
    };
    !journal.iter().any(|change| change.key == put.key && change.value.is_none() && change.revision > created)
}
