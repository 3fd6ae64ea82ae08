//! Memory for the names that clients subscribe to. Each stream has some of its own; beyond that, all streams have a
//! common budget. A stream is charged for the largest number of names that it has had, until it ends: responses that it
//! does not read contain names that it no longer wants.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::resource::ResourceType;
use crate::limits::{Limit, LimitUse};

/// Bytes of the common budget for each permitted stream.
const COMMON_BYTES: usize = 52 << 10;

/// Bytes that each stream has: enough for seven services of a client of gRPC.
const OWN_BYTES: usize = 32 << 10;

/// Memory of a name.
struct Cost {
    /// Bytes without its text.
    fixed: usize,
    /// Number of its texts.
    texts: usize,
}

/// Memory of a name in the sets of its stream.
const NAME: Cost = Cost { fixed: 512, texts: 4 };

/// Memory of a listener or cluster, with its resource in the two responses that a stream can have. Assignments are
/// shared by all streams, and a response has one route.
const RESOURCE: Cost = Cost { fixed: 1536, texts: 8 };

/// Returns the bytes that a name takes at most.
pub(super) fn cost(kind: ResourceType, name: &str) -> usize {
    let Cost { fixed, texts } = if kind.is_complete() { RESOURCE } else { NAME };
    fixed + texts * name.len()
}

/// Bytes that all streams have in common.
#[derive(Debug)]
pub(super) struct NameBudget {
    limit: Arc<Limit>,
    used: AtomicUsize,
}

impl NameBudget {
    /// Creates the budget of a server with this number of streams.
    pub(super) fn new(max_streams: usize) -> Arc<Self> {
        Self::of(max_streams.saturating_mul(COMMON_BYTES))
    }

    fn of(bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit: Limit::new("xds_name_bytes", bytes), used: AtomicUsize::new(0) })
    }

    /// Returns the use of the budget. Refused are names that have to wait.
    pub(super) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.used.load(Ordering::Relaxed)))
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

    /// Bytes that the stream has taken.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Takes further bytes; returns `false` if there are none.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let taken = |all| self.after(all, bytes);
        let is_taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok();
        if is_taken {
            self.used = self.used.saturating_add(bytes);
        }
        is_taken
    }

    /// Returns `true` if there are further bytes, also for another stream that replaces this one.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.after(self.budget.used.load(Ordering::Relaxed), bytes).is_some()
    }

    /// Counts a refusal.
    pub(super) fn refuse(&self) {
        self.budget.limit.refuse();
    }

    /// Returns the use of the budget after this stream has taken further bytes; `None` if there are none. `all`: use
    /// before.
    fn after(&self, all: usize, bytes: usize) -> Option<usize> {
        let more = common(self.used.saturating_add(bytes)) - common(self.used);
        all.checked_add(more).filter(|after| *after <= self.budget.limit.max())
    }
}

impl Drop for NameAccount {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(common(self.used), Ordering::Relaxed);
    }
}

/// Returns the part of these bytes that does not fit into a stream's own ones.
fn common(used: usize) -> usize {
    used.saturating_sub(OWN_BYTES)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::xds::{
        options::DEFAULT_XDS_CONNECT_TIMEOUT,
        resource::Resource,
        resources::{api_listener, cluster},
    };

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
        assert!(one.take(60) && one.has_room(40) && one.take(40) && used() == 100);
        assert!(!one.has_room(1) && !one.take(1), "all are taken");
        assert!(other.take(OWN_BYTES) && !other.take(1), "but its own ones");
        drop(one);
        assert_eq!(used(), 0);
        assert!(other.take(70) && used() == 70);
        drop(other);
        assert_eq!(used(), 0);
    }

    /// The resources of two responses, and the name in the sets of the stream.
    #[test]
    fn the_cost_of_a_name_is_not_below_its_bytes() {
        for length in [1, 16, 128, 1_533] {
            let name = "x".repeat(length);
            for (kind, resource) in [
                (ResourceType::Listener, api_listener(&name)),
                (ResourceType::Cluster, cluster(&name, DEFAULT_XDS_CONNECT_TIMEOUT)),
            ] {
                let in_response = resource.any().len() + size_of::<Resource>() + name.len();
                let bytes = 2 * in_response + name.len();
                let cost = cost(kind, &name);
                assert!(bytes < cost, "{kind:?} {length}: {bytes} of {cost}");
            }
        }
    }
}
