//! Jobs that run once, when replies of etcd are lost or its transactions are executed late.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{Begun, Error, JobRun, Lock, LockGuard, LockName, LockOptions, Once, OnceOutcome};
use enlist_etcd::Etcd;
use enlist_testkit::{BackgroundTask, EtcdServer, FakeEtcd, LateWrite, Misbehavior, eventually, soon};
use futures::{StreamExt, stream};
use support::{
    between::{Between, Fault, Victim},
    raw,
    scripted::client,
    server,
};

/// The record of the job below.
const RECORD: &str = "enlist/config/once:default/job";

fn name() -> LockName {
    LockName::parse("job").unwrap()
}

/// A long TTL, so that no state is repaired by expiry.
fn options() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(60))
}

fn once(etcd: &Etcd) -> Once {
    Once::new(Arc::new(etcd.clone()), Arc::new(etcd.clone()))
}

/// Runs the job until it is done, as a caller does. Returns the number of times that it was executed.
async fn run_until_done(once: &Once) -> usize {
    let executed = AtomicUsize::new(0);
    eventually("the job is done", || async {
        let outcome = once
            .run(&name(), options(), async |_: &LockGuard| {
                executed.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Error>(())
            })
            .await;
        match outcome {
            Ok(outcome) => Ok(outcome),
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                Err(error)
            }
        }
    })
    .await;
    executed.into_inner()
}

/// Returns the number of replies to `method` that were lost, one in each run.
async fn lose_each(server: &EtcdServer, method: &'static str, fault: Fault) -> usize {
    for after in 0.. {
        let victim = Victim { method, after, fault };
        let between = Between::start(server).await;
        let etcd = Etcd::builder([&between.url]).build().unwrap();
        between.spoil(victim);
        assert_eq!(run_until_done(&once(&etcd)).await, 1, "executed once: {victim:?}");
        let is_spoilt = between.has_spoilt();
        let mut raw = raw(server).await;
        let stored = raw.get(RECORD, None).await.unwrap();
        assert_eq!(stored.count(), 1);
        assert!(stored.kvs()[0].value_str().unwrap().contains(r#""done":"#), "{victim:?}: {stored:?}");
        raw.delete(RECORD, None).await.unwrap();
        etcd.close().await.unwrap();
        if !is_spoilt {
            return after;
        }
    }
    unreachable!("the loop ends with the last reply")
}

/// Whichever reply is lost after etcd has executed the request, the job is executed once and marked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_lost_reply_leaves_one_mark() {
    let methods = ["Txn", "Range", "LeaseGrant", "Watch"];
    let runs = methods.into_iter().flat_map(|method| [(method, Fault::Broken), (method, Fault::Silent)]);
    let runs =
        runs.map(|(method, fault)| async move { (method, fault, lose_each(&server().await, method, fault).await) });
    let lost: Vec<_> = stream::iter(runs).buffer_unordered(8).collect().await;
    println!("replies lost, one at a time: {lost:?}");
    assert!(lost.iter().all(|(method, _, lost)| *lost > 0 || *method == "Watch"), "{lost:?}");
    // Creation of the queue entry, beginning, mark.
    assert!(lost.iter().all(|(method, _, lost)| *lost >= 3 || *method != "Txn"), "{lost:?}");
}

async fn begin(etcd: &Etcd) -> (LockGuard, JobRun) {
    let guard = soon("acquired", etcd.acquire(&name(), options())).await.unwrap();
    match soon("begun", once(etcd).begin(&guard)).await.unwrap() {
        Begun::Run(run) => (guard, run),
        other => panic!("{other:?}"),
    }
}

async fn late_write(fake: &FakeEtcd) -> LateWrite {
    eventually("the late transaction was executed", || async {
        match fake.late_writes().first() {
            Some(Ok(write)) => Ok(*write),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// A mark that is not answered in time is written again; the first write is executed late, and has no effect.
#[tokio::test(start_paused = true)]
async fn a_late_mark_does_not_disturb_its_repetition() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let (guard, run) = begin(&etcd).await;
    let token = run.token();
    fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(30)));
    let marked = soon("marked", run.finish()).await.unwrap();
    assert!(marked.token == token && marked.done.is_some(), "{marked:?}");
    assert_eq!(late_write(&fake).await, LateWrite::Refused);
    assert_eq!(once(&etcd).record(&name()).await.unwrap(), Some(marked));
    drop(guard);
}

/// The mark of an outdated run is executed after its successor has run and an operator has removed the mark. It has no
/// effect, so the job runs again, as the operator wanted.
#[tokio::test(start_paused = true)]
async fn a_late_mark_of_overtaken_runs_is_refused() {
    let fake = FakeEtcd::start();
    let (one, two) = (client(&fake), client(&fake));
    let (_outdated, run) = begin(&one).await;
    fake.misbehave(Misbehavior::LateTxn(Duration::from_secs(30)));
    let mut finishing = BackgroundTask::run(run.finish());
    eventually("the mark is on its way", || async { if fake.has_misbehaved() { Ok(()) } else { Err(()) } }).await;
    for (key, _) in fake.under(b"enlist/locks/") {
        fake.delete(&key);
    }
    let ran = once(&two).run(&name(), options(), async |_: &LockGuard| Ok::<_, Error>(())).await;
    assert!(matches!(ran, Ok(OnceOutcome::Ran { .. })), "{ran:?}");
    once(&two).forget(&name()).await.unwrap();
    let refused = finishing.done("the mark is refused").await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    assert_eq!(late_write(&fake).await, LateWrite::Refused);
    assert!(fake.under(RECORD.as_bytes()).is_empty());
    let again = once(&one).run(&name(), options(), async |_: &LockGuard| Ok::<_, Error>(())).await;
    assert!(matches!(again, Ok(OnceOutcome::Ran { .. })), "{again:?}");
}
