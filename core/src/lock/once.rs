//! Jobs that run once: under a lock, with a durable mark. `job_record.rs` has the record and the decisions.
//!
//! | the process ends, or loses the store | result |
//! |---|---|
//! | before the beginning is recorded | the job did not run; the next caller runs it |
//! | during the job, or after it and before its mark is stored | the next caller runs the job again |
//! | while the mark is being written | the mark is stored or not, decided by the store: either no run begins any more, or the next one has begun and the mark is refused |
//! | after the mark and before the release | the job is done; the lock is free after its TTL |

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{
    config::{
        path::{ConfigPath, ConfigScope},
        store::Config,
        write::{ConfigWrite, Expect},
    },
    error::{Error, with_causes},
    lock::{
        guard::LockGuard,
        job_record::{self, BeginStep, FinishStep, JobRecord, WhenDone},
        lock::Lock,
        loss::Loss,
        options::{LockMode, LockOptions},
    },
    model::{
        escape::escaped,
        name::{LockName, Namespace},
        revision::{FencingToken, Revision},
    },
    runtime::backoff::BackoffPolicy,
};

/// Prefix of the namespaces that hold records: those of jobs in `default` are in `once:default`.
const NAMESPACE_PREFIX: &str = "once:";

/// Runs jobs that have to run once: a migration, or the tick of a schedule. Each job has a name, which is that of its
/// lock and of its mark. The mark is stored without a lease and survives every process.
///
/// - **At least once.** [`run`](Self::run) returns `Ok` only if the job has succeeded and its mark is stored. A job
///   that failed, or whose run ended early, has no mark, and the next caller runs it.
/// - **At most one at a time**, with the limits of a [lock](Lock): a holder that was paused can run beside its
///   successor. It cannot mark the job: a mark is refused once another run has begun. No run begins after a mark, even
///   if the lock fails.
/// - **Effectively once** requires the resource: it passes the token of each write through a [`Fence`](crate::Fence),
///   so that an outdated run cannot write after a later one, and it stores the last write together with a sign that the
///   job is done, which the job reads first. A run that ends between its last write and its mark is repeated, and only
///   the resource knows then that nothing is left to do.
///
/// A record is a configuration value in the namespace `once:{namespace}` of the job, with the job's name as its path.
/// Lock and configuration have to belong to one store, because tokens of another one cannot be compared. A store that
/// loses its data loses the marks too: the jobs run again.
///
/// ```
/// use enlist::{Error, LockName, LockOptions, Once, OnceOutcome};
/// use std::sync::Arc;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let store = Arc::new(enlist_memory::MemoryStore::new().client());
/// let once = Once::new(store.clone(), store);
/// let name = LockName::parse("migrations/42-add-index")?;
/// for _ in 0..2 {
///     let outcome = once
///         .run(&name, LockOptions::new(), async |guard| {
///             println!("migrating with token {}", guard.fencing_token());
///             Ok::<_, Error>("migrated")
///         })
///         .await?;
///     match outcome {
///         OnceOutcome::Ran { value, .. } => println!("{value}"),
///         OnceOutcome::AlreadyDone { record } => println!("done before, with token {}", record.token),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Once {
    lock: Arc<dyn Lock>,
    config: Arc<dyn Config>,
    when_done: WhenDone,
}

/// Result of [`Once::run`]: the job is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnceOutcome<T> {
    /// This call ran the job and marked it.
    Ran {
        /// Result of the job.
        value: T,
        /// Fencing token of the run.
        token: FencingToken,
    },
    /// The job was done before, and did not run.
    AlreadyDone {
        /// The record, with its mark.
        record: JobRecord,
    },
}

/// Result of [`Once::begin`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Begun {
    /// The job is to run now.
    Run(JobRun),
    /// The job was done before.
    AlreadyDone(JobRecord),
}

/// Result of [`Once::forget`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a record was absent, readable, or not")]
pub enum Forgotten {
    /// There was no record.
    Nothing,
    /// This record was removed.
    Record(JobRecord),
    /// A value that this version cannot read was removed.
    Unreadable {
        /// Revision of the value.
        revision: Revision,
    },
}

/// A run that has begun. [`finish`](Self::finish) marks the job as done; dropping it leaves the job without a mark.
#[must_use = "without `finish` the job is not marked, and runs again"]
pub struct JobRun {
    config: Arc<dyn Config>,
    record_key: RecordKey,
    name: LockName,
    token: FencingToken,
    begun: SystemTime,
    revision: Revision,
}

/// Key of a record: its namespace and path.
#[derive(Clone, Debug)]
struct RecordKey {
    namespace: Namespace,
    path: ConfigPath,
}

impl Once {
    /// Jobs under the locks of `lock`, with their records in `config`, which belongs to the same store.
    pub fn new(lock: Arc<dyn Lock>, config: Arc<dyn Config>) -> Self {
        Self { lock, config, when_done: WhenDone::Skip }
    }

    /// Runs jobs that are done once more. The run replaces the mark when it begins, so a run that fails leaves the job
    /// without a mark.
    #[must_use]
    pub fn again(mut self) -> Self {
        self.when_done = WhenDone::Repeat;
        self
    }

    /// Runs `job` under the lock `name` unless it is done, marks it if it succeeds, and releases the lock. A caller
    /// that waited for another run returns [`OnceOutcome::AlreadyDone`] after that run succeeded, and runs the job
    /// itself after it failed. A job that is done is recognised without the lock.
    ///
    /// The job is aborted at its next await once the lock is lost. The mark is written until its outcome is known, also
    /// if the lock is lost meanwhile. A release that is not confirmed goes on in the background and is no error.
    ///
    /// # Errors
    ///
    /// That of the job, unchanged: nothing is marked then. Otherwise an [`Error`]: as [`Lock::acquire`] if the lock was
    /// not acquired; [`Error::LeaseLost`] if it was lost during the job; [`Error::Conflict`] if another run began
    /// meanwhile, which happens only after the loss of the lock: this run has no mark, whether it succeeded or not, and
    /// the other one counts. [`Error::InvalidConfig`] for shared mode. [`Error::InvalidName`] for a name that is no
    /// [`ConfigPath`]. [`Error::Unsupported`] for a record that this version cannot read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the job and releases the lock, or leaves the queue. The job has no mark then, unless
    /// the mark was being written.
    pub async fn run<T, E: From<Error>>(
        &self,
        name: &LockName,
        options: LockOptions,
        job: impl AsyncFnOnce(&LockGuard) -> Result<T, E>,
    ) -> Result<OnceOutcome<T>, E> {
        if options.mode != LockMode::Exclusive {
            return Err(Error::invalid_config("mode", "a job that runs once has no shared mode").into());
        }
        match self.done(name).await {
            Ok(Some(record)) => return Ok(OnceOutcome::AlreadyDone { record }),
            // The acquisition waits for a store that does not answer, up to its deadline.
            Err(error) if !error.is_retryable() => return Err(error.into()),
            Ok(None) | Err(_) => {}
        }
        let guard = self.lock.acquire(name, options).await?;
        let outcome = self.run_held(&guard, job).await;
        // An error means an unconfirmed release, which goes on in the background.
        let _ = guard.release().await;
        outcome
    }

    async fn run_held<T, E: From<Error>>(
        &self,
        guard: &LockGuard,
        job: impl AsyncFnOnce(&LockGuard) -> Result<T, E>,
    ) -> Result<OnceOutcome<T>, E> {
        let run = match guard.run(self.begin(guard)).await.map_err(|loss| lost(guard, loss))?? {
            Begun::Run(run) => run,
            Begun::AlreadyDone(record) => return Ok(OnceOutcome::AlreadyDone { record }),
        };
        let value = guard.run(job(guard)).await.map_err(|loss| lost(guard, loss))??;
        let token = run.token;
        run.finish().await?;
        Ok(OnceOutcome::Ran { value, token })
    }

    /// Records the beginning of a run, unless the job is done. For callers that hold the lock themselves; otherwise
    /// use [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// The beginning may have been recorded, which has no effect on later runs.
    pub async fn begin(&self, guard: &LockGuard) -> Result<Begun, Error> {
        let (name, token) = (guard.name(), guard.fencing_token());
        let (record_key, begun) = (RecordKey::of(name)?, SystemTime::now());
        loop {
            let stored = record_key.read(&*self.config, name).await?;
            let revision = match (JobRecord::begin_step(stored.as_ref(), token, self.when_done), stored) {
                (BeginStep::Skip, Some(record)) => return Ok(Begun::AlreadyDone(record)),
                (BeginStep::Write(expect), _) => {
                    match record_key.write(&*self.config, job_record::beginning(token, begun), expect).await {
                        Ok(revision) => revision,
                        // The record shows which write it was, perhaps this one.
                        Err(Error::Conflict { .. }) => continue,
                        Err(error) => return Err(error),
                    }
                }
                (BeginStep::Begun(revision), _) => revision,
                (BeginStep::Outdated(revision), _) => return Err(overtaken(name, revision)),
                (BeginStep::Unknown | BeginStep::Skip, _) => return Err(job_record::unknown(name)),
            };
            let (config, name) = (Arc::clone(&self.config), name.clone());
            return Ok(Begun::Run(JobRun { config, record_key, name, token, begun, revision }));
        }
    }

    /// Returns the record of the job's last run, by one linearizable read.
    ///
    /// # Errors
    ///
    /// As [`Config::get`]; [`Error::InvalidName`] for a name that is no [`ConfigPath`]; [`Error::Unsupported`] for a
    /// record that this version cannot read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn record(&self, name: &LockName) -> Result<Option<JobRecord>, Error> {
        RecordKey::of(name)?.read(&*self.config, name).await
    }

    /// Returns the records of all jobs of `namespace`, by one linearizable read. A record that this version cannot read
    /// is omitted and logged.
    ///
    /// # Errors
    ///
    /// As [`Config::list`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn records(&self, namespace: &Namespace) -> Result<Vec<JobRecord>, Error> {
        let stored = self.config.list(&namespace_of(namespace)?, &ConfigScope::All).await?;
        let mut records = Vec::with_capacity(stored.len());
        for entry in stored.entries() {
            let Ok(name) = LockName::parse(&entry.path) else { continue };
            if let Ok(record) = JobRecord::decode(&name.within(namespace.clone()), &entry.value, entry.modified) {
                records.push(record);
            } else {
                let (namespace, job) = (escaped(namespace), escaped(&entry.path));
                tracing::warn!(%namespace, %job, "a record of a job cannot be read");
            }
        }
        Ok(records)
    }

    /// Removes the record of a job and returns it, so that the job runs again. The mark of a run that has begun before
    /// is refused. A value that cannot be read as a record is removed as well.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if the record changed meanwhile; [`Error::InvalidName`] for a name that is no
    /// [`ConfigPath`]; otherwise as [`Config::get`] and [`Config::delete`].
    ///
    /// # Cancel safety
    ///
    /// The record may have been removed.
    pub async fn forget(&self, name: &LockName) -> Result<Forgotten, Error> {
        let RecordKey { namespace, path } = RecordKey::of(name)?;
        let Some(entry) = self.config.get(&namespace, &path).await? else { return Ok(Forgotten::Nothing) };
        let revision = entry.modified;
        self.config.write(&namespace, vec![ConfigWrite::delete(path, Expect::Revision(revision))]).await?;
        let record = JobRecord::decode(name, &entry.value, revision);
        Ok(record.map_or(Forgotten::Unreadable { revision }, Forgotten::Record))
    }

    /// Returns the record of a job that is done, unless it is to run again.
    async fn done(&self, name: &LockName) -> Result<Option<JobRecord>, Error> {
        match self.when_done {
            WhenDone::Skip => Ok(self.record(name).await?.filter(|record| record.done.is_some())),
            WhenDone::Repeat => RecordKey::of(name).map(|_| None),
        }
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lock, config, when_done } = self;
        let mut shown = f.debug_struct("Once");
        shown.field("lock", lock).field("config", config).field("when_done", when_done).finish()
    }
}

impl JobRun {
    /// Fencing token of the run.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Marks the job as done. The lock need not be held any more: the mark is refused if another run has begun. A write
    /// without an answer is repeated until its outcome is known.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if another run has begun, or the record was removed; otherwise as [`Config::write`], except
    /// for errors that are [retryable](Error::is_retryable).
    ///
    /// # Cancel safety
    ///
    /// The mark may have been stored.
    pub async fn finish(self) -> Result<JobRecord, Error> {
        let Self { config, record_key, name, token, begun, revision } = self;
        let (done, mut expect) = (SystemTime::now(), Expect::Revision(revision));
        let value = job_record::mark(token, begun, done);
        let mut delays = BackoffPolicy::default().start();
        loop {
            let failed = match record_key.write(&*config, value.clone(), expect).await {
                Ok(revision) => return JobRecord::decode(&name, &value, revision),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => error,
            };
            let failed = match record_key.read(&*config, &name).await {
                Ok(stored) => match (JobRecord::finish_step(stored.as_ref(), token), stored) {
                    (FinishStep::Marked, Some(record)) => return Ok(record),
                    (FinishStep::Write(next), _) => {
                        expect = next;
                        failed
                    }
                    (FinishStep::Outdated(revision), _) => return Err(overtaken(&name, revision)),
                    (FinishStep::Marked, None) => return Err(job_record::unknown(&name)),
                },
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => error,
            };
            let job = escaped(&name);
            tracing::warn!(%job, %token, error = %with_causes(&failed), "the mark of a job is not stored yet");
            tokio::time::sleep(delays.next_delay()).await;
        }
    }
}

impl fmt::Debug for JobRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, token, begun, revision, config: _, record_key: _ } = self;
        let mut shown = f.debug_struct("JobRun");
        shown.field("name", name).field("token", token).field("begun", begun).field("revision", revision);
        shown.finish_non_exhaustive()
    }
}

impl RecordKey {
    fn of(name: &LockName) -> Result<Self, Error> {
        Ok(Self { namespace: namespace_of(name.namespace())?, path: ConfigPath::parse(name.name())? })
    }

    async fn read(&self, config: &dyn Config, name: &LockName) -> Result<Option<JobRecord>, Error> {
        let entry = config.get(&self.namespace, &self.path).await?;
        entry.map(|entry| JobRecord::decode(name, &entry.value, entry.modified)).transpose()
    }

    async fn write(&self, config: &dyn Config, value: Vec<u8>, expect: Expect) -> Result<Revision, Error> {
        config.write(&self.namespace, vec![ConfigWrite::put(self.path.clone(), value, expect)]).await
    }
}

/// Returns the namespace of the records of the jobs in `namespace`.
fn namespace_of(namespace: &Namespace) -> Result<Namespace, Error> {
    Namespace::parse(format!("{NAMESPACE_PREFIX}{namespace}"))
}

/// Error for a run whose lock was lost.
fn lost(guard: &LockGuard, loss: Loss) -> Error {
    let job = escaped(guard.name());
    tracing::warn!(%job, token = %guard.fencing_token(), cause = ?loss, "the lock of a job was lost");
    if loss == Loss::SessionClosed { Error::Closed } else { Error::LeaseLost }
}

/// Error for a run after whose beginning another one has begun.
fn overtaken(name: &LockName, revision: Revision) -> Error {
    Error::Conflict { what: format!("the job {name}"), revision }
}
