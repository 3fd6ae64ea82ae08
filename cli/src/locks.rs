//! `enlist lock` and `enlist elect`.

use enlist::{Election, LockMode, LockOptions};

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
