//! Options of a registration.

use std::{fmt, time::Duration};

use crate::{
    backend::session::lease_terms::LeaseTerms,
    error::Error,
    model::{escape::Hidden, revision::LeaseId},
    runtime::backoff::BackoffPolicy,
};

/// Time for which keys live after the last renewal, by default.
pub const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// Time for which `register` waits for the first success, by default.
pub const DEFAULT_START: Duration = Duration::from_secs(10);

/// Interval at which an own key is read back without a sign of a change, by default.
pub const DEFAULT_AUDIT: Duration = Duration::from_secs(300);

/// Condition on which `register` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// At the first success, at the first error that will not pass by itself, or after this time.
    Wait(Duration),
    /// At once. The registration goes on in the background, and [`Registration::state`](crate::Registration::state)
    /// reports its progress.
    Background,
    /// At the first success or the first error of any kind.
    FailFast,
}

/// Reaction when another client's live instance has the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnConflict {
    /// Fails with [`Error::AlreadyRegistered`].
    Refuse,
    /// Waits until the other instance is gone.
    Wait,
    /// Replaces the other instance. Its registration detects the change of its key, stops writing, and is
    /// [`Superseded`](crate::RegistrationState::Superseded) until the key is free.
    TakeOver,
}

/// The lease that keeps the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseChoice {
    /// A lease shared by the registrations of this session with the same TTL and renewal interval.
    Shared,
    /// A separate lease, whose end affects no other registration.
    Own,
    /// An existing lease that is kept alive elsewhere, for instance by a [`Lease`](crate::Lease). The registration
    /// neither replaces nor revokes it. It does not identify an instance: a process that restarts with it needs an
    /// `owner` to take its old instance over at once.
    Given(LeaseId),
}

/// Reaction when another client deletes the key although its lease is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDelete {
    /// Restores the key.
    Restore,
    /// Treats the deletion as an eviction: the registration ends.
    Respect,
}

/// Options of a registration. The default suits a long-running server.
#[derive(Clone)]
#[non_exhaustive]
pub struct RegisterOptions {
    /// Condition on which `register` returns. Default: `Wait(10 s)`.
    pub start: Start,
    /// Token that identifies the owner. A key with the same token is taken over at once, so a process that restarts
    /// with the same id and owner need not wait for its old lease. Of two live registrations with one owner, the newer
    /// one stays. The token is stored in the value of the instance: a client that can read it in the store, and can
    /// write, can take the id over. Errors, logs and `Debug` do not show it. Default: none.
    pub owner: Option<String>,
    /// Reaction when another client's live instance has the id. Default: `Refuse`.
    pub on_conflict: OnConflict,
    /// The lease of the instance. Default: `Shared`.
    pub lease: LeaseChoice,
    /// Time for which the instance lives after the last renewal; whole seconds, rounded up. Default: 15 s.
    pub ttl: Duration,
    /// Time from one renewal of the lease to the next, with 10 % jitter in etcd: from 500 ms to a third of `ttl`.
    /// Shorter costs requests, and more of them can fail before the lease ends. Registrations with different intervals
    /// share no lease; a given lease is not renewed. Default: `None`, a third of `ttl`.
    pub renewal_interval: Option<Duration>,
    /// Reaction when another client deletes the key. Default: `Restore`.
    pub on_delete: OnDelete,
    /// Number of failed attempts in a row after which the registration ends; `None` and 0 are no limit. Default:
    /// `None`.
    pub max_attempts: Option<u32>,
    /// The delays between attempts. Default: 200 ms growing to 10 s, jittered.
    pub backoff: BackoffPolicy,
    /// Interval at which the key is read back without a sign of a change, in case the store failed to report one. It is
    /// jittered by half: 30 s is from 15 s to 45 s. The key is also watched, so a reported loss is noticed at once.
    /// Default: 5 minutes; `None` for never.
    pub audit: Option<Duration>,
}

impl Default for RegisterOptions {
    fn default() -> Self {
        Self {
            start: Start::Wait(DEFAULT_START),
            owner: None,
            on_conflict: OnConflict::Refuse,
            lease: LeaseChoice::Shared,
            ttl: DEFAULT_TTL,
            renewal_interval: None,
            on_delete: OnDelete::Restore,
            max_attempts: None,
            backoff: BackoffPolicy::default(),
            audit: Some(DEFAULT_AUDIT),
        }
    }
}

impl fmt::Debug for RegisterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, owner, on_conflict, lease, ttl, renewal_interval, on_delete, max_attempts, backoff, audit } =
            self;
        f.debug_struct("RegisterOptions")
            .field("start", start)
            .field("owner", &owner.as_ref().map(|_| Hidden))
            .field("on_conflict", on_conflict)
            .field("lease", lease)
            .field("ttl", ttl)
            .field("renewal_interval", renewal_interval)
            .field("on_delete", on_delete)
            .field("max_attempts", max_attempts)
            .field("backoff", backoff)
            .field("audit", audit)
            .finish()
    }
}

impl RegisterOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the condition on which `register` returns.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Sets the owner token.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Sets the reaction when another client's live instance has the id.
    #[must_use]
    pub fn on_conflict(mut self, on_conflict: OnConflict) -> Self {
        self.on_conflict = on_conflict;
        self
    }

    /// Sets the lease of the instance: a choice, or a [`Lease`](crate::Lease) by reference.
    #[must_use]
    pub fn lease(mut self, lease: impl Into<LeaseChoice>) -> Self {
        self.lease = lease.into();
        self
    }

    /// Sets the time for which the instance lives after the last renewal.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the time from one renewal of the lease to the next.
    #[must_use]
    pub fn renewal_interval(mut self, interval: Duration) -> Self {
        self.renewal_interval = Some(interval);
        self
    }

    /// Sets the reaction when another client deletes the key.
    #[must_use]
    pub fn on_delete(mut self, on_delete: OnDelete) -> Self {
        self.on_delete = on_delete;
        self
    }

    /// Sets the number of failed attempts in a row after which the registration ends; 0 is no limit.
    #[must_use]
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = Some(max_attempts);
        self
    }

    /// Sets the delays between attempts.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffPolicy) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the interval at which the key is read back without a sign of a change; `None` for never.
    #[must_use]
    pub fn audit(mut self, audit: Option<Duration>) -> Self {
        self.audit = audit;
        self
    }

    /// Checks the options before anything is sent. [`Registry::register`](crate::Registry::register) does so as well.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for a TTL outside 1 s to 9,000,000,000 s, a renewal interval outside 500 ms to a third
    /// of the TTL, and audits without a pause.
    pub fn check(&self) -> Result<(), Error> {
        LeaseTerms::check(self.ttl, self.renewal_interval)?;
        if self.audit.is_some_and(|audit| audit.is_zero()) {
            return Err(Error::invalid_config("audit", "it must be above zero"));
        }
        Ok(())
    }
}

impl From<&RegisterOptions> for LeaseTerms {
    fn from(options: &RegisterOptions) -> Self {
        Self::new(options.ttl, options.renewal_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::session::lease_terms::MAX_TTL_SECS;

    #[test]
    fn impossible_options_are_refused_by_name() {
        let options = RegisterOptions::new();
        assert!(options.check().is_ok());
        for (options, field) in [
            (options.clone().ttl(Duration::ZERO), "ttl"),
            (options.clone().ttl(Duration::from_millis(999)), "ttl"),
            (options.clone().ttl(Duration::from_secs(MAX_TTL_SECS + 1)), "ttl"),
            (options.clone().renewal_interval(Duration::from_millis(499)), "renewal_interval"),
            (options.audit(Some(Duration::ZERO)), "audit"),
        ] {
            assert!(options.check().unwrap_err().to_string().contains(field));
        }
    }

    #[test]
    fn the_owner_token_is_not_shown() {
        let shown = format!("{:?}", RegisterOptions::new().owner("s3cret"));
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
    }
}
