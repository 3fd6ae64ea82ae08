//! Where to look in a sorted list: a search begins in the bucket of its value, so it costs the same in a list of any length whose
//! values are spread evenly, and never more than halving the whole list.

use std::ops::Range;

/// An index over sorted values.
#[derive(Clone, Debug)]
pub(crate) struct Guide {
    /// The bucket of a value is what this shift leaves of it.
    shift: u32,
    /// For each bucket, and once more for the end: how many values lie before it.
    starts: Vec<u32>,
}

impl Guide {
    /// An index over `sorted` values of at most `largest`, about `each` of them in a bucket.
    pub(crate) fn new(sorted: &[u64], largest: u64, each: usize) -> Self {
        let buckets = sorted.len() / each;
        let enough = |shift: &u32| bucket(largest, *shift) < buckets.max(1);
        let shift = (0..u64::BITS).find(enough).unwrap_or(u64::BITS - 1);
        let mut starts = vec![0; bucket(largest, shift) + 2];
        for value in sorted {
            starts[bucket(*value, shift) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Self { shift, starts }
    }

    /// The bucket of `value`: what lies before it is smaller than `value`, and what lies behind it is larger.
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
            wanted: u64,
            each in 1..9_usize,
        ) {
            values.sort_unstable();
            for (largest, wanted) in [(u64::MAX, wanted), (values.last().copied().unwrap_or(0), wanted % 50)] {
                if wanted > largest {
                    continue;
                }
                let around = Guide::new(&values, largest, each).around(wanted);
                prop_assert!(values[..around.start].iter().all(|value| *value < wanted));
                prop_assert!(values[around.end..].iter().all(|value| *value > wanted));
            }
        }
    }

    #[test]
    fn values_that_are_spread_evenly_lie_few_to_a_bucket() {
        let values: Vec<u64> = (0..100_000).map(|number| number << 40).collect();
        let guide = Guide::new(&values, values[values.len() - 1], 4);
        assert!(values.iter().all(|value| guide.around(*value).len() <= 8));
    }
}
