//! Merging the snapshots and the lists of services of the sides.

use std::{collections::BTreeSet, sync::Arc};

use super::side::proportion;
use crate::{
    discovery::{service_list::ServiceList, snapshot::Snapshot},
    model::{
        instance::{Entry, Presence},
        name::InstanceId,
        revision::{Epoch, Revision},
    },
};

/// Merges the snapshots of the sides, of which there is at least one. `before`: the previous result.
pub(super) fn merge_snapshots(default_weights: &[u32], before: Option<Snapshot>, snapshots: &[Snapshot]) -> Snapshot {
    let own = default_weights[0];
    let empty = || Snapshot::empty(snapshots[0].service().clone(), Revision::default(), Epoch::default());
    let mut merged = before.unwrap_or_else(empty);
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut entries = Vec::new();
    for (default_weight, snapshot) in default_weights.iter().zip(snapshots) {
        // Within one side, instances with the same address are all shown.
        let mut own_addresses = Vec::new();
        for entry in snapshot.entries() {
            let instance = entry.instance();
            let theirs: Vec<&str> = instance.endpoints().iter().map(crate::Endpoint::authority).collect();
            if ids.contains(instance.id()) || theirs.iter().any(|address| addresses.contains(address)) {
                continue;
            }
            ids.insert(instance.id().clone());
            own_addresses.extend(theirs);
            entries.push(in_proportion(entry, *default_weight, own));
        }
        addresses.extend(own_addresses);
    }
    let departed: Vec<InstanceId> = merged
        .entries()
        .map(|entry| entry.instance().id().clone())
        .filter(|id| !ids.contains(id) && snapshots.iter().any(|snapshot| snapshot.departed(id)))
        .collect();
    for id in departed {
        merged.depart(&id);
    }
    merged.patch(entries);
    let revision = snapshots.iter().map(Snapshot::revision).min().unwrap_or_default();
    let epoch = snapshots.iter().map(|snapshot| snapshot.epoch().get()).sum();
    merged.advance(revision, Epoch::new(epoch));
    merged
}

/// Merges the lists of services of the sides, of which there is at least one. `before`: the previous result.
pub(super) fn merge_services(before: Option<ServiceList>, lists: &[ServiceList]) -> ServiceList {
    let empty = || ServiceList::empty(lists[0].namespace().clone(), Revision::default(), Epoch::default());
    let mut merged = before.unwrap_or_else(empty);
    let names: BTreeSet<_> = lists.iter().flat_map(ServiceList::names).cloned().collect();
    merged.patch(names);
    let revision = lists.iter().map(ServiceList::revision).min().unwrap_or_default();
    let epoch = lists.iter().map(|list| list.epoch().get()).sum();
    merged.advance(revision, Epoch::new(epoch));
    merged
}

/// The entry with its weight in proportion to the default weight of its side.
fn in_proportion(entry: &Arc<Entry>, from: u32, to: u32) -> Arc<Entry> {
    let weight = entry.instance().weight();
    let scaled = proportion(weight, from, to);
    if scaled == weight || entry.presence() == Presence::Held {
        return Arc::clone(entry);
    }
    Arc::new(entry.with_instance(entry.instance().clone().with_weight(scaled)))
}
