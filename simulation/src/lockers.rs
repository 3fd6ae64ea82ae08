//! Contenders for one lock, and the resource that it guards.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use enlist::{Fence, Lock, LockMode, LockName, LockOptions, Released};
use enlist_etcd::Etcd;
use enlist_testkit::lock_history::Step;

use crate::world::{World, between};

/// A number behind a fence.
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

/// Wants the lock again and again, as writer or reader, patiently or not, until it has to come to an end.
pub(crate) async fn locker(
    world: World,
    etcd: Etcd,
    locker: usize,
    resource: Arc<Mutex<Resource>>,
    mut random: fastrand::Rng,
) {
    let name = LockName::parse("sim").expect("a valid name");
    while !world.is_stopping() {
        let options = options(&mut random);
        let shared = options.mode == LockMode::Shared;
        world.step(locker, Step::Asked);
        let asked = etcd.acquire(&name, options);
        let granted = if random.u8(..6) == 0 {
            // Dropped wherever it is.
            tokio::time::timeout(between(&mut random, 0, 2000), asked).await.ok()
        } else {
            Some(asked.await)
        };
        let Some(Ok(guard)) = granted else {
            world.step(locker, Step::GaveUp);
            tokio::time::sleep(between(&mut random, 0, 1000)).await;
            continue;
        };
        let token = guard.fencing_token().get();
        world.step(locker, Step::Granted { token, shared });
        for _ in 0..random.u8(1..8) {
            if !world.believes(locker, &guard) {
                break;
            }
            let pause = between(&mut random, 0, 1500);
            let read = {
                let mut resource = resource.lock().unwrap_or_else(PoisonError::into_inner);
                let admitted = if shared { None } else { resource.fence.admit(guard.fencing_token()).ok() };
                admitted.map(|()| resource.value)
            };
            tokio::time::sleep(pause).await;
            if let Some(value) = read {
                let mut resource = resource.lock().unwrap_or_else(PoisonError::into_inner);
                if resource.fence.admit(guard.fencing_token()).is_ok() {
                    resource.value = value + 1;
                    world.shared().value = resource.value;
                    world.step(locker, Step::Wrote { token });
                }
            }
        }
        // Released, or just dropped.
        world.believes(locker, &guard);
        if random.bool() {
            let released = guard.release().await;
            world.log(|| format!("locker {locker}: released, {released:?}"));
            if let Ok(Released::Released) = released
                && is_in_line(&world, token)
            {
                world.broken(format!("the place {token} is there although its release was confirmed"));
            }
        } else {
            drop(guard);
        }
        world.step(locker, Step::Ended { token });
        tokio::time::sleep(between(&mut random, 0, 1000)).await;
    }
}

/// `true` if the place of a token is in the store.
fn is_in_line(world: &World, token: u64) -> bool {
    let created = i64::try_from(token).unwrap_or(i64::MAX);
    let journal = world.fake.journal();
    let Some(put) = journal.iter().find(|written| written.created == created && written.value.is_some()) else {
        return false;
    };
    !journal.iter().any(|written| written.key == put.key && written.value.is_none() && written.revision > created)
}
