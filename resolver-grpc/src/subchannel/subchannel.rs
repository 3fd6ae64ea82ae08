//! One endpoint of a channel: its connections and its status. Calls only read atomics. Its task, in
//! [`upkeep`](crate::subchannel::upkeep), changes them. The [pool task](crate::load_balancing::pool_task) owns that
//! task.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use enlist::{Endpoint, Entry, balance::Selectable, escape::escaped};
use tokio::sync::Notify;
use tonic::Code;

use crate::subchannel::{
    config::SubchannelConfig,
    connections::{
        connection::Connection,
        connection_set::{ConnectionSet, Demotion, Room},
    },
    connectivity::{Event, InstanceState, StatusCell},
    liveness::ejection::FailureCount,
};

/// An endpoint, its connections, and its status.
#[derive(Debug)]
pub(crate) struct Subchannel {
    pub(super) endpoint: Endpoint,
    /// Latest description of the instance.
    entry: ArcSwap<Entry>,
    status: StatusCell,
    pub(super) connections: ConnectionSet,
    in_flight: AtomicUsize,
    pub(super) failures: FailureCount,
    pub(super) started: AtomicU64,
    failed: AtomicU64,
    /// The next dial is due at once.
    pub(super) dial_now: Notify,
    /// All streams are taken: a further connection may be needed.
    pub(super) crowded: Notify,
}

impl fmt::Display for Subchannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", escaped(self.entry.load().instance().id()), escaped(&self.endpoint))
    }
}

impl Selectable for Subchannel {
    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn is_ready(&self) -> bool {
        self.state() == InstanceState::Ready && self.has_room()
    }
}

impl Subchannel {
    /// A subchannel with at most `most_connections` at a time.
    pub(crate) fn new(endpoint: Endpoint, entry: Arc<Entry>, most_connections: usize) -> Self {
        Self {
            endpoint,
            entry: ArcSwap::new(entry),
            status: StatusCell::default(),
            connections: ConnectionSet::new(most_connections),
            in_flight: AtomicUsize::new(0),
            failures: FailureCount::default(),
            started: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dial_now: Notify::new(),
            crowded: Notify::new(),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn entry(&self) -> Arc<Entry> {
        self.entry.load_full()
    }

    /// Takes a new description. An instance that was registered again is dialled at once: it has been restarted.
    pub(crate) fn describe(&self, entry: Arc<Entry>) {
        let returned = self.is_draining();
        self.status.apply(Event::Listed);
        let restarted = entry.is_restart_of(&self.entry.load());
        if returned || restarted {
            self.dial_now.notify_one();
        }
        if restarted {
            self.failures.restart();
        }
        self.entry.store(entry);
    }

    /// Stops dialling. The connections stay for their calls.
    pub(crate) fn retire(&self) {
        self.status.apply(Event::Delisted);
    }

    /// Aborts the remaining calls.
    pub(crate) fn cut(&self) {
        self.connections.cut();
    }

    /// Drops the connections, which close once their calls have ended. There are no further dials.
    pub(super) fn end(&self) {
        let mut change = self.connections.change();
        self.status.apply(Event::Ended);
        change.clear();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Number of calls that were begun, and number of those that failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.started.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Cause of the failure of the latest dial, if it failed.
    pub(crate) fn dial_failure(&self) -> Option<Arc<str>> {
        self.status.dial_failure()
    }

    /// Returns `true` if a connection takes calls, regardless of health, ejection and listing.
    pub(crate) fn is_connected(&self) -> bool {
        self.status.is_connected()
    }

    /// Returns `true` if the instance is no longer listed.
    pub(super) fn is_draining(&self) -> bool {
        self.state() == InstanceState::Leaving
    }

    pub(crate) fn state(&self) -> InstanceState {
        self.status.state()
    }

    /// Changes the status, and requests a new picker state.
    pub(super) fn apply(&self, config: &SubchannelConfig, event: Event) {
        self.status.apply(event);
        config.changed.notify_one();
    }

    /// Lets calls use a new connection.
    pub(super) fn admit(&self, config: &SubchannelConfig, connection: &Arc<Connection>) {
        {
            let mut change = self.connections.change();
            change.add(connection);
            self.status.apply(Event::Connected);
        }
        if self.connections.is_crowded() {
            // Its only stream may be that of the health check.
            self.crowded.notify_one();
        }
        config.connected.notify_one();
        config.queue.wake_all();
    }

    /// Stops the use of a connection that was found not to work.
    pub(crate) fn demote(&self, config: &SubchannelConfig, connection: &Arc<Connection>) {
        {
            let mut change = self.connections.change();
            if change.demote(connection) == Demotion::Unknown {
                return;
            }
            self.status.apply(Event::Demoted);
        }
        connection.spend();
        self.crowded.notify_one();
        config.changed.notify_one();
        tracing::debug!(instance = %self, "connection no longer used");
    }

    /// Number of connections that take calls.
    pub(crate) fn connections(&self) -> usize {
        self.connections.count()
    }

    /// Returns `true` if a connection has a stream for another call.
    pub(crate) fn has_room(&self) -> bool {
        self.connections.has_room()
    }

    /// Begins a call over a connection with room, if there is one.
    pub(crate) fn begin(&self) -> Option<Arc<Connection>> {
        let (connection, room) = self.connections.begin();
        if room == Room::None {
            self.crowded.notify_one();
        }
        let connection = connection?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        Some(connection)
    }

    /// Notes that a call that was begun is no longer in flight.
    pub(crate) fn end_of_call(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests a probe of a connection: a call ended without a response, and nothing was received meanwhile.
    pub(crate) fn doubt(&self, config: &SubchannelConfig, connection: &Arc<Connection>) {
        {
            // Under the lock: a demotion in between would leave a doubt that no probe resolves.
            let _change = self.connections.change();
            if connection.is_lost() || !self.connections.uses(connection) {
                return;
            }
            self.status.apply(Event::Doubted);
        }
        connection.doubt();
        config.changed.notify_one();
    }

    /// Counts a call that ended.
    pub(crate) fn count(&self, config: &SubchannelConfig, code: Code) {
        if code != Code::Ok {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let Some(ejection) = &config.ejection else {
            return;
        };
        if config.ejection_codes.contains(&code) {
            self.failures.failed(ejection);
        } else {
            self.failures.succeeded();
        }
    }

    /// Ejects the instance whenever it fails too often. Returns at once if the channel has no ejection.
    pub(super) async fn eject_on_failures(&self, config: &SubchannelConfig) {
        if let Some(ejection) = &config.ejection {
            self.failures.eject_on_failures(ejection, &config.ejections, self, |event| self.apply(config, event)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subchannel::{
        activity::Activity,
        call_queue::CallQueue,
        connections::{connection_options::ConnectionOptions, dial_limit::DialLimit, settings::SettingsFor},
    };
    use enlist::{BackoffPolicy, Ejection, Instance, InstanceId, Revision, balance::Ejections};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn subchannel() -> Subchannel {
        let endpoint = Endpoint::parse("127.0.0.1:1").unwrap();
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint.clone()]).unwrap();
        let subchannel =
            Subchannel::new(endpoint, Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))), 1);
        subchannel.status.apply(Event::Connected);
        subchannel
    }

    fn config() -> Arc<SubchannelConfig> {
        let ejection = Ejection::new().failures(3).share(1.0).time(SECOND, SECOND).unwrap();
        let ejections = Ejections::default();
        ejections.of(2);
        Arc::new(SubchannelConfig {
            settings: SettingsFor::default(),
            dial_timeout: SECOND,
            redial: BackoffPolicy::default(),
            health: None,
            ejection: Some(ejection),
            ejection_codes: vec![Code::Unavailable],
            ejections,
            silence: SECOND,
            connections: ConnectionOptions::default(),
            changed: Notify::new(),
            connected: Notify::new(),
            dials: DialLimit::new(1),
            activity: Activity::default(),
            queue: CallQueue::default(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn failures_during_an_ejection_do_not_extend_it() {
        let (subchannel, config) = (subchannel(), config());
        let calls = async {
            for _ in 0..3 {
                subchannel.count(&config, Code::Unavailable);
            }
            config.changed.notified().await;
            assert_eq!(subchannel.state(), InstanceState::Ejected);
            // These calls were in flight.
            for _ in 0..10 {
                subchannel.count(&config, Code::Unavailable);
            }
            config.changed.notified().await;
            assert_eq!(subchannel.state(), InstanceState::Ready);
            tokio::time::sleep(SECOND * 10).await;
            assert_eq!(subchannel.state(), InstanceState::Ready);
        };
        tokio::select! {
            () = subchannel.eject_on_failures(&config) => panic!("it never returns"),
            () = calls => {}
        }
    }
}
