//! States of a subchannel, and the transitions between them. Pure, except for the cell that publishes the state to
//! calls.
//!
//! Connectivity is that of gRPC (<https://github.com/grpc/grpc/blob/master/doc/connectivity-semantics-and-api.md>).
//! Four further facts are independent of it: health, liveness, ejection and listing. The [`InstanceState`] that calls
//! see follows from all five.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    },
};

use enlist::backend::MutexExt as _;

/// State of an instance in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceState {
    /// Not connected, since the channel was not used for its idle timeout. The next call connects.
    Idle,
    /// The first connection, or the next one after one that worked, is being made.
    Connecting,
    /// The instance takes calls.
    Ready,
    /// The instance cannot be connected to. The next dial follows after a delay.
    Failing,
    /// The instance is connected and does not respond. A probe is under way.
    Suspect,
    /// The instance failed several calls in a row and takes none for a while.
    Ejected,
    /// Its health service reports that it does not serve.
    Unhealthy,
    /// The instance is no longer listed and finishes its calls.
    Leaving,
}

impl InstanceState {
    /// All states; each is published as its index.
    const ALL: [Self; 8] = [
        Self::Idle,
        Self::Connecting,
        Self::Ready,
        Self::Failing,
        Self::Suspect,
        Self::Ejected,
        Self::Unhealthy,
        Self::Leaving,
    ];
}

/// Connectivity of a subchannel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The channel is not used. The next call causes a dial.
    Idle,
    /// The first dial is under way, or the next one after a connection that worked.
    Connecting,
    /// `connections` take calls. `after` is the state once the last one is gone.
    Ready { connections: usize, after: AfterReady },
    /// The latest dial failed. The next one follows after a delay.
    TransientFailure,
    /// The task has ended; nothing dials any more.
    Shutdown,
}

/// State that follows the loss of the last connection. Further connections can outlive the one that is dialled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterReady {
    Idle,
    Connecting,
    TransientFailure,
}

/// Report of the health service of the instance, if that is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    #[default]
    Serving,
    NotServing,
}

/// Liveness of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Liveness {
    #[default]
    Alive,
    /// A call ended without a response, and nothing was received since.
    Suspect,
}

/// Ejection of an instance that failed several calls in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EjectionState {
    #[default]
    None,
    Ejected,
}

/// Listing of the instance by the resolver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Listing {
    #[default]
    Listed,
    /// No longer listed: it finishes its calls, and nothing dials.
    Draining,
}

/// Event that changes the status of a subchannel.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A new connection takes calls.
    Connected,
    /// A connection takes no more calls.
    Demoted,
    /// A dial failed, or a connection ended so soon that the next dial is delayed.
    DialFailed {
        cause: Arc<str>,
    },
    /// The channel was not used for its idle timeout.
    Unused,
    /// The channel is used again.
    Used,
    /// The task has ended.
    Ended,
    HealthReported(Health),
    /// A call ended without a response, and nothing was received meanwhile.
    Doubted,
    /// A probe has ended.
    Probed,
    Ejected,
    Readmitted,
    /// The resolver no longer lists the instance.
    Delisted,
    /// The resolver lists the instance (again).
    Listed,
}

/// Status of a subchannel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Status {
    connectivity: State,
    /// Cause of the failure of the latest dial. It outlives the state: an instance that could not be connected to is
    /// idle while its channel is not used, and connecting at the next call.
    dial_failure: Option<Arc<str>>,
    health: Health,
    liveness: Liveness,
    ejection: EjectionState,
    listing: Listing,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            connectivity: State::Connecting,
            dial_failure: None,
            health: Health::default(),
            liveness: Liveness::default(),
            ejection: EjectionState::default(),
            listing: Listing::default(),
        }
    }
}

impl Status {
    /// Returns the status after `event`.
    fn after(self, event: Event) -> Self {
        let connectivity = self.connectivity.after(&event);
        match event {
            // A doubt concerns the connections up to now.
            Event::Connected => Self { connectivity, dial_failure: None, liveness: Liveness::Alive, ..self },
            Event::Demoted => Self { connectivity, liveness: Liveness::Alive, ..self },
            Event::DialFailed { cause } => Self { connectivity, dial_failure: Some(cause), ..self },
            Event::Unused | Event::Used | Event::Ended => Self { connectivity, ..self },
            Event::HealthReported(health) => Self { health, ..self },
            Event::Doubted => Self { liveness: Liveness::Suspect, ..self },
            Event::Probed => Self { liveness: Liveness::Alive, ..self },
            Event::Ejected => Self { ejection: EjectionState::Ejected, ..self },
            Event::Readmitted => Self { ejection: EjectionState::None, ..self },
            Event::Delisted => Self { listing: Listing::Draining, ..self },
            Event::Listed => Self { listing: Listing::Listed, ..self },
        }
    }

    /// The state that calls see.
    fn instance_state(&self) -> InstanceState {
        match (self.listing, self.connectivity) {
            (Listing::Draining, _) => InstanceState::Leaving,
            (_, State::Idle) => InstanceState::Idle,
            (_, State::Connecting) => InstanceState::Connecting,
            (_, State::TransientFailure | State::Shutdown) => InstanceState::Failing,
            (_, State::Ready { .. }) if self.ejection == EjectionState::Ejected => InstanceState::Ejected,
            (_, State::Ready { .. }) if self.health == Health::NotServing => InstanceState::Unhealthy,
            (_, State::Ready { .. }) if self.liveness == Liveness::Suspect => InstanceState::Suspect,
            (_, State::Ready { .. }) => InstanceState::Ready,
        }
    }
}

impl State {
    /// Returns the connectivity after `event`. Events that do not concern it leave it as it is.
    fn after(self, event: &Event) -> Self {
        match (self, event) {
            (Self::Shutdown, _) | (_, Event::Ended) => Self::Shutdown,
            (Self::Ready { connections, after: AfterReady::Idle }, Event::Connected) => {
                Self::Ready { connections: connections + 1, after: AfterReady::Idle }
            }
            (Self::Ready { connections, .. }, Event::Connected) => {
                Self::Ready { connections: connections + 1, after: AfterReady::Connecting }
            }
            // A dial that outlived the use of its channel.
            (Self::Idle, Event::Connected) => Self::Ready { connections: 1, after: AfterReady::Idle },
            (_, Event::Connected) => Self::Ready { connections: 1, after: AfterReady::Connecting },
            (Self::Ready { connections: 0 | 1, after }, Event::Demoted) => after.into(),
            (Self::Ready { connections, after }, Event::Demoted) => Self::Ready { connections: connections - 1, after },
            (Self::Ready { connections, .. }, Event::DialFailed { .. }) => {
                Self::Ready { connections, after: AfterReady::TransientFailure }
            }
            (_, Event::DialFailed { .. }) => Self::TransientFailure,
            (Self::Ready { connections, .. }, Event::Unused) => Self::Ready { connections, after: AfterReady::Idle },
            (_, Event::Unused) => Self::Idle,
            (Self::Ready { connections, .. }, Event::Used) => {
                Self::Ready { connections, after: AfterReady::Connecting }
            }
            (Self::Idle, Event::Used) => Self::Connecting,
            (state, _) => state,
        }
    }
}

impl From<AfterReady> for State {
    fn from(after: AfterReady) -> Self {
        match after {
            AfterReady::Idle => Self::Idle,
            AfterReady::Connecting => Self::Connecting,
            AfterReady::TransientFailure => Self::TransientFailure,
        }
    }
}

/// Status of a subchannel, shared by its task and calls. Calls read the state with one load.
#[derive(Debug)]
pub(super) struct StatusCell {
    status: Mutex<Status>,
    /// Index of the state in [`InstanceState::ALL`].
    published: AtomicU8,
}

impl Default for StatusCell {
    fn default() -> Self {
        let cell = Self { status: Mutex::default(), published: AtomicU8::new(0) };
        cell.publish(&cell.lock());
        cell
    }
}

impl StatusCell {
    /// Changes the status.
    pub(super) fn apply(&self, event: Event) {
        let mut status = self.lock();
        *status = mem::take(&mut *status).after(event);
        self.publish(&status);
    }

    /// The state that calls see.
    pub(super) fn state(&self) -> InstanceState {
        let index = usize::from(self.published.load(Ordering::Acquire));
        // Only indices of states are published.
        InstanceState::ALL.get(index).copied().unwrap_or(InstanceState::Connecting)
    }

    /// Returns `true` if a connection takes calls, whatever else is known of the instance.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.lock().connectivity, State::Ready { .. })
    }

    /// Cause of the failure of the latest dial, if it failed.
    pub(super) fn dial_failure(&self) -> Option<Arc<str>> {
        self.lock().dial_failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.locked()
    }

    fn publish(&self, status: &Status) {
        self.published.store(status.instance_state() as u8, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Event {
        Event::DialFailed { cause: Arc::from("refused") }
    }

    fn after(events: impl IntoIterator<Item = Event>) -> Status {
        events.into_iter().fold(Status::default(), Status::after)
    }

    fn state(events: impl IntoIterator<Item = Event>) -> InstanceState {
        after(events).instance_state()
    }

    #[test]
    fn a_state_is_published_as_its_index() {
        for (index, state) in InstanceState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index, "{state:?}");
        }
        let cell = StatusCell::default();
        assert_eq!(cell.state(), InstanceState::Connecting);
        cell.apply(Event::Connected);
        assert_eq!(cell.state(), InstanceState::Ready);
    }

    #[test]
    fn an_unhealthy_instance_is_connected() {
        let cell = StatusCell::default();
        assert!(!cell.is_connected());
        cell.apply(Event::Connected);
        cell.apply(Event::HealthReported(Health::NotServing));
        assert!(cell.is_connected() && cell.state() == InstanceState::Unhealthy);
    }

    #[test]
    fn each_dial_of_an_unused_subchannel_counts() {
        let unused = after([Event::Connected, Event::Unused, Event::Connected]);
        assert_eq!(unused.connectivity, State::Ready { connections: 2, after: AfterReady::Idle });
    }

    #[test]
    fn a_failed_dial_shows_until_a_connection() {
        assert_eq!(state([failed()]), InstanceState::Failing);
        assert_eq!(after([failed()]).dial_failure.as_deref(), Some("refused"));
        assert_eq!(state([failed(), Event::Used]), InstanceState::Failing, "the next dial is under way");
        let connected = after([failed(), Event::Connected]);
        assert_eq!((connected.instance_state(), connected.dial_failure), (InstanceState::Ready, None));
    }

    #[test]
    fn a_failed_dial_is_remembered_while_the_channel_is_unused() {
        let cell = StatusCell::default();
        cell.apply(failed());
        for (event, state) in [(Event::Unused, InstanceState::Idle), (Event::Used, InstanceState::Connecting)] {
            cell.apply(event);
            assert_eq!((cell.state(), cell.dial_failure().as_deref()), (state, Some("refused")));
        }
        cell.apply(Event::Connected);
        assert_eq!(cell.dial_failure(), None);
    }

    #[test]
    fn the_loss_of_the_last_connection_leads_to_a_dial() {
        let two = [Event::Connected, Event::Connected, Event::Demoted];
        assert_eq!(state(two.clone()), InstanceState::Ready);
        assert_eq!(state(two.into_iter().chain([Event::Demoted])), InstanceState::Connecting);
    }

    #[test]
    fn a_failed_redial_counts_once_no_connection_is_left() {
        let redialled = [Event::Connected, Event::Connected, Event::Demoted, failed()];
        let ready = after(redialled.clone());
        assert_eq!(ready.instance_state(), InstanceState::Ready);
        assert!(ready.dial_failure.is_some());
        assert_eq!(state(redialled.into_iter().chain([Event::Demoted])), InstanceState::Failing);
    }

    #[test]
    fn an_unused_channel_is_idle_once_its_connections_are_gone() {
        assert_eq!(state([failed(), Event::Unused]), InstanceState::Idle);
        assert_eq!(state([Event::Unused, Event::Used]), InstanceState::Connecting);
        let unused = [Event::Connected, Event::Unused];
        assert_eq!(state(unused.clone()), InstanceState::Ready);
        assert_eq!(state(unused.clone().into_iter().chain([Event::Demoted])), InstanceState::Idle);
        assert_eq!(state(unused.into_iter().chain([Event::Used, Event::Demoted])), InstanceState::Connecting);
        assert_eq!(state([Event::Unused, Event::Connected, Event::Demoted]), InstanceState::Idle, "a late dial");
    }

    #[test]
    fn an_ended_task_connects_no_more() {
        for event in [Event::Connected, Event::Used, Event::Unused, Event::Demoted] {
            assert_eq!(after([Event::Connected, Event::Ended, event]).connectivity, State::Shutdown);
        }
        assert_eq!(state([Event::Ended]), InstanceState::Failing);
    }

    #[test]
    fn the_gravest_of_several_signs_is_shown() {
        let mut status =
            after([Event::Connected, Event::Doubted, Event::HealthReported(Health::NotServing), Event::Ejected]);
        assert_eq!(status.instance_state(), InstanceState::Ejected);
        status = status.after(Event::Readmitted);
        assert_eq!(status.instance_state(), InstanceState::Unhealthy);
        status = status.after(Event::HealthReported(Health::Serving));
        assert_eq!(status.instance_state(), InstanceState::Suspect);
        status = status.after(Event::Probed);
        assert_eq!(status.instance_state(), InstanceState::Ready);
    }

    #[test]
    fn a_connection_dispels_a_doubt() {
        assert_eq!(state([Event::Connected, Event::Doubted, Event::Connected]), InstanceState::Ready);
        let demoted = [Event::Connected, Event::Connected, Event::Doubted, Event::Demoted];
        assert_eq!(state(demoted), InstanceState::Ready);
    }

    #[test]
    fn a_delisted_instance_leaves_until_it_is_listed() {
        let delisted = after([Event::Connected, Event::Delisted]);
        assert_eq!(delisted.instance_state(), InstanceState::Leaving);
        assert_eq!(delisted.after(Event::Listed).instance_state(), InstanceState::Ready);
    }
}
