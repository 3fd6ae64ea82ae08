//! Constructors of a leadership and of the watch of an election.

use tokio::sync::mpsc;

use crate::{
    backend::{discovery::publisher::Subscriber, lock::proclamation::Proclamation},
    lock::{
        election::{Leader, LeaderWatcher, Leadership},
        guard::LockGuard,
    },
};

/// Maximum number of proclamations that wait for the store. Beyond it, `proclaim` waits for room.
const PROCLAIM_QUEUE: usize = 8;

/// Creates a leadership that ends with `guard`, and the queue of its proclamations. The backend drops the queue once
/// the leadership ends: each proclamation without an answer then fails with `LeaseLost`.
pub fn leadership(guard: LockGuard) -> (Leadership, mpsc::Receiver<Proclamation>) {
    let (proclaim, proclamations) = mpsc::channel(PROCLAIM_QUEUE);
    (Leadership { guard, proclaim }, proclamations)
}

/// Creates a watch of an election that reads from `reader`.
pub fn leader_watcher(reader: Subscriber<Option<Leader>>) -> LeaderWatcher {
    LeaderWatcher { reader }
}
