//! Sharing of the writes that prove the revision of the store.
//!
//! A restore, or a member that lags, is noticed by many watches of a session at once. They share one write instead of
//! making one each.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
};

use enlist::Revision;
use tokio::sync::Mutex;

use crate::error::Failure;

/// Outcome of a write.
#[derive(Clone, Debug)]
struct Outcome {
    /// Number of the write, counted from 1.
    number: u64,
    revision: Result<Revision, Failure>,
}

/// Serializes the writes that prove the revision of the store, and shares each among the callers that wait for one.
#[derive(Debug, Default)]
pub(crate) struct WriteProofs {
    /// Number of writes that have begun.
    begun: AtomicU64,
    /// Outcome of the last write. Locked while one is under way.
    last: Mutex<Option<Outcome>>,
}

impl WriteProofs {
    /// Returns the outcome of a write that began after this call: `write`, or that of another caller.
    ///
    /// Dropping the future drops `write`. Other callers then send their own.
    pub(crate) async fn share(
        &self,
        write: impl Future<Output = Result<Revision, Failure>>,
    ) -> Result<Revision, Failure> {
        let asked = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        // A write that began before proves nothing: the store may have gone back since.
        if let Some(last) = last.as_ref().filter(|last| last.number > asked) {
            return last.revision.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let revision = write.await;
        *last = Some(Outcome { number, revision: revision.clone() });
        revision
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::Instant;

    use super::*;
    use crate::error::text_cause;

    /// Duration of a write.
    const WRITE: Duration = Duration::from_secs(1);

    /// Writes that use their numbers as revisions.
    #[derive(Default)]
    struct Writes {
        proofs: WriteProofs,
        made: AtomicU64,
    }

    impl Writes {
        async fn revision(&self) -> u64 {
            let write = async {
                let made = self.made.fetch_add(1, Ordering::SeqCst) + 1;
                tokio::time::sleep(WRITE).await;
                Ok(Revision::new(made))
            };
            self.proofs.share(write).await.map_or(0, Revision::get)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_the_next_write_only() {
        let writes = Writes::default();
        let later = async {
            tokio::time::sleep(WRITE / 2).await;
            join_all([writes.revision(), writes.revision(), writes.revision()]).await
        };
        let (first, later) = tokio::join!(writes.revision(), later);
        assert_eq!((first, later), (1, vec![2, 2, 2]), "the first write began before they asked");
        assert_eq!(writes.revision().await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_shared_and_not_kept() {
        let proofs = WriteProofs::default();
        let fails = || async {
            tokio::time::sleep(WRITE).await;
            Err(Failure::Lost(text_cause("silent")))
        };
        let begun = Instant::now();
        assert!(join_all((0..10).map(|_| proofs.share(fails()))).await.iter().all(Result::is_err));
        assert!(begun.elapsed() <= WRITE * 2, "{:?}", begun.elapsed());
        assert!(proofs.share(async { Ok(Revision::new(7)) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_caller_leaves_the_write_to_others() {
        let writes = Writes::default();
        let (dropped, other) = tokio::join!(tokio::time::timeout(WRITE / 2, writes.revision()), writes.revision());
        assert!(dropped.is_err());
        assert_eq!(other, 2);
    }
}
