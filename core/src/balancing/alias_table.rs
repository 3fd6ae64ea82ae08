//! Random selection in proportion to weights. [`crate::balancing::picker`] uses it, and so can balancers with their own
//! candidates.

/// The lower half of a number.
const LOW: u64 = u32::MAX as u64;

/// Draws positions in proportion to their weights.
#[derive(Clone, Debug, Default)]
pub struct AliasTable {
    /// Running sums of the weights.
    sums: Vec<u64>,
    columns: Vec<Column>,
}

/// A column of an alias table: a draw takes a random column, then one of its two positions. The cost of a draw does not
/// depend on the number of positions.
#[derive(Clone, Copy, Debug)]
struct Column {
    /// Share of the column that belongs to its own position, in parts of 2^32.
    own: u32,
    /// Position that the rest belongs to.
    other: u32,
}

impl AliasTable {
    /// Alias table of positions 0, 1, 2, … with these weights.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let weights: Vec<u64> = weights.into_iter().map(u64::from).collect();
        let add = |sum: &mut u64, weight: &u64| {
            *sum += weight;
            Some(*sum)
        };
        Self { sums: weights.iter().scan(0, add).collect(), columns: columns(&weights) }
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
        self.drawn(fastrand::u64(..))
    }

    /// The position that an evenly random number draws.
    pub(crate) fn drawn(&self, random: u64) -> Option<usize> {
        if self.total() == 0 {
            return None;
        }
        let (column, part) = (random >> 32, random & LOW);
        let at = usize::try_from((column * self.columns.len() as u64) >> 32).ok()?;
        let Column { own, other } = self.columns[at];
        Some(if part < u64::from(own) { at } else { other as usize })
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
        Some(self.sums.partition_point(|sum| *sum <= ticket + skip))
    }

    fn start(&self, at: usize) -> u64 {
        at.checked_sub(1).map_or(0, |before| self.sums[before])
    }
}

/// Columns of an alias table (Walker 1977, built as by Vose 1991). Each column is as high as the average weight; a
/// position below the average shares its column with one above it.
fn columns(weights: &[u64]) -> Vec<Column> {
    let (count, total) = (weights.len() as u64, weights.iter().sum::<u64>());
    // Scaled by the count, a column is `total` high.
    let mut left: Vec<u64> = weights.iter().map(|weight| weight * count).collect();
    let mut columns: Vec<Column> = (0..u32::MAX).take(weights.len()).map(|at| Column { own: 0, other: at }).collect();
    let (mut less, mut more): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|at| left[*at] < total);
    while let (Some(poor), Some(rich)) = (less.pop(), more.last().copied()) {
        let part = (u128::from(left[poor]) << 32) / u128::from(total);
        // A part is less than the whole, so it fits.
        columns[poor] = Column { own: u32::try_from(part).unwrap_or(u32::MAX), other: columns[rich].other };
        left[rich] -= total - left[poor];
        if left[rich] < total {
            less.extend(more.pop());
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_draw_is_never_the_first_and_keeps_to_the_weights_of_the_others() {
        let shares = AliasTable::new([1, 1, 4, 0]);
        let mut drawn = [0_u32; 4];
        for _ in 0..50_000 {
            drawn[shares.draw_other(0).unwrap()] += 1;
        }
        assert_eq!((drawn[0], drawn[3]), (0, 0));
        // Expected: 10,000 and 40,000; six standard deviations are about 540.
        assert!(drawn[1].abs_diff(10_000) < 600, "{drawn:?}");
        assert_eq!(AliasTable::new([3]).draw_other(0), None);
        assert_eq!(AliasTable::new([0, 0]).draw(), None);
    }

    #[test]
    fn draws_are_in_proportion_whatever_the_weights() {
        for weights in [vec![3], vec![0, 5], vec![1, 1000], vec![7; 10], (0..40).collect(), vec![u32::MAX, 1, u32::MAX]]
        {
            let shares = AliasTable::new(weights.iter().copied());
            let mut due = vec![0_u64; weights.len()];
            // Each column is hit as often as any other.
            for column in 0..weights.len() as u64 {
                let high = ((column << 32) / weights.len() as u64 + 1) << 32;
                let own = u64::from(shares.columns[usize::try_from(column).unwrap()].own);
                for (part, weight) in [(0, own), (LOW, LOW + 1 - own)] {
                    due[shares.drawn(high | part).unwrap()] += weight;
                }
            }
            let whole = (LOW + 1) * weights.len() as u64;
            for (weight, due) in weights.iter().zip(due) {
                let wanted = u128::from(*weight) * u128::from(whole) / u128::from(shares.total());
                assert!(u128::from(due).abs_diff(wanted) <= weights.len() as u128 + 1, "{weights:?}: {due} {wanted}");
            }
        }
        assert_eq!(AliasTable::default().draw(), None);
    }
}
