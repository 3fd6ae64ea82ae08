//! Guarded writes of configuration values.

use std::fmt;

use crate::{config::path::ConfigPath, model::revision::Revision};

/// Condition of a write: the state in which the value has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a backend has to support each of them")]
pub enum Expect {
    /// Any state, absence included.
    Any,
    /// The value is absent.
    Absent,
    /// The value was changed last at this revision ([`ConfigEntry::modified`](crate::ConfigEntry::modified)). Revision
    /// 0 is that of an absent value, as in [`Error::Conflict`](crate::Error::Conflict).
    Revision(Revision),
}

impl Expect {
    /// Returns `true` if the condition holds for a value that was changed last at `modified`; `None` if it is absent.
    pub fn holds(self, modified: Option<Revision>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => modified.is_none(),
            Self::Revision(revision) => modified.unwrap_or_default() == revision,
        }
    }
}

/// One write of a transaction. `Debug` does not show the value, which may be a secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigWrite {
    /// The path of the value.
    pub path: ConfigPath,
    /// The new value; `None` to delete it.
    pub value: Option<Vec<u8>>,
    /// The condition. If that of one write of a transaction does not hold, nothing is written.
    pub expect: Expect,
}

impl ConfigWrite {
    /// A write of `value`.
    pub fn put(path: ConfigPath, value: impl Into<Vec<u8>>, expect: Expect) -> Self {
        Self { path, value: Some(value.into()), expect }
    }

    /// A deletion. Deleting an absent value under [`Expect::Any`] or [`Expect::Absent`] changes nothing.
    pub fn delete(path: ConfigPath, expect: Expect) -> Self {
        Self { path, value: None, expect }
    }
}

impl fmt::Debug for ConfigWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, value, expect } = self;
        let bytes = value.as_ref().map(Vec::len);
        f.debug_struct("ConfigWrite").field("path", path).field("bytes", &bytes).field("expect", expect).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_zero_expects_an_absent_value() {
        let (absent, five) = (None, Some(Revision::new(5)));
        assert!(Expect::Any.holds(absent) && Expect::Any.holds(five));
        assert!(Expect::Absent.holds(absent) && !Expect::Absent.holds(five));
        let zero = Expect::Revision(Revision::default());
        assert!(zero.holds(absent) && !zero.holds(five));
        let expected = Expect::Revision(Revision::new(5));
        assert!(expected.holds(five) && !expected.holds(absent) && !expected.holds(Some(Revision::new(6))));
    }

    #[test]
    fn written_values_are_not_shown() {
        let write = ConfigWrite::put(ConfigPath::parse("a").unwrap(), *b"s3cret", Expect::Any);
        let shown = format!("{write:?}");
        assert!(shown.contains("Some(6)") && !shown.contains("s3cret") && !shown.contains("115, 51"), "{shown}");
    }
}
