//! State of the set of subchannels that calls pick from, published by the [pool
//! task](crate::load_balancing::pool_task).

use std::sync::Arc;

use arc_swap::ArcSwap;
use enlist::balance::Ready;
use tokio::sync::watch;

use crate::subchannel::subchannel::Subchannel;

/// View of calls on the set.
#[derive(Debug)]
pub(crate) struct PickerCell {
    pub(crate) set: ArcSwap<PickerState>,
    /// Number of picker states so far.
    pub(crate) versions: watch::Sender<u64>,
}

impl PickerCell {
    /// Lets nobody take calls any more.
    pub(crate) fn close(&self) {
        self.set.store(Arc::new(PickerState { known: true, closed: true, ..PickerState::default() }));
        self.versions.send_modify(|versions| *versions += 1);
    }
}

/// The set at one moment.
#[derive(Debug, Default)]
pub(crate) struct PickerState {
    pub(crate) closed: bool,
    /// The view has said who there is.
    pub(crate) known: bool,
    pub(crate) ready: Ready<Arc<Subchannel>>,
    /// Everybody who is listed and passes the filter, ready or not.
    pub(crate) all: Vec<Arc<Subchannel>>,
    /// Instances that are no longer listed and finish their calls.
    pub(crate) leaving: Vec<Arc<Subchannel>>,
}
