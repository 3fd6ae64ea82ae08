//! Task that follows a scope: the list of services, and a shared view of each. It publishes at once after a quiet time,
//! and then at most every [`INTERVAL`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use enlist::{
    Change, Directory, Error, Event, Namespace, Resolver, ServiceName, ServiceRef, ServicesChange, ServicesWatcher,
    ViewChanges, escape::escaped,
};
use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    departures::with_departures,
    position::Position,
    scope::ScopeShared,
    state::{Departure, EntryEnd, ListState, Progress, Published, RegistryState, Scope, ServiceState},
};

/// Minimum time between two publications.
const INTERVAL: Duration = Duration::from_millis(50);

/// Delay before a refused watch of the list is started again.
const RETRY: Duration = Duration::from_secs(1);

/// Time for which a service without instances is kept, so that slow readers learn how its last instances ended.
const LINGER: Duration = Duration::from_secs(60);

/// Result of the next change of one service; `None` after the end of its view.
type Step = Option<(ServiceName, ViewChanges, Result<Change, Error>)>;

/// Changes of the list of services, and refusals to list them. It does not end.
type Lists = BoxStream<'static, Result<ServicesChange, Error>>;

/// Task that follows a scope.
pub(crate) struct Follower {
    resolver: Arc<dyn Resolver>,
    directory: Directory,
    shared: Arc<ScopeShared>,
    max_services: usize,
    /// Number of changes of services.
    changes: u64,
    /// Position of the latest publication.
    position: Position,
    state: RegistryState,
    progress: Progress,
    /// Services that are followed, with a handle that ends it.
    followed: HashMap<ServiceName, AbortHandle>,
    /// Services that the list contains.
    listed: HashSet<ServiceName>,
    /// Number of listed services above the limit.
    above_limit: usize,
    /// Followed services that are not known yet.
    unknown: HashSet<ServiceName>,
    /// Followed services that the store refuses, and of which nothing is known.
    refused: HashSet<ServiceName>,
    /// Followed services that are over, with the time at which they are forgotten.
    over: HashMap<ServiceName, Instant>,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    /// Time of the next publication; `None` if there is nothing new.
    due: Option<Instant>,
    last_published: Option<Instant>,
}

impl Follower {
    /// Creates a follower that publishes to `shared`. `max_services`: maximum number of services that it follows.
    pub(crate) fn new(
        resolver: Arc<dyn Resolver>,
        directory: Directory,
        shared: Arc<ScopeShared>,
        max_services: usize,
    ) -> Self {
        Self {
            resolver,
            directory,
            shared,
            max_services,
            changes: 0,
            position: Position::start(),
            state: RegistryState::default(),
            progress: Progress::Loading,
            followed: HashMap::new(),
            listed: HashSet::new(),
            above_limit: 0,
            unknown: HashSet::new(),
            refused: HashSet::new(),
            over: HashMap::new(),
            steps: FuturesUnordered::new(),
            due: None,
            last_published: None,
        }
    }

    /// Follows the scope. It does not end.
    pub(crate) async fn run(mut self) {
        let mut lists = match self.shared.scope.clone() {
            Scope::Namespace(namespace) => lists(Arc::clone(&self.resolver), namespace),
            Scope::Service(service) => {
                self.listed.insert(service.name().clone());
                self.start(service.name());
                stream::pending().boxed()
            }
        };
        loop {
            let due = self.due.into_iter().chain(self.over.values().copied()).min();
            tokio::select! {
                Some(listed) = lists.next() => match listed {
                    Ok(change) => self.take_list(&change),
                    Err(error) => self.refuse(error),
                },
                Some(step) = self.steps.next(), if !self.steps.is_empty() => self.take_step(step),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.forget_ended(),
            }
            self.publish_if_due();
        }
    }

    /// Starts to follow a service.
    fn start(&mut self, name: &ServiceName) {
        let service = ServiceRef::new(self.shared.scope.namespace().clone(), name.clone());
        self.unknown.insert(name.clone());
        self.await_step(name, self.directory.view(&service).changes());
    }

    /// Waits for the next change of a service.
    fn await_step(&mut self, name: &ServiceName, changes: ViewChanges) {
        let (handle, registration) = AbortHandle::new_pair();
        self.followed.insert(name.clone(), handle);
        self.steps.push(Abortable::new(step(name.clone(), changes), registration).map(Result::ok).boxed());
    }

    /// Ends following a service.
    fn end(&mut self, name: &ServiceName) {
        self.over.remove(name);
        if let Some(handle) = self.followed.remove(name) {
            handle.abort();
        }
        self.unknown.remove(name);
        self.refused.remove(name);
        self.state.services.remove(name);
    }

    /// Takes a change of the list.
    fn take_list(&mut self, change: &ServicesChange) {
        self.listed = change.services.names().cloned().collect();
        let followed: Vec<_> = self.followed.keys().cloned().collect();
        for name in &followed {
            self.note_end(name);
        }
        self.state.list = Some(ListState { freshness: change.freshness.clone(), omitted: 0 });
        self.fill();
    }

    /// Follows listed services up to the limit, and counts the others.
    fn fill(&mut self) {
        let mut missing: Vec<_> =
            self.listed.iter().filter(|name| !self.followed.contains_key(*name)).cloned().collect();
        missing.sort_unstable();
        while self.room() < missing.len()
            && let Some(over) = self.over.keys().next().cloned()
        {
            self.end(&over);
        }
        let omitted = missing.split_off(missing.len().min(self.room()));
        for name in &missing {
            self.start(name);
        }
        self.note_above_limit(omitted.len());
        self.count_omitted();
        self.changed();
    }

    /// Records the number of services above the limit. The beginning and the end of such a state are logged, not each
    /// change.
    fn note_above_limit(&mut self, omitted: usize) {
        let namespace = escaped(self.shared.scope.namespace());
        match (std::mem::replace(&mut self.above_limit, omitted), omitted) {
            (0, 1..) => tracing::warn!(%namespace, omitted, max = self.max_services, "services omitted"),
            (1.., 0) => tracing::info!(%namespace, "no service omitted"),
            _ => {}
        }
    }

    /// Records that the store refuses a service of a namespace, which is omitted if nothing is known of it.
    fn note_refused(&mut self, name: &ServiceName, error: &Error) {
        if self.state.services.contains_key(name) || !self.refused.insert(name.clone()) {
            return;
        }
        // The first one stands for all.
        if self.refused.len() == 1 {
            let service = ServiceRef::new(self.shared.scope.namespace().clone(), name.clone());
            let (service, cause) = (escaped(&service), enlist::with_causes(error).to_string());
            tracing::warn!(%service, %cause, "services refused");
        }
        self.count_omitted();
        self.changed();
    }

    fn count_omitted(&mut self) {
        let refused = self.refused.intersection(&self.listed).count();
        if let Some(list) = &mut self.state.list {
            list.omitted = self.above_limit + refused;
        }
    }

    /// Returns the number of services that can be followed in addition.
    fn room(&self) -> usize {
        self.max_services.saturating_sub(self.followed.len())
    }

    /// Notes that a service is over, or no longer. A service that left the list is followed until its view is empty,
    /// because held instances are in views only.
    fn note_end(&mut self, name: &ServiceName) {
        if self.is_over(name) {
            self.over.entry(name.clone()).or_insert_with(|| Instant::now() + LINGER);
        } else {
            self.over.remove(name);
        }
    }

    /// Forgets the services that were over for long enough.
    fn forget_ended(&mut self) {
        let now = Instant::now();
        let ended: Vec<_> = self.over.iter().filter(|(_, end)| **end <= now).map(|(name, _)| name.clone()).collect();
        for name in &ended {
            self.end(name);
        }
        if !ended.is_empty() {
            self.fill();
        }
    }

    /// Returns `true` if a service is neither listed nor has an instance.
    fn is_over(&self, name: &ServiceName) -> bool {
        let empty = self.state.services.get(name).is_none_or(|state| state.snapshot.is_empty());
        empty && !self.listed.contains(name)
    }

    /// Takes a change of a service.
    fn take_step(&mut self, step: Step) {
        let Some((name, changes, result)) = step else { return };
        if self.followed.get(&name).is_none_or(AbortHandle::is_aborted) {
            return;
        }
        match result {
            Ok(change) => self.take_change(&name, change),
            Err(error) => {
                let is_end = matches!(error, Error::Closed);
                self.unknown.remove(&name);
                match self.shared.scope {
                    Scope::Service(_) => self.refuse(error),
                    Scope::Namespace(_) if is_end => {}
                    Scope::Namespace(_) => self.note_refused(&name, &error),
                }
                if is_end {
                    return;
                }
                self.changed();
            }
        }
        self.note_end(&name);
        if !self.over.is_empty() {
            // A service that is over can make room for another one.
            self.fill();
        }
        if self.followed.contains_key(&name) {
            self.await_step(&name, changes);
        }
    }

    fn take_change(&mut self, name: &ServiceName, change: Change) {
        self.unknown.remove(name);
        if self.refused.remove(name) {
            self.count_omitted();
        }
        let Change { snapshot, events, freshness } = change;
        let known = self.state.services.get(name).map(|state| Arc::clone(&state.departures)).unwrap_or_default();
        let ended = events.into_iter().filter_map(|event| match event {
            Event::Removed(entry) => Some(entry),
            Event::Added(_) | Event::Updated { .. } => None,
        });
        let at = SystemTime::now();
        let ended = ended.map(|entry| Departure { end: EntryEnd::of(&entry, &snapshot), entry, at });
        let departures = with_departures(known, ended);
        self.changes += 1;
        let state = ServiceState { snapshot, freshness, departures, change: self.changes };
        self.state.services.insert(name.clone(), state);
        if let (Scope::Service(_), Progress::Refused(_)) = (&self.shared.scope, &self.progress) {
            self.progress = Progress::Loading;
        }
        self.changed();
    }

    /// Records a refusal of the store. A state that was complete stays.
    fn refuse(&mut self, error: Error) {
        if !matches!(self.progress, Progress::Complete) {
            self.progress = Progress::Refused(error);
            self.changed();
        }
    }

    /// Plans a publication.
    fn changed(&mut self) {
        let earliest = self.last_published.map_or_else(Instant::now, |last| last + INTERVAL);
        self.due.get_or_insert(earliest);
    }

    fn publish_if_due(&mut self) {
        let now = Instant::now();
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        self.last_published = Some(now);
        let is_service = matches!(self.shared.scope, Scope::Service(_));
        let known = self.unknown.is_empty() && (self.state.list.is_some() || is_service);
        match self.progress {
            Progress::Loading if known => self.progress = Progress::Complete,
            Progress::Refused(_) if known && self.state.list.is_some() => self.progress = Progress::Complete,
            Progress::Loading | Progress::Refused(_) | Progress::Complete => {}
        }
        self.position = self.position.next();
        let (position, state, progress) = (self.position, self.state.clone(), self.progress.clone());
        self.shared.publish(Published { position, state, progress });
    }
}

/// Waits for the next change of a service.
async fn step(name: ServiceName, mut changes: ViewChanges) -> (ServiceName, ViewChanges, Result<Change, Error>) {
    let result = changes.next().await;
    (name, changes, result)
}

/// State of the watch of a list.
enum ListWatch {
    /// The next step starts it.
    New,
    /// The next step starts it after a delay.
    Refused,
    Watching(Box<dyn ServicesWatcher>),
}

/// Returns the changes of the list of services.
fn lists(resolver: Arc<dyn Resolver>, namespace: Namespace) -> Lists {
    let start = (resolver, namespace, ListWatch::New);
    let changes = stream::unfold(start, |(resolver, namespace, watch)| async move {
        if let ListWatch::Refused = watch {
            sleep(RETRY).await;
        }
        let watcher = match watch {
            ListWatch::Watching(watcher) => Ok(watcher),
            ListWatch::New | ListWatch::Refused => resolver.watch_services(&namespace).await,
        };
        let (change, watch) = match watcher {
            Ok(mut watcher) => match watcher.next().await {
                Ok(change) => (Ok(change), ListWatch::Watching(watcher)),
                Err(error) => (Err(error), ListWatch::Refused),
            },
            Err(error) => (Err(error), ListWatch::Refused),
        };
        Some((change, (resolver, namespace, watch)))
    });
    changes.boxed()
}
