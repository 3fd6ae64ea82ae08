//! Positions in the queue of a lock.

use crate::{lock::options::LockMode, model::revision::FencingToken};

/// One key in the queue of a lock, as a backend reads it from its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct QueueEntry {
    /// Revision at which the entry was created; unique and increasing.
    pub token: FencingToken,
    /// Requested mode.
    pub mode: LockMode,
}

/// Position of an entry in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an entry holds, waits, or is absent")]
pub enum QueuePosition {
    /// Holds the lock.
    Holder,
    /// Waits for the removal of this entry; nothing earlier makes it the holder.
    Behind(FencingToken),
    /// Is not in the queue, or no longer.
    Absent,
}

/// Returns the position of the entry `me` in `queue`. This is the only rule for all modes and backends.
///
/// An exclusive entry holds the lock if it is the first one. A shared entry holds it if no exclusive entry is before
/// it. A waiting entry depends on one other entry only, so a handover wakes one contender: an exclusive entry waits for
/// the entry right before it, a shared one for the last exclusive entry before it.
pub fn queue_position(queue: impl IntoIterator<Item = QueueEntry>, me: FencingToken) -> QueuePosition {
    let mut before: Option<FencingToken> = None;
    let mut exclusive_before: Option<FencingToken> = None;
    let mut mine = None;
    for entry in queue {
        if entry.token == me {
            mine = Some(entry.mode);
        } else if entry.token < me {
            before = before.max(Some(entry.token));
            if entry.mode == LockMode::Exclusive {
                exclusive_before = exclusive_before.max(Some(entry.token));
            }
        }
    }
    let blocker = match mine {
        None => return QueuePosition::Absent,
        Some(LockMode::Exclusive) => before,
        Some(LockMode::Shared) => exclusive_before,
    };
    blocker.map_or(QueuePosition::Holder, QueuePosition::Behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockMode::{Exclusive, Shared as SharedMode};

    fn queue(modes: &[LockMode]) -> Vec<QueueEntry> {
        (1..).zip(modes).map(|(token, mode)| QueueEntry { token: FencingToken::new(token), mode: *mode }).collect()
    }

    fn position(modes: &[LockMode], me: u64) -> QueuePosition {
        queue_position(queue(modes).into_iter().rev(), FencingToken::new(me))
    }

    fn behind(token: u64) -> QueuePosition {
        QueuePosition::Behind(FencingToken::new(token))
    }

    #[test]
    fn the_first_holds_and_each_other_waits_for_the_one_before() {
        let modes = [Exclusive, Exclusive, Exclusive];
        assert_eq!(position(&modes, 1), QueuePosition::Holder);
        assert_eq!(position(&modes, 2), behind(1));
        assert_eq!(position(&modes, 3), behind(2));
        assert_eq!(position(&modes, 4), QueuePosition::Absent);
    }

    #[test]
    fn readers_hold_together_and_never_overtake_a_writer() {
        let modes = [SharedMode, SharedMode, Exclusive, SharedMode];
        assert_eq!(position(&modes, 2), QueuePosition::Holder);
        assert_eq!(position(&modes, 3), behind(2));
        assert_eq!(position(&modes, 4), behind(3));
    }
}
