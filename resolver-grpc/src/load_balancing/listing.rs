//! The instances of a view by the endpoint to connect to. Pure, except for the report of instances that cannot be used.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use enlist::{Endpoint, Entry, InstanceId, escape::escaped};

use crate::subchannel::connections::settings::SettingsFor;

/// The candidates of a view.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Instances to connect to. If several instances have one endpoint, for instance after a registration under another
    /// id, the latest is used.
    pub(super) by_endpoint: HashMap<Endpoint, Arc<Entry>>,
    /// Instances without a gRPC endpoint.
    pub(super) unusable: HashSet<InstanceId>,
}

pub(super) fn by_endpoint(candidates: &[Arc<Entry>], settings: &SettingsFor) -> Listed {
    let (mut by_endpoint, mut unusable) = (HashMap::<_, Arc<Entry>>::with_capacity(candidates.len()), HashSet::new());
    for entry in candidates {
        let Some(endpoint) = settings.endpoint(entry.instance()) else {
            unusable.insert(entry.instance().id().clone());
            continue;
        };
        let known = by_endpoint.entry(endpoint.clone()).or_insert_with(|| Arc::clone(entry));
        if known.created() < entry.created() {
            drop(mem::replace(known, Arc::clone(entry)));
        }
    }
    Listed { by_endpoint, unusable }
}

/// Logs instances that cannot be used, once for as long as they are listed.
pub(super) fn report_unusable(reported: &mut HashSet<InstanceId>, unusable: HashSet<InstanceId>) {
    let mut new = unusable.iter().filter(|id| !reported.contains(*id));
    if let Some(id) = new.next() {
        let others = new.count();
        tracing::warn!(instance = %escaped(id), others, "no endpoint that gRPC is spoken with, left out");
    }
    *reported = unusable;
}
