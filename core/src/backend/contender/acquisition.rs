//! An acquisition as its caller asked for it, and its result.

use crate::{
    error::Error,
    lock::{LockGuard, LockOptions, election::Leadership},
    model::name::LockName,
    runtime::deadline::LastTrouble,
};

/// One acquisition, apart from the store.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by each backend")]
pub struct Acquisition {
    /// Lock or election.
    pub name: LockName,
    /// Object of the acquisition.
    pub wanted: Wanted,
    /// Options of the caller.
    pub options: LockOptions,
    /// Last error that delayed joining or leaving. The caller's timeout names it.
    pub trouble: LastTrouble,
}

impl Acquisition {
    /// Makes the acquisition of a caller.
    pub fn new(name: LockName, wanted: Wanted, options: LockOptions) -> Self {
        Self { name, wanted, options, trouble: LastTrouble::default() }
    }
}

/// Object of an acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a backend has to handle each of them")]
pub enum Wanted {
    /// A lock, as soon as it is this contender's turn.
    Lock,
    /// A lock that is held by no other contender now.
    FreeLock,
    /// The leadership of an election, with this first value.
    Leadership(String),
}

impl Wanted {
    /// Returns `true` if the contender waits for its turn.
    pub fn waits(&self) -> bool {
        !matches!(self, Self::FreeLock)
    }

    /// Returns the value of a leader; it is empty for a lock.
    pub fn text(&self) -> &str {
        match self {
            Self::Lock | Self::FreeLock => "",
            Self::Leadership(value) => value,
        }
    }
}

/// Result of an acquisition.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "the results of the three variants of `Wanted`")]
pub enum Acquired {
    /// The lock is held.
    Lock(LockGuard),
    /// The election is won.
    Leadership(Leadership),
    /// Another contender holds the lock, and the caller does not wait.
    Nothing,
}

impl Acquired {
    /// Returns the guard; `None` for [`Nothing`](Self::Nothing).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] for a leadership.
    pub fn into_guard(self) -> Result<Option<LockGuard>, Error> {
        match self {
            Self::Lock(guard) => Ok(Some(guard)),
            Self::Nothing => Ok(None),
            Self::Leadership(_) => Err(Error::Closed),
        }
    }

    /// Returns the leadership.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] for anything else.
    pub fn into_leadership(self) -> Result<Leadership, Error> {
        match self {
            Self::Leadership(leadership) => Ok(leadership),
            Self::Lock(_) | Self::Nothing => Err(Error::Closed),
        }
    }
}
