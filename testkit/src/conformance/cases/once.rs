//! Jobs that run once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{Begun, Error, FencingToken, Forgotten, JobRecord, JobRun, LockGuard, LockName, Once, OnceOutcome};
use tokio::sync::Notify;

use super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::{eventually, soon},
};

type Outcome = Result<OnceOutcome<()>, Error>;

/// A job that tells how often it has begun and waits to be let through.
#[derive(Default)]
struct Job {
    attempts: AtomicUsize,
    running: AtomicUsize,
    open: Notify,
}

impl Job {
    async fn run(&self) {
        let running = self.running.fetch_add(1, Ordering::SeqCst);
        assert_eq!(running, 0, "at most one at a time");
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.open.notified().await;
        self.running.fetch_sub(1, Ordering::SeqCst);
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    async fn has_begun(&self, times: usize) {
        eventually(&format!("it has begun {times} times"), || async {
            let now = self.attempts();
            if now == times { Ok(()) } else { Err(now) }
        })
        .await;
    }
}

/// Runs a job that succeeds at once.
async fn run(h: &impl Harness, client: &Client, name: &LockName) -> Outcome {
    run_with(h, &client.once(), name).await
}

async fn run_with(h: &impl Harness, once: &Once, name: &LockName) -> Outcome {
    soon("an outcome", once.run(name, lock_options(h), async |_: &LockGuard| Ok(()))).await
}

/// Starts a run of `job` in the background.
fn start(h: &impl Harness, client: &Client, name: &LockName, job: &Arc<Job>) -> BackgroundTask<Outcome> {
    let (once, name, job, options) = (client.once(), name.clone(), Arc::clone(job), lock_options(h));
    BackgroundTask::run(async move {
        once.run(&name, options, async |_: &LockGuard| {
            job.run().await;
            Ok(())
        })
        .await
    })
}

async fn begin(h: &impl Harness, client: &Client, name: &LockName) -> (LockGuard, JobRun) {
    let guard = acquire(h, client, name).await;
    match soon("begun", client.once().begin(&guard)).await {
        Ok(Begun::Run(run)) => (guard, run),
        other => panic!("it begins: {other:?}"),
    }
}

async fn record(client: &Client, name: &LockName) -> Option<JobRecord> {
    soon("read", client.once().record(name)).await.unwrap()
}

fn ran(outcome: &Outcome) -> FencingToken {
    match outcome {
        Ok(OnceOutcome::Ran { token, .. }) => *token,
        other => panic!("it ran: {other:?}"),
    }
}

fn already_done(outcome: &Outcome) -> FencingToken {
    match outcome {
        Ok(OnceOutcome::AlreadyDone { record }) if record.done.is_some() => record.token,
        other => panic!("it was done before: {other:?}"),
    }
}

pub async fn a_job_runs_once(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job/1"));
    assert!(record(&one, &name).await.is_none());
    let token = ran(&run(h, &one, &name).await);
    for client in [&two, &one] {
        assert_eq!(already_done(&run(h, client, &name).await), token);
    }
    // Neither a job below it, nor the lock itself.
    let below = lock(h, "job/1/a");
    let below_token = ran(&run(h, &two, &below).await);
    queue_has(h, &name, 0).await;
    let guard = acquire(h, &two, &name).await;
    assert!(guard.fencing_token() > token);
    let records = soon("listed", one.once().records(&h.namespace())).await.unwrap();
    let records: Vec<_> = records.iter().map(|record| (record.name.clone(), record.token)).collect();
    assert_eq!(records, [(name, token), (below, below_token)]);
}

pub async fn a_job_runs_for_one_of_many_callers(h: &impl Harness) {
    let (name, job) = (lock(h, "job"), Arc::new(Job::default()));
    let clients = [h.client().await, h.client().await, h.client().await];
    let mut callers = Vec::new();
    for number in 0..6 {
        callers.push(start(h, &clients[number % clients.len()], &name, &job));
    }
    job.has_begun(1).await;
    job.open.notify_one();
    let mut tokens = Vec::new();
    for caller in &mut callers {
        match caller.done("an outcome").await.unwrap() {
            OnceOutcome::Ran { token, .. } => tokens.push(token),
            OnceOutcome::AlreadyDone { record } => assert!(record.done.is_some()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((job.attempts(), tokens.len()), (1, 1));
    let record = record(&clients[0], &name).await.unwrap();
    assert_eq!(record.token, tokens[0]);
    queue_has(h, &name, 0).await;
}

pub async fn a_failed_job_runs_for_the_next_caller(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let open = Arc::new(Notify::new());
    let mut failing = {
        let (jobs, name, options, open) = (one.once(), name.clone(), lock_options(h), Arc::clone(&open));
        BackgroundTask::run(async move {
            jobs.run(&name, options, async |_: &LockGuard| -> Result<(), Error> {
                open.notified().await;
                Err(Error::StorageFull)
            })
            .await
        })
    };
    queue_has(h, &name, 1).await;
    let job = Arc::new(Job::default());
    let mut waiting = start(h, &two, &name, &job);
    queue_has(h, &name, 2).await;
    open.notify_one();
    let failed = failing.done("it failed").await;
    assert!(matches!(failed, Err(Error::StorageFull)), "the error of the job: {failed:?}");
    job.has_begun(1).await;
    assert!(record(&one, &name).await.unwrap().done.is_none());
    job.open.notify_one();
    let token = ran(&waiting.done("it ran").await);
    assert_eq!(already_done(&run(h, &one, &name).await), token);
}

/// Ends the process or the connection of a run in the middle of its job, and checks that another process runs the job.
/// Returns the outcome of the first run.
async fn repeated_after(h: &impl Harness, end: impl AsyncFnOnce(&Client)) -> Outcome {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let (lost, job) = (Arc::new(Job::default()), Arc::new(Job::default()));
    let mut first = start(h, &one, &name, &lost);
    lost.has_begun(1).await;
    let mut second = start(h, &two, &name, &job);
    end(&one).await;
    job.has_begun(1).await;
    job.open.notify_one();
    let token = ran(&second.done("it ran").await);
    let aborted = first.done("it was aborted").await;
    assert_eq!(lost.running.load(Ordering::SeqCst), 1, "aborted at its await");
    assert_eq!(already_done(&run(h, &h.client().await, &name).await), token);
    aborted
}

pub async fn a_crashed_run_is_repeated(h: &impl Harness) {
    let aborted = repeated_after(h, async |client: &Client| client.crash().await).await;
    // A process that has crashed notices nothing, unless the backend ends its session.
    assert!(matches!(aborted, Err(Error::LeaseLost | Error::Closed)), "the lock was lost: {aborted:?}");
}

pub async fn a_cut_off_run_is_repeated(h: &impl Harness) {
    let aborted = repeated_after(h, async |client: &Client| client.cut().await).await;
    assert!(matches!(aborted, Err(Error::LeaseLost)), "the lock was lost: {aborted:?}");
}

pub async fn a_dropped_run_leaves_no_mark(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let job = Arc::new(Job::default());
    let running = start(h, &one, &name, &job);
    job.has_begun(1).await;
    drop(running);
    queue_has(h, &name, 0).await;
    assert!(record(&two, &name).await.unwrap().done.is_none());
    ran(&run(h, &two, &name).await);
}

pub async fn a_mark_outlives_its_process(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let token = ran(&run(h, &one, &name).await);
    let witness = lock(h, "witness");
    let _guard = acquire(h, &one, &witness).await;
    one.crash().await;
    h.compact().await;
    // The leases of the process have ended.
    acquire(h, &two, &witness).await.release().await.unwrap();
    assert_eq!(already_done(&run(h, &two, &name).await), token);
}

pub async fn an_overtaken_run_cannot_mark_its_job(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let (outdated, earlier) = begin(h, &one, &name).await;
    h.delete_holder(&name).await;
    let (guard, later) = begin(h, &two, &name).await;
    assert!(later.token() > earlier.token());
    let refused = soon("refused", earlier.finish()).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "another run has begun: {refused:?}");
    let refused = soon("refused", one.once().begin(&outdated)).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "a later run has begun: {refused:?}");
    let token = later.token();
    assert_eq!(soon("marked", later.finish()).await.unwrap().token, token);
    soon("released", guard.release()).await.unwrap();
    assert_eq!(already_done(&run(h, &one, &name).await), token);
}

pub async fn a_mark_is_stored_after_an_outage(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let (guard, begun) = begin(h, &one, &name).await;
    one.cut().await;
    let token = begun.token();
    let mut finishing = BackgroundTask::run(begun.finish());
    // The lock may be lost meanwhile: no other run has begun, so the mark is true.
    soon("the loss", guard.lost()).await;
    finishing.assert_running();
    one.heal().await;
    let marked = finishing.done("it is marked").await.unwrap();
    assert!(marked.token == token && marked.done.is_some(), "{marked:?}");
    assert_eq!(already_done(&run(h, &two, &name).await), token);
}

pub async fn a_forgotten_job_runs_again(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    assert_eq!(soon("nothing", one.once().forget(&name)).await.unwrap(), Forgotten::Nothing);
    let token = ran(&run(h, &one, &name).await);
    let forgotten = soon("forgotten", two.once().forget(&name)).await.unwrap();
    assert!(matches!(&forgotten, Forgotten::Record(record) if record.token == token && record.name == name));
    assert!(record(&one, &name).await.is_none());
    assert!(ran(&run(h, &two, &name).await) > token);
    // A run that had begun before does not count.
    soon("forgotten", one.once().forget(&name)).await.unwrap();
    let (guard, begun) = begin(h, &one, &name).await;
    soon("forgotten", two.once().forget(&name)).await.unwrap();
    let refused = soon("refused", begun.finish()).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "its record is gone: {refused:?}");
    drop(guard);
    ran(&run(h, &two, &name).await);
}

pub async fn a_job_runs_again_on_request(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    let again = one.once().again();
    let first = ran(&run_with(h, &again, &name).await);
    let second = ran(&run_with(h, &again, &name).await);
    assert!(second > first);
    assert_eq!(already_done(&run(h, &two, &name).await), second);
    // One that fails leaves the job without a mark.
    let failed = again.run(&name, lock_options(h), async |_: &LockGuard| Err::<(), _>(Error::StorageFull));
    assert!(soon("failed", failed).await.is_err());
    ran(&run(h, &two, &name).await);
}

pub async fn a_wiped_store_has_no_marks(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "job"));
    ran(&run(h, &one, &name).await);
    h.wipe().await;
    eventually("it runs again", || async {
        let options = lock_options(h).deadline(Duration::from_secs(5));
        match two.once().run(&name, options, async |_: &LockGuard| Ok::<_, Error>(())).await {
            Ok(OnceOutcome::Ran { .. }) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    already_done(&run(h, &two, &name).await);
}
