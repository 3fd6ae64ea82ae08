//! The connections of one subchannel: those that take calls, and those that only finish the calls they have.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use arc_swap::ArcSwap;
use enlist::backend::MutexExt as _;
use tokio::sync::Notify;

use crate::subchannel::connections::connection::{Admission, Connection};

/// Connections to one instance. Calls only read. Changes are made one at a time.
#[derive(Debug)]
pub(crate) struct ConnectionSet {
    /// Maximum number at a time.
    most: usize,
    /// Connections that take calls. A call uses the first one with room, so that further ones can become idle.
    current: ArcSwap<Vec<Arc<Connection>>>,
    demoted: Mutex<Demoted>,
    /// A connection was demoted.
    changed: Notify,
}

/// Connections that take no more calls.
#[derive(Debug, Default)]
struct Demoted {
    /// Connections that are not observed yet.
    new: Vec<Arc<Connection>>,
    /// Connections that are observed until their last call ends.
    watched: Vec<Weak<Connection>>,
}

/// Room for a further call, after one was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Left,
    /// All streams of all connections are taken.
    None,
}

/// Outcome of the demotion of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demotion {
    Demoted,
    /// The connection took no calls before.
    Unknown,
}

/// Exclusive right to change the set.
pub(crate) struct Change<'a> {
    set: &'a ConnectionSet,
    demoted: MutexGuard<'a, Demoted>,
}

impl ConnectionSet {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, current: ArcSwap::default(), demoted: Mutex::default(), changed: Notify::new() }
    }

    /// Begins a call over the first connection with room. Returns the connection, if there is one, and the room for
    /// the next call.
    pub(crate) fn begin(&self) -> (Option<Arc<Connection>>, Room) {
        let current = self.current.load();
        if let Some(at) = current.iter().position(|connection| connection.begin() == Admission::Begun) {
            let is_left = current[at..].iter().any(|connection| connection.has_room());
            return (Some(Arc::clone(&current[at])), if is_left { Room::Left } else { Room::None });
        }
        let overflowing = self.overflow(&current).inspect(|connection| connection.begin_anyway());
        (overflowing.map(Arc::clone), Room::None)
    }

    /// Returns `true` if a connection has room for a call.
    pub(crate) fn has_room(&self) -> bool {
        let current = self.current.load();
        current.iter().any(|connection| connection.has_room()) || self.overflow(&current).is_some()
    }

    /// Connection for a call beyond the room of all connections, if there can be no further ones and the server's limit
    /// is unknown.
    fn overflow<'a>(&self, current: &'a [Arc<Connection>]) -> Option<&'a Arc<Connection>> {
        if current.len() < self.most {
            return None;
        }
        current.iter().filter(|connection| connection.may_overflow()).min_by_key(|connection| connection.calls())
    }

    /// Returns `true` if another connection would help: none has room, and the server takes streams.
    pub(crate) fn is_crowded(&self) -> bool {
        let current = self.current.load();
        let any = |is: fn(&Connection) -> bool| current.iter().any(|connection| is(connection));
        !any(Connection::has_room) && any(Connection::takes_streams)
    }

    /// Number of connections that take calls.
    pub(crate) fn count(&self) -> usize {
        self.current.load().len()
    }

    /// Returns `true` if calls use this connection.
    pub(crate) fn uses(&self, connection: &Arc<Connection>) -> bool {
        self.current.load().iter().any(|current| Arc::ptr_eq(current, connection))
    }

    pub(crate) fn change(&self) -> Change<'_> {
        Change { set: self, demoted: self.demoted.locked() }
    }

    /// Waits for demoted connections that are not observed yet.
    pub(crate) async fn demoted(&self) -> Vec<Arc<Connection>> {
        loop {
            let new = self.change().watch();
            if !new.is_empty() {
                return new;
            }
            self.changed.notified().await;
        }
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        let Change { set, demoted } = self.change();
        let watched: Vec<_> = demoted.watched.iter().filter_map(Weak::upgrade).collect();
        set.current.load().iter().chain(&demoted.new).chain(&watched).for_each(|connection| connection.cut());
    }
}

impl Change<'_> {
    pub(crate) fn add(&mut self, connection: &Arc<Connection>) {
        let current = self.set.current.load();
        let added = current.iter().chain([connection]).map(Arc::clone).collect();
        self.set.current.store(Arc::new(added));
    }

    /// Takes a connection out of use. Its calls finish.
    pub(crate) fn demote(&mut self, connection: &Arc<Connection>) -> Demotion {
        let current = self.set.current.load();
        let remaining: Vec<_> =
            current.iter().filter(|other| !Arc::ptr_eq(other, connection)).map(Arc::clone).collect();
        if remaining.len() == current.len() {
            return Demotion::Unknown;
        }
        self.set.current.store(Arc::new(remaining));
        self.demoted.new.push(Arc::clone(connection));
        self.set.changed.notify_one();
        Demotion::Demoted
    }

    /// Drops all connections, which close once their calls have ended.
    pub(crate) fn clear(&mut self) {
        self.set.current.store(Arc::default());
        *self.demoted = Demoted::default();
    }

    fn watch(&mut self) -> Vec<Arc<Connection>> {
        let Demoted { new, watched } = &mut *self.demoted;
        watched.retain(|connection| connection.strong_count() > 0);
        watched.extend(new.iter().map(Arc::downgrade));
        std::mem::take(new)
    }
}
