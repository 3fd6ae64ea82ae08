//! A read of a lower revision than what is known: the store went back, or the read was stale, as those of some releases
//! of etcd are after a pause of the process (etcd-io/etcd#20418). A write is never stale, so it decides.

use std::sync::Arc;

use enlist::{Error, Revision};

use super::state::WatchEnd;
use crate::{
    client::store_client::StoreClient,
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
    /// Determines by a write the cause of a read of a lower revision than `known`.
    pub(super) async fn judge(client: &Arc<StoreClient>, known: Revision) -> Self {
        // Boxed: each watch has a place for it in its task, and it is rare.
        Self::of(known, Box::pin(revision_by_a_write(client)).await)
    }

    /// Returns the cause of a read of a lower revision than `known`, after a write with this outcome.
    fn of(known: Revision, written: Result<Revision, Failure>) -> Self {
        match written {
            Ok(now) if now < known => Self::WentBack,
            Ok(_) => Self::Stale,
            // A store without space, or a proxy in front of it, refuses every write. Without a proof the read counts.
            Err(Failure::Denied | Failure::Final(Error::StorageFull | Error::Unsupported { .. })) => Self::WentBack,
            Err(failure) => Self::Unknown(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn at(revision: u64) -> Revision {
        Revision::new(revision)
    }

    #[test]
    fn a_write_decides_between_a_restore_and_lag() {
        assert!(matches!(LowRead::of(at(5), Ok(at(4))), LowRead::WentBack));
        assert!(matches!(LowRead::of(at(5), Ok(at(5))), LowRead::Stale));
    }

    #[test]
    fn a_store_that_takes_no_write_went_back() {
        let unsupported = Error::Unsupported { what: "leases".to_owned() };
        for refusal in [Failure::Final(Error::StorageFull), Failure::Final(unsupported), Failure::Denied] {
            let shown = refusal.to_string();
            assert!(matches!(LowRead::of(at(5), Err(refusal)), LowRead::WentBack), "{shown}");
        }
    }

    #[test]
    fn a_write_that_may_be_repeated_proves_nothing() {
        let others =
            [Failure::LeaseExists, Failure::Final(Error::AuthFailed(text_cause("x"))), Failure::Final(Error::Closed)];
        for failure in testing::failures_with_a_cause("refused").into_iter().chain(others) {
            let shown = failure.to_string();
            assert!(matches!(LowRead::of(at(5), Err(failure)), LowRead::Unknown(_)), "{shown}");
        }
    }
}
