//! Selection by key, in proportion to weights.

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::bucket_index::BucketIndex;

/// Points on a [`HashRing`] per candidate of average weight. With 100, each share is within about 10 % of the exact
/// one.
const RING_POINTS: u64 = 100;

/// The lower half of a number.
const LOW: u64 = u32::MAX as u64;

/// Stands for the position of a member that is no longer one.
const GONE: u64 = u64::MAX;

/// Maps keys to positions in proportion to their weights, so that a change of the set moves few keys.
#[derive(Clone, Debug)]
pub struct HashRing {
    /// Sorted points: the upper half is the hash on the ring, the lower half the position that owns it. They are in one
    /// list because cache misses dominate the cost of a search in a large ring.
    points: Vec<u64>,
    bucket_index: BucketIndex,
}

impl Default for HashRing {
    fn default() -> Self {
        Self::new([])
    }
}

impl HashRing {
    /// A ring of positions 0, 1, 2, … with these names and weights. A point depends on the name alone; each position
    /// has at least one.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let members: Vec<_> = members.into_iter().collect();
        let each = members.iter().zip(dues(&members)).enumerate();
        let mut points: Vec<u64> = each.flat_map(|(at, ((name, _), due))| points(name, at, 0..due)).collect();
        points.sort_unstable();
        Self::of(points)
    }

    /// The ring of the members `now`, made from this one, which is that of the members `before`. If few points differ
    /// and both are in the order of their names, it takes a fraction of the time of a new ring.
    #[must_use]
    pub(crate) fn updated(&self, before: &[(&str, u32)], now: &[(&str, u32)]) -> Self {
        let RingChange { positions, mut removed, mut added } = RingChange::of(before, now);
        if removed.len() + added.len() > self.points.len() / 4 {
            return Self::new(now.iter().copied());
        }
        removed.sort_unstable();
        added.sort_unstable();
        let mut points = Vec::with_capacity(self.points.len() + added.len());
        let (mut removed, mut added) = (removed.into_iter().peekable(), added.into_iter().peekable());
        for former in &self.points {
            let owner = positions[owner_of(*former)];
            if owner == GONE || removed.next_if_eq(former).is_some() {
                continue;
            }
            let point = upper_half(*former) | owner;
            points.extend(std::iter::from_fn(|| added.next_if(|added| *added < point)));
            points.push(point);
        }
        points.extend(added);
        Self::of(points)
    }

    fn of(points: Vec<u64>) -> Self {
        Self { bucket_index: BucketIndex::new(&points), points }
    }

    /// The position that owns `key`; `None` on an empty ring.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let hash = upper_half(xxh3_64(key));
        let around = self.bucket_index.around(hash);
        let at = around.start + self.points[around].partition_point(|point| *point < hash);
        self.points.get(at).or(self.points.first()).map(|point| owner_of(*point))
    }
}

/// Difference between the rings of two sets of members.
struct RingChange {
    /// Position of each former member, or [`GONE`].
    positions: Vec<u64>,
    /// Points that a former member has no more, with its former position.
    removed: Vec<u64>,
    /// Points that a member did not have, with its position.
    added: Vec<u64>,
}

impl RingChange {
    fn of(before: &[(&str, u32)], now: &[(&str, u32)]) -> Self {
        let (due_before, due_now) = (dues(before), dues(now));
        let mut change = Self { positions: vec![GONE; before.len()], removed: Vec::new(), added: Vec::new() };
        let mut next = 0;
        for (at, (name, _)) in now.iter().enumerate() {
            while before.get(next).is_some_and(|(former, _)| former < name) {
                next += 1;
            }
            let mut due = 0;
            if before.get(next).is_some_and(|(former, _)| former == name) {
                due = due_before[next];
                change.positions[next] = at as u64;
                change.removed.extend(points(name, next, due_now[at].min(due)..due));
                next += 1;
            }
            change.added.extend(points(name, at, due..due_now[at].max(due)));
        }
        change
    }
}

/// Returns the number of points of each member.
fn dues(members: &[(&str, u32)]) -> Vec<u64> {
    let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let due = |weight: u32| (u64::from(weight) * RING_POINTS * members.len() as u64 / total.max(1)).max(1);
    members.iter().map(|(_, weight)| due(*weight)).collect()
}

/// Returns the points of a member with these numbers.
fn points(name: &str, position: usize, numbers: Range<u64>) -> impl Iterator<Item = u64> {
    numbers.map(move |number| upper_half(xxh3_64_with_seed(name.as_bytes(), number)) | position as u64)
}

/// Position that owns a point.
fn owner_of(point: u64) -> usize {
    usize::try_from(point & LOW).unwrap_or(usize::MAX)
}

/// Hash value on the ring, with the lower half cleared.
fn upper_half(hash: u64) -> u64 {
    hash & !LOW
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    /// The members with these names. Some have another weight.
    fn members(names: &BTreeSet<String>, other: u32) -> Vec<(&str, u32)> {
        names.iter().map(|name| (&**name, if name.starts_with('a') { other } else { 1 })).collect()
    }

    proptest! {
        #[test]
        fn an_updated_ring_is_a_new_one(
            names in btree_set("[a-e]{1,2}", 0..30),
            gone in btree_set("[a-e]{1,2}", 0..4),
            added in btree_set("[a-e]{1,2}", 0..4),
            other in [0_u32..2, 0..2],
        ) {
            let later = names.difference(&gone).chain(&added).cloned().collect();
            let (before, now) = (members(&names, other[0]), members(&later, other[1]));
            let updated = HashRing::new(before.clone()).updated(&before, &now);
            prop_assert_eq!(updated.points, HashRing::new(now).points);
        }
    }

    #[test]
    fn an_empty_ring_has_no_owner() {
        assert_eq!(HashRing::new([]).find(b"key"), None);
        assert_eq!(HashRing::new([("a", 0)]).find(b"key"), Some(0));
    }
}
