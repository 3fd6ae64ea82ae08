//! Three members of one etcd, whose ways to each other can be cut.

use std::time::Duration;

use crate::{
    gateway,
    proxy::{Direction, Mode, Proxy},
    server::{EtcdServer, Peers, Provider, ServerOptions},
    wait::eventually,
};

/// How often a start is repeated with other ports.
const ATTEMPTS: usize = 3;

/// A cluster of three. Each member reaches the others through a proxy of its own.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<EtcdServer>,
    /// In front of each member's peer port.
    peers: Vec<Proxy>,
    /// The ids, as etcd writes them in requests between members.
    ids: Vec<String>,
    provider: Provider,
    initial: String,
    learner: Option<EtcdServer>,
}

impl EtcdCluster {
    /// Starts three members and waits until they have a leader. An etcd given by the environment is left alone: its members
    /// are nobody's to freeze.
    ///
    /// # Panics
    ///
    /// With a sentence that says what to do, if there is no etcd to be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what was started.
    pub async fn start() -> Self {
        let provider = match Provider::from_env() {
            Provider::Environment(_) => Provider::Process,
            own => own,
        };
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match Self::try_start(&provider).await {
                Ok(cluster) => return cluster,
                Err(why) => last = why,
            }
        }
        panic!("no cluster could be started after {ATTEMPTS} attempts: {last}");
    }

    async fn try_start(provider: &Provider) -> Result<Self, String> {
        let mut members: Vec<_> = (0..3).map(|_| EtcdServer::down(provider, ServerOptions::new())).collect();
        let mut peers = Vec::new();
        for member in &members {
            peers.push(Proxy::start(member.peer_address()).await.map_err(|error| error.to_string())?);
        }
        let named = members.iter().zip(&peers).map(|(member, peer)| format!("{}={}", member.name(), peer.url()));
        let initial = named.collect::<Vec<_>>().join(",");
        for (member, peer) in members.iter_mut().zip(&peers) {
            member.join(Peers { advertised: peer.url(), initial: initial.clone(), existing: false });
        }
        // None is ready before most are there.
        let [first, second, third] = &mut members[..] else { return Err("three members".to_owned()) };
        let (first, second, third) = tokio::join!(first.up(), second.up(), third.up());
        first.and(second).and(third)?;
        let provider = provider.clone();
        let mut cluster = Self { members, peers, ids: Vec::new(), provider, initial, learner: None };
        for member in &cluster.members {
            let ids = eventually("a member tells its id", || async { member.status().await.ok_or("no answer") }).await;
            let id: u64 = ids.0.parse().map_err(|_| format!("{:?} is no id", ids.0))?;
            cluster.ids.push(format!("{id:x}"));
        }
        cluster.leader().await;
        Ok(cluster)
    }

    /// The URLs of the members.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(EtcdServer::url).collect()
    }

    /// One member.
    ///
    /// # Panics
    ///
    /// If there is none of this number; there are 0, 1 and 2.
    pub fn member(&self, number: usize) -> &EtcdServer {
        &self.members[number]
    }

    /// One member, to kill it or start it again.
    ///
    /// # Panics
    ///
    /// As [`member`](Self::member).
    pub fn member_mut(&mut self, number: usize) -> &mut EtcdServer {
        &mut self.members[number]
    }

    /// Adds a learner, which gets everything and serves next to nothing, and waits until it answers. Returns its URL.
    ///
    /// # Panics
    ///
    /// If it cannot be added or does not answer in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a learner in the cluster that does not run.
    pub async fn add_learner(&mut self) -> String {
        let mut learner = EtcdServer::down(&self.provider, ServerOptions::new());
        let advertised = format!("http://{}", learner.peer_address());
        let body = format!(r#"{{"peerURLs":["{advertised}"],"isLearner":true}}"#);
        // A cluster takes nobody in before its members have known each other for a few seconds.
        let id = eventually("a learner is added", || async {
            let added = gateway::tell(self.members[0].address(), "/v3/cluster/member/add", &body).await;
            added.as_deref().and_then(|answer| gateway::number(answer, "ID")).ok_or(added)
        })
        .await;
        let initial = format!("{},{}={advertised}", self.initial, learner.name());
        learner.join(Peers { advertised, initial, existing: true });
        learner.begin().await.expect("a learner starts");
        // It refuses to list the members, so it is asked who it is.
        eventually("the learner answers", || async {
            match learner.status().await {
                Some((own, _)) if own == id => Ok(()),
                other => Err(other),
            }
        })
        .await;
        self.learner.insert(learner).url()
    }

    /// The number of the leader. Waits for one.
    ///
    /// # Panics
    ///
    /// If there is none in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn leader(&self) -> usize {
        eventually("there is a leader", || async {
            for (number, member) in self.members.iter().enumerate() {
                // A frozen one would not answer.
                let asked = tokio::time::timeout(Duration::from_millis(500), member.status()).await;
                if asked.ok().flatten().is_some_and(|(id, leader)| id == leader) {
                    return Ok(number);
                }
            }
            Err("no leader")
        })
        .await
    }

    /// Cuts a member off from the others, silently and both ways; its clients still reach it.
    ///
    /// # Panics
    ///
    /// As [`member`](Self::member).
    pub fn isolate(&self, number: usize) {
        for (other, peer) in self.peers.iter().enumerate() {
            if other == number {
                peer.set(Mode::BlackHole(Direction::Both));
            } else {
                peer.set_for(format!("X-Server-From: {}", self.ids[number]), Mode::BlackHole(Direction::Both));
            }
        }
    }

    /// Ends all partitions.
    pub fn heal(&self) {
        self.peers.iter().for_each(Proxy::heal);
    }
}
