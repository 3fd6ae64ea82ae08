//! The pages of a first list that have arrived. Readers decode them while the rest arrives.

use tokio::sync::watch;

use crate::watch::replica::Replica;

/// The pages of one list, as far as they have arrived.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListedPages {
    /// Number of lists that failed before this one.
    pub(crate) failed: u64,
    /// `None` before the first page, and after the list.
    pub(crate) pages: Option<Replica>,
}

/// Writing side.
#[derive(Debug)]
pub(crate) struct PartialList(watch::Sender<ListedPages>);

impl Default for PartialList {
    fn default() -> Self {
        Self(watch::Sender::new(ListedPages::default()))
    }
}

impl PartialList {
    /// Shows the pages that have arrived.
    pub(crate) fn show(&self, pages: &Replica) {
        self.0.send_modify(|shown| shown.pages = Some(pages.clone()));
    }

    /// The list failed: readers forget its pages.
    pub(crate) fn fail(&self) {
        self.0.send_modify(|shown| (shown.failed, shown.pages) = (shown.failed + 1, None));
    }

    /// The list is published. Readers that wait keep its pages until they read that.
    pub(crate) fn complete(&self) {
        self.0.send_if_modified(|shown| {
            shown.pages = None;
            false
        });
    }

    pub(crate) fn reader(&self) -> PartialListReader {
        let mut shown = self.0.subscribe();
        shown.mark_changed();
        PartialListReader(shown)
    }
}

/// Reading side.
#[derive(Debug)]
pub(crate) struct PartialListReader(watch::Receiver<ListedPages>);

impl PartialListReader {
    /// Waits until more pages have arrived than were returned before, or their list has failed. It does not return
    /// after a complete list.
    ///
    /// # Cancel safety
    ///
    /// Pages that were not returned are returned by the next call.
    pub(crate) async fn next(&mut self) -> ListedPages {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }

    /// Returns the number of lists that have failed.
    pub(crate) fn failed(&self) -> u64 {
        self.0.borrow().failed
    }
}

#[cfg(test)]
mod tests {
    use enlist::{Epoch, Revision};
    use futures::FutureExt as _;

    use super::*;

    fn pages(revision: u64) -> Replica {
        Replica::new(Revision::new(revision), Epoch::default())
    }

    /// Returns the number of failed lists, and the revision of the pages that are shown.
    fn seen(reader: &mut PartialListReader) -> Option<(u64, Option<u64>)> {
        let listed = reader.next().now_or_never()?;
        Some((listed.failed, listed.pages.map(|pages| pages.revision.get())))
    }

    #[test]
    fn readers_see_pages_until_their_list_ends() {
        let list = PartialList::default();
        list.show(&pages(1));
        let mut early = list.reader();
        assert_eq!((seen(&mut early), seen(&mut early)), (Some((0, Some(1))), None));
        list.fail();
        assert_eq!((seen(&mut early), early.failed()), (Some((1, None)), 1));
        list.show(&pages(2));
        let mut late = list.reader();
        assert_eq!((seen(&mut early), seen(&mut late)), (Some((1, Some(2))), Some((1, Some(2)))));
        list.complete();
        assert_eq!((seen(&mut early), early.failed()), (None, 1));
        assert_eq!(seen(&mut list.reader()), Some((1, None)), "its pages are gone");
    }
}
