//! Options of a channel, and the construction of one from them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use enlist::{
    BackoffPolicy, Directory, Ejection, Error, Filter, Instance, Resolver, ServiceRef, ServiceView, TaskOwner,
    balance::Ejections,
};
use tokio::sync::Notify;
use tonic::{Code, transport::Endpoint as Settings};
use tower::retry::budget::TpsBudget;

use crate::{
    channel::{
        channel::Channel,
        inner::{ChannelInner, Intercept, Tracing, WaitForReady},
    },
    load_balancing::{
        balance::BalancePolicy,
        pool_task::{PoolTask, Rules},
    },
    retry::{
        failure::BoxError,
        policy::{Retries, RetryPolicy},
    },
    subchannel::{
        activity::Activity,
        call_queue::CallQueue,
        config::SubchannelConfig,
        connections::{
            connection_options::ConnectionOptions, dial_limit::DialLimit, security::Credentials, settings::SettingsFor,
        },
    },
};

mod connections;
mod security;

/// Default time for which a call waits for a service that is not known yet, or for the first connection.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(5);

/// Default maximum duration of a dial.
pub(crate) const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Default number of bytes of a request that are kept so that it can be sent again: 64 KiB.
pub(crate) const DEFAULT_REPLAY_LIMIT: usize = 64 << 10;

/// Largest values that tower's budget accepts: retries per second without calls, and retries per call.
const MAX_RETRIES_PER_SECOND: u32 = i32::MAX.unsigned_abs() - 1;
const MAX_RETRY_SHARE: f32 = 1000.0;

/// Default maximum time for an instance that is no longer listed to finish its calls.
pub(crate) const DEFAULT_DRAIN: Duration = Duration::from_secs(600);

/// Default time for which a connection with calls in flight may be silent before a probe is sent.
pub(crate) const DEFAULT_SILENCE: Duration = Duration::from_secs(10);

impl Channel {
    /// A channel to the instances in `view`, with the defaults.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime.
    pub fn new(view: &ServiceView) -> Result<Self, Error> {
        Self::builder().build(view)
    }

    /// A channel to the instances of `service` that `resolver` finds, through a [`Directory`] of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime.
    pub fn resolve(resolver: Arc<dyn Resolver>, service: &ServiceRef) -> Result<Self, Error> {
        Self::new(&Directory::new(resolver).view(service))
    }

    /// Options for a channel.
    pub fn builder() -> ChannelBuilder {
        ChannelBuilder::default()
    }
}

/// Options of a channel.
#[derive(Clone)]
#[must_use]
pub struct ChannelBuilder {
    rules: Rules,
    pub(crate) settings: SettingsFor,
    dial_timeout: Duration,
    redial: BackoffPolicy,
    health: Option<String>,
    ejection: Option<Ejection>,
    ejection_codes: Vec<Code>,
    silence: Duration,
    pub(crate) connections: ConnectionOptions,
    policies: HashMap<String, RetryPolicy>,
    budget: (Duration, u32, f32),
    replay_limit: usize,
    wait_limit: Duration,
    wait_for_ready: WaitForReady,
    intercept: Option<Arc<dyn Intercept>>,
    tracing: Tracing,
}

impl Default for ChannelBuilder {
    fn default() -> Self {
        let redial = BackoffPolicy::new(Duration::from_millis(100), Duration::from_secs(10)).unwrap_or_default();
        Self {
            rules: Rules { balance: BalancePolicy::default(), filter: Filter::new(), zone: None, drain: DEFAULT_DRAIN },
            settings: SettingsFor::default(),
            dial_timeout: DEFAULT_DIAL_TIMEOUT,
            redial,
            health: None,
            ejection: Some(Ejection::new()),
            ejection_codes: vec![Code::Unavailable, Code::Internal, Code::DeadlineExceeded],
            silence: DEFAULT_SILENCE,
            connections: ConnectionOptions::default(),
            policies: HashMap::new(),
            budget: (Duration::from_secs(10), 10, 0.2),
            replay_limit: DEFAULT_REPLAY_LIMIT,
            wait_limit: DEFAULT_WAIT,
            wait_for_ready: WaitForReady(false),
            intercept: None,
            tracing: Tracing::default(),
        }
    }
}

impl fmt::Debug for ChannelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rules, health, ejection, policies, .. } = self;
        let mut shown = f.debug_struct("ChannelBuilder");
        shown.field("rules", rules).field("health", health).field("ejection", ejection).field("retries", policies);
        shown.finish_non_exhaustive()
    }
}

impl ChannelBuilder {
    /// Sets the policy by which an instance is chosen. Default: [`BalancePolicy::LeastLoaded`].
    pub fn balance(mut self, balance: BalancePolicy) -> Self {
        self.rules.balance = balance;
        self
    }

    /// Selects the instances that are used, and with [`Filter::subset`] their number. Default: all. Instances that
    /// drain, do not serve or have weight 0 are never used.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.rules.filter = filter;
        self
    }

    /// Prefers instances in this zone. As long as more than 71 % of its weight is ready, all calls stay there; below,
    /// they spill over to the others in proportion. The filter's subset is taken before zones are considered. Default:
    /// none.
    pub fn prefer_zone(mut self, zone: impl Into<String>) -> Self {
        self.rules.zone = Some(zone.into());
        self
    }

    /// Sets the maximum time for an instance that is no longer listed to finish its calls. Then they are aborted.
    /// Default: 10 min.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.rules.drain = drain;
        self
    }

    /// Changes tonic's settings for the connection to an instance: TLS, timeouts, keep-alive. `local_address` and the
    /// URL have no effect. Change the given settings instead of replacing them: new ones have no
    /// [`http2_keep_alive`](Self::http2_keep_alive). An error or a panic counts as a failed dial.
    ///
    /// Called for every dial. For an endpoint without TLS it is called up to twice more, first with settings for no
    /// endpoint, to find out if it configures TLS: `tls_config` then returns an error, so pass it on with `?` instead
    /// of unwrapping it. If the settings have TLS, an endpoint that states no protocol is connected to with TLS, and
    /// one that states a protocol without TLS is refused, even if the instance has another endpoint: use
    /// [`require_tls`](Self::require_tls), which chooses among the endpoints with TLS.
    pub fn settings(
        mut self,
        change: impl Fn(&Instance, Settings) -> Result<Settings, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.settings.change(change);
        self
    }

    /// Sets the maximum duration of a dial, up to the first frame of the server. Default: 3 s. A `connect_timeout` in
    /// the settings overrides it.
    pub fn dial_timeout(mut self, dial_timeout: Duration) -> Self {
        self.dial_timeout = dial_timeout;
        self
    }

    /// Sets the delays after dials that fail. Default: 100 ms growing to 10 s.
    pub fn redial(mut self, redial: BackoffPolicy) -> Self {
        self.redial = redial;
        self
    }

    /// Watches the health of `service` (empty: of the whole server) with the gRPC health checking protocol and uses
    /// only instances that report to serve. A server without a health service counts as serving. Default: health is not
    /// watched.
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health = Some(service.into());
        self
    }

    /// Sets the conditions for the ejection of an instance whose calls fail in a row; `None` for no ejection. Default:
    /// [`Ejection::new`].
    pub fn ejection(mut self, ejection: Option<Ejection>) -> Self {
        self.ejection = ejection;
        self
    }

    /// Sets the codes that count as failures of the instance that responded with them. Default: `UNAVAILABLE`,
    /// `INTERNAL` and `DEADLINE_EXCEEDED`.
    pub fn ejection_codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.ejection_codes = codes.into_iter().collect();
        self
    }

    /// Sets the time for which a connection with calls in flight may be silent before a probe is sent. The connection
    /// is given up if nothing is received within the [probe timeout](Self::probe_timeout). Default: 10 s. A call that
    /// ends without a response causes a probe at once.
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// Lets calls be repeated that ended with an error or may have been executed. `methods` is a path
    /// (`/package.Service/Method`), a service (`/package.Service/`) or empty for all; the most specific one applies.
    /// Default: none. Calls that provably never left the client are sent to another instance in any case.
    pub fn retry(mut self, methods: impl Into<String>, policy: RetryPolicy) -> Self {
        self.policies.insert(methods.into(), policy);
        self
    }

    /// Sets the maximum number of retries of all kinds: `share` of the calls of the last `window`, but at least
    /// `per_second`. Default: 20 % of 10 s, at least 10 per second. The window is from 1 to 60 s, the share from 0 to
    /// 1,000 (0 if it is no number); other values count as the closest one.
    pub fn retry_budget(mut self, window: Duration, per_second: u32, share: f32) -> Self {
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, MAX_RETRY_SHARE) };
        self.budget = (window.clamp(shortest, longest), per_second.min(MAX_RETRIES_PER_SECOND), share);
        self
    }

    /// Sets the number of bytes of a request that are kept so that it can be sent again. Default: 64 KiB.
    pub fn replay_limit(mut self, replay_limit: usize) -> Self {
        self.replay_limit = replay_limit;
        self
    }

    /// Sets the maximum time for which a call waits for a service that is not known yet, or for a connection that is
    /// being made. The call's own deadline applies if it is sooner. Default: 5 s.
    pub fn wait_limit(mut self, wait_limit: Duration) -> Self {
        self.wait_limit = wait_limit;
        self
    }

    /// Lets calls wait, within the same bound, also if no instance can be connected to or none is listed.
    /// [`WaitForReady`] of a call overrides it. Default: such calls fail at once.
    pub fn wait_for_ready(mut self) -> Self {
        self.wait_for_ready = WaitForReady(true);
        self
    }

    /// Makes each call a span and adds the W3C trace context to it: see [`trace`](crate::trace). Default: neither. The
    /// channels of a [`ConnectionManager`](crate::ConnectionManager) are traced unless the manager has options of its
    /// own. A traced call without a payload takes an eighth more instructions, even if no subscriber records the span
    /// (docs/grpc.md has the measurement).
    pub fn traced(mut self) -> Self {
        self.tracing = Tracing::On;
        self
    }

    /// Sets the interceptor that runs before each call. Since it may add credentials, plaintext endpoints are not used
    /// then, unless that is [allowed](Self::allow_plaintext). Default: none.
    pub fn intercept(mut self, intercept: Arc<dyn Intercept>) -> Self {
        self.intercept = Some(intercept);
        self
    }

    /// The channel to the instances in `view`. Connections are made in the background.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime, [`Error::InvalidConfig`] for an invalid [authority](Self::authority).
    pub fn build(mut self, view: &ServiceView) -> Result<Channel, Error> {
        let credentials = if self.intercept.is_some() { Credentials::Possible } else { Credentials::None };
        self.settings.security = self.settings.security.checked(credentials)?;
        let (config, queue_limit) = (self.config(), self.connections.queue_limit);
        let (rules, balance, filter) = (self.rules.clone(), self.rules.balance, self.rules.filter);
        let task = PoolTask::new(view, rules, Arc::clone(&config));
        let (picker_cell, tasks) = (task.picker_cell(), TaskOwner::new());
        let stop = tasks.stop_signal();
        tasks.spawn("channel", task.run(stop))?;
        let (window, per_second, share) = self.budget;
        let inner = ChannelInner {
            view: view.clone(),
            picker_cell,
            config,
            balance,
            filter,
            turn: AtomicUsize::new(fastrand::usize(..)),
            retries: Retries::new(self.policies, TpsBudget::new(window, per_second, share)),
            replay_limit: self.replay_limit,
            wait_limit: self.wait_limit,
            queue_limit,
            wait_for_ready: self.wait_for_ready,
            intercept: self.intercept,
            tracing: self.tracing,
            tasks,
        };
        Ok(Channel { inner: Arc::new(inner) })
    }

    /// Settings of the subchannels of a new channel.
    pub(crate) fn config(&self) -> Arc<SubchannelConfig> {
        Arc::new(SubchannelConfig {
            settings: self.settings.clone(),
            dial_timeout: self.dial_timeout,
            redial: self.redial,
            health: self.health.clone(),
            ejection: self.ejection.clone(),
            ejection_codes: self.ejection_codes.clone(),
            ejections: Ejections::default(),
            silence: self.silence,
            dials: DialLimit::new(self.connections.concurrent_dials),
            connections: self.connections.clone(),
            changed: Notify::new(),
            connected: Notify::new(),
            activity: Activity::default(),
            queue: CallQueue::default(),
        })
    }
}
