//! The task behind the views of one service. It follows the watch, applies the mass loss protection, publishes, and
//! reads and writes the disk copy.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    disk_cache,
    publication::Publication,
    published_state::PublishedState,
    view_options::DirectoryOptions,
    view_state::{Backing, DiskRead, Now, Step, ViewState},
};
use crate::{
    discovery::{
        freshness::Freshness,
        resolver::{Change, Resolver, Watcher},
    },
    error::{Error, with_causes},
    model::{escape::escaped, name::ServiceRef},
    runtime::{
        backoff::{Backoff, BackoffPolicy},
        clock::{Moment, rounded},
        sync::MutexExt as _,
        task::caught,
    },
};

/// Time for which a view waits for a read from disk.
const DISK_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Minimum time between two writes of a view to disk.
const DISK_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which the age of a view is reported as a metric.
const AGE_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Views of a directory that have a user now or had one within the idle time.
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

/// Returns `true` if `moment` is after `other`.
fn is_later(moment: Moment, other: Moment) -> bool {
    !moment.since(other).is_zero()
}

/// Failure of the resolver.
enum Failure {
    /// The resolver returned an error.
    Error(Error),
    /// The resolver panicked; the error contains the message.
    Panic(Error),
}

impl Failure {
    /// Returns `true` if the watcher must not be used again.
    fn ends_the_watcher(&self) -> bool {
        matches!(self, Self::Error(Error::Closed) | Self::Panic(_))
    }

    fn error(&self) -> &Error {
        let (Self::Error(error) | Self::Panic(error)) = self;
        error
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
    /// Follows the watch until there was no user for the idle time.
    pub(super) async fn keep(&self) {
        let (to_disk, writes) = watch::channel(None);
        tokio::select! {
            () = self.follow(&to_disk) => {}
            () = self.write(writes) => {}
            () = self.idled() => tracing::debug!(service = %escaped(&self.shared.service), "view idle, watch ended"),
        }
    }

    async fn follow(&self, to_disk: &watch::Sender<Option<Arc<Publication>>>) {
        let mut backoff = BackoffPolicy::default().start();
        let mut state = ViewState::new(&self.options, Now::read());
        loop {
            match self.asked(self.resolver.watch(&self.shared.service)).await {
                Ok(mut watcher) => self.drain(&mut *watcher, &mut state, &mut backoff, to_disk).await,
                Err(failure) => {
                    self.fail(&mut state, &failure);
                    let again = Instant::now() + backoff.next_delay();
                    Box::pin(self.meanwhile(again, &mut state, to_disk)).await;
                }
            }
        }
    }

    /// Runs code of the resolver. It is foreign code, so a panic in it is handled like an error.
    async fn asked<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        match caught(call).await {
            Ok(answer) => answer.map_err(Failure::Error),
            Err(message) => {
                let service = &self.shared.service;
                tracing::error!(service = %escaped(service), message, "resolver panicked, its watch is started anew");
                Err(Failure::Panic(Error::unavailable(format!("the resolver panicked: {message}"))))
            }
        }
    }

    /// Publishes the changes of the watcher until it ends.
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
                        self.fail(state, &failure);
                        let again = Instant::now() + backoff.next_delay();
                        // Boxed, as the other steps that are rare: each view has a place for them in its task.
                        Box::pin(self.meanwhile(again, state, to_disk)).await;
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

    /// Applies a change of the watch. The first one may be older than the snapshot on disk, which is shown instead.
    async fn take(&self, state: &mut ViewState, change: Change) {
        let Change { snapshot, events: _, freshness } = change;
        if let (ViewState::Unlisted { disk, cause: known }, Freshness::Stale { proven, cause }) =
            (&mut *state, &freshness)
        {
            *known = Some(cause.clone());
            if let DiskRead::Due(_) = std::mem::replace(disk, DiskRead::Done) {
                Box::pin(self.read(Some(cause.clone()), Some(*proven))).await;
            }
            if self.shared.published.get().as_deref().is_some_and(|shown| is_later(shown.freshness.proven(), *proven)) {
                return;
            }
        }
        state.list(snapshot, freshness, &self.options, Now::read());
    }

    /// Performs the due steps until `end`.
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
        match state.next_step(self.options.debounce, Now::read()) {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Performs the step that is due, if there is one.
    async fn go_on(&self, state: &mut ViewState, to_disk: &watch::Sender<Option<Arc<Publication>>>) {
        match state.step(self.options.debounce, Now::read()) {
            Some(Step::Publish { snapshot, freshness, backing }) => {
                let published = self.shared.publish(snapshot, freshness, self.options.max_age);
                if self.options.disk.is_some() && backing == Backing::Proven {
                    to_disk.send_replace(Some(published));
                }
            }
            Some(Step::ReadDisk { cause }) => Box::pin(self.read(cause, None)).await,
            None => {}
        }
    }

    /// Publishes the snapshot on disk as stale, unless its proof is no later than `other`.
    async fn read(&self, cause: Option<Error>, other: Option<Moment>) {
        let Some(directory) = self.options.disk.clone() else {
            return;
        };
        let service = self.shared.service.clone();
        let read = tokio::task::spawn_blocking(move || disk_cache::read(&directory, &service));
        let Ok(read) = tokio::time::timeout(DISK_READ_TIMEOUT, read).await else {
            let limit = rounded(DISK_READ_TIMEOUT);
            tracing::warn!(service = %escaped(&self.shared.service), %limit, "view not read from disk in time");
            return;
        };
        let Some((snapshot, age)) = read.ok().flatten() else {
            return;
        };
        let proven = Moment::ago(age);
        if other.is_some_and(|other| !is_later(proven, other)) {
            return;
        }
        tracing::info!(
            service = %escaped(&self.shared.service),
            instances = snapshot.len(),
            age = %rounded(age),
            "view read from disk"
        );
        let cause = cause.unwrap_or_else(|| Error::unavailable("the store has not answered yet"));
        let freshness = Freshness::Stale { proven, cause };
        self.shared.publish(snapshot, freshness, self.options.max_age);
    }

    /// Writes the latest publication to disk, without end.
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
                let (service, cause) = (escaped(&self.shared.service), with_causes(&error));
                tracing::warn!(%service, %cause, "view not written to disk");
            }
            tokio::time::sleep(DISK_WRITE_INTERVAL).await;
        }
    }

    /// Applies a failure of the watch.
    fn fail(&self, state: &mut ViewState, failure: &Failure) {
        if let (ViewState::Unlisted { .. }, true) = (&*state, failure.is_for_good()) {
            self.shared.refuse(failure.error().clone());
        }
        state.fail(failure.error().clone(), Now::read());
    }

    /// Returns once there was no user for the idle time and the views are removed. The next view starts a new watch.
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
        // `view` counts a user under the same lock, so no view can be added in between. No user can be cloned either,
        // because none is left.
        let idle = *self.shared.users.borrow() == 0;
        if idle {
            views.remove(&self.shared.service);
        }
        idle
    }
}
