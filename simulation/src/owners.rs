//! Owners of instances, and watchers of them.

use std::time::Duration;

use enlist::{
    Change, Deregistered, Endpoint, Entry, Event, Instance, InstanceId, LeaseChoice, RegisterOptions, Registry,
    Resolver, Start,
};
use enlist_etcd::Etcd;
use enlist_testkit::history::{Picture, Version};

use crate::world::{World, between, service};

fn instance(id: &str) -> Instance {
    let endpoint = Endpoint::parse("10.0.0.1:80").expect("a valid endpoint");
    Instance::new(InstanceId::parse(id).expect("a valid id"), [endpoint]).expect("it has an endpoint")
}

fn options(random: &mut fastrand::Rng) -> RegisterOptions {
    let options = RegisterOptions::new().ttl(Duration::from_secs(random.u64(3..=10)));
    let options = if random.u8(..3) == 0 { options.start(Start::Background) } else { options };
    if random.u8(..3) == 0 { options.lease(LeaseChoice::Own) } else { options }
}

/// Registers instances one after the other, and changes them, until it has to come to an end: the last one stays.
pub(crate) async fn owner(world: World, etcd: Etcd, number: usize, mut random: fastrand::Rng) {
    let mut incarnation = 0;
    loop {
        incarnation += 1;
        let id = format!("o{number}-{incarnation}");
        let service = service();
        let registering = etcd.register(&service, instance(&id), options(&mut random));
        world.log(|| format!("{id}: registers"));
        let registered = if random.u8(..4) == 0 && !world.is_stopping() {
            tokio::time::timeout(between(&mut random, 0, 300), registering).await.ok()
        } else {
            Some(registering.await)
        };
        let Some(Ok(registration)) = registered else {
            world.log(|| format!("{id}: not registered"));
            tokio::time::sleep(between(&mut random, 10, 1000)).await;
            continue;
        };
        world.log(|| format!("{id}: registered, {:?}", registration.state()));
        let mut weight = 1;
        for _ in 0..random.u8(1..5) {
            tokio::time::sleep(between(&mut random, 0, 3000)).await;
            weight = random.u32(1..1000);
            let update = registration.update(move |draft| {
                draft.weight(weight);
            });
            match random.u8(..3) {
                0 => drop(update),
                _ => drop(tokio::time::timeout(between(&mut random, 100, 10_000), update).await),
            }
            world.log(|| format!("{id}: weight {weight}, {:?}", registration.state()));
            if world.is_stopping() {
                break;
            }
        }
        if world.is_stopping() {
            world.shared().wanted.insert(id, weight);
            // It is kept until the run ends.
            return std::future::pending().await;
        }
        match random.u8(..4) {
            0 => drop(registration),
            1 => drop(tokio::time::timeout(between(&mut random, 0, 100), registration.deregister()).await),
            _ => {
                let outcome = registration.deregister().await;
                world.log(|| format!("{id}: deregistered, {outcome:?}"));
                if let Ok(Deregistered::Removed | Deregistered::AlreadyGone) = outcome {
                    let now = u64::try_from(world.fake.revision()).unwrap_or(0);
                    world.shared().record.instances.left(id, now);
                }
            }
        }
    }
}

/// Notes everything that a watcher shows.
pub(crate) async fn watcher(world: World, etcd: Etcd, number: usize) {
    let Ok(mut watch) = etcd.watch(&service()).await else {
        return world.broken(format!("watcher {number} was refused"));
    };
    let version = |entry: &Entry| {
        let version = Version { created: entry.created().get(), modified: entry.modified().get() };
        (entry.instance().id().to_string(), version)
    };
    // What the events alone make of it.
    let mut folded = Picture::new();
    let mut last: Option<Change> = None;
    loop {
        let Ok(next) = tokio::time::timeout(Duration::from_millis(700), watch.next()).await else {
            if let Some(Change { snapshot, freshness, .. }) = &last {
                let age = u64::try_from(freshness.age().as_micros()).unwrap_or(u64::MAX);
                let now = world.micros();
                world.shared().record.instances.aged(number, now, snapshot.revision().get(), age);
            }
            continue;
        };
        let change = match next {
            Ok(change) => change,
            Err(error) => return world.broken(format!("watcher {number} ended: {error}")),
        };
        for event in &change.events {
            match event {
                Event::Added(entry) | Event::Updated { new: entry, .. } => folded.extend([version(entry)]),
                Event::Removed(entry) => drop(folded.remove(&version(entry).0)),
            }
        }
        let revision = change.snapshot.revision().get();
        let picture: Picture = change.snapshot.entries().map(|entry| version(entry)).collect();
        world.log(|| format!("watcher {number}: {revision} {:?}", picture.keys().collect::<Vec<_>>()));
        let mut shared = world.shared();
        if folded != picture {
            shared.record.instances.torn(number, revision);
        }
        shared.record.instances.shown(number, revision, picture);
        drop(shared);
        last = Some(change);
    }
}
