//! Scopes that are followed. All requests and event clients of a scope share one follower. The number of followers is
//! bounded: one without a user ends after a while, or at once if another scope needs its slot. The directory keeps the
//! watches of those that ended for a time, so their number is bounded, too. What the store does not have is read once
//! instead of followed, unless a client wants its events: requests for names that do not exist open no watch.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use enlist::{Directory, Moment, Resolver, ServiceRef, TaskOwner, backend::MutexExt as _};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    departures::merged_departures,
    follower::Follower,
    scope::{ScopeShared, ScopeUser},
    state::{Departure, Progress, Published, Scope, ServiceState},
};
use crate::{
    http::{
        messages::error::{ApiError, Code},
        options::Limits,
    },
    limits::{Limit, LimitUse},
    staleness::Staleness,
};

/// Time for which a follower without a user goes on if no other scope needs its slot: longer than the usual interval of
/// a poll.
const IDLE: Duration = Duration::from_secs(70);

/// Maximum time of the read that finds out whether a scope has anything to follow. Without an answer it is followed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of such reads at a time; further requests wait.
const PROBES: usize = 64;

/// Divisor of the limit: the number of followers that other scopes end whose watches still exist.
const EVICTED: usize = 4;

/// All followers.
pub(crate) struct Scopes {
    resolver: Arc<dyn Resolver>,
    directory: Directory,
    /// Time for which the directory keeps a watch without a user.
    idle: Duration,
    limit: Arc<Limit>,
    max_services: usize,
    slots: Mutex<ScopeTable>,
    probes: Semaphore,
    tasks: TaskOwner,
}

/// Followed scopes, and those that were until a short time ago.
#[derive(Debug, Default)]
struct ScopeTable {
    followed: HashMap<Scope, Arc<ScopeShared>>,
    /// Ends of the watches of evicted followers, in their order.
    evicted: VecDeque<Instant>,
}

impl ScopeTable {
    /// Ends the follower that has been without a user for the longest time, if there is one and fewer than `max`
    /// watches of such followers exist. `idle`: time for which its watch goes on.
    fn evict_unused(&mut self, max: usize, idle: Duration) {
        let now = Instant::now();
        while self.evicted.front().is_some_and(|end| *end <= now) {
            self.evicted.pop_front();
        }
        if self.evicted.len() >= max {
            return;
        }
        let unused = self.followed.values().filter_map(|shared| Some((shared.unused_time()?, shared)));
        let Some((_, shared)) = unused.max_by_key(|(time, _)| *time) else { return };
        shared.evict();
        let scope = shared.scope.clone();
        self.followed.remove(&scope);
        self.evicted.push_back(now + idle);
    }
}

/// Use of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Used,
    Unused,
}

impl Scopes {
    /// Creates a set without followers. `idle`: time for which the directory keeps a watch without a user.
    pub(crate) fn new(resolver: Arc<dyn Resolver>, directory: Directory, idle: Duration, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            resolver,
            directory,
            idle,
            limit: Limit::new("http_views", limits.followers),
            max_services: limits.services,
            slots: Mutex::default(),
            probes: Semaphore::new(PROBES),
            tasks: TaskOwner::new(),
        })
    }

    /// The registry.
    pub(crate) fn resolver(&self) -> &Arc<dyn Resolver> {
        &self.resolver
    }

    /// Number of followers.
    pub(crate) fn len(&self) -> usize {
        self.slots.locked().followed.len()
    }

    /// Returns the use of the limit of followers.
    pub(crate) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.len()))
    }

    /// Returns the staleness of all followed scopes.
    pub(crate) fn staleness(&self) -> Staleness {
        let mut staleness = Staleness::default();
        for (_, published) in self.published() {
            match published.progress {
                Progress::Complete => staleness.add(published.state.parts().cloned()),
                Progress::Loading | Progress::Refused(_) => staleness.add_unknown(),
            }
        }
        staleness
    }

    /// Returns the published states of all followers, in no order.
    pub(crate) fn published(&self) -> Vec<(Scope, Arc<Published>)> {
        self.slots.locked().followed.values().map(|shared| (shared.scope.clone(), shared.published())).collect()
    }

    /// Returns the state of a scope, once it is completely known. A scope without instances gets no follower, unless
    /// the directory has a view of it, which can hold instances that the store has lost.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open) and [`ScopeUser::ready`].
    pub(crate) async fn read(self: &Arc<Self>, scope: &Scope) -> Result<Arc<Published>, ApiError> {
        if !self.is_known(scope)
            && let Some(empty) = self.empty(scope).await
        {
            return Ok(Arc::new(empty));
        }
        self.open(scope)?.ready().await
    }

    /// Returns the departures of a service: those of its own follower, whose state this is, and those that the follower
    /// of its namespace has seen.
    pub(crate) fn departures(&self, service: &ServiceRef, state: &ServiceState) -> Arc<VecDeque<Departure>> {
        let namespace = self.slots.locked().followed.get(&Scope::Namespace(service.namespace().clone())).cloned();
        let published = namespace.map(|namespace| namespace.published());
        let earlier = published.as_ref().and_then(|published| published.state.services.get(service.name()));
        match earlier {
            Some(earlier) => merged_departures(&state.snapshot, &state.departures, &earlier.departures),
            None => Arc::clone(&state.departures),
        }
    }

    /// Returns `true` if a scope is followed, or a service is in a followed namespace or has a view.
    fn is_known(&self, scope: &Scope) -> bool {
        let slots = self.slots.locked();
        let namespace = Scope::Namespace(scope.namespace().clone());
        let listed = |service: &ServiceRef| {
            let published = slots.followed.get(&namespace)?.published();
            Some(published.state.services.contains_key(service.name()))
        };
        slots.followed.contains_key(scope)
            || matches!(scope, Scope::Service(service)
                if listed(service).unwrap_or_default() || self.directory.has_view(service))
    }

    /// Reads a scope from the store. Returns its state if it is empty; `None` if it is not, or if that is not known.
    async fn empty(&self, scope: &Scope) -> Option<Published> {
        let reading = async {
            let _permit = self.probes.acquire().await.ok()?;
            let began = Moment::now();
            match scope {
                Scope::Service(service) => Published::empty_service(self.resolver.resolve(service).await.ok()?, began),
                Scope::Namespace(namespace) => {
                    let services = self.resolver.services(namespace).await.ok()?;
                    services.is_empty().then(|| Published::empty_namespace(began))
                }
            }
        };
        timeout(PROBE_TIMEOUT, reading).await.ok().flatten()
    }

    /// Returns a user of a scope. Starts its follower if there is none. Above the limit, the follower that has been
    /// without a user for the longest time ends.
    ///
    /// # Errors
    ///
    /// [`Code::TooManyViews`] if each follower has a user, or too many have ended a short time ago.
    pub(crate) fn open(self: &Arc<Self>, scope: &Scope) -> Result<ScopeUser, ApiError> {
        let mut slots = self.slots.locked();
        if let Some(shared) = slots.followed.get(scope) {
            return Ok(ScopeUser::new(shared));
        }
        let max = self.limit.max();
        if slots.followed.len() >= max {
            slots.evict_unused(max.div_ceil(EVICTED), self.idle);
        }
        if slots.followed.len() >= max {
            self.limit.refuse();
            return Err(ApiError::new(Code::TooManyViews, "too many services and namespaces are read at a time"));
        }
        let shared = Arc::new(ScopeShared::new(scope.clone()));
        let user = ScopeUser::new(&shared);
        let (resolver, directory) = (Arc::clone(&self.resolver), self.directory.clone());
        let task = Follower::new(resolver, directory, Arc::clone(&shared), self.max_services);
        let task = follow_while_used(task, Arc::clone(&shared), Arc::downgrade(self));
        self.tasks
            .spawn_until_stopped("follower", task)
            .map_err(|_| ApiError::new(Code::StoreUnavailable, "the agent is stopping"))?;
        slots.followed.insert(scope.clone(), shared);
        Ok(user)
    }

    /// Forgets a scope if it has no user. Returns the decision.
    fn close_if_unused(&self, shared: &Arc<ScopeShared>) -> Use {
        // Under the lock, so that no user is added in between.
        let mut slots = self.slots.locked();
        if shared.is_used() {
            return Use::Used;
        }
        // After an eviction, the scope can have another follower already.
        if slots.followed.get(&shared.scope).is_some_and(|followed| Arc::ptr_eq(followed, shared)) {
            slots.followed.remove(&shared.scope);
        }
        Use::Unused
    }

    /// Ends all followers.
    pub(crate) async fn stop(&self, limit: Duration) {
        if let Err(error) = self.tasks.stop(limit).await {
            tracing::warn!(%error, "followers of services did not end");
        }
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scopes").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Follows a scope until there was no user for a while, or another scope needs the slot.
async fn follow_while_used(follower: Follower, shared: Arc<ScopeShared>, scopes: Weak<Scopes>) {
    let unused = async {
        loop {
            shared.unused_for(IDLE).await;
            if scopes.upgrade().is_none_or(|scopes| scopes.close_if_unused(&shared) == Use::Unused) {
                return;
            }
        }
    };
    tokio::select! {
        () = follower.run() => {}
        () = unused => tracing::debug!(scope = ?shared.scope, "no user, follower ended"),
        () = shared.evicted() => tracing::debug!(scope = ?shared.scope, "no user, follower ended for another scope"),
    }
}
