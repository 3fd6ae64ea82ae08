//! Parts of a session that discovery uses.

use std::sync::Arc;

use enlist::Counters;

use crate::{
    client::connection::Connection,
    layout::Layout,
    watch::{malformed::MalformedValues, range_watch::Hub},
};

/// Parts of a session that discovery uses.
#[derive(Debug)]
pub(crate) struct DiscoveryContext {
    pub(crate) conn: Arc<Connection>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) malformed: Arc<MalformedValues>,
}

impl DiscoveryContext {
    pub(crate) fn new(
        conn: &Arc<Connection>,
        hub: &Arc<Hub>,
        counters: &Arc<Counters>,
        layout: Arc<dyn Layout>,
    ) -> Self {
        Self {
            conn: Arc::clone(conn),
            hub: Arc::clone(hub),
            layout,
            malformed: Arc::new(MalformedValues::new(Arc::clone(counters))),
        }
    }
}
