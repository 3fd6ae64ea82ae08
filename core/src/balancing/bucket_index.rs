//! Index for searches in a sorted list. A search begins in the bucket of its value. Its cost is constant for evenly
//! spread values, and never exceeds that of a binary search.

use std::ops::Range;

/// Average number of values in a bucket if they are spread evenly: half a cache line.
const PER_BUCKET: usize = 4;

/// An index over sorted values.
#[derive(Clone, Debug)]
pub(crate) struct BucketIndex {
    /// Right shift that turns a value into the number of its bucket.
    shift: u32,
    /// Number of values before each bucket, and once more for the end.
    starts: Vec<u32>,
}

impl BucketIndex {
    /// An index over `sorted` values.
    pub(crate) fn new(sorted: &[u64]) -> Self {
        // At least two buckets, because a value cannot be shifted by all its bits.
        let bits = (sorted.len() / PER_BUCKET).checked_ilog2().unwrap_or(0).max(1);
        let shift = u64::BITS - bits;
        let mut starts = vec![0; (1 << bits) + 1];
        for value in sorted {
            starts[bucket(*value, shift) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Self { shift, starts }
    }

    /// The bucket of `value`: all values before it are smaller than `value`, and all values behind it are larger.
    pub(crate) fn around(&self, value: u64) -> Range<usize> {
        let bucket = bucket(value, self.shift);
        self.starts[bucket] as usize..self.starts[bucket + 1] as usize
    }
}

fn bucket(value: u64, shift: u32) -> usize {
    usize::try_from(value >> shift).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_bucket_of_a_value_parts_the_smaller_from_the_larger(
            mut values in prop::collection::vec(prop_oneof![0..50_u64, any::<u64>()], 0..200),
            wanted in prop_oneof![0..50_u64, any::<u64>()],
        ) {
            values.sort_unstable();
            let around = BucketIndex::new(&values).around(wanted);
            prop_assert!(values[..around.start].iter().all(|value| *value < wanted));
            prop_assert!(values[around.end..].iter().all(|value| *value > wanted));
        }
    }

    #[test]
    fn values_that_are_spread_evenly_lie_few_to_a_bucket() {
        let values: Vec<u64> = (0..100_000).map(|number| number * (u64::MAX / 100_000)).collect();
        let bucket_index = BucketIndex::new(&values);
        assert!(values.iter().all(|value| bucket_index.around(*value).len() <= 2 * PER_BUCKET));
    }
}
