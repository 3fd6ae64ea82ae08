//! Merging the snapshots of the sides.

use std::{collections::BTreeSet, sync::Arc};

use super::side::proportion;
use crate::{
    discovery::snapshot::Snapshot,
    model::{
        instance::{Entry, Presence},
        name::InstanceId,
        revision::Epoch,
    },
};

/// Merges the snapshots of the sides into `merged`, which is the previous result.
pub(super) fn merge(default_weights: &[u32], merged: &mut Snapshot, snapshots: &[Snapshot]) {
    let own = default_weights[0];
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
}

/// The entry with its weight in proportion to the default weight of its side.
fn in_proportion(entry: &Arc<Entry>, from: u32, to: u32) -> Arc<Entry> {
    let weight = entry.instance().weight();
    let scaled = proportion(weight, from, to);
    if scaled == weight || entry.presence() == Presence::Held {
        return Arc::clone(entry);
    }
    Arc::new(Entry::new(entry.instance().clone().with_weight(scaled), entry.created(), entry.modified()))
}
