//! The list of services of a namespace: its value, and the trait of its watch. Compare `snapshot.rs` and
//! `resolver.rs`, which have the same for the instances of one service.

use std::fmt;

use async_trait::async_trait;
use imbl::{OrdSet, ordset::DiffItem};

use crate::{
    discovery::freshness::Freshness,
    error::Error,
    model::{
        name::{Namespace, ServiceName},
        revision::{Epoch, Revision},
    },
};

/// The services of a namespace that have at least one instance, at one revision. Cheap to clone; clones share their
/// structure.
///
/// An instance whose value cannot be decoded counts, because the list depends on the keys alone.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceList {
    namespace: Namespace,
    revision: Revision,
    epoch: Epoch,
    names: OrdSet<ServiceName>,
}

impl ServiceList {
    /// An empty list of `namespace` at `revision`.
    pub(crate) fn empty(namespace: Namespace, revision: Revision, epoch: Epoch) -> Self {
        Self { namespace, revision, epoch, names: OrdSet::new() }
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A revision at which these were the services. Changes of instances alone need not raise it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Number of observed rollbacks of the store. Revisions of different epochs cannot be compared.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Number of services.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns `true` if there are no services.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns `true` if the service has an instance.
    pub fn contains(&self, service: &ServiceName) -> bool {
        self.names.contains(service)
    }

    /// The services, in order.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.names.iter()
    }

    /// The services that were added since `older`, and those that were removed, each in order.
    ///
    /// Takes time proportional to the change if both lists share their structure, as those of one watch do.
    pub fn diff(&self, older: &Self) -> (Vec<ServiceName>, Vec<ServiceName>) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for item in older.names.diff(&self.names) {
            match item {
                DiffItem::Add(name) => added.push(name.clone()),
                DiffItem::Remove(name) => removed.push(name.clone()),
            }
        }
        (added, removed)
    }

    /// Sets the revision and the epoch.
    pub(crate) fn advance(&mut self, revision: Revision, epoch: Epoch) {
        (self.revision, self.epoch) = (revision, epoch);
    }

    /// Adds a service.
    pub(crate) fn insert(&mut self, service: ServiceName) {
        self.names.insert(service);
    }

    /// Removes a service.
    pub(crate) fn remove(&mut self, service: &ServiceName) {
        self.names.remove(service);
    }

    /// Replaces the services. Names that stay are left untouched, so a difference to an older list stays cheap.
    pub(crate) fn patch(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        let mut gone = self.names.clone();
        for service in services {
            if gone.remove(&service).is_none() {
                self.names.insert(service);
            }
        }
        for service in &gone {
            self.names.remove(service);
        }
    }
}

impl fmt::Debug for ServiceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceList")
            .field("namespace", &self.namespace)
            .field("revision", &self.revision)
            .field("epoch", &self.epoch)
            .field("names", &self.names.iter().collect::<Vec<_>>())
            .finish()
    }
}

/// A running watch of the list of services. Dropping it ends the watch. See [`Watcher`](crate::Watcher).
#[async_trait]
pub trait ServicesWatcher: fmt::Debug + Send + 'static {
    /// Returns the next change. The first is the whole list. After that there is one change per wake-up: the latest
    /// list and the exact difference to the one that this watcher returned before. A service that disappeared and came
    /// back in between is in neither part of the difference. A change of freshness alone, and one of the
    /// [epoch](ServiceList::epoch), have an empty difference. Changes of instances that leave the list unchanged are
    /// not returned.
    ///
    /// Signature: `async fn next(&mut self) -> Result<ServicesChange, Error>`.
    ///
    /// Gap-free as [`Watcher::next`](crate::Watcher::next): a service is removed only if the store reports its last
    /// instance as gone, never because of an outage.
    ///
    /// # Errors
    ///
    /// As [`Watcher::next`](crate::Watcher::next).
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    async fn next(&mut self) -> Result<ServicesChange, Error>;
}

/// The result of a [`ServicesWatcher`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServicesChange {
    /// The latest list.
    pub services: ServiceList,
    /// Services that are not in the list that this watcher returned before, in order.
    pub added: Vec<ServiceName>,
    /// Services that are only in the list that this watcher returned before, in order.
    pub removed: Vec<ServiceName>,
    /// Freshness of the list.
    pub freshness: Freshness,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn name(number: u8) -> ServiceName {
        ServiceName::parse(format!("s{number:03}")).unwrap()
    }

    fn list(numbers: &BTreeSet<u8>) -> ServiceList {
        let mut list = ServiceList::empty(Namespace::default(), Revision::new(1), Epoch::default());
        list.patch(numbers.iter().copied().map(name));
        list
    }

    proptest! {
        #[test]
        fn a_list_plus_its_difference_is_the_newer_one(
            older in proptest::collection::btree_set(0u8..40, 0..40),
            newer in proptest::collection::btree_set(0u8..40, 0..40),
        ) {
            let old = list(&older);
            let mut patched = old.clone();
            patched.patch(newer.iter().copied().map(name));
            prop_assert_eq!(&patched, &list(&newer));
            let (added, removed) = patched.diff(&old);
            let names = |numbers: &mut dyn Iterator<Item = &u8>| numbers.copied().map(name).collect::<Vec<_>>();
            prop_assert_eq!(added, names(&mut newer.difference(&older)));
            prop_assert_eq!(removed, names(&mut older.difference(&newer)));
        }
    }
}
