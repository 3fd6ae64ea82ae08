//! Names of assignments that changed since a stream looked last. The set is bounded by what the stream subscribes to,
//! so a slow client needs no queue.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex},
};

use enlist::backend::MutexExt as _;
use tokio::sync::Notify;

/// Changed names, for one reader.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    changed: Mutex<BTreeSet<Arc<str>>>,
    news: Notify,
}

impl Inbox {
    /// Adds a name.
    pub(super) fn put(&self, name: &Arc<str>) {
        if self.changed.locked().insert(Arc::clone(name)) {
            self.news.notify_one();
        }
    }

    /// Waits until there are names, and removes them.
    ///
    /// # Cancel safety
    ///
    /// Names that were not returned are returned by the next call.
    pub(super) async fn take(&self) -> BTreeSet<Arc<str>> {
        loop {
            let news = self.news.notified();
            let changed = mem::take(&mut *self.changed.locked());
            if !changed.is_empty() {
                return changed;
            }
            news.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_name_that_changes_twice_is_returned_once() {
        let inbox = Inbox::default();
        assert!(inbox.take().now_or_never().is_none());
        for name in ["b", "a", "b"] {
            inbox.put(&name.into());
        }
        assert_eq!(inbox.take().await.into_iter().collect::<Vec<_>>(), ["a".into(), "b".into()]);
        assert!(inbox.take().now_or_never().is_none(), "the signal of a name that was returned is none");
        inbox.put(&"a".into());
        assert_eq!(inbox.take().await.len(), 1);
    }
}
