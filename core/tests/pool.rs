//! The pool, on the memory backend and a paused clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{
    Directory, DirectoryOptions, Endpoint, Instance, InstanceId, NoPick, Policy, Pool, PoolError, RegisterOptions,
    Registration, Registry, Retry, ServiceRef,
};
use enlist_memory::MemoryStore;

/// A client that counts how many of it there are.
struct Client {
    id: String,
    alive: Arc<AtomicUsize>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Case {
    store: MemoryStore,
    pool: Pool<Client>,
    alive: Arc<AtomicUsize>,
    registrations: Vec<Registration>,
}

fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

impl Case {
    async fn new(ids: &[&str]) -> Self {
        let store = MemoryStore::new();
        let options = DirectoryOptions::new().hold(Duration::ZERO);
        let view = Directory::with_options(Arc::new(store.client()), options).view(&service());
        let alive = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&alive);
        let pool = Pool::new(view, move |entry| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(Client { id: entry.instance().id().to_string(), alive: Arc::clone(&counted) })
        });
        let mut case = Self { store, pool: pool.unwrap(), alive, registrations: Vec::new() };
        for id in ids {
            case.register(id).await;
        }
        let view = case.pool.view().clone();
        while view.snapshot().is_none_or(|snapshot| snapshot.len() != ids.len()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        case
    }

    async fn register(&mut self, id: &str) {
        let id = InstanceId::parse(id).unwrap();
        let instance = Instance::new(id, [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        let registered = self.store.client().register(&service(), instance, RegisterOptions::new()).await;
        self.registrations.push(registered.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_goes_to_another_instance_and_each_is_tried_once() {
    let case = Case::new(&["a", "b", "c"]).await;
    let tried = Mutex::new(Vec::new());
    let retry = Retry::new(|_: &&str| true).attempts(3);
    let failed = case.pool.call(Policy::Random, &retry, |client| {
        tried.lock().unwrap().push(client.id.clone());
        async { Err::<(), _>("broken") }
    });
    assert!(matches!(failed.await, Err(PoolError::Failed { attempts: 3, cause: "broken" })));
    let mut tried = tried.into_inner().unwrap();
    tried.sort();
    assert_eq!(tried, ["a", "b", "c"]);
    assert_eq!(case.alive.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_repeated_is_not() {
    let case = Case::new(&["a", "b"]).await;
    let calls = AtomicUsize::new(0);
    let retry = Retry::new(|error: &&str| *error == "never sent").attempts(5);
    let failed = case.pool.call(Policy::RoundRobin, &retry, |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        async { Err::<(), _>("maybe done") }
    });
    assert!(matches!(failed.await, Err(PoolError::Failed { attempts: 1, .. })));
    assert_eq!(calls.into_inner(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_dropped_after_its_instance_and_its_last_call() {
    let mut case = Case::new(&["a"]).await;
    let never = Retry::<&str>::never();
    let begun = case.pool.call(Policy::Weighted, &never, |client| async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(client.id.clone())
    });
    let ended = async {
        case.registrations.remove(0).deregister().await.unwrap();
        while !case.pool.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(case.alive.load(Ordering::SeqCst), 1, "the call is under way");
    };
    let (answer, ()) = tokio::join!(begun, ended);
    assert_eq!(answer.unwrap(), "a");
    assert_eq!(case.alive.load(Ordering::SeqCst), 0);
    let nobody = case.pool.call(Policy::Weighted, &never, |_| async { Ok(()) }).await;
    assert!(matches!(nobody, Err(PoolError::NoPick(NoPick::Empty { listed: 0 }))));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_covers_all_attempts_and_the_delays_between_them() {
    let case = Case::new(&["a"]).await;
    let begun = tokio::time::Instant::now();
    let retry = Retry::new(|_: &&str| true).attempts(1000).deadline(Duration::from_secs(5));
    let failed = case.pool.call(Policy::Random, &retry, |_| async { Err::<(), _>("broken") }).await;
    assert!(matches!(failed, Err(PoolError::Failed { attempts, .. }) if attempts < 20), "{failed:?}");
    assert!(begun.elapsed() <= Duration::from_secs(5));
    let stuck = case.pool.call(Policy::Random, &retry, |_| std::future::pending::<Result<(), &str>>()).await;
    assert!(matches!(stuck, Err(PoolError::Deadline { attempts: 1 })));
}

/// Runs `test` on a thread and a runtime of its own, so that a deadlock fails the test instead of blocking it.
fn in_time<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(test());
        done.send(())
    });
    outcome.recv_timeout(Duration::from_secs(10)).expect("in time");
}

/// A client that looks at its pool when it is made and when it is dropped.
struct Nosy(Weak<OnceLock<Pool<Nosy>>>);

impl Nosy {
    fn new(pool: &Weak<OnceLock<Pool<Self>>>) -> Self {
        let nosy = Self(Weak::clone(pool));
        nosy.look();
        nosy
    }

    fn look(&self) {
        if let Some(pool) = self.0.upgrade()
            && let Some(pool) = pool.get()
        {
            let _ = pool.len();
        }
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.look();
    }
}

#[test]
fn clients_may_use_the_pool_when_they_are_made_and_when_they_are_dropped() {
    in_time(|| async {
        let store = MemoryStore::new();
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]);
        let registered = store.client().register(&service(), instance.unwrap(), RegisterOptions::new()).await.unwrap();
        let options = DirectoryOptions::new().hold(Duration::ZERO);
        let view = Directory::with_options(Arc::new(store.client()), options).view(&service());
        view.ready().await.unwrap();
        let pool = Arc::<OnceLock<_>>::default();
        let weak = Arc::downgrade(&pool);
        assert!(pool.set(Pool::new(view, move |_| Ok(Nosy::new(&weak))).unwrap()).is_ok());
        let pool = pool.get().unwrap();
        pool.call(Policy::Random, &Retry::<&str>::never(), |_| async { Ok(()) }).await.unwrap();
        assert_eq!(pool.len(), 1);
        registered.deregister().await.unwrap();
        while !pool.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}
