//! The task of a subchannel: it dials, observes connections until their last call has ended, and opens further
//! connections to an instance whose streams are all taken.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{Moment, backend::rounded, escape::escaped};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use crate::{
    retry::failure::BoxError,
    subchannel::{
        activity::Usage,
        config::SubchannelConfig,
        connections::{connection::Connection, dial_limit::DialTurn},
        connectivity::{Event, Health},
        liveness::{
            health,
            local_check::{Acceptance, takes_calls},
            probe::{ProbeOutcome, probe},
        },
        subchannel::Subchannel,
    },
};

/// Minimum life of a connection after which the next dial comes at once.
const MIN_LIFE: Duration = Duration::from_secs(1);

/// Time for which an unused further connection is kept.
const FURTHER_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Delay after a failed dial of a further connection.
const FURTHER_DIAL_DELAY: Duration = Duration::from_secs(1);

/// Interval of checks of an idle connection over TLS, where a GOAWAY is not visible.
const GOAWAY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A new connection, and its health stream if there is one.
type Dialled = (Arc<Connection>, Option<health::Watch>);

/// A dial that failed.
#[derive(Debug)]
struct DialFailure {
    error: BoxError,
    /// Nothing was received in time. Any other failure was reported by the other side, or by its kernel.
    silent: bool,
}

impl DialFailure {
    /// The innermost cause.
    fn text(&self) -> String {
        let chain = std::iter::successors(self.error.source(), |error| error.source());
        chain.last().map_or_else(|| self.error.to_string(), ToString::to_string)
    }
}

impl Subchannel {
    /// Keeps connections, without end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the connections. A panic in the user's settings or connector fails one dial.
    pub(crate) async fn keep(&self, config: &SubchannelConfig) {
        let _end = EndOnDrop(self);
        tokio::join!(
            self.stay_connected(config),
            self.grow(config),
            self.outlast(config),
            self.eject_on_failures(config)
        );
    }

    async fn stay_connected(&self, config: &SubchannelConfig) {
        let mut backoff = config.redial.start();
        loop {
            while self.is_draining() {
                self.dial_now.notified().await;
            }
            if !config.activity.is_active() {
                // The next call waits for a dial, as the first one does.
                self.apply(config, Event::Unused);
                config.activity.becomes(Usage::Active).await;
                self.apply(config, Event::Used);
            }
            match self.dial(config, config.health.as_deref()).await {
                Ok((connection, health)) => {
                    let connected = Moment::now();
                    self.attend(config, &connection, health).await;
                    if connected.elapsed() >= MIN_LIFE || !config.activity.is_active() {
                        backoff.reset();
                        continue;
                    }
                    // As `Connecting`, calls would wait for the whole delay.
                    let cause = connection.cause().unwrap_or("it took no more calls");
                    self.note_failure(
                        config,
                        format!("the connection ended after {}: {cause}", rounded(connected.elapsed())),
                    );
                }
                Err(failure) => {
                    let text = failure.text();
                    tracing::debug!(instance = %self, cause = %escaped(&text), "instance could not be connected to");
                    self.note_failure(config, text);
                }
            }
            // The next dial is due in either case.
            let _ = timeout(backoff.next_delay(), self.dial_now.notified()).await;
        }
    }

    /// Publishes that the next dial is delayed, and the cause.
    fn note_failure(&self, config: &SubchannelConfig, trouble: String) {
        self.apply(config, Event::DialFailed { cause: Arc::from(trouble) });
    }

    /// Makes a new connection and, if `health` names a service, opens its health stream.
    async fn dial(&self, config: &SubchannelConfig, health: Option<&str>) -> Result<Dialled, DialFailure> {
        let reported = |error| DialFailure { error, silent: false };
        let turn = if self.dial_failure().is_some() { DialTurn::AfterFailure } else { DialTurn::First };
        let _permit = config.dials.permit(turn).await;
        // After the wait: the description of the instance or a certificate may have changed.
        let entry = self.entry();
        let settings = config.settings.of(entry.instance(), &self.endpoint, &config.connections).map_err(reported)?;
        let limit = settings.get_connect_timeout().unwrap_or(config.dial_timeout);
        let connect = async {
            let opened = config.connections.open(entry.instance(), &self.endpoint, &settings);
            let connection = Arc::new(Connection::dial(opened, &settings).await?);
            let health = match health {
                Some(service) => {
                    let health = health::Watch::begin(connection.channel(), service).await;
                    if health.takes_a_stream() {
                        connection.occupy();
                    }
                    Some(health)
                }
                None => None,
            };
            Ok((connection, health))
        };
        match timeout(limit, connect).await {
            Ok(outcome) => outcome.map_err(reported),
            Err(_) => {
                Err(DialFailure { error: format!("no connection after {}", rounded(limit)).into(), silent: true })
            }
        }
    }

    /// Lets calls use the connection until it is gone.
    async fn attend(&self, config: &SubchannelConfig, connection: &Arc<Connection>, health: Option<health::Watch>) {
        let reported = health.as_ref().map_or(Health::Serving, health::Watch::reported);
        self.apply(config, Event::HealthReported(reported));
        self.failures.clear();
        self.admit(config, connection);
        tracing::debug!(instance = %self, "instance connected");
        let with_health = async {
            let Some(health) = health else { return pending().await };
            tokio::select! {
                () = health.follow(|reported| self.apply(config, Event::HealthReported(reported))) => {}
                () = self.hidden_goaway(config, connection) => {}
            }
        };
        tokio::select! {
            () = self.in_use(config, connection) => {}
            () = with_health => {}
        }
        self.demote(config, connection);
    }

    /// Returns once a connection has ended, takes no more calls, is not needed, or was given up.
    async fn in_use(&self, config: &SubchannelConfig, connection: &Arc<Connection>) {
        tokio::select! {
            () = connection.lost() => {}
            () = connection.spent() => {}
            () = config.activity.becomes(Usage::Idle) => {}
            () = self.listen(config, connection) => connection.cut(),
            () = self.follow_stream_limit(config, connection) => {}
        }
    }

    /// Wakes waiting calls whenever the server changes its limit of streams, and requests a further connection if the
    /// limit is too low. Never returns.
    async fn follow_stream_limit(&self, config: &SubchannelConfig, connection: &Connection) {
        loop {
            connection.restated().await;
            config.queue.wake_all();
            self.crowded.notify_one();
        }
    }

    /// Returns once an idle connection is found to take no more calls. Over TLS a GOAWAY is not visible, and the health
    /// stream would delay the stop of the server. Data received on an idle connection may have been a GOAWAY, so hyper
    /// is asked. Nothing is sent: a response would be received in turn, and could hide a GOAWAY beside it.
    async fn hidden_goaway(&self, config: &SubchannelConfig, connection: &Connection) {
        if !connection.is_opaque() {
            return pending().await;
        }
        let started = || self.started.load(Ordering::Relaxed);
        let (mut explained, mut before, mut begun) = (None, connection.reads(), started());
        loop {
            sleep(GOAWAY_CHECK_INTERVAL).await;
            // A call that was begun since would have failed.
            let idle = begun == started() && connection.calls() == 0;
            begun = started();
            if idle && explained != Some(connection.reads()) {
                match takes_calls(connection, config.connections.probe_timeout).await {
                    Acceptance::No => return,
                    // Later data may have been read and not yet been understood.
                    Acceptance::Yes => explained = Some(before),
                    Acceptance::Unknown => {}
                }
            }
            before = connection.reads();
        }
    }

    /// Returns once a probe was sent and nothing was received.
    async fn listen(&self, config: &SubchannelConfig, connection: &Arc<Connection>) {
        loop {
            tokio::select! {
                () = connection.doubted() => {}
                () = silent(connection, config.silence) => {}
            }
            match probe(connection, config.connections.probe_timeout).await {
                ProbeOutcome::Alive => {}
                ProbeOutcome::Unsent => tracing::debug!(instance = %self, "all streams taken, no probe could be sent"),
                // Its end is noticed, or calls report it.
                ProbeOutcome::Refused => connection.spend(),
                ProbeOutcome::Silent => {
                    tracing::warn!(instance = %self, "instance shows no sign of life, connection given up");
                    return;
                }
            }
            self.apply(config, Event::Probed);
        }
    }

    /// Opens further connections, one after the other, while all streams are taken.
    async fn grow(&self, config: &SubchannelConfig) {
        let (growing, mut further) = (AtomicBool::new(false), FuturesUnordered::new());
        loop {
            tokio::select! {
                () = self.crowded.notified() => {
                    let may = further.len() + 1 < config.connections.most && !self.is_draining();
                    let is_needed = may && self.is_connected() && self.connections.is_crowded();
                    if is_needed && !growing.swap(true, Ordering::Relaxed) {
                        further.push(self.further(config, &growing));
                    }
                }
                Some(()) = further.next() => {}
            }
        }
    }

    async fn further(&self, config: &SubchannelConfig, growing: &AtomicBool) {
        let dialled = self.dial(config, None).await;
        growing.store(false, Ordering::Relaxed);
        match dialled {
            Ok((connection, _)) => {
                tracing::debug!(instance = %self, "all streams taken, further connection made");
                self.admit(config, &connection);
                tokio::select! {
                    () = self.in_use(config, &connection) => {}
                    () = unused(&connection, FURTHER_IDLE_TIMEOUT) => {}
                }
                self.demote(config, &connection);
            }
            Err(failure) => {
                tracing::debug!(instance = %self, cause = failure.text(), "no further connection could be made");
                sleep(FURTHER_DIAL_DELAY).await;
            }
        }
        // In case a further connection is still needed.
        self.crowded.notify_one();
    }

    /// Observes connections that take no more calls, until their last calls have ended.
    async fn outlast(&self, config: &SubchannelConfig) {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                demoted = self.connections.demoted() => {
                    connections.extend(demoted.into_iter().map(|connection| self.outlast_one(config, connection)));
                }
                Some(()) = connections.next() => {}
            }
        }
    }

    async fn outlast_one(&self, config: &SubchannelConfig, connection: Arc<Connection>) {
        tokio::select! {
            () = connection.quiet() => {}
            () = connection.lost() => {}
            () = self.listen_anew(config, &connection) => connection.cut(),
        }
    }

    /// Returns once a connection is silent and its instance cannot be reached either. A connection that takes no more
    /// calls takes no probe, so a new connection is tried. A server that refuses it is alive, and may be leaving in
    /// order.
    async fn listen_anew(&self, config: &SubchannelConfig, connection: &Connection) {
        loop {
            silent(connection, config.silence).await;
            let reached = self.dial(config, None).await;
            if matches!(reached, Err(DialFailure { silent: true, .. })) {
                tracing::warn!(
                    instance = %self,
                    "instance shows no sign of life, connection without new calls given up"
                );
                return;
            }
        }
    }
}

/// Waits until nothing was received for `silence` while calls are in flight.
async fn silent(connection: &Connection, silence: Duration) {
    let mut heard = connection.reads();
    loop {
        sleep(silence).await;
        let reads = connection.reads();
        if reads == heard && connection.calls() > 0 {
            return;
        }
        heard = reads;
    }
}

/// Waits until a connection was not used for `limit`.
async fn unused(connection: &Connection, limit: Duration) {
    let mut heard = connection.reads();
    loop {
        connection.quiet().await;
        sleep(limit).await;
        let reads = connection.reads();
        if reads == heard && connection.calls() == 0 {
            return;
        }
        heard = reads;
    }
}

/// Ends a subchannel with its task, also if that panics.
struct EndOnDrop<'a>(&'a Subchannel);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
