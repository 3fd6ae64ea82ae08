//! Idle timeout of a channel: without calls, its connections are closed until the next call.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    load_balancing::picker_state::PickerCell,
    subchannel::{activity::Usage, config::SubchannelConfig, subchannel::Subchannel},
};

/// Number of checks within the timeout. A channel becomes idle at most one check interval late.
const CHECKS_PER_TIMEOUT: u32 = 4;

/// Makes the channel idle whenever no call was made, waited or was in flight for `limit`.
pub(crate) async fn watch(limit: Option<Duration>, picker_cell: &PickerCell, config: &SubchannelConfig) {
    let Some(limit) = limit else { return pending().await };
    loop {
        config.activity.becomes(Usage::Active).await;
        let (mut counted, mut quiet) = (calls(picker_cell, config), 0);
        while quiet < CHECKS_PER_TIMEOUT {
            sleep(limit / CHECKS_PER_TIMEOUT).await;
            let now = calls(picker_cell, config);
            quiet = if now == (counted.0, 0) { quiet + 1 } else { 0 };
            counted = now;
        }
        tracing::debug!("no calls, connections closed");
        config.activity.set(Usage::Idle);
    }
}

/// Number of calls begun over the present instances, and number of those in flight or waiting.
fn calls(picker_cell: &PickerCell, config: &SubchannelConfig) -> (u64, usize) {
    let set = picker_cell.set.load();
    let counts = |subchannel: &Arc<Subchannel>| (subchannel.counts().0, subchannel.in_flight());
    set.all
        .iter()
        .chain(&set.leaving)
        .map(counts)
        .fold((0, config.queue.waiting()), |(begun, flying), (a, b)| (begun.wrapping_add(a), flying + b))
}
