//! The start of a view: the first good value, from the store, the copy on disk, or the defaults.

use std::{sync::Arc, time::Duration};

use enlist::{ConfigSnapshot, Counters, Error, Freshness, Moment, backend::rounded, escape::escaped, with_causes};
use serde::de::DeserializeOwned;
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    copy_on_disk::CopyOnDisk,
    follower::Follower,
    plan::{Decision, Known, Plan, SavedState, State},
    rejection::{Reason, Rejection},
    state::{ConfigState, Source, report},
};

/// Time for which a start waits for the store before it uses the copy on disk or the defaults.
const STORE_HEAD_START: Duration = Duration::from_secs(1);

/// Time for which a start waits for a read from disk.
const DISK_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Start of a view if the store does not answer, or has lost its data, and there is no usable copy on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WithoutStore {
    /// The start fails.
    #[default]
    Fail,
    /// The view starts with the defaults and the environment.
    UseDefaults,
}

/// A view that is about to start.
pub(crate) struct Start<T> {
    pub(crate) follower: Follower,
    pub(crate) plan: Plan<T>,
    pub(crate) disk: Option<CopyOnDisk>,
    pub(crate) without_store: WithoutStore,
    /// Maximum time of the start.
    pub(crate) limit: Duration,
    pub(crate) counters: Arc<Counters>,
    /// The copy on disk, once it was read.
    pub(crate) copied: OnceCell<Copied>,
}

/// Result of the read of the copy on disk.
pub(crate) enum Copied {
    /// There is none, or a damaged one.
    Absent,
    /// There may be one.
    Unreadable,
    /// The copy, and its age.
    Read(SavedState, Duration),
}

/// The first good value.
pub(crate) struct First<T> {
    pub(crate) value: T,
    pub(crate) state: ConfigState,
    pub(crate) known: Known,
    /// State of the store that belongs on disk.
    pub(crate) unsaved: Option<SavedState>,
}

/// Answer of the store to the start.
enum Answer<T> {
    Good(First<T>),
    Bad { rejection: Rejection, snapshot: ConfigSnapshot, freshness: Freshness },
    Failed(Error),
    Silent,
}

/// Failures of the store that end the wait for its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndOn {
    /// Any failure: something else may be at hand.
    AnyFailure,
    /// Failures that will not pass by themselves.
    LastingFailure,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Start<T> {
    /// Waits for the first good value.
    pub(crate) async fn first(&mut self) -> Result<First<T>, Error> {
        let begun = Instant::now();
        let answer = if self.disk.is_some() || self.without_store == WithoutStore::UseDefaults {
            self.ask_store(begun + STORE_HEAD_START.min(self.limit), EndOn::AnyFailure).await
        } else {
            self.ask_store(begun + self.limit, EndOn::LastingFailure).await
        };
        if let Answer::Good(first) = answer {
            return Ok(first);
        }
        if let Some(first) = self.read_disk(&answer).await {
            return Ok(first);
        }
        match answer {
            // A store that lost its data is as good as none.
            Answer::Bad { rejection, .. } if rejection.reason != Reason::Lost => Err(rejection.into()),
            _ if self.without_store == WithoutStore::UseDefaults => self.use_defaults(answer).await,
            Answer::Bad { rejection, .. } => Err(rejection.into()),
            Answer::Failed(error) if !error.is_retryable() => Err(error),
            _ => self.wait_longer(begun, answer).await,
        }
    }

    /// Waits for the store until the end of the time for the start.
    async fn wait_longer(&mut self, begun: Instant, before: Answer<T>) -> Result<First<T>, Error> {
        let cause = match before {
            Answer::Failed(error) => Some(Arc::new(error) as enlist::Cause),
            _ => None,
        };
        match self.ask_store(begun + self.limit, EndOn::LastingFailure).await {
            Answer::Good(first) => Ok(first),
            Answer::Bad { rejection, .. } => Err(rejection.into()),
            Answer::Failed(error) => Err(error),
            Answer::Silent => Err(Error::Timeout { op: "the start of a view", limit: self.limit, cause }),
        }
    }

    async fn ask_store(&mut self, until: Instant, end: EndOn) -> Answer<T> {
        let mut last = Answer::Silent;
        loop {
            let change = match timeout_at(until, self.follower.next()).await {
                Err(_) => return last,
                Ok(Err(error)) if end == EndOn::AnyFailure || !error.is_retryable() => return Answer::Failed(error),
                Ok(Err(error)) => {
                    last = Answer::Failed(error);
                    continue;
                }
                Ok(Ok(change)) => change,
            };
            let (snapshot, freshness) = (change.snapshot, change.freshness);
            // A store that lost its data must not replace the copy.
            let known = if snapshot.is_empty() { self.copy().await.known() } else { Known::Nothing };
            match self.plan.decide(&snapshot, &known) {
                Decision::Accept(value) => return Answer::Good(First::of_store(value, snapshot, freshness, &known)),
                Decision::Reject(rejection) => return Answer::Bad { rejection, snapshot, freshness },
                // There is no former state.
                Decision::Unchanged => {}
            }
        }
    }

    /// The value of the copy on disk. The store keeps what it answered: a rejected state, or its failure.
    async fn read_disk(&self, answer: &Answer<T>) -> Option<First<T>> {
        let scope = &self.plan.scope;
        let Copied::Read(saved, age) = self.copy().await else { return None };
        let value = match self.plan.read(State { revision: saved.revision, documents: &saved.documents }) {
            Ok(value) => value,
            Err(rejection) => {
                tracing::warn!(scope = %escaped(scope), %rejection, "configuration on disk not used");
                return None;
            }
        };
        tracing::info!(
            scope = %escaped(scope),
            revision = %saved.revision,
            age = %rounded(*age),
            "configuration read from disk"
        );
        let since_then = |cause| Freshness::Stale { proven: Moment::ago(*age), cause };
        let on_disk = saved.known();
        let (freshness, rejected, known) = match answer {
            Answer::Bad { rejection, snapshot, freshness } => {
                report(scope, rejection, &self.counters);
                (freshness.clone(), Some(Arc::new(rejection.clone())), Known::Decided(snapshot.clone()))
            }
            Answer::Failed(error) => (since_then(error.clone()), None, on_disk),
            _ => (since_then(Error::unavailable("the store has not answered yet")), None, on_disk),
        };
        let state = ConfigState {
            source: Source::Disk,
            revision: Some(saved.revision),
            rejected,
            freshness: Some(freshness),
            refused: refused(answer),
        };
        Some(First { value, state, known, unsaved: None })
    }

    /// The copy on disk. It is read once.
    async fn copy(&self) -> &Copied {
        self.copied.get_or_init(|| self.read_copy()).await
    }

    async fn read_copy(&self) -> Copied {
        let Some(disk) = self.disk.clone() else { return Copied::Absent };
        let (scope, limit) = (escaped(&self.plan.scope), rounded(DISK_READ_TIMEOUT));
        let read = tokio::task::spawn_blocking(move || disk.read());
        match timeout(DISK_READ_TIMEOUT, read).await {
            Ok(Ok(Ok(Some((saved, age))))) => Copied::Read(saved, age),
            Ok(Ok(Ok(None))) => Copied::Absent,
            Ok(Ok(Err(error))) => {
                tracing::warn!(%scope, cause = %with_causes(&error), "configuration on disk cannot be read");
                Copied::Unreadable
            }
            Ok(Err(panicked)) => {
                tracing::warn!(%scope, cause = %with_causes(&panicked), "configuration on disk cannot be read");
                Copied::Unreadable
            }
            Err(_) => {
                tracing::warn!(%scope, %limit, "configuration not read from disk in time");
                Copied::Unreadable
            }
        }
    }

    async fn use_defaults(&self, answer: Answer<T>) -> Result<First<T>, Error> {
        let value = self.plan.read(State { revision: enlist::Revision::default(), documents: &[] })?;
        tracing::warn!(scope = %escaped(&self.plan.scope), "configuration not known, the defaults are used");
        let (freshness, rejected, known) = match answer {
            Answer::Bad { rejection, snapshot, freshness } => {
                report(&self.plan.scope, &rejection, &self.counters);
                (Some(freshness), Some(Arc::new(rejection)), Known::Decided(snapshot))
            }
            _ => (None, None, self.copy().await.known()),
        };
        let state = ConfigState { source: Source::Defaults, revision: None, rejected, freshness, refused: None };
        Ok(First { value, state, known, unsaved: None })
    }
}

impl Copied {
    fn known(&self) -> Known {
        match self {
            Self::Absent => Known::Nothing,
            Self::Unreadable => Known::Unreadable,
            Self::Read(saved, _) => saved.known(),
        }
    }
}

impl<T> First<T> {
    fn of_store(value: T, snapshot: ConfigSnapshot, freshness: Freshness, known: &Known) -> Self {
        let revision = snapshot.revision();
        let state = ConfigState {
            source: Source::Store,
            revision: Some(revision),
            rejected: None,
            freshness: Some(freshness),
            refused: None,
        };
        let unsaved = known.copy_of(&snapshot);
        Self { value, state, known: Known::Decided(snapshot), unsaved }
    }
}

fn refused<T>(answer: &Answer<T>) -> Option<Error> {
    match answer {
        Answer::Failed(error) if !error.is_retryable() => Some(error.clone()),
        _ => None,
    }
}
