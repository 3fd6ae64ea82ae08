//! The registry in which scenarios take place, with an agent over it and a layout of its keys.

use std::{net::SocketAddr, time::Duration};

use enlist_agent::{BearerToken, EnvoyListener, HttpOptions, XdsOptions};

/// Configuration of the agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) prefers_own_zone: bool,
    pub(crate) token: Option<&'static str>,
    /// `None` for the default.
    pub(crate) connect_timeout: Option<Duration>,
    /// Listeners of Envoy, and their services.
    pub(crate) envoy: Vec<(SocketAddr, &'static str)>,
}

impl Settings {
    /// Returns options for an agent at this address.
    pub(crate) fn xds_options(&self, address: SocketAddr) -> XdsOptions {
        let mut options = XdsOptions::new().address(address);
        for (address, service) in &self.envoy {
            options = options.envoy(EnvoyListener::new(address.to_string(), *address).route("/", *service));
        }
        if let Some(token) = self.token {
            options = options.token(BearerToken::new(token).unwrap());
        }
        if let Some(time) = self.connect_timeout {
            options = options.connect_timeout(time);
        }
        if self.prefers_own_zone { options.prefer_own_zone() } else { options }
    }

    /// Returns options for HTTP of an agent at this address.
    pub(crate) fn http_options(&self, address: SocketAddr) -> HttpOptions {
        let options = HttpOptions::new().address(address);
        match self.token {
            Some(token) => options.token(BearerToken::new(token).unwrap()),
            None => options,
        }
    }
}

/// A server to register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) service: &'a str,
    pub(crate) name: &'a str,
    pub(crate) port: u16,
    pub(crate) weight: Option<u32>,
    pub(crate) zone: Option<&'a str>,
    /// Time for which it is draining before it is removed, where the layout knows that.
    pub(crate) drain: Duration,
}

impl<'a> Offer<'a> {
    pub(crate) const DRAIN: Duration = Duration::from_millis(500);

    /// Creates an offer of the service `greeter`.
    pub(crate) fn new(name: &'a str, port: u16) -> Self {
        Self { service: "greeter", name, port, weight: None, zone: None, drain: Self::DRAIN }
    }
}

/// A failure of the store that lasts from [`World::begin`] to [`World::end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The store does not run.
    Down,
    /// The agent cannot reach the store, whose history is compacted meanwhile.
    Compacted,
    /// Everything in the store is lost, before it is reachable again.
    Wiped,
}

impl Failure {
    pub(crate) const ALL: [Self; 3] = [Self::Down, Self::Compacted, Self::Wiped];
}

/// A store, services in it, and an agent, whose addresses do not change.
pub(crate) trait World: Sized {
    /// The registration of a server, which ends with it.
    type Registration;

    /// Is `true` if an instance is draining before it is removed, so that clients no longer call it afterwards.
    const DRAINS: bool;

    /// Is `false` if a departure cannot be told from a crash.
    const ANNOUNCES_DEPARTURES: bool;

    /// Creates a store. The agent does not run yet.
    async fn new(settings: Settings) -> Self;

    fn settings(&self) -> &Settings;

    /// Returns the settings, for changes which take effect at the next start of the agent.
    fn settings_mut(&mut self) -> &mut Settings;

    /// Returns the address for xDS.
    fn xds(&self) -> SocketAddr;

    /// Returns the address for HTTP.
    fn http(&self) -> SocketAddr;

    /// Starts the agent, and returns once it is ready.
    async fn start_agent(&mut self);

    /// Stops the agent in order.
    async fn stop_agent(&mut self);

    /// Ends the agent without any further step of it.
    async fn kill_agent(&mut self);

    /// Returns once the instance is registered.
    async fn register(&self, offer: Offer<'_>) -> Self::Registration;

    /// Removes the instance, after a time of draining if the layout knows it.
    async fn deregister(&self, registration: Self::Registration);

    /// Separates the agent from the store.
    fn cut_agent(&self);

    fn heal_agent(&self);

    /// Separates the registrations from the store.
    fn cut_servers(&self);

    fn heal_servers(&self);

    async fn begin(&mut self, failure: Failure);

    async fn end(&mut self, failure: Failure);
}

/// A world whose service can have many instances.
pub(crate) trait Crowded: World {
    /// Writes instances without a lease, at addresses of no host (RFC 5737), into a zone if the layout has zones.
    async fn register_many(&self, zone: &str, number: u16);
}
