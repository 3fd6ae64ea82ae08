//! Owners of instances, and watchers.

use std::time::Duration;

use enlist::{
    Change, Deregistered, Endpoint, Freshness, Instance, InstanceId, LeaseChoice, RegisterOptions, Registration,
    Registry, Resolver, Start,
};
use enlist_etcd::Etcd;
use enlist_testkit::history::WatchRecorder;

use crate::{
    kinds::{Observed, Operation},
    verdicts::Invariant,
    world::{World, between, service},
};

/// Interval of recording the age of a view that does not change.
const AGE_INTERVAL: Duration = Duration::from_millis(700);

fn instance(id: &str) -> Instance {
    let endpoint = Endpoint::parse("10.0.0.1:80").expect("a valid endpoint");
    Instance::new(InstanceId::parse(id).expect("a valid id"), [endpoint]).expect("it has an endpoint")
}

/// Returns random options. Without a `ttl` it is random, too.
fn options(random: &mut fastrand::Rng, ttl: Option<Duration>) -> RegisterOptions {
    let ttl = ttl.unwrap_or_else(|| Duration::from_secs(random.u64(3..=10)));
    let options = RegisterOptions::new().ttl(ttl);
    let options = if random.u8(..3) == 0 { options.start(Start::Background) } else { options };
    if random.u8(..3) == 0 { options.lease(LeaseChoice::Own) } else { options }
}

/// An owner, which registers instances one after the other and changes them, until the run stops. The last one stays.
pub(crate) struct InstanceOwner {
    pub(crate) world: World,
    pub(crate) etcd: Etcd,
    pub(crate) number: usize,
    /// TTL of all its registrations.
    pub(crate) ttl: Option<Duration>,
    pub(crate) random: fastrand::Rng,
}

impl InstanceOwner {
    pub(crate) async fn run(mut self) {
        let mut incarnation = 0;
        loop {
            incarnation += 1;
            let id = format!("o{}-{incarnation}", self.number);
            let Some(registration) = self.register(&id).await else {
                self.world.log(|| format!("{id}: not registered"));
                tokio::time::sleep(between(&mut self.random, 10, 1000)).await;
                continue;
            };
            self.world.log(|| format!("{id}: registered, {:?}", registration.state()));
            self.world.count(Observed::InstanceRegistered);
            let now = self.world.micros();
            self.world.shared().losses.registered(now, &id);
            let weight = self.update(&id, &registration).await;
            if self.world.is_stopping() {
                self.world.shared().wanted.insert(id, weight);
                // The registration lasts until the run ends.
                return std::future::pending().await;
            }
            self.withdraw(id, registration).await;
        }
    }

    /// Registers an instance. In a quarter of the calls the future is dropped after a random time.
    async fn register(&mut self, id: &str) -> Option<Registration> {
        let Self { world, etcd, ttl, random, .. } = self;
        let service = service();
        let options = options(random, *ttl);
        let is_background = options.start == Start::Background;
        world.count(if is_background { Operation::RegisterInBackground } else { Operation::Register });
        let registering = etcd.register(&service, instance(id), options);
        world.log(|| format!("{id}: registers"));
        if random.u8(..4) == 0 && !world.is_stopping() {
            world.count(Operation::DropRegistering);
            return tokio::time::timeout(between(random, 0, 300), registering).await.ok()?.ok();
        }
        registering.await.ok()
    }

    /// Changes the weight a few times. Returns the last one.
    async fn update(&mut self, id: &str, registration: &Registration) -> u32 {
        let Self { world, random, .. } = self;
        let mut weight = 1;
        for _ in 0..random.u8(1..5) {
            tokio::time::sleep(between(random, 0, 3000)).await;
            weight = random.u32(1..1000);
            world.count(Operation::Update);
            let update = registration.update(move |update| {
                update.weight(weight);
            });
            match random.u8(..3) {
                0 => drop(update),
                _ => drop(tokio::time::timeout(between(random, 100, 10_000), update).await),
            }
            world.log(|| format!("{id}: weight {weight}, {:?}", registration.state()));
            if world.is_stopping() {
                break;
            }
        }
        weight
    }

    /// Drops or deregisters, and records a confirmed deregistration.
    async fn withdraw(&mut self, id: String, registration: Registration) {
        let Self { world, random, .. } = self;
        let now = world.micros();
        world.shared().losses.withdrawn(now, &id);
        match random.u8(..4) {
            0 => {
                world.count(Operation::DropRegistration);
                drop(registration);
            }
            1 => {
                world.count(Operation::DropDeregistering);
                drop(tokio::time::timeout(between(random, 0, 100), registration.deregister()).await);
            }
            _ => {
                world.count(Operation::Deregister);
                let outcome = registration.deregister().await;
                world.log(|| format!("{id}: deregistered, {outcome:?}"));
                if let Ok(Deregistered::Removed | Deregistered::AlreadyGone) = outcome {
                    world.count(Observed::InstanceDeregistered);
                    world.count(Invariant::NothingComesBack);
                    let now = u64::try_from(world.fake.revision()).unwrap_or(0);
                    world.shared().record.instances.deregistered(id, now);
                }
            }
        }
    }
}

/// Records every view and age that a watcher reports.
pub(crate) async fn watcher(world: World, etcd: Etcd, number: usize) {
    world.count(Operation::Watch);
    world.count(Invariant::WatchesLast);
    let Ok(mut watch) = etcd.watch(&service()).await else {
        return world.broken(Invariant::WatchesLast, format!("watcher {number} was refused"));
    };
    let mut recorder = WatchRecorder::default();
    let mut last: Option<Change> = None;
    loop {
        let Ok(next) = tokio::time::timeout(AGE_INTERVAL, watch.next()).await else {
            if let Some(Change { snapshot, freshness, .. }) = &last {
                let age = u64::try_from(freshness.age().as_micros()).unwrap_or(u64::MAX);
                let now = world.micros();
                world.count(Invariant::AgesHonest);
                if let Freshness::Stale { .. } = freshness {
                    world.count(Observed::ViewIsStale);
                }
                world.shared().record.instances.aged(number, now, snapshot.revision().get(), age);
            }
            continue;
        };
        let change = match next {
            Ok(change) => change,
            Err(error) => return world.broken(Invariant::WatchesLast, format!("watcher {number} ended: {error}")),
        };
        world.count(Observed::ViewChanged);
        for check in
            [Invariant::EventsComplete, Invariant::ViewsInOrder, Invariant::ViewsExist, Invariant::ViewsNotEmpty]
        {
            world.count(check);
        }
        let view = recorder.record(&mut world.shared().record.instances, number, &change);
        let revision = change.snapshot.revision();
        world.log(|| format!("watcher {number}: {revision} {:?}", view.keys().collect::<Vec<_>>()));
        last = Some(change);
    }
}
