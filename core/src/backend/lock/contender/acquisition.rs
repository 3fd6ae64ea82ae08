//! Request of an acquisition, and its result.

use crate::{
    backend::session::lease_terms::LeaseTerms,
    error::Error,
    lock::{
        election::Leadership,
        guard::LockGuard,
        options::{LockMode, LockOptions},
        semaphore_options::SemaphoreOptions,
    },
    model::name::LockName,
    runtime::deadline::LastTrouble,
};

/// One acquisition, independent of the store. Its options are valid.
#[derive(Clone, Debug)]
#[non_exhaustive]
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
    /// Creates the acquisition of a caller.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for invalid options, and for an election in shared mode.
    pub fn new(name: LockName, wanted: Wanted, options: LockOptions) -> Result<Self, Error> {
        if options.mode == LockMode::Shared && matches!(wanted, Wanted::Leadership(_)) {
            return Err(Error::invalid_config("mode", "there is one leader: an election has no shared mode"));
        }
        options.check()?;
        Ok(Self { name, wanted, options, trouble: LastTrouble::default() })
    }

    /// Creates the acquisition of permits of a semaphore. Its queue entry is held like that of an exclusive lock; the
    /// turn of the entry depends on [`permit_position`](crate::backend::permit_position).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for invalid options.
    pub fn of_permits(name: LockName, wanted: Wanted, options: &SemaphoreOptions) -> Result<Self, Error> {
        options.check()?;
        Self::new(name, wanted, options.as_lock())
    }

    /// Returns the terms of the lease for the options.
    pub fn lease_terms(&self) -> LeaseTerms {
        LeaseTerms::new(self.options.ttl, self.options.renewal_interval)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_acquisition_has_valid_options() {
        let refused = |wanted: Wanted, options: LockOptions| {
            let acquisition = Acquisition::new(LockName::parse("l").unwrap(), wanted, options);
            match acquisition {
                Err(Error::InvalidConfig { field, .. }) => Some(field),
                Ok(_) => None,
                Err(error) => panic!("{error:?}"),
            }
        };
        assert_eq!(refused(Wanted::Lock, LockOptions::new().ttl(Duration::ZERO)), Some("ttl"));
        assert_eq!(refused(Wanted::Leadership(String::new()), LockOptions::new().shared()), Some("mode"));
        assert_eq!(refused(Wanted::Lock, LockOptions::new().shared()), None);
    }
}
