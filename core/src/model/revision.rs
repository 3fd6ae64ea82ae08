//! The numbers that order things: revisions, leases, fencing tokens, epochs.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $type:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type($inner);

        impl $type {
            /// Wraps the bare number.
            pub const fn new(number: $inner) -> Self {
                Self(number)
            }

            /// The bare number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// The store's counter, larger after every change; it orders everything. 0 is before the first change.
    Revision(u64)
);
number!(
    /// The lease that keeps a key alive.
    LeaseId(i64)
);
number!(
    /// A number that grows with each acquisition of a lock. The guarded resource refuses a smaller one than it has
    /// seen.
    FencingToken(u64)
);
number!(
    /// Process-local count of how often the store was seen going back (wiped or restored).
    Epoch(u64)
);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
