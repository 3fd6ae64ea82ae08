//! Parts of [`Resolver::watch_services`](crate::Resolver::watch_services): the builder of lists of services, and their
//! watch. `publisher.rs` has the broadcast below it.

use std::fmt;

use async_trait::async_trait;

use crate::{
    backend::discovery::publisher::{Subscriber, Update},
    discovery::{
        freshness::Freshness,
        service_list::{ServiceList, ServicesChange, ServicesWatcher},
    },
    error::Error,
    model::{
        name::{Namespace, ServiceName},
        revision::{Epoch, Revision},
    },
};

/// Builds the lists of services of one namespace. A backend keeps one per watch and changes it in place, so consecutive
/// lists share their structure.
#[derive(Clone, Debug)]
pub struct ServiceListBuilder {
    list: ServiceList,
}

impl ServiceListBuilder {
    /// Starts with no services, at `revision` and `epoch`.
    pub fn new(namespace: Namespace, revision: Revision, epoch: Epoch) -> Self {
        Self { list: ServiceList::empty(namespace, revision, epoch) }
    }

    /// Returns the list as built so far.
    pub fn list(&self) -> &ServiceList {
        &self.list
    }

    /// Returns a copy of the list as built so far, which shares its structure.
    pub fn build(&self) -> ServiceList {
        self.list.clone()
    }

    /// Sets the revision and the epoch.
    pub fn advance(&mut self, revision: Revision, epoch: Epoch) {
        self.list.advance(revision, epoch);
    }

    /// Adds a service.
    pub fn insert(&mut self, service: ServiceName) {
        self.list.insert(service);
    }

    /// Removes a service.
    pub fn remove(&mut self, service: &ServiceName) {
        self.list.remove(service);
    }

    /// Replaces the services. Names that stay are left untouched, so a difference to an older list stays cheap.
    pub fn patch(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        self.list.patch(services);
    }
}

/// Creates a watch of a list of services that reads from `reader`. `project` returns the list of a value. Its first
/// argument is the value that this reader saw before, so that it can work on the difference.
pub fn services_watcher<T, P>(reader: Subscriber<T>, project: P) -> Box<dyn ServicesWatcher>
where
    T: Clone + PartialEq + Send + Sync + 'static,
    P: FnMut(Option<&T>, &T) -> ServiceList + Send + 'static,
{
    Box::new(ProjectedServices { reader, project, reported: Reported::default() })
}

struct ProjectedServices<T, P> {
    reader: Subscriber<T>,
    project: P,
    reported: Reported,
}

impl<T, P> fmt::Debug for ProjectedServices<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProjectedServices").field("reported", &self.reported).finish_non_exhaustive()
    }
}

#[async_trait]
impl<T, P> ServicesWatcher for ProjectedServices<T, P>
where
    T: Clone + PartialEq + Send + Sync + 'static,
    P: FnMut(Option<&T>, &T) -> ServiceList + Send + 'static,
{
    async fn next(&mut self) -> Result<ServicesChange, Error> {
        loop {
            let Update { value, before, freshness, .. } = self.reader.next().await?;
            let services = (self.project)(before.as_ref(), &value);
            if let Some(change) = self.reported.change(services, freshness) {
                return Ok(change);
            }
        }
    }
}

/// State that a watch returned last.
#[derive(Debug, Default)]
struct Reported(Option<(ServiceList, bool)>);

impl Reported {
    /// Returns the change that leads to `services`; `None` if its reader would learn nothing from it.
    fn change(&mut self, services: ServiceList, freshness: Freshness) -> Option<ServicesChange> {
        let (added, removed) = match &self.0 {
            None => (services.names().cloned().collect(), Vec::new()),
            Some((before, _)) => services.diff(before),
        };
        let is_news = self.0.as_ref().is_none_or(|(before, was_live)| {
            let is_other = !added.is_empty() || !removed.is_empty() || before.epoch() != services.epoch();
            is_other || *was_live != freshness.is_live()
        });
        if !is_news {
            return None;
        }
        self.0 = Some((services.clone(), freshness.is_live()));
        Some(ServicesChange { services, added, removed, freshness })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{backend::discovery::publisher::Publisher, runtime::clock::Moment};

    fn list(names: &[&str], revision: u64, epoch: u64) -> ServiceList {
        let mut list = ServiceListBuilder::new(Namespace::default(), Revision::new(revision), Epoch::new(epoch));
        list.patch(names.iter().map(|name| ServiceName::parse(name).unwrap()));
        list.build()
    }

    fn texts(names: &[ServiceName]) -> Vec<&str> {
        names.iter().map(ServiceName::as_str).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_the_difference_to_the_list_that_it_returned() {
        let publisher = Publisher::new();
        let mut watcher = services_watcher(publisher.reader(Arc::new(())), |_, list: &ServiceList| list.clone());
        publisher.publish(list(&["a", "b"], 1, 0), Moment::now());
        let first = watcher.next().await.unwrap();
        assert_eq!((texts(&first.added), first.removed.len(), first.services.len()), (vec!["a", "b"], 0, 2));
        // `c` flickers, and `b` disappears and comes back.
        for (names, revision) in [(&["a", "c"][..], 2), (&["a", "b"], 3), (&["b", "d"], 4)] {
            publisher.publish(list(names, revision, 0), Moment::now());
        }
        let net = watcher.next().await.unwrap();
        assert_eq!((texts(&net.added), texts(&net.removed)), (vec!["d"], vec!["a"]));
        assert_eq!(net.services.revision(), Revision::new(4));
    }

    #[test]
    fn only_news_is_reported() {
        let proof = Publisher::<u8>::new().reader(Arc::new(())).proof();
        let live = || Freshness::Live { proof: proof.clone() };
        let stale = || Freshness::Stale { proven: Moment::now(), cause: Error::LeaseLost };
        let mut reported = Reported::default();
        assert!(reported.change(list(&[], 1, 0), live()).is_some(), "an empty list is not an unknown one");
        assert!(reported.change(list(&[], 2, 0), live()).is_none(), "only instances changed");
        let outage = reported.change(list(&[], 2, 0), stale()).unwrap();
        assert!(outage.added.is_empty() && outage.removed.is_empty() && !outage.freshness.is_live());
        assert!(reported.change(list(&[], 2, 0), stale()).is_none());
        assert!(reported.change(list(&[], 1, 1), live()).is_some(), "the store went back");
    }
}
