//! Selection by key, in proportion to weights.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::bucket_index::BucketIndex;

/// Points on a [`HashRing`] per candidate of average weight. With 100, each share is within about 10 % of the exact
/// one.
const RING_POINTS: u64 = 100;

/// The lower half of a number.
const LOW: u64 = u32::MAX as u64;

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
        let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut points = Vec::new();
        for ((name, weight), owner) in members.iter().zip(0_u64..) {
            let due = (u64::from(*weight) * RING_POINTS * members.len() as u64 / total.max(1)).max(1);
            points.extend((0..due).map(|point| upper_half(xxh3_64_with_seed(name.as_bytes(), point)) | owner));
        }
        points.sort_unstable();
        Self { bucket_index: BucketIndex::new(&points), points }
    }

    /// The position that owns `key`; `None` on an empty ring.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let hash = upper_half(xxh3_64(key));
        let around = self.bucket_index.around(hash);
        let at = around.start + self.points[around].partition_point(|point| *point < hash);
        let point = self.points.get(at).or(self.points.first())?;
        usize::try_from(point & LOW).ok()
    }
}

/// Hash value on the ring, with the lower half cleared.
fn upper_half(hash: u64) -> u64 {
    hash & !LOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_ring_has_no_owner() {
        assert_eq!(HashRing::new([]).find(b"key"), None);
        assert_eq!(HashRing::new([("a", 0)]).find(b"key"), Some(0));
    }
}
