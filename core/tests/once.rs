//! Jobs that run once on the memory backend, under a paused clock. The conformance cases of `once` cover the guarantees
//! on both backends; here are the points at which a run can end, and replies that are lost.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    cell::RefCell,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use enlist::{
    Config, ConfigPath, ConfigScope, ConfigSnapshot, ConfigWatcher, ConfigWrite, Error, Expect, Fence, FencingToken,
    Forgotten, Lock, LockGuard, LockName, LockOptions, Namespace, Once, OnceOutcome, Revision, StaleToken,
};
use enlist_memory::{MemoryClient, MemoryStore};

fn name() -> LockName {
    LockName::parse("migrations/42").unwrap()
}

fn options() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(5))
}

fn once(client: &MemoryClient) -> Once {
    Once::new(Arc::new(client.clone()), Arc::new(client.clone()))
}

/// Runs a job that succeeds at once.
async fn run(once: &Once) -> Result<OnceOutcome<FencingToken>, Error> {
    once.run(&name(), options(), async |guard: &LockGuard| Ok(guard.fencing_token())).await
}

/// Polls a future at most `times` times, and drops it. Returns its output if it was ready before.
async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let (mut future, mut polls) = (pin!(future), 0);
    std::future::poll_fn(|context| {
        if polls < times
            && let Poll::Ready(output) = future.as_mut().poll(context)
        {
            return Poll::Ready(Some(output));
        }
        polls += 1;
        if polls >= times { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// A resource with a fence, which stores its only effect together with a sign that it is done.
#[derive(Default)]
struct Resource {
    fence: Fence,
    prepared: bool,
    effects: usize,
    attempts: usize,
}

impl Resource {
    fn prepare(&mut self, token: FencingToken) -> Result<(), StaleToken> {
        self.fence.admit(token)?;
        self.attempts += 1;
        self.prepared = true;
        Ok(())
    }

    fn commit(&mut self, token: FencingToken) -> Result<(), StaleToken> {
        self.fence.admit(token)?;
        if self.effects == 0 {
            assert!(self.prepared);
            self.effects += 1;
        }
        Ok(())
    }
}

/// A job of two steps, each with a wait before.
async fn migrate(once: &Once, resource: &RefCell<Resource>) -> Result<OnceOutcome<()>, Error> {
    let options = options().deadline(Duration::from_secs(60));
    once.run(&name(), options, async |guard: &LockGuard| {
        let token = guard.fencing_token();
        tokio::time::sleep(Duration::from_millis(10)).await;
        resource.borrow_mut().prepare(token).map_err(Error::unavailable)?;
        tokio::time::sleep(Duration::from_millis(10)).await;
        resource.borrow_mut().commit(token).map_err(Error::unavailable)
    })
    .await
}

/// End of a run before its time.
#[derive(Clone, Copy, Debug)]
enum RunEnd {
    /// The future is dropped, and its process goes on.
    Dropped,
    /// The process sends nothing any more.
    Crashed,
}

/// The run is dropped at each of its awaits in turn, or its process ends there. Whatever remains, the next caller
/// brings the job to its end, the resource has one effect, and no later run begins.
#[tokio::test(start_paused = true)]
async fn runs_that_end_at_any_await_are_repeated() {
    for end in [RunEnd::Dropped, RunEnd::Crashed] {
        let (mut before, mut unmarked, mut marked) = (0, 0, 0);
        for times in 0.. {
            let store = MemoryStore::new();
            let client = store.client();
            // Each request is an await.
            client.delay(Duration::from_millis(1));
            let resource = RefCell::default();
            let first = polled(times, migrate(&once(&client), &resource)).await;
            if matches!(end, RunEnd::Crashed) {
                client.cut();
            }
            if let Some(first) = first {
                assert!(matches!(first, Ok(OnceOutcome::Ran { .. })), "{end:?} {times}: {first:?}");
                break;
            }
            let begun = resource.borrow().attempts;
            let next = migrate(&once(&store.client()), &resource).await.unwrap();
            let attempts = resource.borrow().attempts;
            match next {
                OnceOutcome::Ran { .. } => {
                    assert_eq!(attempts, begun + 1);
                    before += usize::from(begun == 0);
                    unmarked += usize::from(begun > 0);
                }
                OnceOutcome::AlreadyDone { record } => {
                    assert_eq!((attempts, record.done.is_some()), (begun, true));
                    marked += 1;
                }
                other => panic!("{end:?} {times}: {other:?}"),
            }
            assert_eq!(resource.borrow().effects, 1, "{end:?} {times}");
            assert!(matches!(run(&once(&store.client())).await, Ok(OnceOutcome::AlreadyDone { .. })));
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(store.queue_length(&name()), 0, "{end:?} {times}");
        }
        assert!(before > 0 && unmarked > 0 && marked > 0, "{end:?}: {before} {unmarked} {marked}");
    }
}

/// The holder is paused for so long that its lease expires, and goes on without a check of its lock.
#[tokio::test(start_paused = true)]
async fn a_paused_run_neither_writes_nor_marks_late() {
    let store = MemoryStore::new();
    let (one, two) = (store.client(), store.client());
    let resource = RefCell::<Resource>::default();
    let guard = one.acquire(&name(), options()).await.unwrap();
    let enlist::Begun::Run(paused) = once(&one).begin(&guard).await.unwrap() else { panic!("nothing is done") };
    let token = paused.token();
    resource.borrow_mut().prepare(token).unwrap();
    one.cut();
    migrate(&once(&two), &resource).await.unwrap();
    one.heal();
    assert_eq!(resource.borrow_mut().commit(token).unwrap_err().token, token);
    let refused = paused.finish().await;
    assert!(matches!(&refused, Err(Error::Conflict { what, .. }) if what.contains("migrations/42")), "{refused:?}");
    let record = once(&two).record(&name()).await.unwrap().unwrap();
    assert!(record.token > token && record.done.is_some());
    assert_eq!(resource.borrow().effects, 1);
}

/// The successor has begun and not finished: the mark of the outdated run is refused all the same, and the successor's
/// is not.
#[tokio::test(start_paused = true)]
async fn of_two_overlapping_runs_the_later_one_marks() {
    let store = MemoryStore::new();
    let (one, two) = (store.client(), store.client());
    let begin = async |client: &MemoryClient| {
        let guard = client.acquire(&name(), options()).await.unwrap();
        match once(client).begin(&guard).await.unwrap() {
            enlist::Begun::Run(run) => (guard, run),
            other => panic!("{other:?}"),
        }
    };
    let (first, earlier) = begin(&one).await;
    store.delete_holder(&name());
    let (second, later) = begin(&two).await;
    assert!(earlier.token() < later.token());
    assert!(matches!(earlier.finish().await, Err(Error::Conflict { .. })));
    // Nor can an outdated holder begin after that.
    assert!(matches!(once(&one).begin(&first).await, Err(Error::Conflict { .. })));
    let token = later.token();
    assert_eq!(later.finish().await.unwrap().token, token);
    drop(second);
}

/// Configuration of which every n-th request to write is applied and not answered, or not applied and not answered.
#[derive(Debug)]
struct LostReplies {
    inner: MemoryClient,
    writes: AtomicUsize,
    lost: usize,
    applied: Applied,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Before,
    Never,
}

#[async_trait]
impl Config for LostReplies {
    async fn list(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<ConfigSnapshot, Error> {
        self.inner.list(namespace, scope).await
    }

    async fn watch(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<Box<dyn ConfigWatcher>, Error> {
        Config::watch(&self.inner, namespace, scope).await
    }

    async fn write(&self, namespace: &Namespace, writes: Vec<ConfigWrite>) -> Result<Revision, Error> {
        let lost = self.writes.fetch_add(1, Ordering::SeqCst) == self.lost;
        if !lost || self.applied == Applied::Before {
            let written = self.inner.write(namespace, writes).await;
            if !lost {
                return written;
            }
        }
        Err(Error::unavailable("the reply was lost"))
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_mark_is_written_until_known() {
    for applied in [Applied::Before, Applied::Never] {
        let store = MemoryStore::new();
        let client = store.client();
        let config = LostReplies { inner: client.clone(), writes: AtomicUsize::new(0), lost: 1, applied };
        let outcome = run(&Once::new(Arc::new(client.clone()), Arc::new(config))).await.unwrap();
        let OnceOutcome::Ran { value, token } = outcome else { panic!("{applied:?}: {outcome:?}") };
        assert_eq!(value, token);
        let record = once(&client).record(&name()).await.unwrap().unwrap();
        assert!(record.token == token && record.done.is_some(), "{applied:?}: {record:?}");
    }
}

/// A beginning that is not answered ends the call before the job runs. The next call is not disturbed.
#[tokio::test(start_paused = true)]
async fn a_beginning_without_an_answer_runs_nothing() {
    for applied in [Applied::Before, Applied::Never] {
        let store = MemoryStore::new();
        let client = store.client();
        let config = LostReplies { inner: client.clone(), writes: AtomicUsize::new(0), lost: 0, applied };
        let once = Once::new(Arc::new(client.clone()), Arc::new(config));
        let ran = RefCell::new(false);
        let refused = once
            .run(&name(), options(), async |_: &LockGuard| {
                *ran.borrow_mut() = true;
                Ok::<_, Error>(())
            })
            .await;
        assert!(matches!(refused, Err(Error::Unavailable(_))) && !*ran.borrow(), "{applied:?}: {refused:?}");
        assert!(matches!(run(&once).await, Ok(OnceOutcome::Ran { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn impossible_jobs_are_refused_before_anything_is_sent() {
    let client = MemoryStore::new().client();
    client.cut();
    for bad in ["/a", "a//b", "a/"] {
        let bad = LockName::parse(bad).unwrap();
        for once in [once(&client), once(&client).again()] {
            let refused = once.run(&bad, options(), async |_: &LockGuard| Ok::<_, Error>(())).await;
            assert!(matches!(refused, Err(Error::InvalidName { .. })), "{refused:?}");
        }
    }
    let refused = once(&client).run(&name(), options().shared(), async |_: &LockGuard| Ok::<_, Error>(())).await;
    assert!(matches!(refused, Err(Error::InvalidConfig { field: "mode", .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_no_record_is_kept() {
    let client = MemoryStore::new().client();
    let (namespace, path) = (Namespace::parse("once:default").unwrap(), ConfigPath::parse("migrations/42").unwrap());
    for value in [&b"garbage"[..], br#"{"v":2,"token":1,"begun":5}"#] {
        client.put(&namespace, &path, value.to_vec(), Expect::Any).await.unwrap();
        let refused = run(&once(&client)).await;
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
        let stored = client.get(&namespace, &path).await.unwrap().unwrap();
        assert_eq!(&*stored.value, value);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_record_can_be_forgotten() {
    let client = MemoryStore::new().client();
    let (namespace, path) = (Namespace::parse("once:default").unwrap(), ConfigPath::parse("migrations/42").unwrap());
    let revision = client.put(&namespace, &path, b"garbage".to_vec(), Expect::Any).await.unwrap();
    assert_eq!(once(&client).forget(&name()).await.unwrap(), Forgotten::Unreadable { revision });
    assert_eq!(once(&client).forget(&name()).await.unwrap(), Forgotten::Nothing);
    assert!(matches!(run(&once(&client)).await, Ok(OnceOutcome::Ran { .. })));
}

/// The error of a job has the caller's own type, which only has to be created from that of this crate.
#[tokio::test(start_paused = true)]
async fn a_job_fails_with_its_own_error() {
    let client = MemoryStore::new().client();
    let fails = once(&client)
        .run(&name(), options(), async |_: &LockGuard| -> Result<(), Box<dyn std::error::Error>> {
            Err("the disk is full".into())
        })
        .await;
    assert_eq!(fails.unwrap_err().to_string(), "the disk is full");
    assert!(once(&client).record(&name()).await.unwrap().unwrap().done.is_none());
}

#[tokio::test(start_paused = true)]
async fn it_runs_in_a_task_of_its_own() {
    let client = MemoryStore::new().client();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let once = once(&client);
        tasks.spawn(async move { run(&once).await.unwrap() });
    }
    let mut ran = 0;
    while let Some(outcome) = tasks.join_next().await {
        ran += usize::from(matches!(outcome.unwrap(), OnceOutcome::Ran { .. }));
    }
    assert_eq!(ran, 1);
}
