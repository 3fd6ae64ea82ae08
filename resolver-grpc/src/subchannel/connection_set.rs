//! The connections of one subchannel that take calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connection::Connection;
use arc_swap::ArcSwap;

/// Connections to one instance. Calls only read; changes are made one at a time.
#[derive(Debug)]
pub(super) struct ConnectionSet {
    /// How many there may be at a time.
    most: usize,
    /// Those that take calls. A call takes the first one with room, so that further ones can become idle.
    current: ArcSwap<Vec<Arc<Connection>>>,
    changing: Mutex<()>,
}

/// Exclusive right to change the set.
pub(super) struct Change<'a> {
    set: &'a ConnectionSet,
    _changing: MutexGuard<'a, ()>,
}

impl ConnectionSet {
    pub(super) fn new(most: usize) -> Self {
        Self { most, current: ArcSwap::default(), changing: Mutex::default() }
    }

    /// Begins a call over the first connection with room. The second value is `true` if no room is left.
    pub(super) fn begin(&self) -> (Option<Arc<Connection>>, bool) {
        let current = self.current.load();
        if let Some(at) = current.iter().position(|connection| connection.begin()) {
            let full = !current[at..].iter().any(|connection| connection.has_room());
            return (Some(Arc::clone(&current[at])), full);
        }
        (self.overflow(&current).filter(|connection| connection.begin_anyway()).map(Arc::clone), true)
    }

    /// Returns `true` if a connection has room for a call.
    pub(super) fn has_room(&self) -> bool {
        let current = self.current.load();
        current.iter().any(|connection| connection.has_room()) || self.overflow(&current).is_some()
    }

    /// The connection that takes more calls than it is meant to, since there are no further ones.
    fn overflow<'a>(&self, current: &'a [Arc<Connection>]) -> Option<&'a Arc<Connection>> {
        if current.len() < self.most {
            return None;
        }
        current.iter().filter(|connection| connection.may_overflow()).min_by_key(|connection| connection.calls())
    }

    /// Returns `true` if another connection would be of use.
    pub(super) fn is_crowded(&self) -> bool {
        !self.current.load().iter().any(|connection| connection.has_room())
    }

    /// How many take calls.
    pub(super) fn count(&self) -> usize {
        self.current.load().len()
    }

    /// Returns `true` if calls use this very connection.
    pub(super) fn uses(&self, connection: &Arc<Connection>) -> bool {
        self.current.load().iter().any(|current| Arc::ptr_eq(current, connection))
    }

    pub(super) fn change(&self) -> Change<'_> {
        Change { set: self, _changing: self.changing.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Breaks off what is left.
    pub(super) fn cut(&self) {
        self.current.load().iter().for_each(|connection| connection.cut());
    }
}

impl Change<'_> {
    pub(super) fn add(&mut self, connection: &Arc<Connection>) {
        let current = self.set.current.load();
        let added = current.iter().chain([connection]).map(Arc::clone).collect();
        self.set.current.store(Arc::new(added));
    }

    /// Takes a connection out, for its calls to end. Returns how many are left, or `None` if it was none of them.
    pub(super) fn demote(&mut self, connection: &Arc<Connection>) -> Option<usize> {
        let current = self.set.current.load();
        let left: Vec<_> = current.iter().filter(|other| !Arc::ptr_eq(other, connection)).map(Arc::clone).collect();
        if left.len() == current.len() {
            return None;
        }
        let count = left.len();
        self.set.current.store(Arc::new(left));
        Some(count)
    }

    /// Lets go of all connections, which close once their calls have ended.
    pub(super) fn clear(&mut self) {
        self.set.current.store(Arc::default());
    }
}
