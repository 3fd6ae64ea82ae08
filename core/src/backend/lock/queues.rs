//! Constructors of the queues that [`Queues`](crate::Queues) reads. They order the entries and decide from the marks
//! left by holders with a `lock_delay` if the delay excludes the first of them.

use crate::{
    lock::{
        options::LockMode,
        queues::{ElectionQueue, LockQueue, QueuedCandidate, QueuedContender},
    },
    model::name::LockName,
};

/// Creates the queue of a lock. `delays`: modes of the holders that left a mark with a running delay.
pub fn lock_queue(name: LockName, mut entries: Vec<QueuedContender>, delays: &[LockMode]) -> LockQueue {
    entries.sort_unstable_by_key(|entry| entry.token);
    let delayed = match entries.first() {
        Some(first) => delays.iter().any(|left| left.excludes(first.mode)),
        None => !delays.is_empty(),
    };
    LockQueue { name, entries, delayed }
}

/// Creates the queue of an election. `delays`: modes of the leaders that left a mark with a running delay.
pub fn election_queue(name: LockName, mut entries: Vec<QueuedCandidate>, delays: &[LockMode]) -> ElectionQueue {
    entries.sort_unstable_by_key(|entry| entry.token);
    ElectionQueue { name, entries, delayed: !delays.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::revision::{FencingToken, Revision};
    use LockMode::{Exclusive, Shared};

    fn contender(token: u64, mode: LockMode) -> QueuedContender {
        QueuedContender { token: FencingToken::new(token), mode, process: None, created: Revision::new(token) }
    }

    fn name() -> LockName {
        LockName::parse("l").unwrap()
    }

    #[test]
    fn the_first_entry_holds_and_shared_ones_hold_together() {
        for (modes, holders) in [
            (vec![], 0),
            (vec![Exclusive], 1),
            (vec![Exclusive, Shared, Shared], 1),
            (vec![Shared, Shared, Exclusive, Shared], 2),
            (vec![Shared, Shared], 2),
        ] {
            let mut entries: Vec<_> = (1..).zip(modes.clone()).map(|(token, mode)| contender(token, mode)).collect();
            entries.reverse();
            let queue = lock_queue(name(), entries, &[]);
            assert_eq!((queue.holders().len(), queue.waiting().len()), (holders, modes.len() - holders), "{modes:?}");
        }
    }

    #[test]
    fn a_lock_that_is_delayed_for_the_first_entry_has_no_holder() {
        for (modes, delays, delayed) in [
            (vec![], vec![], false),
            (vec![], vec![Shared], true),
            (vec![Exclusive], vec![Shared], true),
            (vec![Shared, Exclusive], vec![Shared], false),
            (vec![Shared, Exclusive], vec![Shared, Exclusive], true),
        ] {
            let entries: Vec<_> = (1..).zip(modes.clone()).map(|(token, mode)| contender(token, mode)).collect();
            let queue = lock_queue(name(), entries, &delays);
            assert_eq!(queue.delayed, delayed, "{modes:?} {delays:?}");
            let holders = if delayed { 0 } else { modes.len().min(1) };
            assert_eq!((queue.holders().len(), queue.waiting().len()), (holders, modes.len() - holders), "{modes:?}");
        }
    }

    #[test]
    fn the_first_candidate_leads_unless_delayed() {
        let candidate = |token, value: &str| QueuedCandidate {
            token: FencingToken::new(token),
            value: value.to_owned(),
            created: Revision::new(token),
            modified: Revision::new(token),
        };
        let entries = vec![candidate(9, "two"), candidate(7, "one")];
        for (delays, leader, waiting) in
            [(vec![], Some("one"), vec!["two"]), (vec![Exclusive], None, vec!["one", "two"])]
        {
            let queue = election_queue(name(), entries.clone(), &delays);
            assert_eq!(queue.leader().map(|leader| leader.value.as_str()), leader);
            assert_eq!(queue.waiting().iter().map(|one| one.value.as_str()).collect::<Vec<_>>(), waiting);
        }
        let empty = election_queue(name(), vec![], &[]);
        assert_eq!((empty.leader(), empty.waiting().len()), (None, 0));
    }
}
