//! The shared, local picture of services that users read and pick from.
//!
//! One watch per service and process, however many views. Readers never take a lock: the latest snapshot lies in an
//! atomic pointer. See [`crate::balancing::picker`] for picking and [`crate::balancing::pool`] for clients per
//! instance.
//!
//! A view keeps what is known: an outage of the store makes it old, never empty, and says how old. If the store itself
//! lists nobody any more, all at once and without their having left, the last ones are held for a while.

mod changes;
mod disk;
mod protection;
mod view_task;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch};
use tracing::Instrument;

pub use self::changes::ViewChanges;
use self::view_task::Keeper;
use crate::runtime::sync::MutexExt as _;
use crate::{
    balancing::picker::{Filter, Picker, Policy, ViewCell},
    discovery::{freshness::Freshness, resolver::Resolver, snapshot::Snapshot},
    error::{Error, with_causes},
    model::name::ServiceRef,
    runtime::{
        clock::{LONGEST, rounded},
        task::TaskOwner,
    },
    telemetry,
};

/// Time for which a watch goes on after the last view of it was dropped, unless said otherwise.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(5);

/// Time for which entries are held whose loss would empty a view, unless said otherwise.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(15);

/// The least time between two publications of a view, unless said otherwise.
pub const DEFAULT_DEBOUNCE: Duration = Duration::from_millis(50);

/// Interval at which a picture that is too old is looked at again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What a view shows when the store lists nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmptyPolicy {
    /// Nobody, once the time to hold has passed.
    #[default]
    Publish,
    /// Those who were lost last, as held entries, until the store lists somebody. Instances that left in order are not
    /// kept.
    Keep,
}

/// Options of a directory. Times above [`LONGEST`] count as that.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DirectoryOptions {
    /// Time for which a watch goes on after the last view of it was dropped. Default: 5 s.
    pub idle: Duration,
    /// Time for which entries whose removal would leave a view empty, and who did not leave in order, stay as
    /// [`Presence::Held`](crate::Presence::Held). Default: 15 s; zero never holds.
    pub hold: Duration,
    /// What a view shows when the store lists nobody. Default: nobody.
    pub empty: EmptyPolicy,
    /// Maximum age of a picture to be picked from. Older, [`PickError::TooOld`](crate::PickError::TooOld) says so and
    /// [`ServiceView::ready`] waits. Default: `None`, any age. Keep it above 10 s, the most of a healthy view; with
    /// etcd before 3.4.25 and 3.5.8 above twice the audit interval.
    pub max_age: Option<Duration>,
    /// The least time between two publications. The first change is published at once. Default: 50 ms.
    pub debounce: Duration,
    /// A directory on disk for the last picture of each service, which is used when the store does not answer at the
    /// start. Written at most once a second, so the last second may be missing. Files are for their user only (0600),
    /// as are directories that have to be made (0700). Default: none.
    pub disk: Option<PathBuf>,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            idle: DEFAULT_IDLE,
            hold: DEFAULT_HOLD,
            empty: EmptyPolicy::default(),
            max_age: None,
            debounce: DEFAULT_DEBOUNCE,
            disk: None,
        }
    }
}

impl DirectoryOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a watch goes on after the last view of it was dropped.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Sets how long lost entries are held where their loss would empty a view.
    #[must_use]
    pub fn hold(mut self, hold: Duration) -> Self {
        self.hold = hold;
        self
    }

    /// Sets what a view shows when the store lists nobody.
    #[must_use]
    pub fn empty(mut self, empty: EmptyPolicy) -> Self {
        self.empty = empty;
        self
    }

    /// Sets how old a picture may be to be picked from.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Sets the least time between two publications.
    #[must_use]
    pub fn debounce(mut self, debounce: Duration) -> Self {
        self.debounce = debounce;
        self
    }

    /// Sets where the last picture of each service is kept on disk.
    #[must_use]
    pub fn disk(mut self, directory: impl Into<PathBuf>) -> Self {
        self.disk = Some(directory.into());
        self
    }

    /// The options with times that can be added to a moment.
    fn clamped(self) -> Self {
        let Self { idle, hold, empty, max_age, debounce, disk } = self;
        let [idle, hold, debounce] = [idle, hold, debounce].map(|time| time.min(LONGEST));
        Self { idle, hold, empty, max_age: max_age.map(|age| age.min(LONGEST)), debounce, disk }
    }
}

/// Hands out views of services. Clones share everything.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    resolver: Arc<dyn Resolver>,
    options: DirectoryOptions,
    views: Mutex<HashMap<ServiceRef, Arc<Shared>>>,
    tasks: TaskOwner,
}

/// What the watch task writes and the views read.
struct Shared {
    service: ServiceRef,
    published: Arc<ViewCell>,
    status: watch::Sender<Status>,
    /// Number of views.
    users: watch::Sender<usize>,
}

/// What pickers see.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) snapshot: Snapshot,
    freshness: Freshness,
    max_age: Option<Duration>,
}

impl Published {
    #[cfg(test)]
    pub(crate) fn fresh(snapshot: Snapshot) -> Self {
        let freshness = Freshness::Live { proof: crate::discovery::freshness::Proof::new(crate::Moment::now()) };
        Self { snapshot, freshness, max_age: None }
    }

    /// The age, if it is above what is allowed.
    pub(crate) fn too_old(&self) -> Option<Duration> {
        let max_age = self.max_age?;
        Some(self.freshness.age()).filter(|age| *age > max_age)
    }

    /// Returns `true` if any age is allowed.
    pub(crate) fn may_be_old(&self) -> bool {
        self.max_age.is_none()
    }
}

#[derive(Clone, Default)]
struct Status {
    /// Grows with every publication and every change of freshness.
    generation: u64,
    freshness: Option<Freshness>,
    /// Trouble that will not pass by itself while nothing is known yet.
    refused: Option<Error>,
    /// There is no task that follows the watch.
    closed: bool,
}

impl Directory {
    /// A directory of what `resolver` finds.
    pub fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self::with_options(resolver, DirectoryOptions::default())
    }

    /// A directory with options.
    pub fn with_options(resolver: Arc<dyn Resolver>, options: DirectoryOptions) -> Self {
        let options = options.clamped();
        let inner = Inner { resolver, options, views: Mutex::default(), tasks: TaskOwner::new() };
        Self { inner: Arc::new(inner) }
    }

    /// A view of `service`. The first one starts the watch; the others share it.
    ///
    /// If the watch ended with the runtime that it ran on, this starts it anew on the runtime of the caller, as does
    /// waiting for [`ViewChanges::next`] or [`ready`](ServiceView::ready): for all views and pickers that there are.
    /// Called outside a runtime, or after [`close`](Self::close), the view is closed.
    pub fn view(&self, service: &ServiceRef) -> ServiceView {
        let user = {
            let mut views = self.inner.views.locked();
            let shared = views.entry(service.clone()).or_insert_with(|| Arc::new(Shared::new(service.clone())));
            ViewUser::count(&self.inner, shared)
        };
        user.revive();
        ServiceView { user }
    }

    /// Ends all watches and waits for their tasks, at most `limit`. Views keep their last snapshot.
    ///
    /// # Errors
    ///
    /// [`StopError`](crate::StopError) if a task did not end in time or had panicked.
    ///
    /// # Cancel safety
    ///
    /// The tasks end in the background.
    pub async fn close(&self, limit: Duration) -> Result<(), crate::StopError> {
        self.inner.tasks.stop(limit).await
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("resolver", &self.inner.resolver).finish_non_exhaustive()
    }
}

impl Inner {
    /// Starts the task behind the views of a service, if there is none. Says whether there is one now.
    fn revive(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        // One at a time: two tasks would overwrite each other's pictures.
        let _one = self.views.locked();
        if !shared.is_closed() {
            return true;
        }
        if self.tasks.stop_signal().is_cancelled() || Handle::try_current().is_err() {
            return false;
        }
        shared.status.send_modify(|status| status.closed = false);
        let keeper = Keeper {
            resolver: Arc::clone(&self.resolver),
            directory: Arc::downgrade(self),
            shared: Arc::clone(shared),
            options: self.options.clone(),
        };
        let stop = self.tasks.stop_signal();
        let span = tracing::info_span!("view", service = %shared.service);
        let end = EndOfTask(Arc::clone(shared));
        let keep = async move {
            // Dropped with the future: a runtime that is gone ends a task without a word.
            let _end = end;
            stop.run_until_cancelled(keeper.keep()).await;
        };
        self.tasks.spawn("view", keep.instrument(span)).is_ok()
    }
}

/// Reports the end of the task behind a view, once this is dropped.
struct EndOfTask(Arc<Shared>);

impl Drop for EndOfTask {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shared {
    /// What a service's views share before there is a task behind them.
    fn new(service: ServiceRef) -> Self {
        let status = Status { closed: true, ..Status::default() };
        Self { service, published: Arc::default(), status: watch::Sender::new(status), users: watch::Sender::new(0) }
    }

    fn is_closed(&self) -> bool {
        self.status.borrow().closed
    }

    /// Notes that nobody follows the watch any more: what was published is no longer live.
    fn close(&self) {
        let published = self.published.get();
        let stale = published.as_deref().filter(|published| published.freshness.is_live()).map(|published| {
            let freshness = Freshness::Stale { proven: published.freshness.proven(), cause: Error::Closed };
            Published { snapshot: published.snapshot.clone(), freshness, max_age: published.max_age }
        });
        let freshness = stale.as_ref().map(|stale| stale.freshness.clone());
        if let Some(stale) = stale {
            self.published.publish(Arc::new(stale));
        }
        self.status.send_modify(|status| {
            status.closed = true;
            status.generation += 1;
            status.freshness = freshness.or_else(|| status.freshness.take());
        });
    }

    fn publish(&self, snapshot: Snapshot, freshness: Freshness, max_age: Option<Duration>) -> Arc<Published> {
        let published = Arc::new(Published { snapshot, freshness: freshness.clone(), max_age });
        self.published.publish(Arc::clone(&published));
        let mut before = None;
        let now = freshness.clone();
        self.status.send_modify(|status| {
            status.generation += 1;
            before = status.freshness.replace(freshness);
            status.refused = None;
        });
        let (service, age) = (&self.service, now.age());
        match (before.map(|before| before.is_live()), &now) {
            (Some(false), Freshness::Live { .. }) => tracing::info!(%service, "view live again"),
            (Some(true) | None, Freshness::Stale { cause, .. }) => {
                tracing::warn!(%service, age = %rounded(age), cause = %with_causes(cause), "view stale");
            }
            _ => {}
        }
        self.report();
        published
    }

    fn refuse(&self, error: Error) {
        self.status.send_modify(|status| {
            status.refused = Some(error);
            status.generation += 1;
        });
    }

    fn report(&self) {
        if let Some(published) = &*self.published.get() {
            telemetry::view(&self.service, published.snapshot.len(), published.freshness.age());
        }
    }
}

/// One user of the views of a service: while there is one, the watch goes on. It keeps its directory alive.
pub(crate) struct ViewUser {
    directory: Arc<Inner>,
    shared: Arc<Shared>,
}

impl ViewUser {
    /// Counts one more user.
    fn count(directory: &Arc<Inner>, shared: &Arc<Shared>) -> Self {
        // Only the first one and the last one are news to the task.
        shared.users.send_if_modified(|users| {
            *users += 1;
            *users == 1
        });
        Self { directory: Arc::clone(directory), shared: Arc::clone(shared) }
    }

    /// Sees to it that the watch is followed. Says whether it is.
    fn revive(&self) -> bool {
        self.directory.revive(&self.shared)
    }

    /// The cell that the task publishes in.
    pub(crate) fn published(&self) -> &Arc<ViewCell> {
        &self.shared.published
    }
}

impl Clone for ViewUser {
    fn clone(&self) -> Self {
        Self::count(&self.directory, &self.shared)
    }
}

impl Drop for ViewUser {
    fn drop(&mut self) {
        self.shared.users.send_if_modified(|users| {
            *users -= 1;
            *users == 0
        });
    }
}

impl fmt::Debug for ViewUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewUser").field("service", &self.shared.service).finish_non_exhaustive()
    }
}

/// A view of one service: the latest snapshot, and what to pick from. It keeps its directory alive.
#[derive(Clone)]
pub struct ServiceView {
    user: ViewUser,
}

impl ServiceView {
    /// The service.
    pub fn service(&self) -> &ServiceRef {
        &self.user.shared.service
    }

    /// Waits until the service is known, be it known to be empty, and no older than allowed.
    ///
    /// # Errors
    ///
    /// Trouble that will not pass by itself, such as [`Error::PermissionDenied`]; the view goes on trying, so the call
    /// may be repeated. [`Error::Closed`] once the directory is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn ready(&self) -> Result<Snapshot, Error> {
        let mut status = self.user.shared.status.subscribe();
        loop {
            let known = |status: &Status| status.freshness.is_some() || status.refused.is_some() || status.closed;
            let (refused, closed) = {
                let status = status.wait_for(known).await.map_err(|_| Error::Closed)?;
                (status.refused.clone(), status.closed)
            };
            let published = Option::clone(&self.user.shared.published.get());
            match (published, refused) {
                (Some(published), _) if published.too_old().is_none() => return Ok(published.snapshot.clone()),
                (_, Some(error)) => return Err(error),
                _ if closed && !self.user.revive() => return Err(Error::Closed),
                _ if closed => {}
                // A proof comes without a change.
                _ => {
                    if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, status.changed()).await {
                        return Err(Error::Closed);
                    }
                }
            }
        }
    }

    /// The latest snapshot; `None` while nothing is known. Takes no lock.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.user.shared.published.get().as_deref().map(|published| published.snapshot.clone())
    }

    /// Freshness of the snapshot; `None` while nothing is known.
    pub fn freshness(&self) -> Option<Freshness> {
        self.user.published().get().as_deref().map(|published| published.freshness.clone())
    }

    /// The age of the snapshot, if it is above what the directory's options allow. Takes no lock.
    pub fn too_old(&self) -> Option<Duration> {
        self.user.shared.published.get().as_deref().and_then(Published::too_old)
    }

    /// The changes of the snapshot and its freshness, for a task of its own: the snapshot as it is now comes first.
    pub fn changes(&self) -> ViewChanges {
        ViewChanges::new(self.user.clone())
    }

    /// A picker of its own for one task. The watch goes on for as long as a picker of it lives, also without the view.
    pub fn picker(&self, policy: Policy) -> Picker {
        self.picker_of(policy, Filter::new())
    }

    /// A picker that sees only what `filter` lets through.
    pub fn picker_of(&self, policy: Policy, filter: Filter) -> Picker {
        Picker::of_view(self.user.clone(), policy, filter)
    }
}

impl fmt::Debug for ServiceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceView").field("snapshot", &self.snapshot()).finish_non_exhaustive()
    }
}
