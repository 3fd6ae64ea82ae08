//! Parts of a session that configuration uses.

use std::sync::Arc;

use crate::{
    client::store_client::StoreClient,
    layout::config::ConfigLayout,
    watch::{malformed::MalformedValues, range_watch::RangeWatches},
};

/// Parts of a session that configuration uses.
#[derive(Debug)]
pub(crate) struct ConfigContext {
    pub(crate) client: Arc<StoreClient>,
    pub(crate) range_watches: Arc<RangeWatches>,
    pub(crate) layout: ConfigLayout,
    pub(crate) malformed: Arc<MalformedValues>,
}
