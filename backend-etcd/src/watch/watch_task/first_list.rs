//! The first list of a range.
//!
//! Readers decode its pages while the rest arrives, see [`PartialList`].
//!
//! While etcd has no quorum, the list of one member is shown, if the user has asked for it. That list was correct at
//! its revision, so decisions by revision stay correct. But the member may lag behind by any time. Therefore its list
//! is published once, as stale and with the largest age, and the first linearizable list is still pending. That one
//! continues from the replica: readers get the difference, and a store behind the replica has gone back.
//!
//! [`PartialList`]: crate::watch::partial_list::PartialList

use std::{sync::Arc, time::Duration};

use enlist::{
    Error, Moment, Revision,
    backend::{LONGEST, rounded},
    with_causes,
};

use super::WatchTask;
use crate::{
    error::Failure,
    watch::{record::Record, replica::Replica},
};

/// Result of a list.
type Listed = Result<(Vec<Record>, Revision), Failure>;

impl WatchTask {
    /// Returns `true` before the first list, unless the list of one member may be shown meanwhile.
    pub(super) fn lists_by_pages(&self) -> bool {
        self.replica.is_none() && self.serializable_first_list.is_none()
    }

    /// Lists the range for the first time, and shows the pages to the readers, except the last one: the whole list is
    /// published then.
    pub(super) async fn list_by_pages(&mut self) -> Result<Replica, Failure> {
        let (client, range, partial) = (Arc::clone(&self.client), self.range.clone(), Arc::clone(&self.partial));
        let mut replica = Replica::new(Revision::default(), self.epoch);
        let listed = client.list_pages(&range, |page| {
            replica.add_page(page.records, page.revision);
            if page.more {
                partial.show(&replica);
            }
        });
        match listed.await {
            Ok(()) => Ok(replica),
            Err(failure) => {
                self.partial.fail();
                Err(failure)
            }
        }
    }

    /// Lists the range. If nothing is known yet, it shows the list of one member once the linearizable list takes too
    /// long or is not answered.
    pub(super) async fn listed(&mut self) -> Listed {
        let (client, range) = (Arc::clone(&self.client), self.range.clone());
        let mut listing = std::pin::pin!(client.list(&range));
        let Some(after) = self.serializable_first_list.filter(|_| self.replica.is_none()) else {
            return listing.await;
        };
        let failed = match tokio::time::timeout(after, &mut listing).await {
            Ok(Err(failure)) if failure.is_outage() => Some(failure),
            Ok(listed) => return listed,
            Err(_) => None,
        };
        let cause = match &failed {
            Some(failure) => failure.clone().into_error(&range.describe()),
            None => late(after),
        };
        let mut known = std::pin::pin!(client.list_of_a_member(&range));
        if let Some(failure) = failed {
            self.show(known.await, cause);
            return Err(failure);
        }
        tokio::select! {
            known = &mut known => {
                self.show(known, cause);
                let listed = listing.await?;
                // The revision of the list is that of its first page, which may have been read before the member
                // answered. A list that starts now is ahead of the member, unless the store went back.
                if listed.1 < self.seen() { client.list(&range).await } else { Ok(listed) }
            }
            listed = &mut listing => {
                if listed.as_ref().is_err_and(Failure::is_outage) {
                    self.show(known.await, cause);
                }
                listed
            }
        }
    }

    /// Publishes the list of one member, if it has answered.
    fn show(&mut self, known: Listed, cause: Error) {
        match known {
            Ok((records, revision)) => {
                let range = self.range.describe();
                tracing::warn!(%range, cause = %with_causes(&cause), "range shown as one member has it");
                let mut replica = Replica::new(revision, self.epoch);
                replica.relist(records, revision, self.epoch);
                self.publisher.publish_stale(replica.clone(), Moment::ago(LONGEST), cause);
                self.replica = Some(replica);
            }
            Err(failure) => tracing::debug!(cause = %failure, "no member has answered either"),
        }
    }
}

fn late(after: Duration) -> Error {
    Error::unavailable(format!("no linearizable list within {}", rounded(after)))
}
