//! Lists of services and of namespaces. They are watched as in [`crate::discovery::watcher`].

use std::collections::BTreeSet;

use enlist::{
    Epoch, Error, Namespace, ServiceList, ServiceName, ServicesWatcher,
    backend::{ServiceListBuilder, services_watcher},
};

use crate::{
    client::MemoryClient,
    discovery::watcher::WatchedState,
    store::{Group, KeyChange, Kind, Store},
};

impl MemoryClient {
    pub(super) async fn list_services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.inner.check_open()?;
        let names = self.inner.link.ask(|store, _| store.names(Kind::Instance, namespace)).await?;
        names.iter().map(ServiceName::parse).collect()
    }

    pub(super) fn follow_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        let state = ServicesState { namespace: namespace.clone(), list: None };
        Ok(services_watcher(self.follow(state)?, |_, list: &ServiceList| list.clone()))
    }

    pub(super) async fn list_namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.inner.check_open()?;
        let namespaces = self.inner.link.ask(|store, _| store.namespaces(Kind::Instance)).await?;
        Ok(namespaces.into_iter().collect())
    }
}

fn name(group: &str) -> ServiceName {
    ServiceName::parse(group).expect("groups of instances are named after services")
}

/// State of a watch of the list of services: the services that have an instance.
struct ServicesState {
    namespace: Namespace,
    list: Option<ServiceListBuilder>,
}

impl WatchedState for ServicesState {
    type Value = ServiceList;

    fn relist(&mut self, store: &Store, epoch: Epoch) -> ServiceList {
        let empty = || ServiceListBuilder::new(self.namespace.clone(), store.revision(), epoch);
        let list = self.list.get_or_insert_with(empty);
        list.patch(store.names(Kind::Instance, &self.namespace).iter().map(|group| name(group)));
        list.advance(store.revision(), epoch);
        list.build()
    }

    fn apply(&mut self, store: &Store, changes: &mut dyn Iterator<Item = &KeyChange>) -> ServiceList {
        let empty = || ServiceListBuilder::new(self.namespace.clone(), store.revision(), Epoch::default());
        let list = self.list.get_or_insert_with(empty);
        let before = list.build();
        let groups = changes.map(|change| &change.key.group);
        let touched = groups.filter(|group| group.kind == Kind::Instance && group.namespace == self.namespace);
        for group in touched.collect::<BTreeSet<&Group>>() {
            match store.range(group).next() {
                Some(_) => list.insert(name(&group.name)),
                None => list.remove(&name(&group.name)),
            }
        }
        // A change of instances that leaves the list unchanged wakes no reader.
        if *list.list() != before {
            list.advance(store.revision(), before.epoch());
        }
        list.build()
    }
}
