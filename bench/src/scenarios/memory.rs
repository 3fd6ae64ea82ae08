//! The memory backend. It has no reference; its speed bounds unit tests.

use enlist::{Lock, LockName, LockOptions, Moment, RegisterOptions, Registry, Resolver, ServiceRef};
use enlist_memory::MemoryStore;

use crate::{
    measure::{Result, Spread},
    report::Report,
    world::{instance, micros},
};

const TIMES: usize = 2000;

pub(crate) async fn run(report: &mut Report) -> Result {
    let (client, service) = (MemoryStore::new().client(), ServiceRef::parse("remembered")?);
    let mut watcher = client.watch(&service).await?;
    watcher.next().await?;
    let (mut registered, mut seen, mut locked) = (Vec::new(), Vec::new(), Vec::new());
    let lock = LockName::parse("remembered")?;
    for number in 0..TIMES {
        let begun = Moment::now();
        let registration = client.register(&service, instance(number)?, RegisterOptions::new()).await?;
        registered.push(micros(begun.elapsed()));
        watcher.next().await?;
        seen.push(micros(begun.elapsed()));
        registration.deregister().await?;
        watcher.next().await?;
        let begun = Moment::now();
        client.acquire(&lock, LockOptions::new()).await?.release().await?;
        locked.push(micros(begun.elapsed()));
    }
    for (case, times) in
        [("register", registered), ("register until a watch tells of it", seen), ("acquire and release", locked)]
    {
        report.number("memory", case, "µs", Spread::of(times), None);
    }
    Ok(())
}
