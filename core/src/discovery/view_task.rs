//! The task behind the views of one service: follows the watch, protects what is shown, publishes, and reads and writes
//! the disk.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    disk_cache, mass_loss::MassLossProtection, publication::Publication, published_state::PublishedState,
    view_options::DirectoryOptions,
};
use crate::{
    discovery::{
        freshness::Freshness,
        resolver::{Change, Resolver, Watcher},
        snapshot::Snapshot,
    },
    error::{Error, with_causes},
    model::name::ServiceRef,
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::{Moment, rounded},
        sync::MutexExt as _,
        task::caught,
    },
};

/// Time for which a view waits for the store before it looks on disk.
const DISK_READ_DELAY: Duration = Duration::from_secs(1);

/// Time for which a view waits for the disk.
const DISK_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// The least time between two writes of a view to disk.
const DISK_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which the age of a view is reported as a metric.
const AGE_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Views of a directory that have a user, or had one within the idle time.
#[derive(Default)]
pub(super) struct Views {
    pub(super) by_service: Mutex<HashMap<ServiceRef, Arc<PublishedState>>>,
}

/// The task behind the views of one service.
pub(super) struct ViewTask {
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) views: Weak<Views>,
    pub(super) shared: Arc<PublishedState>,
    pub(super) options: DirectoryOptions,
}

/// List of the store, and the time of its publication.
struct ViewState {
    listed: Option<(Snapshot, Freshness)>,
    /// The store has vouched for a list. What it never did is not written to disk.
    vouched: bool,
    protection: MassLossProtection,
    /// There is something to publish.
    dirty: bool,
    published: Option<Instant>,
    /// Time for a look on disk, while nothing is known.
    disk_due: Option<Instant>,
    /// Reason for which nothing is known yet.
    trouble: Option<Error>,
}

impl ViewState {
    fn new(options: &DirectoryOptions) -> Self {
        Self {
            listed: None,
            vouched: false,
            protection: MassLossProtection::new(options.hold, options.empty),
            dirty: false,
            published: None,
            disk_due: options.disk.as_ref().map(|_| Instant::now() + DISK_READ_DELAY),
            trouble: None,
        }
    }

    fn take(&mut self, change: Change) {
        let Change { snapshot, events: _, freshness } = change;
        // A watch that was started anew tells everything again.
        let events = match &self.listed {
            Some((listed, _)) => snapshot.diff(listed),
            None => snapshot.as_added(),
        };
        self.protection.observe(&events, &snapshot, Moment::now());
        self.vouched |= freshness.is_live();
        self.listed = Some((snapshot, freshness));
        self.dirty = true;
    }

    /// Time at which there is something to do although the store says nothing.
    fn wakes(&self, debounce: Duration) -> Option<Instant> {
        let now = Instant::now();
        let publication = self.dirty.then(|| self.published.map_or(now, |published| published + debounce));
        let held = self.listed.as_ref().and_then(|(listed, _)| self.protection.expires_in(listed, Moment::now()));
        [publication, held.map(|left| now + left), self.disk_due].into_iter().flatten().min()
    }

    fn is_due(&self, debounce: Duration) -> bool {
        self.dirty && self.published.is_none_or(|published| published.elapsed() >= debounce)
    }
}

/// Returns `true` if `moment` is after `other`.
fn is_later(moment: Moment, other: Moment) -> bool {
    !moment.since(other).is_zero()
}

/// Trouble with the resolver.
enum Failure {
    /// It answered with an error.
    Error(Error),
    /// It panicked, which this error says.
    Panic(Error),
}

impl Failure {
    /// Returns `true` if the watcher must not be asked again.
    fn ends_the_watcher(&self) -> bool {
        matches!(self, Self::Error(Error::Closed) | Self::Panic(_))
    }

    /// Returns `true` if it will not pass by itself.
    fn is_for_good(&self) -> bool {
        match self {
            Self::Error(error) => !error.is_retryable(),
            Self::Panic(_) => true,
        }
    }
}

impl ViewTask {
    /// Follows the watch until nobody has looked for the idle time.
    pub(super) async fn keep(&self) {
        let (to_disk, writes) = watch::channel(None);
        tokio::select! {
            () = self.follow(&to_disk) => {}
            () = self.write(writes) => {}
            () = self.idled() => tracing::debug!(service = %self.shared.service, "view idle, watch ended"),
        }
    }

    async fn follow(&self, to_disk: &watch::Sender<Option<Arc<Publication>>>) {
        let mut backoff = BackoffPolicy::default().start();
        let mut state = ViewState::new(&self.options);
        loop {
            match self.asked(self.resolver.watch(&self.shared.service)).await {
                Ok(mut watcher) => self.drain(&mut *watcher, &mut state, &mut backoff, to_disk).await,
                Err(failure) => {
                    self.trouble(&mut state, failure);
                    let again = Instant::now() + backoff.next_delay();
                    self.meanwhile(again, &mut state, to_disk).await;
                }
            }
        }
    }

    /// Runs code of the resolver, which is not ours: a panic in it is trouble like any other.
    async fn asked<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        match caught(call).await {
            Ok(answer) => answer.map_err(Failure::Error),
            Err(message) => {
                tracing::error!(service = %self.shared.service, message, "resolver panicked, its watch is started anew");
                Err(Failure::Panic(Error::unavailable(format!("the resolver panicked: {message}"))))
            }
        }
    }

    /// Publishes what the watcher says until it ends.
    async fn drain(
        &self,
        watcher: &mut dyn Watcher,
        state: &mut ViewState,
        backoff: &mut Backoff,
        to_disk: &watch::Sender<Option<Arc<Publication>>>,
    ) {
        loop {
            tokio::select! {
                next = self.asked(watcher.next()) => match next {
                    Ok(change) => {
                        backoff.reset();
                        self.take(state, change).await;
                    }
                    Err(failure) => {
                        let ended = failure.ends_the_watcher();
                        self.trouble(state, failure);
                        let again = Instant::now() + backoff.next_delay();
                        self.meanwhile(again, state, to_disk).await;
                        if ended {
                            return;
                        }
                    }
                },
                () = self.wake(state) => {}
            }
            self.go_on(state, to_disk).await;
        }
    }

    /// Takes what the watch says. It may begin with what is older than the picture on disk, which is shown instead.
    async fn take(&self, state: &mut ViewState, change: Change) {
        if let (None, Freshness::Stale { proven, cause }) = (&state.listed, &change.freshness) {
            state.trouble = Some(cause.clone());
            if state.disk_due.take().is_some() {
                self.read(state, Some(*proven)).await;
            }
            if self.shared.published.get().as_deref().is_some_and(|shown| is_later(shown.freshness.proven(), *proven)) {
                return;
            }
        }
        state.take(change);
    }

    /// Does what is due until `end`.
    async fn meanwhile(&self, end: Instant, state: &mut ViewState, to_disk: &watch::Sender<Option<Arc<Publication>>>) {
        loop {
            self.go_on(state, to_disk).await;
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                () = self.wake(state) => {}
            }
        }
    }

    async fn wake(&self, state: &ViewState) {
        match state.wakes(self.options.debounce) {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Publishes, and looks on disk, where that is due.
    async fn go_on(&self, state: &mut ViewState, to_disk: &watch::Sender<Option<Arc<Publication>>>) {
        if let Some((listed, freshness)) = &state.listed {
            state.disk_due = None;
            let now = Moment::now();
            let expired = state.protection.expires_in(listed, now).is_some_and(|left| left.is_zero());
            state.dirty |= expired;
            if state.is_due(self.options.debounce) {
                let shown = state.protection.shown(listed, now);
                let published = self.shared.publish(shown, freshness.clone(), self.options.max_age);
                (state.dirty, state.published) = (false, Some(Instant::now()));
                if self.options.disk.is_some() && state.vouched {
                    to_disk.send_replace(Some(published));
                }
            }
        } else if state.disk_due.is_some_and(|due| due <= Instant::now()) {
            state.disk_due = None;
            self.read(state, None).await;
        }
    }

    /// Shows what lies on disk, as something old, unless it was proven right no later than `other`.
    async fn read(&self, state: &ViewState, other: Option<Moment>) {
        let Some(directory) = self.options.disk.clone() else {
            return;
        };
        let service = self.shared.service.clone();
        let read = tokio::task::spawn_blocking(move || disk_cache::read(&directory, &service));
        let Ok(read) = tokio::time::timeout(DISK_READ_TIMEOUT, read).await else {
            tracing::warn!(service = %self.shared.service, limit = %rounded(DISK_READ_TIMEOUT), "view not read from disk in time");
            return;
        };
        let Some((snapshot, age)) = read.ok().flatten() else {
            return;
        };
        let proven = Moment::ago(age);
        if other.is_some_and(|other| !is_later(proven, other)) {
            return;
        }
        tracing::info!(service = %self.shared.service, instances = snapshot.len(), age = %rounded(age), "view read from disk");
        let cause = state.trouble.clone().unwrap_or_else(|| Error::unavailable("the store has not answered yet"));
        let freshness = Freshness::Stale { proven, cause };
        self.shared.publish(snapshot, freshness, self.options.max_age);
    }

    /// Writes what was published to disk, for ever.
    async fn write(&self, mut writes: watch::Receiver<Option<Arc<Publication>>>) {
        let mut report = tokio::time::interval(AGE_REPORT_INTERVAL);
        let mut written_before = false;
        loop {
            tokio::select! {
                // The sender lives as long as this future does.
                _ = writes.changed() => {}
                _ = report.tick(), if cfg!(feature = "metrics") => {
                    self.shared.report();
                    continue;
                }
            }
            let (Some(published), Some(directory)) = (writes.borrow_and_update().clone(), self.options.disk.clone())
            else {
                continue;
            };
            let first = !std::mem::replace(&mut written_before, true);
            let write = move || {
                if first {
                    disk_cache::remove_leftovers(&directory, published.snapshot.service());
                }
                disk_cache::write(&directory, &published.snapshot, published.freshness.age())
            };
            if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
                tracing::warn!(service = %self.shared.service, cause = %with_causes(&error), "view not written to disk");
            }
            tokio::time::sleep(DISK_WRITE_INTERVAL).await;
        }
    }

    fn trouble(&self, state: &mut ViewState, failure: Failure) {
        let for_good = failure.is_for_good();
        let (Failure::Error(error) | Failure::Panic(error)) = failure;
        if let Some((_, freshness)) = &mut state.listed {
            *freshness = Freshness::Stale { proven: freshness.proven(), cause: error };
            state.dirty = true;
        } else {
            // Nothing is known, and a look on disk need not wait for more.
            state.disk_due = state.disk_due.map(|_| Instant::now());
            if for_good {
                self.shared.refuse(error.clone());
            }
            state.trouble = Some(error);
        }
    }

    /// Returns once there was no view for the idle time, and the next one will start a new watch.
    async fn idled(&self) {
        let mut users = self.shared.users.subscribe();
        loop {
            // The sender lives in `self.shared`, so neither wait can fail.
            let _ = users.wait_for(|users| *users == 0).await;
            let used_again = users.wait_for(|users| *users > 0);
            if tokio::time::timeout(self.options.idle, used_again).await.is_err() && self.forget() {
                return;
            }
        }
    }

    fn forget(&self) -> bool {
        let Some(views) = self.views.upgrade() else {
            return true;
        };
        let mut views = views.by_service.locked();
        // `view` counts users up under the same lock, so nobody can come in between; nor can a user that is no view,
        // because none is left to clone.
        let idle = *self.shared.users.borrow() == 0;
        if idle {
            views.remove(&self.shared.service);
        }
        idle
    }
}
