//! Memory for the names that clients subscribe to. Each stream has some of its own; what it needs beyond that, it takes
//! from what all streams share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::resource::ResourceType;
use crate::limits::{Limit, LimitUse};

/// Bytes that all streams share.
const SHARED_BYTES: usize = 256 << 20;

/// Bytes that each stream has: enough for seven services of a client of gRPC.
const OWN_BYTES: usize = 32 << 10;

/// Bytes of a name besides its text: its places in the sets of its stream.
const NAME_BYTES: usize = 512;

/// Bytes of the resource of a listener or cluster in the two responses that a stream can have. Assignments are shared,
/// and a response has one route.
const RESOURCE_BYTES: usize = 1024;

/// Returns the bytes that a name takes, rounded up.
pub(super) fn cost(kind: ResourceType, name: &str) -> usize {
    NAME_BYTES + name.len() + if kind.is_complete() { RESOURCE_BYTES } else { 0 }
}

/// Bytes that all streams share.
#[derive(Debug)]
pub(super) struct NameBudget {
    limit: Arc<Limit>,
    used: AtomicUsize,
}

impl NameBudget {
    /// Creates the budget of a server.
    pub(super) fn new() -> Arc<Self> {
        Self::of(SHARED_BYTES)
    }

    fn of(bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit: Limit::new("xds_name_bytes", bytes), used: AtomicUsize::new(0) })
    }

    /// Returns the use of the budget. Refused are names that have to wait.
    pub(super) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.used.load(Ordering::Relaxed)))
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit.max());
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes of the names of one stream. They are free again once this is dropped.
#[derive(Debug)]
pub(super) struct NameAccount {
    budget: Arc<NameBudget>,
    used: usize,
}

impl NameAccount {
    /// Creates the account of a stream without names.
    pub(super) fn new(budget: Arc<NameBudget>) -> Self {
        Self { budget, used: 0 }
    }

    /// Takes the place of a name; returns `false`, which is a refusal, if there is none.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let used = self.used + bytes;
        let has_room = self.budget.take(shared(used) - shared(self.used));
        if has_room {
            self.used = used;
        } else {
            self.budget.limit.refuse();
        }
        has_room
    }

    /// Frees the place of names that were taken before.
    pub(super) fn give_back(&mut self, bytes: usize) {
        let used = self.used.saturating_sub(bytes);
        self.budget.give_back(shared(self.used) - shared(used));
        self.used = used;
    }
}

impl Drop for NameAccount {
    fn drop(&mut self) {
        self.budget.give_back(shared(self.used));
    }
}

/// Returns the part of these bytes that does not fit into a stream's own ones.
fn shared(used: usize) -> usize {
    used.saturating_sub(OWN_BYTES)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns the account of a stream that has its own bytes, and this number of others.
    pub(in crate::xds) fn account(bytes: usize) -> NameAccount {
        NameAccount::new(NameBudget::of(bytes))
    }

    #[test]
    fn a_stream_has_bytes_of_its_own() {
        let budget = NameBudget::of(100);
        let used = || budget.usage().used.unwrap();
        let (mut one, mut other) = (NameAccount::new(Arc::clone(&budget)), NameAccount::new(Arc::clone(&budget)));
        assert!(one.take(OWN_BYTES) && used() == 0);
        assert!(one.take(60) && one.take(40) && used() == 100);
        assert!(!one.take(1) && budget.usage().refused == 1, "all are taken");
        assert!(other.take(OWN_BYTES) && !other.take(1), "but its own ones");
        one.give_back(70);
        assert_eq!(used(), 30);
        assert!(other.take(70) && !other.take(1));
        drop(one);
        assert_eq!(used(), 70);
        other.give_back(OWN_BYTES + 70);
        assert_eq!(used(), 0);
    }
}
