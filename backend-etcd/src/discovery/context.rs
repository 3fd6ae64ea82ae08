//! Parts of a session that discovery uses.

use std::sync::Arc;

use crate::{
    client::store_client::StoreClient,
    layout::Layout,
    watch::{malformed::MalformedValues, range_watch::RangeWatches},
};

/// Parts of a session that discovery uses.
#[derive(Debug)]
pub(crate) struct DiscoveryContext {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) range_watches: Arc<RangeWatches>,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) malformed: Arc<MalformedValues>,
}

impl DiscoveryContext {
    pub(crate) fn new(
        client: &Arc<StoreClient>,
        range_watches: &Arc<RangeWatches>,
        malformed: &Arc<MalformedValues>,
        layout: Arc<dyn Layout>,
    ) -> Self {
        Self {
            client: Arc::clone(client),
            range_watches: Arc::clone(range_watches),
            layout,
            malformed: Arc::clone(malformed),
        }
    }
}
