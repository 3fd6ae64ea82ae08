//! Connections of which an unused one gives way to a new one.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use enlist::backend::MutexExt as _;
use tokio::time::Instant;

use super::peer::{Peer, PeerState, UNUSED};

/// Number of connections below which those that have ended stay in the list.
const PRUNED_FROM: usize = 64;

/// Minimum time between two scans for connections that can give way.
const SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// Connections of which an unused one gives way to a new one.
#[derive(Debug, Default)]
pub(super) struct Evictable(Mutex<Connections>);

/// Connections of a server.
#[derive(Debug, Default)]
struct Connections {
    all: Vec<Weak<PeerState>>,
    /// Those that were unused for long enough at the last scan, the one to give way first at the end.
    unused: Vec<Weak<PeerState>>,
    /// Earliest time of the next scan; `None` before the first one.
    next_scan: Option<Instant>,
    /// Number of connections from which those that have ended are removed from the list.
    next_pruning: usize,
}

impl Connections {
    /// Scans for unused connections, unless there was a scan a short time ago: in a flood, each connection would cause
    /// one.
    fn scan(&mut self) {
        let now = Instant::now();
        if self.next_scan.is_some_and(|next| now < next) {
            return;
        }
        self.next_scan = Some(now + SCAN_INTERVAL);
        let unused = |one: &Weak<PeerState>| one.upgrade().and_then(|one| one.unused());
        let found = self.all.iter().filter_map(|one| Some((unused(one)?, one)));
        let mut found: Vec<_> = found.filter(|(time, _)| *time >= UNUSED).collect();
        found.sort_by_key(|(time, _)| *time);
        self.unused = found.into_iter().map(|(_, one)| Weak::clone(one)).collect();
    }
}

impl Evictable {
    /// Adds a connection. The list has at most about twice as many as are open.
    pub(super) fn add(&self, peer: &Peer) {
        let mut connections = self.0.locked();
        if connections.all.len() >= connections.next_pruning {
            connections.all.retain(|one| one.strong_count() > 0);
            connections.next_pruning = PRUNED_FROM.max(2 * connections.all.len());
        }
        connections.all.push(Arc::downgrade(&peer.state));
    }

    /// Closes the connection that has been unused for longest; returns `false` if none has been for [`UNUSED`].
    pub(super) fn evict(&self) -> bool {
        let mut connections = self.0.locked();
        connections.scan();
        while let Some(one) = connections.unused.pop() {
            // It may have been used since.
            if one.upgrade().is_some_and(|one| one.close_unused()) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use enlist::Moment;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_connection_unused_for_longest_gives_way() {
        let evictable = Evictable::default();
        let peers = [300, 100, 200, 0, 150].map(|seconds| {
            let peer = Peer::new(None);
            peer.state.usage.locked().since = Moment::ago(Duration::from_secs(seconds));
            evictable.add(&peer);
            peer
        });
        let closed = || peers.each_ref().map(Peer::is_closing);
        let used = peers[0].in_use();
        assert!(evictable.evict());
        assert_eq!(closed(), [false, false, true, false, false]);
        // It is the next one of those that were found, and is used in between.
        drop(peers[4].in_use());
        assert!(evictable.evict());
        assert_eq!(closed(), [false, true, true, false, false]);
        tokio::time::advance(SCAN_INTERVAL).await;
        assert!(!evictable.evict(), "the others are in use, or were a short time ago");
        drop(used);
        tokio::time::advance(UNUSED / 2).await;
        assert!(!evictable.evict(), "it was in use a short time ago");
        tokio::time::advance(UNUSED / 2).await;
        assert!(evictable.evict() && evictable.evict() && evictable.evict());
        assert_eq!(closed(), [true; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_causes_few_scans() {
        let (evictable, peer) = (Evictable::default(), Peer::new(None));
        evictable.add(&peer);
        assert!(!evictable.evict(), "it is new");
        peer.state.usage.locked().since = Moment::ago(UNUSED);
        assert!(!evictable.evict(), "there was a scan just before");
        tokio::time::advance(SCAN_INTERVAL).await;
        assert!(evictable.evict());
    }

    #[test]
    fn connections_that_have_ended_are_forgotten() {
        let evictable = Evictable::default();
        for _ in 0..10 * PRUNED_FROM {
            evictable.add(&Peer::new(None));
        }
        assert!(evictable.0.locked().all.len() <= PRUNED_FROM);
    }
}
