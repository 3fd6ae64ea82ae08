//! One client per instance, for protocols that are not gRPC.
//!
//! A [`Pool`] makes a client when an instance is first picked, keeps it while the instance is there, and lets go of it when the
//! instance is gone: calls that are under way finish, then the client is dropped.
//!
//! ```
//! # use enlist::{Directory, Endpoint, Error, Instance, InstanceId, Policy, Pool, RegisterOptions, Registry, Retry, ServiceRef};
//! # use std::sync::Arc;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = enlist_memory::MemoryStore::new();
//! # let service = ServiceRef::parse("cache")?;
//! # let instance = Instance::new(InstanceId::parse("a")?, [Endpoint::parse("10.0.0.1:80")?])?;
//! # let _registration = store.client().register(&service, instance, RegisterOptions::new()).await?;
//! let view = Directory::new(Arc::new(store.client())).view(&service);
//! view.ready().await?;
//! let pool = Pool::new(view, |entry| Ok(format!("client of {}", entry.instance().endpoints()[0])))?;
//! let retry = Retry::new(|_: &std::io::Error| true).attempts(3);
//! let answer = pool.call(Policy::Weighted, &retry, |client| async move { Ok(client.len()) }).await?;
//! # assert_eq!(answer, 21);
//! # Ok(())
//! # }
//! ```

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    backoff::BackoffPolicy,
    clock::Moment,
    directory::{ServiceView, ViewChanges},
    endpoint::Endpoint,
    error::Error,
    instance::Entry,
    name::InstanceId,
    picker::{NoPick, Picker, Policy},
    snapshot::Snapshot,
    task::TaskOwner,
};

/// How often one pick is repeated to find an instance that was not tried yet.
const REDRAWS: usize = 16;

/// When a call is tried again, and where to stop. The decision is the caller's: only it knows whether a call that failed may
/// have been done.
pub struct Retry<E> {
    accepts: Box<dyn Fn(&E) -> bool + Send + Sync>,
    attempts: u32,
    deadline: Duration,
    backoff: BackoffPolicy,
}

impl<E> Retry<E> {
    /// Tries again, on another instance where there is one, after errors that `retry_if` accepts: at most 3 attempts within 10 s,
    /// with delays of 200 ms growing to 10 s.
    pub fn new(retry_if: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        let (attempts, deadline) = (3, Duration::from_secs(10));
        Self { accepts: Box::new(retry_if), attempts, deadline, backoff: BackoffPolicy::default() }
    }

    /// Never tries again.
    pub fn never() -> Self {
        Self::new(|_| false)
    }

    /// Sets how many attempts there are in all. Zero counts as one.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets how long all attempts may take together.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the delays between attempts. An instance that was not tried yet is tried without one.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffPolicy) -> Self {
        self.backoff = backoff;
        self
    }
}

impl<E> fmt::Debug for Retry<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepts: _, attempts, deadline, backoff } = self;
        let mut shown = f.debug_struct("Retry");
        shown.field("attempts", attempts).field("deadline", deadline).field("backoff", backoff).finish_non_exhaustive()
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError<E> {
    /// There was nobody to call.
    #[error("nobody to call")]
    NoPick(#[source] NoPick),
    /// No client could be made for the instance.
    #[error("no client for {id}")]
    NoClient {
        /// The instance.
        id: InstanceId,
        /// Why.
        #[source]
        cause: Error,
    },
    /// The last attempt failed.
    #[error("the call failed after {attempts} attempts")]
    Failed {
        /// How many attempts there were.
        attempts: u32,
        /// What the last one said.
        #[source]
        cause: E,
    },
    /// The deadline passed during an attempt, which was dropped; it may have been done.
    #[error("the deadline passed during attempt {attempts}")]
    Deadline {
        /// How many attempts there were.
        attempts: u32,
    },
}

type Factory<T> = Box<dyn Fn(&Entry) -> Result<T, Error> + Send + Sync>;

struct Shared<T> {
    factory: Factory<T>,
    clients: Mutex<HashMap<InstanceId, Kept<T>>>,
}

struct Kept<T> {
    /// A client is for an address: another one under the same id is another client.
    endpoints: Vec<Endpoint>,
    client: Arc<T>,
}

impl<T> Shared<T> {
    fn clients(&self) -> MutexGuard<'_, HashMap<InstanceId, Kept<T>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, entry: &Entry) -> Result<Arc<T>, Error> {
        let instance = entry.instance();
        let known = |clients: &HashMap<InstanceId, Kept<T>>| {
            let kept = clients.get(instance.id()).filter(|kept| kept.endpoints == instance.endpoints())?;
            Some(Arc::clone(&kept.client))
        };
        if let Some(client) = known(&self.clients()) {
            return Ok(client);
        }
        // Under no lock, as is every drop of a client below: both are code of the user's, which may use the pool.
        let made = Arc::new((self.factory)(entry)?);
        let (client, _replaced) = {
            let mut clients = self.clients();
            if let Some(client) = known(&clients) {
                (client, None)
            } else {
                let kept = Kept { endpoints: instance.endpoints().to_vec(), client: Arc::clone(&made) };
                (made, clients.insert(instance.id().clone(), kept))
            }
        };
        Ok(client)
    }

    /// Lets go of the clients of instances that are not in `snapshot`, or are elsewhere there.
    fn keep_only(&self, snapshot: &Snapshot) {
        let is_gone = |id: &InstanceId, kept: &mut Kept<T>| {
            snapshot.get(id).is_none_or(|entry| entry.instance().endpoints() != kept.endpoints)
        };
        let gone: Vec<_> = self.clients().extract_if(is_gone).collect();
        drop(gone);
    }
}

/// The next snapshot; `None` once the directory is closed.
async fn next(changes: &mut ViewChanges) -> Option<Snapshot> {
    loop {
        match changes.next().await {
            Ok(change) => return Some(change.snapshot),
            Err(Error::Closed) => return None,
            // The view goes on trying.
            Err(_) => {}
        }
    }
}

/// One client per instance of a service. Dropping it ends its task and drops its clients, once their calls are done.
pub struct Pool<T> {
    view: ServiceView,
    shared: Arc<Shared<T>>,
    pickers: Mutex<Vec<(Policy, Picker)>>,
    _tasks: TaskOwner,
}

impl<T: Send + Sync + 'static> Pool<T> {
    /// A pool whose clients `factory` makes. It must not block; a client that has to connect does so at its first call. Calls that
    /// need the same one at the same time may each make one; the first is kept and the others are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime.
    pub fn new(
        view: ServiceView,
        factory: impl Fn(&Entry) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared { factory: Box::new(factory), clients: Mutex::default() });
        let tasks = TaskOwner::new();
        let (mut changes, kept) = (view.changes(), Arc::clone(&shared));
        let tidy = async move {
            while let Some(snapshot) = next(&mut changes).await {
                kept.keep_only(&snapshot);
            }
        };
        tasks.run("pool", tidy)?;
        Ok(Self { view, shared, pickers: Mutex::default(), _tasks: tasks })
    }

    /// Calls an instance, and another one where `retry` says so.
    ///
    /// # Errors
    ///
    /// [`PoolError`] says whether there was nobody, no client, or what the last attempt said.
    ///
    /// # Cancel safety
    ///
    /// The attempt that is under way is dropped; whether it was done is for its protocol to say.
    pub async fn call<R, E, F, C>(&self, policy: Policy, retry: &Retry<E>, call: F) -> Result<R, PoolError<E>>
    where
        F: Fn(Arc<T>) -> C,
        C: Future<Output = Result<R, E>>,
    {
        let begun = Moment::now();
        let mut backoff = retry.backoff.start();
        let mut tried: Vec<InstanceId> = Vec::new();
        for attempt in 1.. {
            let entry = self.pick(policy, &tried).map_err(PoolError::NoPick)?;
            let id = entry.instance().id().clone();
            let client = self.shared.client(&entry).map_err(|cause| PoolError::NoClient { id: id.clone(), cause })?;
            let left = begun.remaining(retry.deadline);
            let Ok(outcome) = tokio::time::timeout(left, call(client)).await else {
                return Err(PoolError::Deadline { attempts: attempt });
            };
            let cause = match outcome {
                Ok(answer) => return Ok(answer),
                Err(cause) => cause,
            };
            let again = (retry.accepts)(&cause) && attempt < retry.attempts;
            // A second failure of the same instance is the time to slow down.
            let delay = if tried.contains(&id) { backoff.next_delay() } else { Duration::ZERO };
            if !again || begun.remaining(retry.deadline) <= delay {
                return Err(PoolError::Failed { attempts: attempt, cause });
            }
            tokio::time::sleep(delay).await;
            tried.push(id);
        }
        unreachable!("the loop above has no other end")
    }

    /// An instance that was not tried yet, if the dice find one.
    fn pick(&self, policy: Policy, tried: &[InstanceId]) -> Result<Arc<Entry>, NoPick> {
        let mut pickers = self.pickers.lock().unwrap_or_else(PoisonError::into_inner);
        if !pickers.iter().any(|(known, _)| *known == policy) {
            pickers.push((policy, self.view.picker(policy)));
        }
        let picker = pickers.iter_mut().find_map(|(known, picker)| (*known == policy).then_some(picker));
        let Some(picker) = picker else { return Err(NoPick::Unknown) };
        let mut entry = Arc::clone(picker.pick()?);
        for _ in 0..REDRAWS {
            if !tried.contains(entry.instance().id()) {
                return Ok(entry);
            }
            entry = Arc::clone(picker.pick()?);
        }
        let untried = picker.candidates()?.iter().find(|entry| !tried.contains(entry.instance().id()));
        Ok(untried.map_or(entry, Arc::clone))
    }

    /// How many clients there are.
    pub fn len(&self) -> usize {
        self.shared.clients().len()
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The view that it picks from.
    pub fn view(&self) -> &ServiceView {
        &self.view
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("view", &self.view).finish_non_exhaustive()
    }
}
