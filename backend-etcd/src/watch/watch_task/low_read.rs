//! A read of a lower revision than what is known: the store went back, or the read was stale, as those of some releases
//! of etcd are after a pause of the process (etcd-io/etcd#20418). A write is never stale, so it decides.

use std::sync::Arc;

use enlist::Revision;

use super::state::WatchEnd;
use crate::{
    client::connection::Connection,
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

impl LowRead {
    /// Finds out by a write why a read was of a lower revision than `known`.
    pub(super) async fn judge(conn: &Arc<Connection>, known: Revision) -> Self {
        match revision_by_a_write(conn).await {
            Ok(now) if now < known => Self::WentBack,
            Ok(_) => Self::Stale,
            Err(failure) if failure.is_outage() => Self::Unknown(failure),
            // A store without space refuses writes. Without a proof the read counts.
            Err(_) => Self::WentBack,
        }
    }
}
