//! Lists of services and of namespaces: the services are counted from the keys of a namespace, without their values.
//!
//! A watch reads the replica of all keys of the namespace, which all watches of that namespace share, and processes
//! only its differences.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use enlist::{
    Error, Namespace, ServiceList, ServiceName, ServicesWatcher,
    backend::{ServiceListBuilder, services_watcher},
};
use foldhash::fast::RandomState;

use crate::{
    etcd::Etcd,
    layout::Layout,
    watch::{
        record::KeyRange,
        replica::{Difference, Replica},
    },
};

impl Etcd {
    fn services_range(&self, namespace: &Namespace) -> Result<KeyRange, Error> {
        let layout = &self.session.discovery.layout;
        layout.services_range(namespace).ok_or_else(|| unsupported("services", &**layout))
    }

    pub(super) async fn list_services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.session.check_open()?;
        let (layout, range) = (&self.session.discovery.layout, self.services_range(namespace)?);
        let listed = self.session.discovery.client.list_keys(&range).await;
        let records = listed.map_err(|failure| failure.into_error(&range.describe()))?;
        let names = records.iter().filter_map(|record| layout.service_of(namespace, &record.key));
        Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
    }

    pub(super) fn follow_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        // A range watch that still has readers would be shared, also after the end.
        self.session.check_open()?;
        let range = self.services_range(namespace)?;
        let reader = self.session.discovery.range_watches.view(&range)?;
        let mut counts = ServiceCounts::new(namespace.clone(), Arc::clone(&self.session.discovery.layout));
        Ok(services_watcher(reader, move |before, replica| counts.follow(before, replica)))
    }

    pub(super) async fn list_namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.session.check_open()?;
        let layout = &self.session.discovery.layout;
        let range = layout.namespaces_range().ok_or_else(|| unsupported("namespaces", &**layout))?;
        let group = |key: &[u8]| {
            let namespace = layout.namespace_of(key)?;
            let own = layout.services_range(&namespace)?;
            Some((namespace, own))
        };
        let found = self.session.discovery.client.list_groups(&range, group).await;
        let found = found.map_err(|failure| failure.into_error(&range.describe()))?;
        Ok(found.into_iter().collect::<BTreeSet<_>>().into_iter().collect())
    }
}

fn unsupported(what: &str, layout: &dyn Layout) -> Error {
    Error::Unsupported { what: format!("listing {what} in the layout {}", layout.name()) }
}

/// Number of keys of each service, from which its lists are made.
#[derive(Debug)]
struct ServiceCounts {
    namespace: Namespace,
    layout: Arc<dyn Layout>,
    counts: HashMap<ServiceName, usize, RandomState>,
    list: Option<ServiceListBuilder>,
}

impl ServiceCounts {
    fn new(namespace: Namespace, layout: Arc<dyn Layout>) -> Self {
        Self { namespace, layout, counts: HashMap::default(), list: None }
    }

    /// Returns the list of `replica`, in time proportional to the differences. `before`: the replica of the previous
    /// call.
    fn follow(&mut self, before: Option<&Replica>, replica: &Replica) -> ServiceList {
        let Self { namespace, layout, counts, list } = self;
        let empty = || ServiceListBuilder::new(namespace.clone(), replica.revision, replica.epoch);
        let list = list.get_or_insert_with(empty);
        for difference in replica.differences(before) {
            match difference {
                Difference::Present(record) => {
                    if before.is_some_and(|before| before.get(&record.key).is_some()) {
                        continue;
                    }
                    let Some(service) = layout.service_of(namespace, &record.key) else { continue };
                    let count = counts.entry(service.clone()).or_insert(0);
                    *count += 1;
                    if *count == 1 {
                        list.insert(service);
                    }
                }
                Difference::Gone(key) => {
                    let Some(service) = layout.service_of(namespace, key) else { continue };
                    match counts.get_mut(&service) {
                        Some(count) if *count > 1 => *count -= 1,
                        _ => {
                            counts.remove(&service);
                            list.remove(&service);
                        }
                    }
                }
            }
        }
        list.advance(replica.revision, replica.epoch);
        list.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout::native::Native,
        watch::{record::Record, replica::KeyEvent},
    };
    use enlist::{Epoch, Revision};

    fn record(key: &str, revision: u64) -> Record {
        let revision = Revision::new(revision);
        let key = format!("enlist/services/default/{key}");
        Record { key: key.as_bytes().into(), value: vec![], created: revision, modified: revision, lease: None }
    }

    fn put(key: &str, revision: u64) -> KeyEvent {
        KeyEvent::Put(record(key, revision))
    }

    fn delete(key: &str, revision: u64) -> KeyEvent {
        KeyEvent::Delete { key: record(key, revision).key, revision: Revision::new(revision) }
    }

    fn names(list: &ServiceList) -> Vec<&str> {
        list.names().map(ServiceName::as_str).collect()
    }

    struct Following {
        counts: ServiceCounts,
        replica: Replica,
    }

    impl Following {
        fn after(&mut self, change: impl FnOnce(&mut Replica)) -> ServiceList {
            let before = self.replica.clone();
            change(&mut self.replica);
            self.counts.follow(Some(&before), &self.replica)
        }
    }

    #[test]
    fn a_service_is_listed_while_it_has_a_key() {
        let counts = ServiceCounts::new(Namespace::default(), Arc::new(Native::default()));
        let replica = Replica::new(Revision::new(1), Epoch::default());
        let mut following = Following { counts, replica };
        let mut after = |events: Vec<KeyEvent>| {
            let list = following.after(|replica| {
                replica.apply(events);
            });
            names(&list).join(" ")
        };
        assert_eq!(after(vec![put("b/1", 2), put("a%2Fx/1", 3)]), "a/x b");
        assert_eq!(after(vec![put("b/2", 4), put("b/1", 5)]), "a/x b", "a changed key is not a further one");
        assert_eq!(after(vec![delete("b/1", 6)]), "a/x b");
        assert_eq!(after(vec![delete("b/2", 7)]), "a/x");
        assert_eq!(after(vec![put("b/3", 8), put("c/1", 9), delete("b/3", 10), delete("a%2Fx/1", 11)]), "c");
        assert_eq!(after(vec![put("no-instance", 12), delete("no-instance", 13)]), "c");
    }

    #[test]
    fn a_list_after_a_gap_is_compared_key_by_key() {
        let counts = ServiceCounts::new(Namespace::default(), Arc::new(Native::default()));
        let replica = Replica::new(Revision::new(1), Epoch::default());
        let mut following = Following { counts, replica };
        let relist = |keys: &[&str], revision: u64, epoch| {
            let records: Vec<_> = keys.iter().map(|key| record(key, revision)).collect();
            move |replica: &mut Replica| replica.relist(records, Revision::new(revision), epoch)
        };
        let list = following.after(relist(&["a/1", "a/2", "b/1"], 9, Epoch::default()));
        assert_eq!((names(&list), list.revision().get()), (vec!["a", "b"], 9));
        let list = following.after(relist(&["a/2", "c/1"], 3, Epoch::new(1)));
        assert_eq!((names(&list), list.revision().get(), list.epoch()), (vec!["a", "c"], 3, Epoch::new(1)));
        let list = following.after(relist(&["c/1"], 4, Epoch::new(1)));
        assert_eq!(names(&list), ["c"]);
    }
}
