//! Contenders for one lock, and the resource that it guards.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Fence, Lock, LockGuard, LockMode, LockName, LockOptions, Released, backend::MutexExt as _};
use enlist_etcd::Etcd;
use enlist_testkit::lock_history::Step;

use crate::world::{World, between};

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
            let mode = options.mode;
            self.world.step(self.number, Step::Asked);
            let acquiring = self.etcd.acquire(&name, options);
            let granted = if self.random.u8(..6) == 0 {
                // Drops the future after a random time.
                tokio::time::timeout(between(&mut self.random, 0, 2000), acquiring).await.ok()
            } else {
                Some(acquiring.await)
            };
            if let Some(Ok(guard)) = granted {
                self.hold(guard, mode).await;
            } else {
                self.world.step(self.number, Step::GaveUp);
            }
            tokio::time::sleep(between(&mut self.random, 0, 1000)).await;
        }
    }

    async fn hold(&mut self, guard: LockGuard, mode: LockMode) {
        let Self { world, number, .. } = self;
        let (world, number) = (world.clone(), *number);
        let token = guard.fencing_token().get();
        world.step(number, Step::Granted { token, shared: mode == LockMode::Shared });
        for _ in 0..self.random.u8(1..8) {
            if !world.check_held(number, &guard) {
                break;
            }
            self.increment(&guard, mode).await;
        }
        world.check_held(number, &guard);
        if self.random.bool() {
            let released = guard.release().await;
            world.log(|| format!("locker {number}: released, {released:?}"));
            if let Ok(Released::Released) = released
                && has_queue_entry(&world, token)
            {
                world.broken(format!("the queue entry {token} exists although its release was confirmed"));
            }
        } else {
            drop(guard);
        }
        world.step(number, Step::Ended { token });
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
