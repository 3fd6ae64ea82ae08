//! Numbers that define an order or identify: revisions, leases, fencing tokens, epochs.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $type:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type($inner);

        impl $type {
            /// Wraps the plain number.
            pub const fn new(number: $inner) -> Self {
                Self(number)
            }

            /// The plain number.
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
    /// The store's counter, which increases with every change and orders all changes. 0 is before the first change.
    Revision(u64)
);
number!(
    /// The lease that keeps a key alive.
    LeaseId(i64)
);
number!(
    /// Number of the registration that wrote an instance. The registration after it under the same id has another one,
    /// unless both use one lease of etcd: `enlist-memory` uses the term, `enlist-etcd` the lease. 0 is unknown, or that
    /// of a fixed instance.
    Incarnation(u64)
);
number!(
    /// A number that increases with each acquisition of a lock. The guarded resource refuses a smaller one than it has
    /// seen.
    FencingToken(u64)
);
number!(
    /// Process-local number of observed rollbacks of the store (wiped or restored).
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
