//! State that all parts of a run share: the fake etcd, the record that is judged, and the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use enlist::{LockGuard, Loss, ServiceRef, backend::MutexExt as _};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{
    FakeEtcd, Link,
    history::{History, Record},
    lock_history::Step,
    losses::LossHistory,
};
use futures::FutureExt;
use tokio::time::Instant;

use crate::{
    counts::{Counts, Kind},
    kinds::{KnownDefect, Observed},
    operations::{Excuse, OperationRecord, Suspicion},
    verdicts::{Invariant, Verdict},
};

/// Key ranges of the instances and of the lock's queue, and the key of the configuration.
pub(crate) const INSTANCES: &str = "enlist/services/default/svc/";
pub(crate) const LOCK_QUEUE: &str = "enlist/locks/default/sim/";
pub(crate) const CONFIG: &str = "enlist/config/default/sim";

/// Audit interval of watched ranges.
pub(crate) const AUDIT_INTERVAL: Duration = Duration::from_secs(60);

/// Log of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logs {
    Printed,
    Omitted,
}

pub(crate) fn service() -> ServiceRef {
    ServiceRef::parse("svc").expect("a valid name")
}

/// State of one run. Clones share it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) fake: Arc<FakeEtcd>,
    shared: Arc<Mutex<Notes>>,
    begun: Instant,
    logs: Logs,
}

/// Delivery of events to the watches of a run, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Delivery {
    Complete,
    /// A watch fell silent. An audit may notice that before the watch does.
    Silent,
    /// A watch missed events without any sign of it, so that its views may be wrong until the next audit.
    Lossy,
}

/// Writes and views of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigRecord {
    /// Confirmed writes: revisions and values.
    pub(crate) confirmed: Vec<(u64, u64)>,
    /// Views of the watchers: revisions and values; `None` if the value is absent.
    pub(crate) shown: Vec<(u64, Option<u64>)>,
    /// Number of watchers.
    pub(crate) watchers: usize,
    /// Last view of each watcher that has shown one.
    pub(crate) last: BTreeMap<usize, Option<u64>>,
}

/// Notes that the parts of a run share.
pub(crate) struct Notes {
    pub(crate) record: Record,
    /// Instances that have to be stored at the end, with their weights.
    pub(crate) wanted: BTreeMap<String, u32>,
    /// Value of the resource that the lock guards.
    pub(crate) value: u64,
    /// The faults are over, and all parts have to finish.
    pub(crate) stopping: bool,
    /// Known when the faults have ended, like all that the misbehavior of the server decides.
    pub(crate) delivery: Delivery,
    /// The faults that have occurred may have delayed messages to clients, so that clients notice losses late.
    pub(crate) cut_off: bool,
    /// Tokens of queue entries that were deleted by the faults of the run.
    pub(crate) removed: BTreeSet<u64>,
    /// Leases that were revoked by the faults of the run, with the times. An id may be used again.
    pub(crate) revoked: BTreeSet<(i64, u64)>,
    /// Of these, the revocations that a defect of etcd conceals: renewals are acknowledged afterwards.
    pub(crate) concealed: BTreeSet<(i64, u64)>,
    /// Tokens and leases of queue entries by key, while the journal is read.
    pub(crate) queued: BTreeMap<Vec<u8>, (u64, i64)>,
    /// The faults that have occurred cannot end a lease.
    pub(crate) calm: bool,
    /// Violations that the run found itself, beside those of the checkers.
    pub(crate) broken: BTreeSet<Verdict>,
    pub(crate) losses: LossHistory,
    pub(crate) config: ConfigRecord,
    pub(crate) operations: OperationRecord,
    pub(crate) counts: Counts,
    /// Defect of etcd until the faults end.
    pub(crate) known_defect: Option<KnownDefect>,
    /// Revision at which a defect of etcd answers all reads.
    pub(crate) stale_reads_of: Option<i64>,
    /// Time since which the history after that revision is gone, so that no range can be listed and then watched.
    pub(crate) unwatchable_since: Option<u64>,
}

impl World {
    pub(crate) fn new(watchers: usize, logs: Logs) -> Self {
        let record = Record { instances: History::new(watchers), ..Record::default() };
        let shared = Notes {
            record,
            wanted: BTreeMap::new(),
            value: 0,
            stopping: false,
            delivery: Delivery::Complete,
            cut_off: false,
            removed: BTreeSet::new(),
            revoked: BTreeSet::new(),
            queued: BTreeMap::new(),
            concealed: BTreeSet::new(),
            calm: true,
            broken: BTreeSet::new(),
            losses: LossHistory::default(),
            config: ConfigRecord::default(),
            operations: OperationRecord::default(),
            counts: Counts::default(),
            known_defect: None,
            stale_reads_of: None,
            unwatchable_since: None,
        };
        let fake = FakeEtcd::start();
        fake.expire_leases();
        Self { fake: Arc::new(fake), shared: Arc::new(Mutex::new(shared)), begun: Instant::now(), logs }
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Notes> {
        self.shared.locked()
    }

    pub(crate) fn micros_at(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn micros(&self) -> u64 {
        self.micros_at(Instant::now())
    }

    /// Prints an event, if the run prints its log.
    pub(crate) fn log(&self, what: impl FnOnce() -> String) {
        if self.logs == Logs::Printed {
            println!("{:>12} @{} {}", self.micros(), self.fake.revision(), what());
        }
    }

    pub(crate) fn broken(&self, invariant: Invariant, detail: impl fmt::Display) {
        self.shared().broken.insert(Verdict::of(invariant, detail));
    }

    pub(crate) fn count(&self, kind: impl Into<Kind>) {
        self.shared().counts.add(kind, 1);
    }

    /// Records a failure or a loss since `from`, which is a violation unless a fault explains it.
    pub(crate) fn suspect(&self, invariant: Invariant, excuse: Option<Excuse>, from: u64, detail: impl fmt::Display) {
        self.count(invariant);
        if let Some(excuse) = excuse {
            let (until, detail) = (self.micros(), detail.to_string());
            self.shared().operations.suspicions.push(Suspicion { invariant, detail, excuse, from, until });
        }
    }

    /// Permits access again, after a denial or without one.
    pub(crate) fn permit_access(&self) {
        let now = self.micros();
        self.shared().operations.permitted(now);
        self.fake.permit_access();
    }

    /// Compacts the history up to the present revision. Returns `true` if it was not compacted up to there before. A
    /// watch that begins at a stale list is refused from then on.
    pub(crate) fn compact(&self) -> bool {
        let is_new = self.fake.compact();
        let (now, compacted) = (self.micros(), self.fake.revision());
        let mut shared = self.shared();
        if shared.stale_reads_of.is_some_and(|listed| listed < compacted) {
            shared.unwatchable_since.get_or_insert(now);
            shared.cut_off = true;
        }
        is_new
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.shared().stopping
    }

    pub(crate) fn step(&self, locker: usize, step: Step) {
        self.log(|| format!("locker {locker}: {step:?}"));
        let now = self.micros();
        self.shared().record.locks.step(now, locker, step);
    }

    /// Records whether the lock is known to be held, and returns it. While it is, no loss may be signalled.
    pub(crate) fn check_held(&self, locker: usize, guard: &LockGuard) -> bool {
        let token = guard.fencing_token().get();
        let held = guard.is_held();
        self.check_signal(token, held, guard.lost().now_or_never());
        self.step(locker, if held { Step::Believed { token } } else { Step::Ended { token } });
        if held {
            let now = self.micros();
            self.shared().losses.held(now, token);
        }
        held
    }

    /// Compares the signal of the loss of a lock with whether the lock is known to be held.
    pub(crate) fn check_signal(&self, token: u64, held: bool, signalled: Option<Loss>) {
        self.count(Invariant::LossSignalled);
        if !is_true_signal(held, signalled) {
            let state = if held { "held" } else { "lost" };
            self.broken(
                Invariant::LossSignalled,
                format!("the lock {token} is {state}, but signalled is {signalled:?}"),
            );
        }
    }

    /// Counts the reason for which a lock was lost.
    pub(crate) fn count_loss(&self, guard: &LockGuard) {
        if let Some(loss) = observed(guard.lost().now_or_never()) {
            self.count(loss);
        }
    }

    /// Returns a client with connections of its own.
    pub(crate) fn client(&self) -> (Etcd, Link) {
        let link = self.fake.link();
        let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller).audit(Some(AUDIT_INTERVAL));
        (builder.build().expect("valid options, in a runtime"), link)
    }
}

/// Returns a random duration between `least` and `most` milliseconds.
pub(crate) fn between(random: &mut fastrand::Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.u64(least..=most))
}

/// Returns the observation of a loss that was signalled; `None` for none, and for a loss that is not one of etcd.
fn observed(signalled: Option<Loss>) -> Option<Observed> {
    match signalled? {
        Loss::Expired => Some(Observed::HolderNoticedExpiry),
        Loss::LeaseGone => Some(Observed::HolderNoticedLease),
        Loss::KeyGone => Some(Observed::HolderNoticedKey),
        _ => None,
    }
}

/// Returns `true` if the signal of a loss agrees with whether the lock is known to be held.
fn is_true_signal(held: bool, signalled: Option<Loss>) -> bool {
    if held { signalled.is_none() } else { observed(signalled).is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_compaction_after_the_stale_state_prevents_watches() {
        let since = |stale_reads_of, writes| {
            let world = World::new(0, Logs::Omitted);
            world.shared().stale_reads_of = stale_reads_of;
            for _ in 0..writes {
                world.fake.put("a key", "a value");
            }
            world.compact();
            let shared = world.shared();
            (shared.unwatchable_since, shared.cut_off)
        };
        assert_eq!(since(Some(1), 1), (Some(0), true));
        assert_eq!(since(Some(1), 0), (None, false), "the history after the list is still there");
        assert_eq!(since(None, 1), (None, false), "lists are current");
    }

    #[test]
    fn a_loss_has_to_be_signalled() {
        assert_eq!(observed(Some(Loss::KeyGone)), Some(Observed::HolderNoticedKey));
        assert_eq!((observed(None), observed(Some(Loss::Released))), (None, None));
        assert!(is_true_signal(false, Some(Loss::Expired)));
        assert!(!is_true_signal(false, None) && !is_true_signal(false, Some(Loss::Released)));
    }

    #[test]
    fn a_lock_that_is_held_signals_no_loss() {
        assert!(is_true_signal(true, None));
        for loss in [Loss::Expired, Loss::LeaseGone, Loss::KeyGone, Loss::Released] {
            assert!(!is_true_signal(true, Some(loss)), "{loss:?}");
        }
    }
}
