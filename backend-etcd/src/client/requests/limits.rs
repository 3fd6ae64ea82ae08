//! Limits on the memory of a key range. A range that exceeds them is an error and is no longer kept up to date.

use enlist::{Error, RangeUnit};

use crate::watch::record::{KeyRange, Record};

/// Default maximum number of keys of a range that is listed or watched.
pub const DEFAULT_MAX_RANGE_KEYS: usize = 1_000_000;

/// Default maximum bytes of the keys and values of a range that is listed or watched: 1 GiB.
pub const DEFAULT_MAX_RANGE_BYTES: usize = 1 << 30;

/// Maximum bytes of an answer. tonic's default limit is 4 MiB, which 12,000 instances exceed.
pub(crate) const MAX_ANSWER: usize = 64 << 20;

/// Maximum size of a range; `None` is without a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RangeLimits {
    pub(crate) keys: Option<usize>,
    pub(crate) bytes: Option<usize>,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self { keys: Some(DEFAULT_MAX_RANGE_KEYS), bytes: Some(DEFAULT_MAX_RANGE_BYTES) }
    }
}

impl RangeLimits {
    /// Rejects a range with this number of keys and bytes if it exceeds a limit.
    pub(crate) fn check(&self, range: &KeyRange, keys: usize, bytes: usize) -> Result<(), Error> {
        for (unit, size, limit) in [(RangeUnit::Keys, keys, self.keys), (RangeUnit::Bytes, bytes, self.bytes)] {
            if let Some(limit) = limit.filter(|limit| size > *limit) {
                return Err(Error::RangeTooLarge { range: range.describe(), limit, unit });
            }
        }
        Ok(())
    }
}

/// Returns the bytes of a record that count towards the limit.
pub(crate) fn size(record: &Record) -> usize {
    record.key.len() + record.value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_a_limit_is_refused_and_what_reaches_it_is_not() {
        let range = KeyRange::prefix(*b"p/");
        let limits = RangeLimits { keys: Some(2), bytes: Some(10) };
        assert!(limits.check(&range, 2, 10).is_ok());
        let refused = |keys, bytes| limits.check(&range, keys, bytes).unwrap_err().to_string();
        assert_eq!(refused(3, 10), "the limit of 2 keys is exceeded by the keys under p/");
        assert_eq!(refused(2, 11), "the limit of 10 bytes is exceeded by the keys under p/");
        let none = RangeLimits { keys: None, bytes: None };
        assert!(none.check(&range, usize::MAX, usize::MAX).is_ok());
    }
}
