//! A read of a lower revision than what is known: the store went back, or the read was stale, as those of some releases
//! of etcd are after a pause of the process (etcd-io/etcd#20418). A write is never stale, so it decides.

use super::{WatchTask, state::WatchEnd};
use crate::{
    error::{Failure, text_cause},
    session::lease_requests::revision_by_a_write,
};

/// Cause of a read of a lower revision than what is known.
pub(super) enum LowRead {
    WentBack,
    Stale,
    /// No write was answered.
    Unknown(Failure),
}

impl From<LowRead> for WatchEnd {
    fn from(cause: LowRead) -> Self {
        match cause {
            LowRead::WentBack => Self::WentBack,
            LowRead::Stale => Self::Broken(Failure::Lost(text_cause("a read was answered by a member that lags"))),
            LowRead::Unknown(failure) => Self::Broken(failure),
        }
    }
}

impl WatchTask {
    /// Finds out the cause of such a read by a write.
    pub(super) async fn judge_low_read(&mut self) -> LowRead {
        match revision_by_a_write(&self.conn).await {
            Ok(now) if now < self.seen() => LowRead::WentBack,
            Ok(_) => LowRead::Stale,
            Err(failure) if failure.is_outage() => LowRead::Unknown(failure),
            // A store without space refuses writes. Without a proof the read counts.
            Err(_) => LowRead::WentBack,
        }
    }
}
