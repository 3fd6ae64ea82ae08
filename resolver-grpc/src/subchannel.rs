//! One endpoint of a channel: a task dials it, asks it for signs of life, watches its health and lets it rest when it fails.
//! The [set](crate::set) owns the task; calls only read atomics.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use enlist::{
    BackoffPolicy, Ejection, Endpoint, Entry, Moment,
    balance::Candidate,
    ejection::{Ejections, Rests},
    escape::escaped,
};
use tokio::{sync::Notify, time::timeout};
use tonic::Code;

use crate::{
    connection::Connection,
    connection_options::ConnectionOptions,
    failure::BoxError,
    health,
    probe::{ProbeOutcome, probe},
    settings::SettingsFor,
};

/// How long a connection has to have lasted for the next dial to come at once.
const LASTED: Duration = Duration::from_secs(1);

/// What all subchannels of a channel go by.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) settings: SettingsFor,
    pub(crate) dial_timeout: Duration,
    pub(crate) redial: BackoffPolicy,
    /// The service whose health is watched, if it is.
    pub(crate) health: Option<String>,
    pub(crate) ejection: Option<Ejection>,
    /// The codes that speak against an instance that answered with them.
    pub(crate) ejection_codes: Vec<Code>,
    pub(crate) ejections: Ejections,
    pub(crate) silence: Duration,
    pub(crate) connections: ConnectionOptions,
    /// Told of every change of a condition.
    pub(crate) changed: Notify,
}

/// What is known of a subchannel, in bits, so that a call reads it with one load.
#[derive(Debug, Default)]
struct Condition(AtomicU8);

impl Condition {
    const CONNECTED: u8 = 1;
    /// The last dial failed.
    const FAILED: u8 = 2;
    /// A call got no answer, and nothing else was heard since.
    const SUSPECT: u8 = 4;
    const EJECTED: u8 = 8;
    /// Its health service says that it does not serve.
    const UNHEALTHY: u8 = 16;
    /// The resolver no longer lists it.
    const RETIRED: u8 = 32;

    fn set(&self, bits: u8) {
        self.0.fetch_or(bits, Ordering::AcqRel);
    }

    fn clear(&self, bits: u8) {
        self.0.fetch_and(!bits, Ordering::AcqRel);
    }

    fn has(&self, bits: u8) -> bool {
        self.bits() & bits != 0
    }

    fn bits(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// How an instance stands with a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceState {
    /// The first connection, or the next one after one that worked, is being made.
    Connecting,
    /// It takes calls.
    Ready,
    /// It cannot be connected to; the next try is due.
    Failing,
    /// It is connected and does not answer; it is being asked for a sign of life.
    Suspect,
    /// It failed several calls in a row and rests.
    Ejected,
    /// Its health service says that it does not serve.
    Unhealthy,
    /// It is no longer listed and finishes its calls.
    Leaving,
}

/// An endpoint, the connection to it, and what is known of both.
#[derive(Debug)]
pub(crate) struct Subchannel {
    endpoint: Endpoint,
    /// As it was described last.
    entry: ArcSwap<Entry>,
    condition: Condition,
    connection: ArcSwapOption<Connection>,
    trouble: ArcSwapOption<String>,
    in_flight: AtomicUsize,
    /// Failed calls in a row.
    failures: AtomicU32,
    started: AtomicU64,
    failed: AtomicU64,
    /// Dial now.
    wake: Notify,
    /// The connection takes no more calls.
    spent: Notify,
    /// See whether it lives.
    doubted: Notify,
    /// Enough calls failed in a row.
    enough: Notify,
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
        self.condition.bits() == Condition::CONNECTED
    }
}

impl Subchannel {
    pub(crate) fn new(endpoint: Endpoint, entry: Arc<Entry>) -> Self {
        Self {
            endpoint,
            entry: ArcSwap::new(entry),
            condition: Condition::default(),
            connection: ArcSwapOption::empty(),
            trouble: ArcSwapOption::empty(),
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            started: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            wake: Notify::new(),
            spent: Notify::new(),
            doubted: Notify::new(),
            enough: Notify::new(),
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
        if returned || self.entry.load().created() != entry.created() {
            self.wake.notify_one();
        }
        self.entry.store(entry);
    }

    /// Dials no more; the connection stays for the calls it has.
    pub(crate) fn retire(&self) {
        self.condition.set(Condition::RETIRED);
    }

    /// Breaks off what is left.
    pub(crate) fn cut(&self) {
        if let Some(connection) = self.connection.load_full() {
            connection.cut();
        }
    }

    /// Lets go of the connection, which closes once its calls have ended. Nobody dials any more.
    fn end(&self) {
        self.condition.clear(Condition::CONNECTED);
        self.condition.set(Condition::FAILED);
        self.connection.store(None);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How many calls were begun, and how many failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.started.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Why the last dial failed.
    pub(crate) fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    /// Says whether it is connected, whatever else is known of it.
    pub(crate) fn is_connected(&self) -> bool {
        self.condition.has(Condition::CONNECTED)
    }

    pub(crate) fn state(&self) -> InstanceState {
        let bits = self.condition.bits();
        let is = |bit| bits & bit != 0;
        match () {
            () if is(Condition::RETIRED) => InstanceState::Leaving,
            () if !is(Condition::CONNECTED) && is(Condition::FAILED) => InstanceState::Failing,
            () if !is(Condition::CONNECTED) => InstanceState::Connecting,
            () if is(Condition::EJECTED) => InstanceState::Ejected,
            () if is(Condition::UNHEALTHY) => InstanceState::Unhealthy,
            () if is(Condition::SUSPECT) => InstanceState::Suspect,
            () => InstanceState::Ready,
        }
    }

    /// Keeps a connection, for ever.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets go of the connection, as does a panic in the user's settings.
    pub(crate) async fn keep(&self, terms: &Terms) {
        let _end = End(self);
        tokio::join!(self.stay_connected(terms), self.rest(terms));
    }

    async fn stay_connected(&self, terms: &Terms) {
        let mut backoff = terms.redial.start();
        loop {
            while self.condition.has(Condition::RETIRED) {
                self.wake.notified().await;
            }
            match self.dial(terms).await {
                Ok((connection, health)) => {
                    let connected = Moment::now();
                    self.attend(terms, &connection, health).await;
                    self.demote(terms, &connection);
                    if connected.elapsed() >= LASTED {
                        backoff.reset();
                        continue;
                    }
                }
                Err(error) => {
                    let chain = std::iter::successors(error.source(), |error| error.source());
                    let text = chain.last().map_or_else(|| error.to_string(), ToString::to_string);
                    tracing::debug!(instance = %self, cause = text, "instance could not be connected to");
                    self.trouble.store(Some(Arc::new(text)));
                    self.condition.set(Condition::FAILED);
                    terms.changed.notify_one();
                }
            }
            // Whether it was woken or not, the next dial is due.
            let _ = timeout(backoff.next_delay(), self.wake.notified()).await;
        }
    }

    async fn dial(&self, terms: &Terms) -> Result<(Arc<Connection>, Option<health::Watch>), BoxError> {
        let settings = terms.settings.of(self.entry.load().instance(), &self.endpoint)?;
        let limit = settings.get_connect_timeout().unwrap_or(terms.dial_timeout);
        let connect = async {
            let connection = Arc::new(Connection::dial(&self.endpoint, &settings).await?);
            let health = match &terms.health {
                Some(service) => Some(health::Watch::begin(connection.channel(), service).await),
                None => None,
            };
            Ok((connection, health))
        };
        match timeout(limit, connect).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no connection after {limit:?}").into()),
        }
    }

    /// Lets calls use the connection until it is gone.
    async fn attend(&self, terms: &Terms, connection: &Arc<Connection>, health: Option<health::Watch>) {
        let serving = health.as_ref().is_none_or(health::Watch::serving);
        self.note_health(terms, serving);
        self.trouble.store(None);
        self.failures.store(0, Ordering::Relaxed);
        self.connection.store(Some(Arc::clone(connection)));
        self.condition.clear(Condition::FAILED | Condition::SUSPECT);
        self.condition.set(Condition::CONNECTED);
        terms.changed.notify_one();
        tracing::debug!(instance = %self, "instance connected");
        let follow_health = async {
            match health {
                Some(health) => health.follow(|serving| self.note_health(terms, serving)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = connection.lost() => {}
            () = self.spent(connection) => {}
            () = self.listen(terms, connection) => connection.cut(),
            () = follow_health => {}
        }
    }

    fn note_health(&self, terms: &Terms, serving: bool) {
        if serving {
            self.condition.clear(Condition::UNHEALTHY);
        } else {
            self.condition.set(Condition::UNHEALTHY);
        }
        terms.changed.notify_one();
    }

    /// Waits until calls have found that the connection takes none any more.
    async fn spent(&self, connection: &Arc<Connection>) {
        while self.uses(connection) {
            self.spent.notified().await;
        }
    }

    /// Says whether calls use this very connection.
    fn uses(&self, connection: &Arc<Connection>) -> bool {
        self.connection.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, connection))
    }

    /// Takes no more calls over this connection, which was found not to work.
    pub(crate) fn demote(&self, terms: &Terms, connection: &Arc<Connection>) {
        let demoted = self.connection.compare_and_swap(connection, None);
        if demoted.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            self.condition.clear(Condition::CONNECTED);
            self.spent.notify_one();
            terms.changed.notify_one();
            tracing::debug!(instance = %self, "connection no longer used");
        }
    }

    /// Returns once the other side shows no sign of life although it was asked for one.
    async fn listen(&self, terms: &Terms, connection: &Arc<Connection>) {
        loop {
            tokio::select! {
                () = self.doubted.notified() => {}
                () = self.silent(connection, terms.silence) => {}
            }
            match probe(connection, terms.connections.probe_timeout).await {
                ProbeOutcome::Alive => {}
                ProbeOutcome::Unsent => tracing::debug!(instance = %self, "all streams taken, no probe could be sent"),
                // Its end is noticed, or calls are told.
                ProbeOutcome::Refused => self.demote(terms, connection),
                ProbeOutcome::Silent => {
                    tracing::warn!(instance = %self, "instance shows no sign of life, connection given up");
                    return;
                }
            }
            self.condition.clear(Condition::SUSPECT);
            terms.changed.notify_one();
        }
    }

    /// Waits until nothing was heard for so long although calls are in flight.
    async fn silent(&self, connection: &Connection, silence: Duration) {
        let mut heard = connection.reads();
        loop {
            tokio::time::sleep(silence).await;
            let reads = connection.reads();
            if reads == heard && self.in_flight() > 0 {
                return;
            }
            heard = reads;
        }
    }

    /// Begins a call over the connection there is, if there is one.
    pub(crate) fn begin(&self) -> Option<Arc<Connection>> {
        let connection = self.connection.load_full()?;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        Some(connection)
    }

    /// Notes that a call that was begun is no longer in flight.
    pub(crate) fn end_of_call(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// A call ended without an answer, and nothing at all was heard meanwhile: lets the connection be asked for a sign of life.
    pub(crate) fn doubt(&self, terms: &Terms, connection: &Arc<Connection>) {
        if !connection.is_lost() && self.uses(connection) {
            self.condition.set(Condition::SUSPECT);
            self.doubted.notify_one();
            terms.changed.notify_one();
        }
    }

    /// Counts a call that ended.
    pub(crate) fn count(&self, terms: &Terms, code: Code) {
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
    async fn rest(&self, terms: &Terms) {
        let Some(ejection) = &terms.ejection else {
            return;
        };
        let mut rests = Rests::new(ejection);
        loop {
            self.enough.notified().await;
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
            tokio::time::sleep(time).await;
            self.failures.store(0, Ordering::Relaxed);
            self.condition.clear(Condition::EJECTED);
            terms.changed.notify_one();
            rests.end();
        }
    }
}

/// Ends a subchannel when its task does, however that comes.
struct End<'a>(&'a Subchannel);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::{Instance, InstanceId, Revision};

    const SECOND: Duration = Duration::from_secs(1);

    fn subchannel() -> Subchannel {
        let endpoint = Endpoint::parse("127.0.0.1:1").unwrap();
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint.clone()]).unwrap();
        let subchannel = Subchannel::new(endpoint, Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1))));
        subchannel.condition.set(Condition::CONNECTED);
        subchannel
    }

    fn terms() -> Arc<Terms> {
        let ejection = Ejection::new().failures(3).share(1.0).time(SECOND, SECOND).unwrap();
        let ejections = Ejections::default();
        ejections.of(2);
        Arc::new(Terms {
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
