//! `enlist lock`, for locks and permits, and `enlist elect`.

use enlist::{Election, LockMode, LockName, LockOptions, Semaphore, SemaphoreOptions};
use enlist_etcd::Etcd;

use crate::{
    args::{Elect, Global, Lock},
    child,
    holding::{Held, Holding, Kind},
    output::{Failure, Output},
};

pub(crate) async fn lock(global: &Global, lock: Lock, output: Output) -> Result<u8, Failure> {
    use enlist::Lock as _;
    let (etcd, name) = (global.client()?, global.lock(&lock.name)?);
    child::check(&lock.run.command)?;
    if let Some(permits) = lock.permits {
        return self::permits(&etcd, &name, &lock, permits, output).await;
    }
    let mut options = LockOptions::new().ttl(lock.ttl).lock_delay(lock.delay);
    if lock.shared {
        options.mode = LockMode::Shared;
    }
    (options.deadline, options.renewal_interval) = (lock.wait, lock.renewals.interval);
    let acquiring = async {
        if lock.attempt {
            Ok(etcd.try_acquire(&name, options).await?.map(Held::Lock))
        } else {
            etcd.acquire(&name, options).await.map(|guard| Some(Held::Lock(guard)))
        }
    };
    let holding = Holding::new(&etcd, &name, Kind::Lock, lock.ttl, &lock.run, lock.reporting, output);
    holding.run(acquiring).await
}

async fn permits(etcd: &Etcd, name: &LockName, lock: &Lock, permits: u32, output: Output) -> Result<u8, Failure> {
    let mut options = SemaphoreOptions::new().ttl(lock.ttl).permits(permits);
    options.permits_if_unset = lock.of;
    (options.deadline, options.renewal_interval) = (lock.wait, lock.renewals.interval);
    let acquiring = async {
        if lock.attempt {
            Ok(etcd.try_acquire_permits(name, options).await?.map(Held::Permits))
        } else {
            etcd.acquire_permits(name, options).await.map(|guard| Some(Held::Permits(guard)))
        }
    };
    let holding = Holding::new(etcd, name, Kind::Semaphore, lock.ttl, &lock.run, lock.reporting, output);
    holding.run(acquiring).await
}

pub(crate) async fn elect(global: &Global, elect: Elect, output: Output) -> Result<u8, Failure> {
    let (etcd, name) = (global.client()?, global.lock(&elect.name)?);
    child::check(&elect.run.command)?;
    let mut options = LockOptions::new().ttl(elect.ttl);
    (options.deadline, options.renewal_interval) = (elect.wait, elect.renewals.interval);
    let campaigning =
        async { etcd.campaign(&name, &elect.value, options).await.map(|won| Some(Held::Leadership(won))) };
    let holding = Holding::new(&etcd, &name, Kind::Election, elect.ttl, &elect.run, elect.reporting, output);
    holding.run(campaigning).await
}
