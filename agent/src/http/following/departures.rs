//! Departures of a service: the latest ends of its instances, bounded in number and bytes.

use std::{collections::VecDeque, sync::Arc};

use enlist::{Entry, Snapshot};

use super::state::{Departure, entry_bytes};

/// Number of the latest ends of instances that are kept for each service.
const DEPARTURES: usize = 50;

/// Bytes of ended instances that are kept for each service, which are also in each response for it; the latest is kept
/// in any case.
const DEPARTURE_BYTES: usize = 256 << 10;

/// Adds ends of instances, and forgets the oldest above the limits.
pub(super) fn with_departures(
    known: Arc<VecDeque<Departure>>,
    ended: impl Iterator<Item = Departure>,
) -> Arc<VecDeque<Departure>> {
    let mut ended = ended.peekable();
    if ended.peek().is_none() {
        return known;
    }
    let mut all = Arc::unwrap_or_clone(known);
    all.extend(ended);
    let mut bytes: usize = all.iter().map(|departure| entry_bytes(&departure.entry)).sum();
    while all.len() > DEPARTURES || (bytes > DEPARTURE_BYTES && all.len() > 1) {
        let Some(oldest) = all.pop_front() else { break };
        bytes -= entry_bytes(&oldest.entry);
    }
    Arc::new(all)
}

/// Returns the departures that a follower has seen until this snapshot, and those that another one has seen, each once
/// and in their order. The other one may have seen the end of an instance that the snapshot contains: that follows.
pub(super) fn merged_departures(
    snapshot: &Snapshot,
    own: &VecDeque<Departure>,
    others: &VecDeque<Departure>,
) -> Arc<VecDeque<Departure>> {
    let is_present = |entry: &Entry| {
        let present = snapshot.get(entry.instance().id());
        present.is_some_and(|present| present.created() == entry.created())
    };
    let is_new = |one: &&Departure| !own.iter().any(|known| known.is_same(one)) && !is_present(&one.entry);
    let mut all: Vec<_> = others.iter().filter(is_new).chain(own).cloned().collect();
    all.sort_by_key(|departure| departure.at);
    with_departures(Arc::default(), all.into_iter())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use enlist::{Endpoint, Epoch, Instance, InstanceId, Revision, ServiceRef, backend::SnapshotBuilder};

    use super::*;
    use crate::http::following::state::EntryEnd;

    fn entry(id: &str, created: u64, bytes: usize) -> Arc<Entry> {
        let endpoint = Endpoint::parse("10.0.0.1:80").unwrap();
        let instance = Instance::new(InstanceId::parse(id).unwrap(), [endpoint]).unwrap();
        let instance = instance.with_metadata("k", "x".repeat(bytes));
        Arc::new(Entry::new(instance, Revision::new(created), Revision::new(created)))
    }

    fn departure(id: &str, created: u64, second: u64) -> Departure {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Departure { entry: entry(id, created, 1), end: EntryEnd::Lost, at }
    }

    #[test]
    fn departures_are_bounded_in_number_and_bytes() {
        for (bytes, kept) in [(1, DEPARTURES), (DEPARTURE_BYTES / 4, 3), (2 * DEPARTURE_BYTES, 1)] {
            let mut known = Arc::default();
            for number in 0..2 * DEPARTURES {
                let departure = Departure { entry: entry(&number.to_string(), 1, bytes), ..departure("a", 1, 1) };
                known = with_departures(known, [departure].into_iter());
            }
            assert_eq!(known.len(), kept, "{bytes}");
            assert_eq!(known.back().unwrap().entry.instance().id().as_str(), (2 * DEPARTURES - 1).to_string());
        }
    }

    #[test]
    fn departures_of_two_followers_are_merged() {
        let mut present = SnapshotBuilder::new(ServiceRef::parse("s").unwrap(), Revision::new(9), Epoch::default());
        for (id, created) in [("present", 5), ("back", 6)] {
            present.insert(entry(id, created, 1));
        }
        let own = VecDeque::from([departure("both", 1, 2), departure("own", 1, 4)]);
        let others = VecDeque::from([
            departure("earlier", 1, 1),
            departure("both", 1, 3),
            departure("both", 2, 5),
            departure("back", 4, 6),
            departure("present", 5, 7),
        ]);
        let merged = merged_departures(&present.build(), &own, &others);
        let shown = merged.iter().map(|one| (one.entry.instance().id().as_str(), one.entry.created().get()));
        let expected = [("earlier", 1), ("both", 1), ("own", 1), ("both", 2), ("back", 4)];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }
}
