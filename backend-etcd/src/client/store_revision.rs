//! The highest revision of the store that this client has seen. A lower one reveals a restore to an earlier state.

use std::sync::{Mutex, MutexGuard};

use enlist::{Revision, backend::MutexExt as _};
use etcd_client::{
    GetResponse, LeaseGrantResponse, LeaseKeepAliveStream, LeaseKeeper, LeaseRevokeResponse, LeaseTimeToLiveResponse,
    MemberListResponse, ResponseHeader, TxnResponse,
};
use tokio::sync::Notify;

use crate::client::connection::watch_call::WatchCall;

/// A reply of etcd.
pub(crate) trait Reply {
    /// Returns the header, if the reply has one that can be read.
    fn header(&self) -> Option<&ResponseHeader> {
        None
    }

    /// Returns the revision of the store in the header.
    fn revision(&self) -> Option<Revision> {
        let revision = self.header().and_then(|header| u64::try_from(header.revision()).ok());
        revision.filter(|revision| *revision > 0).map(Revision::new)
    }
}

macro_rules! replies_with_a_header {
    ($($reply:ty),*) => {
        $(impl Reply for $reply {
            fn header(&self) -> Option<&ResponseHeader> {
                <$reply>::header(self)
            }
        })*
    };
}

replies_with_a_header!(GetResponse, LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, TxnResponse);

// The client consumes the header of a renewal, a member list has no revision, and a version is read separately.
impl Reply for (LeaseKeeper, LeaseKeepAliveStream) {}
impl Reply for MemberListResponse {}
impl Reply for Option<String> {}
impl Reply for WatchCall {}

/// State of a [`StoreRevision`] before a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    revision: Revision,
    /// Number of restores that were noticed.
    restores: u64,
}

impl Seen {
    #[cfg(test)]
    pub(crate) const fn new(revision: Revision, restores: u64) -> Self {
        Self { revision, restores }
    }

    /// Returns the state after a reply at `revision` to a request that was sent in state `before`, and the reply's age.
    fn after(self, before: Self, revision: Revision) -> (Self, Age) {
        if !self.is_of_same_history(before) {
            return (self, Age::Unknown);
        }
        let age = if before.excludes(revision) { Age::TooOld } else { Age::Possible };
        (Self { revision: self.revision.max(revision), ..self }, age)
    }

    /// Returns `true` if a reply at `revision`, to a request that was sent in this state, is of a member that lags or
    /// of a store that went back.
    pub(crate) fn excludes(self, revision: Revision) -> bool {
        revision < self.revision
    }

    /// Returns `true` if no restore was noticed between the two states.
    pub(crate) fn is_of_same_history(self, other: Self) -> bool {
        self.restores == other.restores
    }
}

/// Age of a reply, compared with the revisions seen before its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Possible,
    /// Its revision is below one seen before the request: the member lags, or the store went back.
    TooOld,
    /// A restore was noticed meanwhile.
    Unknown,
}

/// History that a revision belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    Present,
    /// A restore was noticed meanwhile.
    Unknown,
}

/// The highest revision of the store that this client has seen.
#[derive(Debug, Default)]
pub(crate) struct StoreRevision {
    seen: Mutex<Seen>,
    suspected: Notify,
}

impl StoreRevision {
    /// Returns the present state, to be kept while a request is in flight.
    pub(crate) fn seen(&self) -> Seen {
        *self.locked()
    }

    /// Returns the highest revision.
    pub(crate) fn highest(&self) -> Revision {
        self.locked().revision
    }

    /// Records a reply to a request that was sent in state `before`.
    pub(crate) fn note(&self, before: Seen, revision: Revision) {
        let age = {
            let mut seen = self.locked();
            let (after, age) = seen.after(before, revision);
            *seen = after;
            age
        };
        if age == Age::TooOld {
            self.suspect();
        }
    }

    /// Records a revision that a watch opened in state `before` has reached. If a restore was noticed since, the
    /// revision may belong to the lost history: the present revision is read instead.
    pub(crate) fn raise(&self, before: Seen, revision: Revision) -> History {
        let mut seen = self.locked();
        if seen.is_of_same_history(before) {
            seen.revision = seen.revision.max(revision);
            return History::Present;
        }
        drop(seen);
        self.suspect();
        History::Unknown
    }

    /// Requests a check of the store, which may have gone back.
    pub(crate) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Waits until the store may have gone back.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// Starts over at `revision`, because the store was restored.
    pub(crate) fn restored(&self, revision: Revision) {
        let mut seen = self.locked();
        *seen = Seen { revision, restores: seen.restores + 1 };
    }

    fn locked(&self) -> MutexGuard<'_, Seen> {
        self.seen.locked()
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbRangeResponse, PbResponseHeader};
    use futures::FutureExt;

    use super::*;

    fn seen(revision: u64, restores: u64) -> Seen {
        Seen::new(Revision::new(revision), restores)
    }

    #[test]
    fn a_reply_has_the_revision_of_its_header() {
        let revision = |revision| {
            let header = PbResponseHeader { revision, ..PbResponseHeader::default() };
            GetResponse(PbRangeResponse { header: Some(header), ..PbRangeResponse::default() }).revision()
        };
        assert_eq!([-1, 0, 1].map(revision), [None, None, Some(Revision::new(1))]);
        assert_eq!(GetResponse(PbRangeResponse::default()).revision(), None);
        assert_eq!(None::<String>.revision(), None);
    }

    #[test]
    fn a_reply_that_is_too_old_raises_a_suspicion() {
        let store = StoreRevision::default();
        store.note(store.seen(), Revision::new(9));
        assert_eq!(store.highest(), Revision::new(9));
        for revision in [9, 10] {
            store.note(store.seen(), Revision::new(revision));
            assert!(store.suspected().now_or_never().is_none());
        }
        store.note(store.seen(), Revision::new(4));
        assert!(store.suspected().now_or_never().is_some());
        assert_eq!(store.highest(), Revision::new(10));
        assert!(store.suspected().now_or_never().is_none(), "it was taken");
    }

    #[test]
    fn a_reply_below_what_was_seen_before_its_request_is_too_old() {
        let now = seen(9, 0);
        assert_eq!(now.after(seen(5, 0), Revision::new(5)), (now, Age::Possible));
        assert_eq!(now.after(seen(5, 0), Revision::new(4)), (now, Age::TooOld));
        assert_eq!(now.after(seen(5, 0), Revision::new(7)), (now, Age::Possible), "it was overtaken");
        assert_eq!(now.after(seen(5, 0), Revision::new(12)), (seen(12, 0), Age::Possible));
    }

    #[test]
    fn a_reply_from_before_a_restore_proves_nothing() {
        let now = seen(9, 1);
        for revision in [4, 12] {
            assert_eq!(now.after(seen(20, 0), Revision::new(revision)), (now, Age::Unknown));
        }
    }

    #[test]
    fn a_late_event_from_before_a_restore_raises_nothing() {
        let store = StoreRevision::default();
        let before = store.seen();
        assert_eq!(store.raise(before, Revision::new(20)), History::Present);
        store.restored(Revision::new(5));
        assert_eq!(store.raise(before, Revision::new(20)), History::Unknown);
        assert_eq!(store.highest(), Revision::new(5));
        assert!(store.suspected().now_or_never().is_some(), "the present revision is read instead");
        assert_eq!(store.raise(store.seen(), Revision::new(7)), History::Present);
        assert_eq!(store.highest(), Revision::new(7));
    }
}
