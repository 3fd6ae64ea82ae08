//! A cluster of three etcd members, with partitions, upgrades and replacement of members.

use std::{collections::BTreeSet, path::Path, time::Duration};

use super::{
    gateway,
    provider::Provider,
    server::{EtcdServer, Peers},
    server_options::ServerOptions,
};
use crate::{
    faults::{
        modes::{Direction, Mode},
        proxy::Proxy,
    },
    wait::eventually,
};

/// Number of attempts to start, each with other ports.
const ATTEMPTS: usize = 3;

/// Role of a new member.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Voter,
    Learner,
}

/// A cluster of three. Each member reaches the others through proxies.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<EtcdServer>,
    /// Proxies in front of the members' peer ports.
    peers: Vec<Proxy>,
    /// Ids of the members, as in requests between members.
    ids: Vec<String>,
    /// Members that were removed.
    removed: BTreeSet<usize>,
    provider: Provider,
    /// Options of the members, also of those that are added.
    options: ServerOptions,
    /// A learner, with the proxy in front of its peer port.
    learner: Option<(EtcdServer, Proxy)>,
}

impl EtcdCluster {
    /// Starts three members and waits until they have a leader. An etcd given by the environment is not used, because
    /// it must not be frozen.
    ///
    /// # Panics
    ///
    /// With a message that states the remedy, if no etcd is available.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what was started.
    pub async fn start() -> Self {
        Self::start_with(Provider::own(), ServerOptions::new()).await
    }

    /// Starts three members, and waits until they have a leader.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(provider: Provider, options: ServerOptions) -> Self {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match Self::try_start(&provider, &options).await {
                Ok(cluster) => return cluster,
                Err(why) => last = why,
            }
        }
        panic!("no cluster could be started after {ATTEMPTS} attempts: {last}");
    }

    async fn try_start(provider: &Provider, options: &ServerOptions) -> Result<Self, String> {
        let mut members: Vec<_> = (0..3).map(|_| EtcdServer::down(provider, options.clone())).collect();
        let mut peers = Vec::new();
        for member in &members {
            peers.push(Proxy::start(member.peer_address()).await.map_err(|error| error.to_string())?);
        }
        let named = members.iter().zip(&peers).map(|(member, peer)| format!("{}={}", member.name(), peer.url()));
        let initial = named.collect::<Vec<_>>().join(",");
        for (member, peer) in members.iter_mut().zip(&peers) {
            member.join(Peers { advertised: peer.url(), initial: initial.clone(), existing: false });
        }
        // No member is ready before two have started.
        let [first, second, third] = &mut members[..] else { return Err("three members".to_owned()) };
        let (first, second, third) = tokio::join!(first.up(), second.up(), third.up());
        first.and(second).and(third)?;
        let (provider, options) = (provider.clone(), options.clone());
        let (ids, removed) = (Vec::new(), BTreeSet::new());
        let mut cluster = Self { members, peers, ids, removed, provider, options, learner: None };
        for member in &cluster.members {
            let ids =
                eventually("a member reports its id", || async { member.status().await.ok_or("no answer") }).await;
            cluster.ids.push(hex(&ids.0));
        }
        cluster.leader().await;
        Ok(cluster)
    }

    /// Returns the URLs of all members, including removed ones.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(EtcdServer::url).collect()
    }

    /// Returns a member.
    ///
    /// # Panics
    ///
    /// If there is no such member. The first three have the numbers 0, 1 and 2.
    pub fn member(&self, number: usize) -> &EtcdServer {
        &self.members[number]
    }

    /// Returns a member, to kill or restart it.
    ///
    /// # Panics
    ///
    /// As [`member`](Self::member).
    pub fn member_mut(&mut self, number: usize) -> &mut EtcdServer {
        &mut self.members[number]
    }

    /// Adds a learner, which replicates everything and refuses most requests, and waits until it answers. Returns its
    /// URL.
    ///
    /// # Panics
    ///
    /// If it cannot be added or does not answer in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a learner in the cluster that does not run.
    pub async fn add_learner(&mut self) -> String {
        let mut learner = EtcdServer::down(&self.provider, self.options.clone());
        let peer = Proxy::start(learner.peer_address()).await.expect("a proxy can be started");
        let id = self.announce(&peer.url(), Role::Learner).await;
        let initial = format!("{},{}={}", self.initial(), learner.name(), peer.url());
        learner.join(Peers { advertised: peer.url(), initial, existing: true });
        learner.begin().await.expect("a learner starts");
        // A learner refuses to list the members, but answers requests for its status.
        eventually("the learner answers", || async {
            match learner.status().await {
                Some((own, _)) if own == id => Ok(()),
                other => Err(other),
            }
        })
        .await;
        self.learner.insert((learner, peer)).0.url()
    }

    /// Promotes the learner to a member. Returns its number.
    ///
    /// # Panics
    ///
    /// If there is no learner, or it has not caught up in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the learner, which may have been promoted.
    pub async fn promote_learner(&mut self) -> usize {
        let (learner, peer) = self.learner.take().expect("there is a learner");
        let (id, _) = learner.status().await.expect("the learner answers");
        let body = format!(r#"{{"ID":"{id}"}}"#);
        eventually("the learner is promoted", || async {
            self.change("promote", &body).await;
            let members = self.listed().await?;
            if members.contains(r#""isLearner":true"#) { Err("it is not") } else { Ok(()) }
        })
        .await;
        self.take_in(learner, peer, &id)
    }

    /// Removes a member from the cluster, which ends it, and waits until it has ended.
    ///
    /// # Panics
    ///
    /// If the others do not agree in time, or as [`member`](Self::member).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a removed member running.
    pub async fn remove(&mut self, number: usize) {
        let id = u64::from_str_radix(&self.ids[number], 16).expect("the id is known");
        self.removed.insert(number);
        let body = format!(r#"{{"ID":"{id}"}}"#);
        eventually("a member is removed", || async {
            self.change("remove", &body).await;
            let members = self.listed().await?;
            if members.contains(&id.to_string()) { Err("it is still there") } else { Ok(()) }
        })
        .await;
        self.members[number].end().await;
    }

    /// Adds an empty member, and waits until it answers. Returns its number.
    ///
    /// # Panics
    ///
    /// If it cannot be added or does not answer in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a member in the cluster that does not run.
    pub async fn add(&mut self) -> usize {
        let member = EtcdServer::down(&self.provider, self.options.clone());
        let peer = Proxy::start(member.peer_address()).await.expect("a proxy can be started");
        let number = self.take_in(member, peer, "0");
        self.join(number).await;
        number
    }

    /// Kills a member, deletes its data, and adds it again at the same addresses, as operators replace a broken disk.
    /// Waits until it answers.
    ///
    /// # Panics
    ///
    /// As [`remove`](Self::remove) and [`add`](Self::add).
    ///
    /// # Cancel safety
    ///
    /// As [`add`](Self::add).
    pub async fn replace(&mut self, number: usize) {
        self.members[number].kill().await;
        self.remove(number).await;
        self.members[number].forget().await;
        self.removed.remove(&number);
        self.join(number).await;
    }

    /// Ends a member with SIGTERM and starts another `etcd` on the same ports and with the same data. Waits until all
    /// members are healthy.
    ///
    /// # Panics
    ///
    /// As [`EtcdServer::upgrade`] and [`member`](Self::member), or if the members are not healthy in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a member down.
    pub async fn upgrade(&mut self, number: usize, binary: &Path) {
        self.members[number].upgrade(binary).await;
        for (_, member) in self.present() {
            eventually("a member is healthy", || async {
                if member.is_healthy().await { Ok(()) } else { Err(member.status().await) }
            })
            .await;
        }
    }

    /// Adds the member of this number to the cluster, and starts it.
    async fn join(&mut self, number: usize) {
        let advertised = self.peers[number].url();
        self.removed.insert(number);
        let id = self.announce(&advertised, Role::Voter).await;
        self.removed.remove(&number);
        self.ids[number] = hex(&id);
        let initial = self.initial();
        let member = &mut self.members[number];
        member.join(Peers { advertised, initial, existing: true });
        member.up().await.expect("a member that was added starts");
    }

    fn take_in(&mut self, member: EtcdServer, peer: Proxy, id: &str) -> usize {
        self.members.push(member);
        self.peers.push(peer);
        self.ids.push(hex(id));
        self.members.len() - 1
    }

    /// Announces a new member to the cluster. Returns its id.
    async fn announce(&self, advertised: &str, role: Role) -> String {
        let learner = role == Role::Learner;
        let body = format!(r#"{{"peerURLs":["{advertised}"],"isLearner":{learner}}}"#);
        // A cluster refuses new members until its members have been connected for a few seconds.
        eventually("a member is added", || async {
            self.change("add", &body).await;
            let members = self.listed().await?;
            // The id comes before the addresses.
            let (before, _) = members.split_once(advertised).ok_or("it is not there")?;
            before.rfind(r#""ID":""#).and_then(|at| gateway::text(&before[at..], "ID")).ok_or("it has no id")
        })
        .await
    }

    /// Sends a change of the membership to the running members, one after the other. The answer may be lost, so callers
    /// check the outcome.
    async fn change(&self, what: &str, body: &str) {
        for (_, member) in self.present() {
            let path = format!("/v3/cluster/member/{what}");
            if gateway::tell(member.address(), &path, body).await.is_some() {
                return;
            }
        }
    }

    /// Returns the list of members, from any member that answers.
    async fn listed(&self) -> Result<String, &'static str> {
        for (_, member) in self.present() {
            if let Some(members) = gateway::members(member.address()).await {
                return Ok(members);
            }
        }
        Err("no member answers")
    }

    fn present(&self) -> impl Iterator<Item = (usize, &EtcdServer)> {
        self.members.iter().enumerate().filter(|(number, _)| !self.removed.contains(number))
    }

    /// Returns the members in the format of etcd's command line.
    fn initial(&self) -> String {
        let named = self.present().map(|(number, member)| format!("{}={}", member.name(), self.peers[number].url()));
        named.collect::<Vec<_>>().join(",")
    }

    /// Waits for a leader. Returns its number.
    ///
    /// # Panics
    ///
    /// If there is no leader in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn leader(&self) -> usize {
        eventually("there is a leader", || async {
            for (number, member) in self.present() {
                // A frozen member does not answer.
                let asked = tokio::time::timeout(Duration::from_millis(500), member.status()).await;
                if asked.ok().flatten().is_some_and(|(id, leader)| id == leader) {
                    return Ok(number);
                }
            }
            Err("no leader")
        })
        .await
    }

    /// Isolates a member from the others, silently and in both directions. Its clients still reach it.
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

/// Returns an id as in requests between members.
fn hex(id: &str) -> String {
    format!("{:x}", id.parse::<u64>().expect("an id is a number"))
}
