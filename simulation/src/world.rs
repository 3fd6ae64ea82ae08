//! State that all parts of a run share: the fake etcd, the record that is judged, and the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use enlist::{LockGuard, ServiceRef};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{
    FakeEtcd, Link,
    history::{History, Record},
    lock_history::Step,
};
use tokio::time::Instant;

/// Ranges of the instances and of the lockers' queue.
pub(crate) const INSTANCES: &str = "enlist/services/default/svc/";
pub(crate) const LINE: &str = "enlist/locks/default/sim/";

/// Interval at which watched ranges are audited.
const AUDIT: Duration = Duration::from_secs(60);

pub(crate) fn service() -> ServiceRef {
    ServiceRef::parse("svc").expect("a valid name")
}

/// One run. Clones are the same one.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) fake: Arc<FakeEtcd>,
    shared: Arc<Mutex<Shared>>,
    begun: Instant,
    logs: bool,
}

/// Answers that the watches of a run were told, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    Everything,
    /// One fell silent, which an audit may find out before the watch does.
    Nothing,
    /// One missed something without a chance to know: what was shown meanwhile says nothing about this side.
    Less,
}

/// Notes of the parts of a run.
pub(crate) struct Shared {
    pub(crate) record: Record,
    /// What has to be there at the end, with its weight.
    pub(crate) wanted: BTreeMap<String, u32>,
    /// The value behind the lock's fence.
    pub(crate) value: u64,
    /// The parts have to come to an end.
    pub(crate) stopping: bool,
    /// What watches were told.
    pub(crate) told: Told,
    /// Clients are cut off now and then, and hear late of what is taken from them.
    pub(crate) cut_off: bool,
    /// Tokens of places that were deleted, and leases that were revoked, by somebody else.
    pub(crate) deleted: BTreeSet<u64>,
    pub(crate) revoked: BTreeSet<i64>,
    /// Nothing happens because of which a lease could be lost.
    pub(crate) calm: bool,
    /// What was broken that no checker of histories knows.
    pub(crate) broken: BTreeSet<String>,
}

impl World {
    pub(crate) fn new(watchers: usize, logs: bool) -> Self {
        let record = Record { instances: History::new(watchers), ..Record::default() };
        let shared = Shared {
            record,
            wanted: BTreeMap::new(),
            value: 0,
            stopping: false,
            told: Told::Everything,
            cut_off: false,
            deleted: BTreeSet::new(),
            revoked: BTreeSet::new(),
            calm: false,
            broken: BTreeSet::new(),
        };
        let fake = FakeEtcd::start();
        fake.expire_leases();
        Self { fake: Arc::new(fake), shared: Arc::new(Mutex::new(shared)), begun: Instant::now(), logs }
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn micros_at(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn micros(&self) -> u64 {
        self.micros_at(Instant::now())
    }

    /// Notes what happens, in the log only.
    pub(crate) fn log(&self, what: impl FnOnce() -> String) {
        if self.logs {
            println!("{:>12} @{} {}", self.micros(), self.fake.revision(), what());
        }
    }

    pub(crate) fn broken(&self, what: impl Into<String>) {
        self.shared().broken.insert(what.into());
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.shared().stopping
    }

    pub(crate) fn step(&self, locker: usize, step: Step) {
        self.log(|| format!("locker {locker}: {step:?}"));
        let now = self.micros();
        self.shared().record.locks.step(now, locker, step);
    }

    /// Asks whether the lock is held.
    pub(crate) fn believes(&self, locker: usize, guard: &LockGuard) -> bool {
        let token = guard.fencing_token().get();
        let held = guard.is_held();
        self.step(locker, if held { Step::Believed { token } } else { Step::Ended { token } });
        held
    }

    /// A client with connections of its own.
    pub(crate) fn client(&self) -> (Etcd, Link) {
        let link = self.fake.link();
        let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller).audit(Some(AUDIT));
        (builder.build().expect("valid options, in a runtime"), link)
    }
}

/// A time between two, in milliseconds.
pub(crate) fn between(random: &mut fastrand::Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.u64(least..=most))
}
