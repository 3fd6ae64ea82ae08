//! One endpoint of a channel: its connections and what is known of it. Calls only read atomics; its task, in
//! [`upkeep`](crate::subchannel::upkeep), changes them. The [pool task](crate::load_balancing::pool_task) owns that task.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use enlist::{
    Endpoint, Entry,
    balance::{Candidate, Rests},
    escape::escaped,
};
use tokio::sync::Notify;
use tonic::Code;

use crate::subchannel::{
    config::SubchannelConfig,
    connection::Connection,
    connection_set::ConnectionSet,
    connectivity::{Condition, InstanceState},
};

/// An endpoint, the connection to it, and what is known of both.
#[derive(Debug)]
pub(crate) struct Subchannel {
    pub(super) endpoint: Endpoint,
    /// As it was described last.
    entry: ArcSwap<Entry>,
    pub(super) condition: Condition,
    pub(super) connections: ConnectionSet,
    pub(super) trouble: ArcSwapOption<String>,
    in_flight: AtomicUsize,
    /// Failed calls in a row.
    pub(super) failures: AtomicU32,
    pub(super) started: AtomicU64,
    failed: AtomicU64,
    /// Dial now.
    pub(super) wake: Notify,
    /// All streams are taken.
    pub(super) crowded: Notify,
    /// Enough calls failed in a row.
    enough: Notify,
    /// Another process was registered in place of this one: its failures are none of the new one's.
    restarted: Notify,
}

impl fmt::Display for Subchannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", escaped(self.entry.load().instance().id()), escaped(&self.endpoint))
    }
}

impl Candidate for Subchannel {
    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn is_ready(&self) -> bool {
        // What became of the latest dial counts only where no connection is left.
        let bits = self.condition.bits() & !(Condition::FAILED | Condition::IDLE);
        bits == Condition::CONNECTED && self.has_room()
    }
}

impl Subchannel {
    /// A subchannel with at most so many connections at a time.
    pub(crate) fn new(endpoint: Endpoint, entry: Arc<Entry>, most_connections: usize) -> Self {
        Self {
            endpoint,
            entry: ArcSwap::new(entry),
            condition: Condition::default(),
            connections: ConnectionSet::new(most_connections),
            trouble: ArcSwapOption::empty(),
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            started: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            wake: Notify::new(),
            crowded: Notify::new(),
            enough: Notify::new(),
            restarted: Notify::new(),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn entry(&self) -> Arc<Entry> {
        self.entry.load_full()
    }

    /// Takes a new description. One that was registered anew is dialled at once: it has been restarted.
    pub(crate) fn describe(&self, entry: Arc<Entry>) {
        let returned = self.condition.has(Condition::RETIRED);
        self.condition.clear(Condition::RETIRED);
        let restarted = self.entry.load().created() != entry.created();
        if returned || restarted {
            self.wake.notify_one();
        }
        if restarted {
            self.failures.store(0, Ordering::Relaxed);
            self.restarted.notify_waiters();
        }
        self.entry.store(entry);
    }

    /// Dials no more; the connection stays for the calls it has.
    pub(crate) fn retire(&self) {
        self.condition.set(Condition::RETIRED);
    }

    /// Breaks off what is left.
    pub(crate) fn cut(&self) {
        self.connections.cut();
    }

    /// Lets go of the connections, which close once their calls have ended. Nobody dials any more.
    pub(super) fn end(&self) {
        let mut change = self.connections.change();
        self.condition.clear(Condition::CONNECTED);
        self.condition.set(Condition::FAILED);
        change.clear();
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Number of calls that were begun, and how many failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.started.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Reason for which the last dial failed.
    pub(crate) fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    /// Returns `true` if it is connected, whatever else is known of it.
    pub(crate) fn is_connected(&self) -> bool {
        self.condition.has(Condition::CONNECTED)
    }

    pub(crate) fn state(&self) -> InstanceState {
        let bits = self.condition.bits();
        let is = |bit| bits & bit != 0;
        match () {
            () if is(Condition::RETIRED) => InstanceState::Leaving,
            () if !is(Condition::CONNECTED) && is(Condition::IDLE) => InstanceState::Idle,
            () if !is(Condition::CONNECTED) && is(Condition::FAILED) => InstanceState::Failing,
            () if !is(Condition::CONNECTED) => InstanceState::Connecting,
            () if is(Condition::EJECTED) => InstanceState::Ejected,
            () if is(Condition::UNHEALTHY) => InstanceState::Unhealthy,
            () if is(Condition::SUSPECT) => InstanceState::Suspect,
            () => InstanceState::Ready,
        }
    }

    /// Lets calls use a new connection.
    pub(super) fn admit(&self, terms: &SubchannelConfig, connection: &Arc<Connection>) {
        {
            let mut change = self.connections.change();
            change.add(connection);
            self.trouble.store(None);
            self.condition.clear(Condition::FAILED | Condition::SUSPECT);
            self.condition.set(Condition::CONNECTED);
        }
        if self.connections.is_crowded() {
            // Its only stream may be that of the health check.
            self.crowded.notify_one();
        }
        terms.connected.notify_one();
        terms.queue.wake_all();
    }

    /// Takes no more calls over this connection, which was found not to work.
    pub(crate) fn demote(&self, terms: &SubchannelConfig, connection: &Arc<Connection>) {
        {
            let mut change = self.connections.change();
            let Some(left) = change.demote(connection) else { return };
            // The doubt was about it, as far as is known.
            self.condition.clear(Condition::SUSPECT);
            if left == 0 {
                self.condition.clear(Condition::CONNECTED);
            }
        }
        connection.spend();
        self.crowded.notify_one();
        terms.changed.notify_one();
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
        let (connection, full) = self.connections.begin();
        if full {
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

    /// A call ended without an answer, and nothing at all was heard meanwhile: lets the connection be asked for a sign of life.
    pub(crate) fn doubt(&self, terms: &SubchannelConfig, connection: &Arc<Connection>) {
        {
            // A connection that is demoted meanwhile would leave a doubt that nothing dispels.
            let _change = self.connections.change();
            if connection.is_lost() || !self.connections.uses(connection) {
                return;
            }
            self.condition.set(Condition::SUSPECT);
        }
        connection.doubt();
        terms.changed.notify_one();
    }

    /// Counts a call that ended.
    pub(crate) fn count(&self, terms: &SubchannelConfig, code: Code) {
        if code != Code::Ok {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let Some(ejection) = &terms.ejection else {
            return;
        };
        if terms.ejection_codes.contains(&code) {
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if ejection.is_enough(failures) {
                self.enough.notify_one();
            }
        } else if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Lets the instance rest whenever it fails too often.
    pub(super) async fn rest(&self, terms: &SubchannelConfig) {
        let Some(ejection) = &terms.ejection else {
            return;
        };
        let mut rests = Rests::new(ejection);
        loop {
            // From before the look at the failures: a restart after it ends the rest at once.
            let mut restarted = std::pin::pin!(self.restarted.notified());
            tokio::select! {
                () = self.enough.notified() => {}
                () = &mut restarted => {
                    rests = Rests::new(ejection);
                    continue;
                }
            }
            if !ejection.is_enough(self.failures.load(Ordering::Relaxed)) {
                // What failed while it rested is forgiven.
                continue;
            }
            let Some(_ejected) = terms.ejections.begin(ejection) else {
                self.failures.store(0, Ordering::Relaxed);
                continue;
            };
            let time = rests.begin();
            tracing::warn!(instance = %self, ?time, "instance ejected, it failed several calls in a row");
            self.condition.set(Condition::EJECTED);
            terms.changed.notify_one();
            rests.wait(time, restarted).await;
            self.failures.store(0, Ordering::Relaxed);
            self.condition.clear(Condition::EJECTED);
            terms.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subchannel::{
        activity::Activity, call_queue::CallQueue, connection_options::ConnectionOptions, dial_limit::DialLimit,
        settings::SettingsFor,
    };
    use enlist::{BackoffPolicy, Ejection, Instance, InstanceId, Revision, balance::Ejections};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn subchannel() -> Subchannel {
        let endpoint = Endpoint::parse("127.0.0.1:1").unwrap();
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint.clone()]).unwrap();
        let subchannel =
            Subchannel::new(endpoint, Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))), 1);
        subchannel.condition.set(Condition::CONNECTED);
        subchannel
    }

    fn terms() -> Arc<SubchannelConfig> {
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
    async fn calls_that_fail_while_an_instance_rests_do_not_make_it_rest_again() {
        let (subchannel, terms) = (subchannel(), terms());
        let calls = async {
            for _ in 0..3 {
                subchannel.count(&terms, Code::Unavailable);
            }
            terms.changed.notified().await;
            assert_eq!(subchannel.state(), InstanceState::Ejected);
            // These were in flight.
            for _ in 0..10 {
                subchannel.count(&terms, Code::Unavailable);
            }
            terms.changed.notified().await;
            assert_eq!(subchannel.state(), InstanceState::Ready);
            tokio::time::sleep(SECOND * 10).await;
            assert_eq!(subchannel.state(), InstanceState::Ready);
        };
        tokio::select! {
            () = subchannel.rest(&terms) => panic!("it rests for ever"),
            () = calls => {}
        }
    }
}
