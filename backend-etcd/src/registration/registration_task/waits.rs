//! The waits of a registration: each ends with the reason for the next comparison.

use std::{sync::Arc, time::Duration};

use enlist::{
    Error, Moment, RegistrationState, ServiceRef,
    backend::{
        Claim, LeaseState, Subscriber, audit_due, jitter, lease_changed, permanent_error_delay,
        registration_flow::RegistrationSteps,
    },
    with_causes,
};
use tokio::sync::watch;

use super::{
    Known, LEASE_VERDICT_TIMEOUT, RegistrationTask,
    wake_reason::{KeyState, WakeReason, Watched},
};
use crate::{
    deliberate_defects::DeliberateDefect,
    layout::Layout,
    session::lease,
    watch::{
        key_monitors::{Differs, KeyMonitor, KeyMonitors, Sharing},
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::Begin,
    },
};

/// Age at which a written key is watched. The delay keeps the events of thousands of keys written together out of the
/// watches, and a service that is shared with others is listed once.
const WATCH_DELAY: Duration = Duration::from_millis(500);

/// Published instance that could not be brought up to date.
pub(super) struct Outdated {
    cause: Error,
    /// Time until the next try.
    delay: Duration,
    watched: Watched,
}

/// Own key to be watched.
struct Monitored<'a> {
    monitors: &'a KeyMonitors,
    layout: &'a dyn Layout,
    service: &'a ServiceRef,
    record: &'a Record,
}

impl Monitored<'_> {
    /// Waits until the key differs from what was written. `monitor` is started if there is none, and kept.
    async fn differs(self, monitor: &mut Option<KeyMonitor>, sharing: Sharing, watched: Watched) -> Differs {
        let Self { monitors, layout, service, record } = self;
        if monitor.is_none() {
            tokio::time::sleep(WATCH_DELAY).await;
        }
        let started = match monitor.take() {
            Some(monitor) => Ok(monitor),
            None => monitors.watch(layout, service, record, sharing),
        };
        match (started, watched) {
            (Ok(started), Watched::LossOnly) => {
                monitor.insert(started).vanished(record.created, None).await;
                Differs::Gone
            }
            (Ok(started), Watched::AnyChange) => monitor.insert(started).differs(record.modified).await,
            // The session has ended, and this task with it.
            (Err(_), _) => std::future::pending().await,
        }
    }
}

impl RegistrationTask {
    /// Waits until the published state differs from the desired one, or can be brought up to date.
    pub(super) async fn wait_for_change(&mut self, claim: &Claim<Arc<[u8]>>, outdated: Option<Outdated>) -> WakeReason {
        let (Some(lease), Some(stored)) = (&self.lease, self.writes.stored()) else {
            return WakeReason::Look;
        };
        // Not the lease itself: an `Arc<Lease>` would occupy pool capacity.
        let phase = lease.phase();
        if lease.is_retired() {
            return WakeReason::Retired;
        }
        let mut monitor = self.monitor.take().filter(|monitor| monitor.key() == &*stored.key);
        let reason = self.wait(claim, phase, &mut monitor, outdated).await;
        self.monitor = monitor.filter(|_| reason != WakeReason::Unobservable);
        reason
    }

    async fn wait(
        &mut self,
        claim: &Claim<Arc<[u8]>>,
        mut phase: watch::Receiver<LeaseState>,
        monitor: &mut Option<KeyMonitor>,
        outdated: Option<Outdated>,
    ) -> WakeReason {
        let Self { context, layout, driver, options, sharing, writes, recoveries, rollbacks, .. } = self;
        let Some(record) = writes.stored() else {
            return WakeReason::Look;
        };
        let service = driver.service().clone();
        let watched = outdated.as_ref().map(|outdated| outdated.watched).unwrap_or_default();
        let monitored = Monitored { monitors: &context.key_monitors, layout: &**layout, service: &service, record };
        let mut differs = std::pin::pin!(monitored.differs(monitor, *sharing, watched));
        let recovers = outdated.as_ref().is_some_and(|outdated| outdated.cause.is_retryable());
        let mut due = std::pin::pin!(async {
            match &outdated {
                Some(outdated) => tokio::time::sleep(outdated.delay).await,
                None => audit_due(options).await,
            }
        });
        let client = Arc::clone(&context.client);
        let mut recovered = std::pin::pin!(client.control.recovered_since(*recoveries));
        loop {
            tokio::select! {
                () = &mut due => return WakeReason::Look,
                () = &mut recovered, if recovers => return WakeReason::Recovered,
                () = context.leases.rolled_back_since(*rollbacks), if outdated.is_none() => {
                    return WakeReason::after_restore(&phase.borrow());
                }
                () = claim.superseded() => return WakeReason::Superseded,
                () = driver.changed() => return WakeReason::Wanted,
                changed = lease_changed(&mut phase) => match changed {
                    LeaseState::Lost => return WakeReason::Gone,
                    LeaseState::Retired => return WakeReason::Retired,
                    LeaseState::Suspect { cause, .. } => driver.report(RegistrationState::Suspect { cause }),
                    LeaseState::Alive { .. } => driver.report(match &outdated {
                        Some(Outdated { cause, .. }) => RegistrationState::Suspect { cause: cause.clone() },
                        None => RegistrationState::Registered { revision: record.modified },
                    }),
                },
                differs = &mut differs => match differs {
                    Differs::Gone => return WakeReason::Gone,
                    Differs::Changed => return WakeReason::Changed,
                    Differs::Unobservable => return WakeReason::Unobservable,
                },
            }
        }
    }

    /// Reports that the published instance could not be brought up to date, and waits until another attempt is due, or
    /// until the published state changes otherwise.
    pub(super) async fn wait_outdated(&mut self, claim: &Claim<Arc<[u8]>>, cause: Error) -> WakeReason {
        tracing::debug!(cause = %with_causes(&cause), "not brought up to date");
        let delay = if cause.is_retryable() {
            self.driver.report(RegistrationState::Suspect { cause: cause.clone() });
            self.backoff.next_delay()
        } else {
            self.driver.report_refused(self.wanted, cause.clone());
            permanent_error_delay()
        };
        self.wait_for_change(claim, Some(Outdated { cause, delay, watched: self.watched })).await
    }

    /// Reports the reason why the instance is not published, and waits until another attempt is due.
    pub(super) async fn wait_unpublished(&mut self, claim: &Claim<Arc<[u8]>>, error: Error) -> WakeReason {
        let conflict = matches!(error, Error::AlreadyRegistered { .. });
        let waits = self.waits_out(&error);
        let next = self.backoff.next_delay();
        let retryable = error.is_retryable();
        let delay = if retryable { next } else { permanent_error_delay() };
        tracing::debug!(cause = %with_causes(&error), "not registered");
        if waits {
            self.driver.report(RegistrationState::Registering { last: Some(error) });
        } else {
            self.driver.report_failure(error);
        }
        // Another owner's key is watched, so that it is claimed as soon as it is free.
        let mut foreign = match (conflict, &self.lease) {
            (true, Some(lease)) => self
                .key_under(lease.id())
                .ok()
                .and_then(|key| self.context.range_watches.follow(&KeyRange::key(key.to_vec())).ok()),
            _ => None,
        };
        let context = Arc::clone(&self.context);
        let mut due = std::pin::pin!(tokio::time::sleep(delay));
        let mut recovered = std::pin::pin!(context.client.control.recovered_since(self.recoveries));
        loop {
            tokio::select! {
                () = &mut due => return WakeReason::Look,
                () = claim.superseded() => return WakeReason::Superseded,
                () = self.driver.changed() => return WakeReason::Look,
                () = gone(&mut foreign) => return WakeReason::Look,
                () = &mut recovered, if retryable => return WakeReason::Recovered,
                () = lease::unusable(self.lease.as_ref()) => {
                    if self.writes.is_unsettled() {
                        // The key may exist under it.
                        return WakeReason::Look;
                    }
                    self.lease = None;
                }
            }
        }
    }

    /// Waits until the key, which another registration holds as `record`, is free.
    pub(super) async fn wait_until_free(&mut self, claim: &Claim<Arc<[u8]>>, record: Record) -> WakeReason {
        let (key, revision) = (Arc::clone(&record.key), record.modified);
        let mut followed = self.context.range_watches.follow_key(&key, Some(record), revision, Begin::Known).ok();
        let mut due = std::pin::pin!(tokio::time::sleep(permanent_error_delay()));
        loop {
            tokio::select! {
                () = gone(&mut followed) => return WakeReason::Gone,
                () = claim.superseded() => return WakeReason::Superseded,
                () = &mut due => return WakeReason::Look,
                () = self.driver.unwanted() => return WakeReason::Look,
                () = lease::unusable(self.lease.as_ref()) => self.lease = None,
            }
        }
    }

    /// Prepares the next comparison.
    pub(super) async fn answer(&mut self, reason: WakeReason) -> KeyState {
        match reason {
            WakeReason::Superseded | WakeReason::Look | WakeReason::Changed => KeyState::MayDiffer,
            WakeReason::Wanted => KeyState::AsStored,
            WakeReason::Unobservable => {
                // If the key's own watch cannot see it either, the watch is repeated at a slow pace.
                if std::mem::replace(&mut self.sharing, Sharing::Never) == Sharing::Never {
                    self.sleep_while_wanted(permanent_error_delay()).await;
                }
                KeyState::AsStored
            }
            WakeReason::Gone if DeliberateDefect::RegistrationDeaf.is_on() => {
                self.sleep_while_wanted(enlist::backend::LONGEST).await;
                KeyState::AsStored
            }
            WakeReason::Gone => {
                self.lost().await;
                KeyState::MayDiffer
            }
            WakeReason::Retired => {
                self.sleep_while_wanted(jitter(self.reregistration_window())).await;
                KeyState::AsStored
            }
            WakeReason::Recovered | WakeReason::Restored => {
                // Spread, because all registrations resume at the same time.
                self.sleep_while_wanted(jitter(self.reregistration_window())).await;
                KeyState::MayDiffer
            }
        }
    }

    /// Handles the loss of the key: determines if its lease is lost, too, and spreads the re-registrations of keys that
    /// were lost together.
    async fn lost(&mut self) {
        let Some(lease) = self.lease.clone() else {
            return;
        };
        self.writes.note_key(None);
        let requested = Moment::now();
        lease.renew_now();
        let mut state = lease.state();
        let verdict = async {
            while !lease.is_lost() && lease.renewed().is_some_and(|sent| !is_since(sent, requested)) {
                lease_changed(&mut state).await;
            }
        };
        // Without a verdict the next comparison reads the key, and the guarded write decides.
        let known = tokio::time::timeout(LEASE_VERDICT_TIMEOUT, verdict).await.is_ok();
        if known && lease.is_lost() {
            self.known = Known::Absent;
            self.driver.report(RegistrationState::Reregistering { cause: Error::LeaseLost });
        }
        self.sleep_while_wanted(jitter(self.reregistration_window())).await;
    }
}

/// Returns `true` if a renewal was sent since the request for one, also on a clock that has not moved in between.
fn is_since(sent: Moment, requested: Moment) -> bool {
    requested.since(sent).is_zero()
}

/// Waits until the followed key is gone.
async fn gone(followed: &mut Option<Subscriber<Replica>>) {
    let Some(reader) = followed else {
        return std::future::pending().await;
    };
    loop {
        match reader.next().await {
            Ok(update) if update.value.records().next().is_none() => return,
            Err(Error::Closed) => return std::future::pending().await,
            // A watch that is refused is opened again.
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_at_the_time_of_its_request_counts() {
        let (earlier, now) = (Moment::ago(Duration::from_nanos(1)), Moment::now());
        assert!(is_since(now, now) && is_since(now, earlier));
        assert!(!is_since(earlier, now));
    }
}
