//! Mutual exclusion, and what is left of it when a lease runs out.
//!
//! No lock that rests on a lease can promise exclusion over a resource outside the store: the holder may be paused
//! between its last check and its write. What can be promised is that the [`FencingToken`] of a later holder is larger,
//! so a resource that refuses smaller tokens is safe. Without fencing there is at most one *live* guard as long as
//! clocks run at about the same rate, the holder checks [`LockGuard::is_held`] right before it acts, and the store
//! keeps its leases.

pub(crate) mod candidate;
pub(crate) mod election;
pub(crate) mod fence;
pub(crate) mod lock_validity;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::lease_terms::{LeaseTerms, MAX_TTL_SECS},
    backend::publisher::OwnerHandle,
    error::Error,
    model::{name::LockName, revision::FencingToken},
    registration::options::DEFAULT_TTL,
};

use crate::lock::lock_validity::LockValidity;

/// Grants locks. Implemented by the backends; users hold an `Arc<dyn Lock>`.
#[async_trait]
pub trait Lock: fmt::Debug + Send + Sync + 'static {
    /// Waits for the lock `name` and returns once this caller is a holder. Waiters are served in the order in which the
    /// store saw them. A waiter whose queue entry is lost, because its lease ended or the store was wiped, enters the
    /// queue again, at its end; the deadline stays.
    ///
    /// Signature: `async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] at the deadline, also if the store could not be reached until then: the last trouble in
    /// entering the queue is its cause. Without a deadline it keeps trying. [`Error::LeaseLost`] if the queue entry was
    /// lost while it waited and the options [say so](LockOptions::fail_on_lost_entry), otherwise it enters the queue
    /// again; [`Error::PermissionDenied`], [`Error::StorageFull`], [`Error::InvalidConfig`], [`Error::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in line; whatever reached the store is removed in the background.
    async fn acquire(&self, name: &LockName, options: LockOptions) -> Result<LockGuard, Error>;

    /// Takes the lock if that is possible without waiting, and leaves nothing in line otherwise.
    ///
    /// Signature: `async fn try_acquire(&self, name: &LockName, options: LockOptions) ->
    /// Result<Option<LockGuard>, Error>`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the store does not answer; otherwise as [`acquire`](Self::acquire), a deadline
    /// included.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    async fn try_acquire(&self, name: &LockName, options: LockOptions) -> Result<Option<LockGuard>, Error>;
}

/// Mode of a lock: held alone, or together with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a fair reader-writer lock has these two sides")]
pub enum LockMode {
    /// Alone.
    #[default]
    Exclusive,
    /// Together with other shared holders that no exclusive waiter stands before.
    Shared,
}

impl LockMode {
    /// Returns `true` if a holder in this mode and one in `other` mode cannot hold a lock together.
    pub fn excludes(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }
}

/// Options of an acquisition.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockOptions {
    /// Alone or together with others. Default: alone.
    pub mode: LockMode,
    /// Time for which the lock outlives its last renewal; whole seconds, rounded up. Default: 15 s.
    pub ttl: Duration,
    /// Time from one renewal of the lease to the next, with 10 % jitter in etcd: from 500 ms to a third of `ttl`.
    /// Shorter costs requests, and more of them can fail before the lock is lost. Locks with different intervals share
    /// no lease. Default: `None`, a third of `ttl`.
    pub renewal_interval: Option<Duration>,
    /// Time to wait at most. Default: `None`, for ever.
    pub deadline: Option<Duration>,
    /// Time for which a lock counts as held after a holder that did not release, so that it can notice its loss. Such a
    /// holder is known by what it leaves behind, which needs a `lock_delay` of its own: give all contenders of a lock
    /// the same. Default: zero.
    pub lock_delay: Duration,
    /// Use of a lease of its own. Default: no, locks of one session with the same TTL and
    /// renewal interval share leases.
    pub own_lease: bool,
    /// `true` if the loss of the queue entry while it waits ends the acquisition. Default: no, it enters the queue
    /// again.
    pub fail_on_lost_entry: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self {
            mode: LockMode::Exclusive,
            ttl: DEFAULT_TTL,
            renewal_interval: None,
            deadline: None,
            lock_delay: Duration::ZERO,
            own_lease: false,
            fail_on_lost_entry: false,
        }
    }
}

impl LockOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for shared mode.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.mode = LockMode::Shared;
        self
    }

    /// Sets how long the lock outlives its last renewal.
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

    /// Sets how long to wait at most.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets how long a lock counts as held after a holder that did not release: crashed, lost its lease or its key, or
    /// was closed with the lock held. It costs a request for each acquisition. An acquisition that ends before the
    /// delay has passed does not start it anew for the next one; [`Lock::try_acquire`] returns `None` meanwhile.
    /// [`Error::Unsupported`] where the layout of the store has no room for it.
    #[must_use]
    pub fn lock_delay(mut self, lock_delay: Duration) -> Self {
        self.lock_delay = lock_delay;
        self
    }

    /// Asks for a lease of its own: whatever ends it ends no other lock, and its end takes along everything that may
    /// still be on its way to the store. It costs a grant, a revocation and a stream of renewals each. A successor that
    /// waits for such a holder waits out its [`lock_delay`](Self::lock_delay) after a release too, because the lease is
    /// gone then as after a crash.
    #[must_use]
    pub fn own_lease(mut self) -> Self {
        self.own_lease = true;
        self
    }

    /// Asks for [`Error::LeaseLost`] when the queue entry is lost while it waits, instead of entering the queue again
    /// at its end: for callers to whom their turn matters, and not only the lock.
    #[must_use]
    pub fn fail_on_lost_entry(mut self) -> Self {
        self.fail_on_lost_entry = true;
        self
    }

    /// For backends: the terms of a lease for these options.
    pub fn lease_terms(&self) -> LeaseTerms {
        LeaseTerms::new(self.ttl, self.renewal_interval)
    }

    /// Refuses what cannot work. Backends call this before they send anything.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for a TTL outside 1 s to 9,000,000,000 s, a renewal interval outside 500 ms to a third
    /// of the TTL, and a `lock_delay` above 9,000,000,000 s.
    pub fn check(&self) -> Result<(), Error> {
        if self.lock_delay.as_secs() > MAX_TTL_SECS {
            return Err(Error::invalid_config("lock_delay", "it must be at most 9,000,000,000 s"));
        }
        LeaseTerms::check(self.ttl, self.renewal_interval)
    }
}

/// Reason for which a lock is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// No renewal was acknowledged in time.
    Expired,
    /// The store says that the lease is gone.
    LeaseGone,
    /// The key was deleted or replaced.
    KeyGone,
    /// The session was closed.
    SessionClosed,
    /// It was released.
    Released,
}

/// Result of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The lock was held until now and is free, or the next waiter's.
    Released,
    /// It had been lost before.
    AlreadyLost,
}

#[derive(Debug)]
struct Shared {
    name: LockName,
    token: FencingToken,
    validity: Arc<LockValidity>,
    release: CancellationToken,
    released: watch::Sender<Option<Result<Released, Error>>>,
}

/// For backends: makes the two ends of a held lock. The guard keeps `source`, the backend's session, alive.
pub fn lock_guard(
    name: LockName,
    token: FencingToken,
    validity: Arc<LockValidity>,
    source: OwnerHandle,
) -> (LockGuard, GuardDriver) {
    let shared = Arc::new(Shared {
        name,
        token,
        validity,
        release: CancellationToken::new(),
        released: watch::Sender::new(None),
    });
    (LockGuard { shared: Arc::clone(&shared), source }, GuardDriver { shared })
}

/// A held lock.
///
/// [`release`](Self::release) is the orderly end. Dropping it asks for the same without waiting, also after a panic; if
/// the session ends first, the lease runs out after its TTL.
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct LockGuard {
    shared: Arc<Shared>,
    source: OwnerHandle,
}

impl LockGuard {
    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.shared.name
    }

    /// Larger than that of every earlier holder, as long as the store's revision never goes back. Pass it to the
    /// guarded resource, which has to refuse a smaller one than it has seen.
    pub fn fencing_token(&self) -> FencingToken {
        self.shared.token
    }

    /// Returns `true` while the lock is known to be held, without asking the store. Turns false before the store can
    /// grant the lock to another by expiry; once false, always false. Cheap enough to ask before every write.
    pub fn is_held(&self) -> bool {
        self.shared.validity.is_held()
    }

    /// Remaining time for which the lock is known to be held if no other renewal is acknowledged; zero once it is lost.
    pub fn remaining(&self) -> Duration {
        if self.is_held() { self.shared.validity.remaining() } else { Duration::ZERO }
    }

    /// Waits for the loss of the lock.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> Loss {
        self.shared.validity.lost().await
    }

    /// Runs `work` and aborts it at its next await once the lock is lost.
    ///
    /// # Errors
    ///
    /// The [`Loss`], if it came before the end of the work.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work; the lock stays held.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Loss> {
        tokio::select! {
            // Loss first: work that is ready must not run on after it.
            biased;
            loss = self.lost() => Err(loss),
            output = work => Ok(output),
        }
    }

    /// For backends: what was given to [`lock_guard`], by which a backend knows its own guards again.
    pub fn source(&self) -> &OwnerHandle {
        &self.source
    }

    /// Releases the lock. Guarded: an entry that another client holds by now is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] with the last trouble as its cause, if the store has not answered within a few seconds: it
    /// goes on in the background, and the lease runs out at the latest. [`Error::Closed`] if the session ended first.
    ///
    /// # Cancel safety
    ///
    /// The release goes on in the background.
    pub async fn release(self) -> Result<Released, Error> {
        let was_held = self.is_held();
        self.shared.validity.lose(Loss::Released);
        self.shared.release.cancel();
        let mut released = self.shared.released.subscribe();
        let outcome = released.wait_for(Option::is_some).await.map_err(|_| Error::Closed)?;
        match outcome.clone().unwrap_or(Err(Error::Closed)) {
            Ok(_) if !was_held => Ok(Released::AlreadyLost),
            outcome => outcome,
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.shared.validity.lose(Loss::Released);
        self.shared.release.cancel();
    }
}

/// For backends: the end of a held lock that watches over it and releases it. Dropping it ends the lock.
#[derive(Debug)]
pub struct GuardDriver {
    shared: Arc<Shared>,
}

impl GuardDriver {
    /// Time for which the lock is known to be held.
    pub fn validity(&self) -> &LockValidity {
        &self.shared.validity
    }

    /// Waits until the guard wants to be released or is gone.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn release_wanted(&self) {
        self.shared.release.cancelled().await;
    }

    /// Reports what became of the release. The first report is what the caller of `release` gets.
    pub fn report(&self, outcome: Result<Released, Error>) {
        self.shared.validity.lose(Loss::Released);
        self.shared.released.send_if_modified(|reported| {
            let first = reported.is_none();
            if first {
                *reported = Some(outcome);
            }
            first
        });
    }
}

impl Drop for GuardDriver {
    fn drop(&mut self) {
        self.shared.validity.lose(Loss::SessionClosed);
        self.shared.released.send_if_modified(|outcome| {
            let open = outcome.is_none();
            if open {
                *outcome = Some(Err(Error::Closed));
            }
            open
        });
    }
}

/// One key in the line for a lock, as a backend reads it from its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct QueueEntry {
    /// Revision at which it got in line; unique and increasing.
    pub token: FencingToken,
    /// Mode that it asks for.
    pub mode: LockMode,
}

/// Position of an entry in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "one holds, waits, or is not in line")]
pub enum QueuePosition {
    /// Holds the lock.
    Holder,
    /// Waits, and need not look again before this one is gone.
    Behind(FencingToken),
    /// Is not in line (any more).
    Absent,
}

/// Decides who holds a lock: the one rule for every mode and every backend.
///
/// An exclusive place holds when it is the first; a shared one when no exclusive place is before it. Whoever waits
/// looks at one place only, so that a hand-over wakes one waiter: an exclusive one at the place right before it, a
/// shared one at the last exclusive place before it.
pub fn queue_position(line: impl IntoIterator<Item = QueueEntry>, me: FencingToken) -> QueuePosition {
    let mut before: Option<FencingToken> = None;
    let mut exclusive_before: Option<FencingToken> = None;
    let mut mine = None;
    for place in line {
        if place.token == me {
            mine = Some(place.mode);
        } else if place.token < me {
            before = before.max(Some(place.token));
            if place.mode == LockMode::Exclusive {
                exclusive_before = exclusive_before.max(Some(place.token));
            }
        }
    }
    let blocker = match mine {
        None => return QueuePosition::Absent,
        Some(LockMode::Exclusive) => before,
        Some(LockMode::Shared) => exclusive_before,
    };
    blocker.map_or(QueuePosition::Holder, QueuePosition::Behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::Moment;
    use LockMode::{Exclusive, Shared as SharedMode};

    fn line(modes: &[LockMode]) -> Vec<QueueEntry> {
        (1..).zip(modes).map(|(token, mode)| QueueEntry { token: FencingToken::new(token), mode: *mode }).collect()
    }

    fn stands(modes: &[LockMode], me: u64) -> QueuePosition {
        queue_position(line(modes).into_iter().rev(), FencingToken::new(me))
    }

    fn behind(token: u64) -> QueuePosition {
        QueuePosition::Behind(FencingToken::new(token))
    }

    #[test]
    fn impossible_options_are_refused_by_name() {
        let refused = |options: LockOptions| match options.check() {
            Err(Error::InvalidConfig { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(LockOptions::new().ttl(Duration::ZERO)), "ttl");
        assert_eq!(refused(LockOptions::new().renewal_interval(Duration::from_secs(6))), "renewal_interval");
        assert_eq!(refused(LockOptions::new().lock_delay(Duration::MAX)), "lock_delay");
        assert!(LockOptions::new().lock_delay(Duration::from_secs(3600)).check().is_ok());
    }

    #[test]
    fn only_shared_holders_hold_together() {
        let modes = [Exclusive, SharedMode];
        let together = modes.iter().flat_map(|one| modes.iter().map(move |other| !one.excludes(*other)));
        assert_eq!(together.collect::<Vec<_>>(), [false, false, false, true]);
    }

    #[test]
    fn the_first_holds_and_each_other_waits_for_the_one_before() {
        let modes = [Exclusive, Exclusive, Exclusive];
        assert_eq!(stands(&modes, 1), QueuePosition::Holder);
        assert_eq!(stands(&modes, 2), behind(1));
        assert_eq!(stands(&modes, 3), behind(2));
        assert_eq!(stands(&modes, 4), QueuePosition::Absent);
    }

    #[test]
    fn readers_hold_together_and_never_overtake_a_writer() {
        let modes = [SharedMode, SharedMode, Exclusive, SharedMode];
        assert_eq!(stands(&modes, 2), QueuePosition::Holder);
        assert_eq!(stands(&modes, 3), behind(2));
        assert_eq!(stands(&modes, 4), behind(3));
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_aborted_at_the_loss() {
        let validity = Arc::new(LockValidity::new(Moment::now(), Duration::from_secs(5)));
        let name = LockName::parse("l").unwrap();
        let (guard, driver) = lock_guard(name, FencingToken::new(1), validity, Arc::new(()));
        assert_eq!(guard.run(async { 7 }).await, Ok(7));
        // The boot-time clock goes on while tokio's is paused.
        let left = guard.remaining();
        assert!(
            left > Duration::from_secs(4) && left <= lock_validity::safe_validity(Duration::from_secs(5)),
            "{left:?}"
        );
        driver.validity().lose(Loss::KeyGone);
        assert_eq!(guard.remaining(), Duration::ZERO);
        assert_eq!(guard.run(std::future::pending::<()>()).await, Err(Loss::KeyGone));
        assert_eq!(guard.run(async { 7 }).await, Err(Loss::KeyGone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_dies_ends_the_lock() {
        let validity = Arc::new(LockValidity::new(Moment::now(), Duration::from_secs(5)));
        let name = LockName::parse("l").unwrap();
        let (guard, driver) = lock_guard(name, FencingToken::new(1), validity, Arc::new(()));
        drop(driver);
        assert_eq!(guard.lost().await, Loss::SessionClosed);
        assert!(matches!(guard.release().await, Err(Error::Closed)));
    }
}
