//! The memory backend, with the agent in the process of the test.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use enlist::{Health, RegisterOptions, Registration, Registry as _, ServiceRef};
use enlist_agent::Agent;
use enlist_testkit::free_port;

use crate::{
    support::{Store, TestAgent, instance},
    world::{Failure, Offer, Settings, World},
};

/// Time for which an instance is draining before it is removed.
const DRAINING: Duration = Duration::from_millis(500);

pub(crate) struct Memory {
    store: Store,
    settings: Settings,
    addresses: [SocketAddr; 2],
    agent: Option<TestAgent>,
}

impl Memory {
    /// Registers an instance of another service.
    pub(crate) async fn register_as(&self, service: &str, name: &str, port: u16) -> Registration {
        self.store.register(service, instance(name, port)).await
    }
}

impl World for Memory {
    type Registration = Registration;

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

    async fn register(&self, offer: Offer<'_>) -> Registration {
        let mut instance = instance(offer.name, offer.port);
        if let Some(weight) = offer.weight {
            instance = instance.with_weight(weight);
        }
        if let Some(zone) = offer.zone {
            instance = instance.with_zone(zone);
        }
        let service = ServiceRef::parse("greeter").unwrap();
        self.store.services.register(&service, instance, RegisterOptions::new()).await.unwrap()
    }

    async fn deregister(&self, registration: Registration) {
        let draining = registration.update(|update| {
            update.health(Health::Draining);
        });
        draining.await.unwrap();
        tokio::time::sleep(DRAINING).await;
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
                let meanwhile = Offer { name: "meanwhile", port: 1, weight: None, zone: None };
                self.register(meanwhile).await.deregister().await.unwrap();
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
