//! Connected clients of xDS, and counters. They are shown to operators.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use enlist::{Moment, backend::MutexExt as _};
use envoy_types::pb::envoy::config::core::v3::Node;

use super::{
    assignment::Omission,
    resource::ResourceType,
    stream::{Received, Rejection},
};
use crate::{
    connections::{InUse, Peer},
    limits::{Limit, LimitUse, LogThrottle},
};

/// Maximum bytes of a text of a client that are kept.
pub(super) const MAX_TEXT_BYTES: usize = 256;

/// A client that has an open stream.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct XdsClient {
    /// Id of the node in the client's configuration. Like all texts here it is foreign: show it
    /// [escaped](enlist::escape).
    pub node: String,
    /// Name of the client's library, such as `gRPC C-core linux Python`.
    pub user_agent: String,
    /// Zone of the node; empty if it has none.
    pub zone: String,
    /// Address of the client.
    pub peer: Option<SocketAddr>,
    /// Time at which the stream was opened.
    pub since: Moment,
    /// Time at which the client sent something last, if only the answer to a ping. The agent pings a client that has
    /// been silent for 10 s, and ends its connection 5 s later.
    pub heard: Moment,
    /// Requested names of the assignments that it subscribes to.
    pub services: Vec<String>,
    /// Number of responses that it has rejected.
    pub rejected: u64,
    /// The latest rejection.
    pub last_rejection: Option<XdsRejection>,
}

/// Rejection of a response by a client (NACK).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct XdsRejection {
    /// Type of the rejected resources.
    pub kind: ResourceType,
    /// The client's reason, at most its last kilobyte.
    pub message: String,
    /// Time at which it arrived.
    pub at: Moment,
}

/// Numbers of the xDS server since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct XdsTotals {
    /// Streams that were opened.
    pub opened: u64,
    /// Streams that were refused, because there were as many as permitted.
    pub refused: u64,
    /// Connections that were closed at once, because there were as many as permitted.
    pub refused_connections: u64,
    /// Requests of which names wait, because the stream subscribes to as many as permitted.
    pub too_many_names: u64,
    /// Names that had to wait, because the agent follows as many services as permitted.
    pub too_many_services: u64,
    /// Responses that were sent, by type.
    pub responses: BTreeMap<ResourceType, u64>,
    /// Responses that clients rejected, by type.
    pub rejections: BTreeMap<ResourceType, u64>,
    /// Instances that current assignments do not contain, by reason.
    pub omitted: BTreeMap<Omission, usize>,
    /// Current assignments that are too large to be sent.
    pub not_sent: usize,
}

/// All connected clients.
#[derive(Debug)]
pub(super) struct Clients {
    limit: Arc<Limit>,
    last: AtomicU64,
    opened: AtomicU64,
    connected: Mutex<BTreeMap<u64, ClientEntry>>,
    sent: ByType,
    rejected: ByType,
    rejections_log: LogThrottle,
}

/// A connected client, and the other end of its connection, if that is known.
#[derive(Clone, Debug)]
pub(crate) struct ClientEntry {
    client: Arc<Mutex<XdsClient>>,
    peer: Option<Peer>,
}

impl ClientEntry {
    /// Returns the present description.
    pub(crate) fn description(&self) -> XdsClient {
        let client = self.client.locked().clone();
        XdsClient { heard: self.peer.as_ref().map_or(client.since, Peer::heard), ..client }
    }
}

/// A counter per type.
#[derive(Debug, Default)]
struct ByType([AtomicU64; ResourceType::ALL.len()]);

impl ByType {
    fn count(&self, kind: ResourceType) {
        for (one, counter) in ResourceType::ALL.into_iter().zip(&self.0) {
            if one == kind {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn read(&self) -> BTreeMap<ResourceType, u64> {
        ResourceType::ALL.into_iter().zip(&self.0).map(|(kind, count)| (kind, count.load(Ordering::Relaxed))).collect()
    }
}

impl Clients {
    /// Creates the list of at most `max` clients.
    pub(super) fn new(max: usize) -> Self {
        Self {
            limit: Limit::new("xds_streams", max),
            last: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            connected: Mutex::default(),
            sent: ByType::default(),
            rejected: ByType::default(),
            rejections_log: LogThrottle::default(),
        }
    }

    /// Adds a client; `None` if there are as many as permitted.
    pub(super) fn enter(self: &Arc<Self>, peer: Option<Peer>) -> Option<Connected> {
        let now = Moment::now();
        let client = Arc::new(Mutex::new(XdsClient {
            node: String::new(),
            user_agent: String::new(),
            zone: String::new(),
            peer: peer.as_ref().and_then(Peer::address),
            since: now,
            heard: now,
            services: Vec::new(),
            rejected: 0,
            last_rejection: None,
        }));
        let mut connected = self.connected.locked();
        if connected.len() >= self.limit.max() {
            // The client that is refused finds a slot at its next attempt.
            let mut peers = connected.values().filter_map(|entry| entry.peer.as_ref());
            let _ = peers.any(Peer::close_unused);
            drop(connected);
            self.limit.refuse();
            return None;
        }
        if let Some(peer) = &peer {
            peer.begin();
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        connected.insert(number, ClientEntry { client: Arc::clone(&client), peer: peer.clone() });
        drop(connected);
        Some(Connected { number, client, peer, in_use: OnceLock::new(), clients: Arc::clone(self) })
    }

    /// Returns the connected clients, in the order in which they came.
    pub(super) fn list(&self) -> Vec<ClientEntry> {
        self.connected.locked().values().cloned().collect()
    }

    /// Returns the counters.
    pub(super) fn totals(&self) -> XdsTotals {
        XdsTotals {
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.limit.refused(),
            responses: self.sent.read(),
            rejections: self.rejected.read(),
            ..XdsTotals::default()
        }
    }

    /// Returns the use of the limit of streams.
    pub(super) fn usage(&self) -> LimitUse {
        self.limit.usage(Some(self.connected.locked().len()))
    }
}

/// A connected client. Dropping it removes the client from the list.
pub(super) struct Connected {
    number: u64,
    client: Arc<Mutex<XdsClient>>,
    peer: Option<Peer>,
    /// Set by the first subscription.
    in_use: OnceLock<Option<InUse>>,
    clients: Arc<Clients>,
}

impl Connected {
    /// Records the description of the client, which is in its first request.
    pub(super) fn describe(&self, node: &Node) {
        let mut client = self.client.locked();
        client.node = head(&node.id);
        client.user_agent = head(&node.user_agent_name);
        client.zone = head(node.locality.as_ref().map_or("", |locality| &locality.zone));
    }

    /// Records the result of a request. `services`: names of the assignments that the client now subscribes to.
    pub(super) fn record<'a>(&self, received: &Received, services: impl Iterator<Item = &'a str>) {
        if matches!(received, Received::Subscribed) {
            self.in_use.get_or_init(|| self.peer.as_ref().map(Peer::in_use));
        }
        let mut client = self.client.locked();
        match received {
            Received::Subscribed => client.services = services.map(str::to_owned).collect(),
            Received::Rejected(Rejection { kind, message }) => {
                self.clients.rejected.count(*kind);
                client.rejected += 1;
                let (kind, message, at) = (*kind, message.clone(), Moment::now());
                if self.clients.rejections_log.is_due() {
                    tracing::warn!(
                        node = %enlist::escape::escaped(&client.node),
                        kind = kind.url(),
                        rejected = self.clients.rejected.read().values().sum::<u64>(),
                        reason = %enlist::escape::escaped(&message),
                        "response rejected"
                    );
                }
                client.last_rejection = Some(XdsRejection { kind, message, at });
                client.services = services.map(str::to_owned).collect();
            }
            Received::Accepted | Received::Crossed | Received::UnknownType => {}
        }
    }

    /// Ends the connection of the client.
    pub(super) fn disconnect(&self) {
        if let Some(peer) = &self.peer {
            peer.disconnect();
        }
    }

    /// Counts a response.
    pub(super) fn count(&self, kind: ResourceType) {
        self.clients.sent.count(kind);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.clients.connected.locked().remove(&self.number);
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.locked().fmt(f)
    }
}

/// Returns the beginning of a text.
fn head(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{limits::LOG_INTERVAL, logged::Logged};

    #[test]
    fn clients_are_limited() {
        let clients = Arc::new(Clients::new(1));
        let one = clients.enter(None).unwrap();
        assert!(clients.enter(None).is_none());
        one.describe(&Node { id: "é".repeat(200), ..Node::default() });
        assert_eq!(clients.list()[0].description().node, "é".repeat(128));
        drop(one);
        assert!(clients.list().is_empty() && clients.enter(None).is_some());
        let totals = clients.totals();
        assert_eq!((totals.opened, totals.refused), (2, 1));
    }

    #[test]
    fn a_subscription_uses_the_connection() {
        let (clients, peer) = (Arc::new(Clients::new(1)), Peer::new(None));
        let one = clients.enter(Some(peer.clone())).unwrap();
        assert_eq!(peer.users(), 0);
        for _ in 0..2 {
            one.record(&Received::Subscribed, std::iter::empty());
        }
        assert_eq!(peer.users(), 1);
        drop(one);
        assert_eq!(peer.users(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_subscription_gives_way() {
        let (clients, [used, unused]) = (Arc::new(Clients::new(2)), [Peer::new(None), Peer::new(None)]);
        let (one, other) = (clients.enter(Some(used.clone())).unwrap(), clients.enter(Some(unused.clone())).unwrap());
        one.record(&Received::Subscribed, std::iter::empty());
        assert!(clients.enter(None).is_none() && !unused.is_closing(), "it is new");
        drop(other);
        tokio::time::advance(Duration::from_secs(11)).await;
        let _other = clients.enter(Some(unused.clone())).unwrap();
        assert!(clients.enter(None).is_none() && !unused.is_closing(), "its stream is new");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(clients.enter(None).is_none());
        assert!(unused.is_closing() && !used.is_closing());
    }

    #[test]
    fn rejections_are_counted() {
        let clients = Arc::new(Clients::new(1));
        let one = clients.enter(None).unwrap();
        one.record(&Received::Subscribed, ["a", "b"].into_iter());
        for message in ["first", "second"] {
            let rejection = Rejection { kind: ResourceType::Assignment, message: message.to_owned() };
            one.record(&Received::Rejected(rejection), ["a"].into_iter());
        }
        one.record(&Received::Accepted, std::iter::empty());
        let [client] = &clients.list()[..] else { panic!("one client") };
        let client = client.description();
        assert_eq!((client.rejected, client.services.as_slice()), (2, &["a".to_owned()][..]));
        assert_eq!(client.last_rejection.as_ref().unwrap().message, "second");
        assert_eq!(clients.totals().rejections[&ResourceType::Assignment], 2);
        assert_eq!(clients.totals().responses[&ResourceType::Assignment], 0);
    }

    #[tokio::test(start_paused = true)]
    async fn rejections_are_logged_once_a_minute() {
        let logged = Logged::of("enlist_agent::xds::clients");
        let _guard = tracing::subscriber::set_default(logged.clone());
        let one = Arc::new(Clients::new(1)).enter(None).unwrap();
        let reject = || {
            let rejection = Rejection { kind: ResourceType::Assignment, message: "bad".to_owned() };
            one.record(&Received::Rejected(rejection), std::iter::empty());
        };
        (0..3).for_each(|_| reject());
        tokio::time::advance(LOG_INTERVAL).await;
        reject();
        let expected = ["1", "4"].map(|count| ("response rejected".to_owned(), count.to_owned()));
        assert_eq!(logged.messages("rejected"), expected);
    }
}
