//! Choosing in proportion to weights, by draw or by key. [`crate::picker`] chooses instances with it; so does any other
//! balancer that has its own idea of who is a candidate.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Points on a [`HashRing`] per candidate of average weight. With 100 the share of each is within some 10 % of its due.
const RING_POINTS: u64 = 100;

/// Draws positions in proportion to their weights.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// Running sums of the weights.
    sums: Vec<u64>,
}

impl Shares {
    /// Shares of positions 0, 1, 2, … with these weights.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut sum = 0;
        let add = |weight: u32| {
            sum += u64::from(weight);
            sum
        };
        Self { sums: weights.into_iter().map(add).collect() }
    }

    /// The sum of all weights.
    pub fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// The weight of a position.
    pub fn weight(&self, at: usize) -> u64 {
        self.sums[at] - self.start(at)
    }

    /// Draws a position; `None` if all weights are 0.
    pub fn draw(&self) -> Option<usize> {
        let total = self.total();
        (total > 0).then(|| self.at(fastrand::u64(..total)))
    }

    /// Draws a position other than `first`; `None` if no other one has a weight.
    pub fn draw_other(&self, first: usize) -> Option<usize> {
        let weight = self.weight(first);
        let others = self.total() - weight;
        if others == 0 {
            return None;
        }
        let ticket = fastrand::u64(..others);
        let skip = if ticket < self.start(first) { 0 } else { weight };
        Some(self.at(ticket + skip))
    }

    fn start(&self, at: usize) -> u64 {
        at.checked_sub(1).map_or(0, |before| self.sums[before])
    }

    fn at(&self, ticket: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= ticket)
    }
}

/// Places keys on positions in proportion to their weights, so that a change of the set moves few keys.
#[derive(Clone, Debug, Default)]
pub struct HashRing {
    /// Points in order, and whose they are. Apart from each other, because a search reads points only.
    points: Vec<u64>,
    owners: Vec<u32>,
}

impl HashRing {
    /// A ring of positions 0, 1, 2, … with these names and weights. A point depends on the name alone; each position has at
    /// least one.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let members: Vec<_> = members.into_iter().collect();
        let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (at, (name, weight)) in members.iter().enumerate() {
            let due = (u64::from(*weight) * RING_POINTS * members.len() as u64 / total.max(1)).max(1);
            let owner = u32::try_from(at).unwrap_or(u32::MAX);
            points.extend((0..due).map(|point| (xxh3_64_with_seed(name.as_bytes(), point), owner)));
        }
        points.sort_unstable();
        let (points, owners) = points.into_iter().unzip();
        Self { points, owners }
    }

    /// The position that `key` belongs to; `None` on an empty ring.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let point = xxh3_64(key);
        let at = self.points.partition_point(|ring| *ring < point);
        self.owners.get(at).or(self.owners.first()).map(|owner| *owner as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_draw_is_never_the_first_and_keeps_to_the_weights_of_the_others() {
        let shares = Shares::new([1, 1, 4, 0]);
        let mut drawn = [0_u32; 4];
        for _ in 0..50_000 {
            drawn[shares.draw_other(0).unwrap()] += 1;
        }
        assert_eq!((drawn[0], drawn[3]), (0, 0));
        // Due: 10,000 and 40,000; six standard deviations are about 540.
        assert!(drawn[1].abs_diff(10_000) < 600, "{drawn:?}");
        assert_eq!(Shares::new([3]).draw_other(0), None);
        assert_eq!(Shares::new([0, 0]).draw(), None);
    }

    #[test]
    fn an_empty_ring_has_no_place() {
        assert_eq!(HashRing::new([]).find(b"key"), None);
        assert_eq!(HashRing::new([("a", 0)]).find(b"key"), Some(0));
    }
}
