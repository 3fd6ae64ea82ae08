//! Owners of instances, and watchers.

use std::time::Duration;

use enlist::{
    Change, Deregistered, Endpoint, Freshness, Instance, InstanceId, LeaseChoice, RegisterOptions, Registration,
    RegistrationState, Registry, Resolver, Revision, Start,
};
use enlist_etcd::Etcd;
use enlist_testkit::history::WatchRecorder;

use crate::{
    kinds::{Observed, Operation},
    operations::{Acknowledged, Confirmation, Excuse, Shown, of_confirmed, of_deregister, of_register, of_update},
    verdicts::Invariant,
    world::{INSTANCES, World, between, service},
};

/// Interval of recording the age of a view that does not change.
const AGE_INTERVAL: Duration = Duration::from_millis(700);

/// Time within which an update is stored without a fault.
const UPDATE_LIMIT: Duration = Duration::from_secs(3);

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
            let Some((registration, confirmation)) = self.register(&id).await else {
                self.world.log(|| format!("{id}: not registered"));
                tokio::time::sleep(between(&mut self.random, 10, 1000)).await;
                continue;
            };
            self.world.log(|| format!("{id}: registered, {:?}", registration.state()));
            self.world.count(Observed::InstanceRegistered);
            check_state(&self.world, &id, &registration, confirmation);
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
    async fn register(&mut self, id: &str) -> Option<(Registration, Confirmation)> {
        let Self { world, etcd, ttl, random, .. } = self;
        let service = service();
        let options = options(random, *ttl);
        let is_background = options.start == Start::Background;
        world.count(if is_background { Operation::RegisterInBackground } else { Operation::Register });
        let registering = etcd.register(&service, instance(id), options);
        world.log(|| format!("{id}: registers"));
        let from = world.micros();
        let confirmation = if is_background { Confirmation::Missing } else { Confirmation::Since(from) };
        if random.u8(..4) == 0 && !world.is_stopping() {
            world.count(Operation::DropRegistering);
            let registered = tokio::time::timeout(between(random, 0, 300), registering).await.ok()?;
            return registered.ok().map(|registration| (registration, confirmation));
        }
        let registered = registering.await;
        let excuse = registered.as_ref().err().map(of_register);
        world.suspect(Invariant::ErrorsJustified, excuse, from, format!("{id}: {:?}", registered.as_ref().err()));
        if registered.is_ok() && !is_background {
            self.check_registered(id, from);
        }
        registered.ok().map(|registration| (registration, confirmation))
    }

    /// Checks that an instance is stored when `register` returns. It was called at `from`.
    fn check_registered(&self, id: &str, from: u64) {
        let world = &self.world;
        let by = u64::try_from(world.fake.revision()).unwrap_or(0);
        world.shared().operations.acknowledged.push(Acknowledged::Registered { id: id.to_owned(), by });
        let excuse = if is_stored(world, id) { None } else { Some(Excuse::Removal) };
        world.suspect(Invariant::RegistrationStored, excuse, from, format!("{id} is registered, but not stored"));
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
            let confirmation = if random.u8(..3) == 0 {
                drop(update);
                Confirmation::Missing
            } else {
                let (from, limit) = (world.micros(), between(random, 100, 10_000));
                let updated = tokio::time::timeout(limit, update).await;
                check_updated(world, id, weight, from, updated.map_err(|_| limit))
            };
            world.log(|| format!("{id}: weight {weight}, {:?}", registration.state()));
            check_state(world, id, registration, confirmation);
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
                world.suspect(
                    Invariant::ErrorsJustified,
                    of_deregister(&outcome),
                    now,
                    format!("{id} deregistered: {outcome:?}"),
                );
                if let Ok(Deregistered::Removed | Deregistered::AlreadyGone) = outcome {
                    world.count(Observed::InstanceDeregistered);
                    world.count(Invariant::NothingComesBack);
                    let excuse = is_stored(world, &id).then_some(Excuse::Nothing);
                    let detail = format!("{id} is stored, but deregistered: {outcome:?}");
                    world.suspect(Invariant::DeregistrationConfirmed, excuse, now, detail);
                    let now = u64::try_from(world.fake.revision()).unwrap_or(0);
                    world.shared().record.instances.deregistered(id, now);
                }
            }
        }
    }
}

/// Returns `true` if the instance is in the store.
fn is_stored(world: &World, id: &str) -> bool {
    let key = format!("{INSTANCES}{id}").into_bytes();
    world.fake.under(&key).iter().any(|(stored, _)| *stored == key)
}

/// Checks the state of a registration that is wanted.
fn check_state(world: &World, id: &str, registration: &Registration, confirmation: Confirmation) {
    let state = registration.state();
    if let RegistrationState::Registered { revision } = &state {
        let stored = Acknowledged::Stored { id: id.to_owned(), at: revision.get() };
        world.shared().operations.acknowledged.push(stored);
    }
    let (excuse, from) = of_confirmed(&state, confirmation).unzip();
    world.suspect(Invariant::ErrorsJustified, excuse, from.unwrap_or(0), format!("{id}: {state:?}, {confirmation:?}"));
}

/// Checks the result of an update that began at `from`, or that it has none within a time. Returns its confirmation.
fn check_updated(
    world: &World,
    id: &str,
    weight: u32,
    from: u64,
    updated: Result<Result<Revision, enlist::Error>, Duration>,
) -> Confirmation {
    let detail = format!("{id}: weight {weight}: {updated:?}");
    match updated {
        Ok(Ok(revision)) => {
            world.count(Invariant::UpdateStored);
            let stored = Acknowledged::Updated { id: id.to_owned(), at: revision.get(), weight };
            world.shared().operations.acknowledged.push(stored);
            return Confirmation::Since(from);
        }
        Ok(Err(error)) => world.suspect(Invariant::ErrorsJustified, Some(of_update(&error)), from, detail),
        Err(limit) => {
            let excuse = (limit >= UPDATE_LIMIT).then_some(Excuse::Removal);
            world.suspect(Invariant::UpdateStored, excuse, from, detail);
        }
    }
    Confirmation::Missing
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
        record_values(&world, &change);
        let view = recorder.record(&mut world.shared().record.instances, number, &change);
        let revision = change.snapshot.revision();
        world.log(|| format!("watcher {number}: {revision} {:?}", view.keys().collect::<Vec<_>>()));
        last = Some(change);
    }
}

/// Records the values of the instances in a view.
fn record_values(world: &World, change: &Change) {
    world.count(Invariant::ValuesExist);
    let shown = change.snapshot.entries().map(|entry| Shown {
        id: entry.instance().id().to_string(),
        modified: entry.modified().get(),
        weight: entry.instance().weight(),
    });
    world.shared().operations.shown.extend(shown);
}
