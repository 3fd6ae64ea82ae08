//! Options of a client. `connect.rs` checks them and makes the client; `tls.rs` has those of TLS.

mod connect;
mod tls;

use std::{env, sync::Arc, time::Duration};

use enlist::{DEFAULT_AUDIT, Error, backend::LONGEST};
use secrecy::SecretString;
use tonic::{
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{BoxError, Layer, Service};

use crate::{
    client::{
        connection::{
            dial_settings::DialSettings,
            endpoint_url::{Tls, endpoint_url},
            layers::{Layers, Requests},
            request_channel::Credentials,
            tls::TlsFiles,
        },
        requests::limits::RangeLimits,
    },
    etcd::Etcd,
    layout::{
        Layout, LockLayout,
        config::ConfigLayout,
        named::{LayoutOptions, NATIVE, NamedLayout, NamedLockLayout},
    },
    session::lifecycle::SessionRuntime,
};

/// Default maximum duration of a dial.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Default maximum duration of a request.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Default time without traffic after which a connection is pinged.
pub const DEFAULT_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Default time after which an unanswered ping ends its connection.
pub const DEFAULT_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Default time between probes while there are views.
pub const DEFAULT_PROBE: Duration = Duration::from_secs(5);

impl Etcd {
    /// Connects to one endpoint, such as `127.0.0.1:2379`, with defaults for all else.
    ///
    /// # Errors
    ///
    /// As [`EtcdBuilder::connect`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Self, Error> {
        Self::builder([endpoint]).connect().await
    }

    /// Creates options for a client of these endpoints, the members of one cluster. Each is `host[:port]` or a URL, see
    /// [`endpoint_url`].
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdBuilder {
        EtcdBuilder::new(endpoints.into_iter().map(Into::into).collect())
    }

    /// Creates options from the environment: `ENLIST_ENDPOINTS` (comma-separated, see [`endpoint_url`], default
    /// `http://127.0.0.1:2379`), `ENLIST_PREFIX`, `ENLIST_USER` with `ENLIST_PASSWORD_FILE` or `ENLIST_PASSWORD`,
    /// `ENLIST_CACERT`, and `ENLIST_CERT` with `ENLIST_KEY`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if only one of a pair is set, the password file cannot be read, or a variable needs TLS
    /// and this build has none.
    pub fn from_env() -> Result<EtcdBuilder, Error> {
        EtcdBuilder::from_variables(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Creates options for a client over a channel that the caller made. The channel has to maintain its own
    /// connection: it is not dialled again.
    pub fn from_channel(channel: Channel) -> EtcdBuilder {
        let mut builder = EtcdBuilder::new(Vec::new());
        builder.channel = Some(channel);
        builder
    }
}

/// Options of a client.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `connect` or `build`"]
pub struct EtcdBuilder {
    endpoints: Vec<String>,
    channel: Option<Channel>,
    credentials: Option<Credentials>,
    tls: Option<TlsFiles>,
    settings: Option<DialSettings>,
    layers: Layers,
    prefix: Option<String>,
    layout: Option<Arc<dyn Layout>>,
    lock_layout: Option<Arc<dyn LockLayout>>,
    config_layout: Option<ConfigLayout>,
    connect_timeout: Duration,
    request_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
    member_sync: Option<Duration>,
    audit: Option<Duration>,
    probe: Option<Duration>,
    serializable_first_list: Option<Duration>,
    limits: RangeLimits,
    runtime: SessionRuntime,
}

impl EtcdBuilder {
    fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            channel: None,
            credentials: None,
            tls: None,
            settings: None,
            layers: Layers::default(),
            prefix: None,
            layout: None,
            lock_layout: None,
            config_layout: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            keep_alive_interval: DEFAULT_KEEP_ALIVE_INTERVAL,
            keep_alive_timeout: DEFAULT_KEEP_ALIVE_TIMEOUT,
            member_sync: None,
            audit: Some(DEFAULT_AUDIT),
            probe: Some(DEFAULT_PROBE),
            serializable_first_list: None,
            limits: RangeLimits::default(),
            runtime: SessionRuntime::default(),
        }
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let endpoints = get("ENLIST_ENDPOINTS").unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
        let mut builder = Self::new(endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect());
        let pair = |field, reason: &str| Err(Error::invalid_config(field, reason));
        let password = match get("ENLIST_PASSWORD_FILE") {
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
                Err(error) => return pair("ENLIST_PASSWORD_FILE", &format!("{path}: {error}")),
            },
            None => get("ENLIST_PASSWORD"),
        };
        match (get("ENLIST_USER"), password) {
            (Some(user), Some(password)) => builder = builder.user(user, password),
            (None, None) => {}
            _ => return pair("ENLIST_USER", "it and a password belong together"),
        }
        builder = builder.with_tls_variables(&get)?;
        if let Some(prefix) = get("ENLIST_PREFIX") {
            builder = builder.prefix(prefix);
        }
        Ok(builder)
    }

    /// Authenticates as `user`. Tokens are renewed when they expire.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<SecretString>) -> Self {
        self.credentials = Some(Credentials { user: user.into(), password: password.into() });
        self
    }

    /// Puts all keys of the native layouts under this prefix. Default: `enlist`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Uses another layout for instances. Default: [`Native`](crate::Native). A panic of the layout fails the call, the
    /// registration or the watch that needs it, and nothing else. A value whose reading panics counts as no instance.
    pub fn layout(mut self, layout: impl Layout) -> Self {
        self.layout = Some(Arc::new(layout));
        self
    }

    /// Uses another layout for locks and elections. Default: [`Native`](crate::Native). A panic of the layout fails the
    /// acquisition that needs it, and nothing else. A key whose reading panics counts as a queue entry.
    pub fn lock_layout(mut self, layout: impl LockLayout) -> Self {
        self.lock_layout = Some(Arc::new(layout));
        self
    }

    /// Uses a layout from [`LAYOUTS`](crate::layout::LAYOUTS) for instances. A prefix of the native layout is also that
    /// of locks, as that of [`prefix`](Self::prefix).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] or [`Error::InvalidName`] if the layout does not accept the options. The prefix of the
    /// native layout is checked by [`build`](Self::build).
    pub fn named_layout(mut self, layout: &NamedLayout, options: &LayoutOptions) -> Result<Self, Error> {
        if layout.name() == NATIVE {
            self.layout = None;
            self.prefix = options.own_prefix().map(str::to_owned).or(self.prefix);
        } else {
            self.layout = Some(layout.build(options)?);
        }
        Ok(self)
    }

    /// Uses a layout from [`LOCK_LAYOUTS`](crate::layout::LOCK_LAYOUTS) for locks and elections.
    pub fn named_lock_layout(mut self, layout: &NamedLockLayout) -> Self {
        self.lock_layout = layout.build();
        self
    }

    /// Uses another layout for configuration. Default: native keys under [`prefix`](Self::prefix).
    pub fn config_layout(mut self, layout: ConfigLayout) -> Self {
        self.config_layout = Some(layout);
        self
    }

    /// Sets the maximum duration of a dial. Default: 3 s.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets the maximum duration of a request, including the dial. Default: 5 s. Renewals have their own, shorter
    /// deadlines.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// Sets the time without traffic after which a connection is pinged, also while no request and no watch uses it. It
    /// corresponds to `DialKeepAliveTime` in Go's client. Default: 10 s. The minimum is 6 s, because etcd closes
    /// connections that are pinged more often than every 5 s. Without effect on a channel that the caller made.
    pub fn keep_alive_interval(mut self, interval: Duration) -> Self {
        self.keep_alive_interval = interval;
        self
    }

    /// Sets the time after which an unanswered ping ends its connection. It corresponds to `DialKeepAliveTimeout` in
    /// Go's client. Default: 5 s. Without effect on a channel that the caller made.
    pub fn keep_alive_timeout(mut self, limit: Duration) -> Self {
        self.keep_alive_timeout = limit;
        self
    }

    /// Changes tonic's settings of each dial: a user agent, windows, TLS material that is not in a file (for `https`
    /// endpoints). `change` is called for every new connection, with the settings for its endpoint after TLS and pings
    /// were applied; [`Endpoint::uri`] identifies the endpoint. A [`local_address`](Endpoint::local_address) has no
    /// effect, since tonic has no accessor for it. An error, a panic, and settings without TLS for an `https` endpoint
    /// count as a failed dial, and the next endpoint is tried. `change` must not block: it runs on the session's
    /// runtime. [`connect_timeout`](Self::connect_timeout) bounds the dial, whatever the settings contain. Default:
    /// none. Without effect on a channel that the caller made.
    pub fn settings(mut self, change: impl Fn(Endpoint) -> Result<Endpoint, BoxError> + Send + Sync + 'static) -> Self {
        self.settings = Some(DialSettings::new(change));
        self
    }

    /// Wraps the requests of the client in a tower layer: an interceptor ([`tonic::service::InterceptorLayer`]),
    /// metrics, logs. The layer receives each request to etcd, including watch streams and renewals, once for each time
    /// that it is sent, whichever connection it uses. Dials are inside of it. A later layer wraps the earlier ones.
    ///
    /// The layer is applied when the client is created, once for each of its two connections, and cloned for each
    /// request. It must keep the extensions of a request, and must not block. A request that it fails counts as
    /// possibly applied, unless its error is a [`Status`](tonic::Status) that excludes that. A panic, also in the body
    /// of the answer, fails that request and nothing else (not with `panic = "abort"`). A layer that delays renewals,
    /// which have deadlines of about a second, can cause the loss of leases.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), enlist::Error> {
    /// let stamp = |mut request: tonic::Request<()>| {
    ///     request.metadata_mut().insert("x-tenant", tonic::metadata::MetadataValue::from_static("blue"));
    ///     Ok(request)
    /// };
    /// let layer = tonic::service::InterceptorLayer::new(stamp);
    /// let etcd = enlist_etcd::Etcd::builder(["etcd-1", "etcd-2"]).layer(layer).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn layer<L, B>(mut self, layer: L) -> Self
    where
        L: Layer<Requests> + Send + Sync + 'static,
        L::Service: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<http::Request<Body>>>::Error: Into<BoxError>,
        <L::Service as Service<http::Request<Body>>>::Future: Send + 'static,
        B: http_body::Body<Data = <Body as http_body::Body>::Data, Error: Into<BoxError>> + Send + 'static,
    {
        self.layers.add(layer);
        self
    }

    /// Sets the interval at which the client requests the members of the cluster. From then on it dials the client URLs
    /// that they advertise, and the endpoints after them, so it also finds members that were added later. It
    /// corresponds to `AutoSyncInterval` in Go's client. A connection is kept while it works. URLs with another scheme
    /// than the endpoints, unspecified addresses, and loopback addresses unless an endpoint is one, are left out.
    /// Default: `None`, never, because advertised URLs are often unreachable. With etcd's auth any user may list the
    /// members (tried with 3.4.23, 3.5.33, 3.6.16 and 3.7.3). If the list is refused, by a proxy for example, the
    /// endpoints stay as they are. Names in endpoints are resolved again at every dial in any case. Without effect on a
    /// channel that the caller made.
    pub fn member_sync(mut self, interval: Option<Duration>) -> Self {
        self.member_sync = interval.map(|interval| interval.min(LONGEST));
        self
    }

    /// Sets the interval in which each key of a watched range is compared with etcd, in case a watch lost an event. A
    /// range of at most a thousand keys takes one request in that time, at a random moment of its second half. A larger
    /// one takes one request for each thousand keys, spread over the interval. The responses contain keys without
    /// values: about 100 bytes for each instance, though etcd reads the values from its disk or cache. Default: 5
    /// minutes; `None` is never.
    pub fn audit(mut self, audit: Option<Duration>) -> Self {
        self.audit = audit.map(|audit| audit.min(LONGEST));
        self
    }

    /// Sets the interval of the session's probes: reads of one key that return the store's revision, sent while there
    /// are watchers of services or elections. They keep the age of a healthy view ([`enlist::Freshness::age`]) below
    /// twice the interval. In etcd before 3.4.25 and 3.5.8 a watch without events cannot prove that it has reached that
    /// revision while other keys are written. Such a watch relies on audits, and its age stays below twice their
    /// interval. Default: 5 s; `None` is never.
    pub fn probe(mut self, probe: Option<Duration>) -> Self {
        self.probe = probe;
        self
    }

    /// Permits a watch to begin with the state of one member of etcd, if no linearizable list was answered within
    /// `after`, or if it failed because etcd has no quorum. Instances are then still found through a member that is cut
    /// off from the others. Default: `None`, which waits for the quorum, because the state of one member may be
    /// outdated by any time.
    ///
    /// Such a snapshot is [`Freshness::Stale`](enlist::Freshness::Stale) with the largest possible age, so a view with
    /// a [`max_age`](enlist::DirectoryOptions::max_age) shows it and does not pick from it. It is delivered once for
    /// each watch, and stays until the linearizable list succeeds, which the watch keeps trying; then its reader gets
    /// the difference. `resolve`, registrations and locks always need the quorum. So does [`connect`](Self::connect):
    /// use [`build`](Self::build). So does a [`user`](Self::user)'s first token: without a token there is no such
    /// snapshot.
    pub fn serializable_first_list(mut self, after: Option<Duration>) -> Self {
        self.serializable_first_list = after.map(|after| after.min(LONGEST));
        self
    }

    /// Sets the maximum number of keys of a range that is watched or listed: that of a service, of a namespace, of an
    /// election.
    ///
    /// A larger range is not read: [`Error::RangeTooLarge`]. A range that exceeds the limit while it is watched keeps
    /// its last known state, which is stale because of that error, and is listed again once a minute. Its readers get
    /// the difference once it is small enough. Default: [`DEFAULT_MAX_RANGE_KEYS`](crate::DEFAULT_MAX_RANGE_KEYS);
    /// `None` is without a limit.
    pub fn max_range_keys(mut self, keys: Option<usize>) -> Self {
        self.limits.keys = keys;
        self
    }

    /// Sets the maximum bytes of a range that is watched or listed, as [`max_range_keys`](Self::max_range_keys) does
    /// for keys. Keys and values count. While a range is listed again, two copies of it exist. Default:
    /// [`DEFAULT_MAX_RANGE_BYTES`](crate::DEFAULT_MAX_RANGE_BYTES); `None` is without a limit.
    pub fn max_range_bytes(mut self, bytes: Option<usize>) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// Sets the runtime of the session. Default: on a thread of its own.
    pub fn runtime(mut self, runtime: SessionRuntime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Returns the URLs of the endpoints.
    pub(crate) fn urls(&self) -> Result<Vec<String>, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid_config("endpoints", "at least one is needed"));
        }
        let tls = if self.tls.is_some() { Tls::Configured } else { Tls::Absent };
        self.endpoints.iter().map(|endpoint| endpoint_url(endpoint, tls)).collect()
    }

    /// Returns the TLS files and the user.
    pub(crate) fn security(&self) -> (Option<TlsFiles>, Option<Credentials>) {
        (self.tls.clone(), self.credentials.clone())
    }

    /// Returns the maximum time of a request.
    pub(crate) fn limit(&self) -> Duration {
        self.request_timeout
    }
}
