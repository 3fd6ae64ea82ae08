//! The memory backend, with the agent in the process of the test.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use enlist::{Endpoint, Health, Instance, InstanceId, RegisterOptions, Registration, Registry as _, ServiceRef};
use enlist_agent::Agent;
use enlist_testkit::free_port;

use crate::{
    support::{Store, TestAgent, instance},
    world::{Crowded, Failure, Offer, Settings, World},
};

pub(crate) struct Memory {
    store: Store,
    settings: Settings,
    addresses: [SocketAddr; 2],
    agent: Option<TestAgent>,
}

impl Crowded for Memory {
    async fn register_many(&self, zone: &str, number: u16) {
        let service = ServiceRef::parse("greeter").unwrap();
        for port in 1..=number {
            let endpoint = Endpoint::new("192.0.2.1", port).unwrap();
            let id = InstanceId::parse(format!("other-{port}")).unwrap();
            let instance = Instance::new(id, [endpoint]).unwrap().with_zone(zone);
            self.store.services.publish(&service, instance).await.unwrap();
        }
    }
}

impl World for Memory {
    /// With the time of draining.
    type Registration = (Registration, Duration);

    const DRAINS: bool = true;
    const ANNOUNCES_DEPARTURES: bool = true;

    async fn new(settings: Settings) -> Self {
        let addresses = [(); 2].map(|()| ([127, 0, 0, 1], free_port()).into());
        Self { store: Store::new(), settings, addresses, agent: None }
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn xds(&self) -> SocketAddr {
        self.addresses[0]
    }

    fn http(&self) -> SocketAddr {
        self.addresses[1]
    }

    async fn start_agent(&mut self) {
        let [xds, http] = self.addresses;
        let agent = Agent::builder(Arc::new(self.store.agents.clone()));
        let agent = agent.xds(self.settings.xds_options(xds)).http(self.settings.http_options(http));
        self.agent = Some(TestAgent::of(agent).await);
    }

    async fn stop_agent(&mut self) {
        self.agent.take().expect("it runs").stop().await;
    }

    async fn kill_agent(&mut self) {
        self.agent.take().expect("it runs").kill().await;
    }

    async fn register(&self, offer: Offer<'_>) -> Self::Registration {
        let mut instance = instance(offer.name, offer.port);
        if let Some(weight) = offer.weight {
            instance = instance.with_weight(weight);
        }
        if let Some(zone) = offer.zone {
            instance = instance.with_zone(zone);
        }
        let service = ServiceRef::parse(offer.service).unwrap();
        let registration = self.store.services.register(&service, instance, RegisterOptions::new());
        (registration.await.unwrap(), offer.drain)
    }

    async fn deregister(&self, (registration, drain): Self::Registration) {
        let draining = registration.update(|update| {
            update.health(Health::Draining);
        });
        draining.await.unwrap();
        tokio::time::sleep(drain).await;
        registration.deregister().await.unwrap();
    }

    fn cut_agent(&self) {
        self.store.agents.cut();
    }

    fn heal_agent(&self) {
        self.store.agents.heal();
    }

    fn cut_servers(&self) {
        self.store.services.cut();
    }

    fn heal_servers(&self) {
        self.store.services.heal();
    }

    async fn begin(&mut self, failure: Failure) {
        match failure {
            Failure::Down => {
                self.cut_agent();
                self.cut_servers();
            }
            Failure::Compacted => {
                self.cut_agent();
                let (meanwhile, _) = self.register(Offer::new("meanwhile", 1)).await;
                meanwhile.deregister().await.unwrap();
                self.store.memory.compact();
            }
            Failure::Wiped => self.store.memory.wipe(),
        }
    }

    async fn end(&mut self, failure: Failure) {
        match failure {
            Failure::Down => {
                self.heal_agent();
                self.heal_servers();
            }
            Failure::Compacted => self.heal_agent(),
            Failure::Wiped => {}
        }
    }
}
