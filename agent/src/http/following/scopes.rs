//! Scopes that are followed. All requests and event clients of a scope share one follower. The number of followers is
//! bounded: one without a user ends after a while, or at once if another scope needs its slot.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use enlist::{Directory, Resolver, TaskOwner, backend::MutexExt as _};

use super::{
    follower::Follower,
    scope::{ScopeShared, ScopeUser},
    state::{Published, Scope},
};
use crate::{
    http::{
        messages::error::{ApiError, Code},
        options::Limits,
    },
    limits::{Limit, LimitUse},
};

/// Time for which a follower without a user goes on if no other scope needs its slot: longer than the usual interval of
/// a poll.
const IDLE: Duration = Duration::from_secs(70);

/// All followers.
pub(crate) struct Scopes {
    resolver: Arc<dyn Resolver>,
    directory: Directory,
    limit: Arc<Limit>,
    max_services: usize,
    followed: Mutex<HashMap<Scope, Arc<ScopeShared>>>,
    tasks: TaskOwner,
}

/// Use of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Used,
    Unused,
}

impl Scopes {
    /// Creates a set without followers.
    pub(crate) fn new(resolver: Arc<dyn Resolver>, directory: Directory, limits: Limits) -> Arc<Self> {
        let (limit, max_services) = (Limit::new("http_views", limits.followers), limits.services);
        Arc::new(Self { resolver, directory, limit, max_services, followed: Mutex::default(), tasks: TaskOwner::new() })
    }

    /// The registry.
    pub(crate) fn resolver(&self) -> &Arc<dyn Resolver> {
        &self.resolver
    }

    /// Number of followers.
    pub(crate) fn len(&self) -> usize {
        self.followed.locked().len()
    }

    /// Returns the use of the limit of followers.
    pub(crate) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.len()))
    }

    /// Returns the published states of all followers, in no order.
    pub(crate) fn published(&self) -> Vec<(Scope, Arc<Published>)> {
        self.followed.locked().values().map(|shared| (shared.scope.clone(), shared.published())).collect()
    }

    /// Returns a user of a scope. Starts its follower if there is none; at the limit, in place of the follower that has
    /// been without a user for the longest time.
    pub(crate) fn open(self: &Arc<Self>, scope: &Scope) -> Result<ScopeUser, ApiError> {
        let mut followed = self.followed.locked();
        if let Some(shared) = followed.get(scope) {
            return Ok(ScopeUser::new(shared));
        }
        if followed.len() >= self.limit.max() && !evict_unused(&mut followed) {
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
        followed.insert(scope.clone(), shared);
        Ok(user)
    }

    /// Forgets a scope if it has no user. Returns the decision.
    fn close_if_unused(&self, shared: &Arc<ScopeShared>) -> Use {
        // Under the lock, so that no user is added in between.
        let mut followed = self.followed.locked();
        if shared.is_used() {
            return Use::Used;
        }
        // After an eviction, the scope can have another follower already.
        if followed.get(&shared.scope).is_some_and(|followed| Arc::ptr_eq(followed, shared)) {
            followed.remove(&shared.scope);
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

/// Ends the follower that has been without a user for the longest time. Returns `true` if there was one.
fn evict_unused(followed: &mut HashMap<Scope, Arc<ScopeShared>>) -> bool {
    let unused = followed.values().filter_map(|shared| Some((shared.unused_time()?, shared)));
    let Some((_, shared)) = unused.max_by_key(|(time, _)| *time) else { return false };
    let scope = shared.scope.clone();
    shared.evict();
    followed.remove(&scope);
    true
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
