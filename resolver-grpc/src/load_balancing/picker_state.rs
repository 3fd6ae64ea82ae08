//! State of the set of subchannels that calls pick from, published by the [pool
//! task](crate::load_balancing::pool_task).

use std::sync::Arc;

use arc_swap::ArcSwap;
use enlist::balance::Ready;
use tokio::sync::watch;

use crate::subchannel::subchannel::Subchannel;

/// Cell with the latest picker state, which calls read.
#[derive(Debug)]
pub(crate) struct PickerCell {
    pub(crate) set: ArcSwap<PickerState>,
    /// Number of picker states so far.
    pub(crate) versions: watch::Sender<u64>,
}

impl PickerCell {
    /// Publishes a closed picker state: no further call is sent.
    pub(crate) fn close(&self) {
        self.set.store(Arc::new(PickerState { known: true, closed: true, ..PickerState::default() }));
        self.versions.send_modify(|versions| *versions += 1);
    }
}

/// The set of subchannels at one moment.
#[derive(Debug, Default)]
pub(crate) struct PickerState {
    pub(crate) closed: bool,
    /// The view has delivered its first snapshot.
    pub(crate) known: bool,
    pub(crate) ready: Ready<Arc<Subchannel>>,
    /// Instances that are listed and pass the filter, ready or not.
    pub(crate) all: Vec<Arc<Subchannel>>,
    /// Instances that are no longer listed and finish their calls.
    pub(crate) leaving: Vec<Arc<Subchannel>>,
}
