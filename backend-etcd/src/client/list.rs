//! Lists of a range, page by page.

use std::sync::{Arc, atomic::Ordering};

use enlist::Revision;
use etcd_client::{GetOptions, GetResponse};

use crate::{
    client::{
        connection::Connection,
        limits::{self, PAGE},
        request_channel::Clients,
        response::{records, revision_of, signed},
    },
    error::Failure,
    watch::record::{KeyRange, Record},
};

/// Keys per page of a list over a slow connection.
const SMALL_PAGE: i64 = 16;

/// Part of the cluster that answers a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    /// A quorum: contains every write that was acknowledged before.
    Linearizable,
    /// One member, which may lag behind.
    Serializable,
}

/// Part of a range as stored in etcd: the keys from `from` to `upto`, or to the end of the range.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) from: Vec<u8>,
    pub(crate) upto: Option<Arc<[u8]>>,
    /// Without values.
    pub(crate) records: Vec<Record>,
    pub(crate) revision: Revision,
    /// Number of keys of the range from `from` on.
    pub(crate) count: usize,
    /// Revision of the replica at the time of the request. A linearizable read cannot be older.
    pub(crate) floor: Revision,
}

impl Connection {
    /// Lists a range page by page, at one revision. Fails as soon as the range is known to exceed the limits.
    pub(crate) async fn list(&self, range: &KeyRange) -> Result<(Vec<Record>, Revision), Failure> {
        self.list_as(range, Consistency::Linearizable).await
    }

    /// Lists a range from the state of one member, which may lag behind the others and needs no leader.
    pub(crate) async fn list_of_a_member(&self, range: &KeyRange) -> Result<(Vec<Record>, Revision), Failure> {
        self.list_as(range, Consistency::Serializable).await
    }

    async fn list_as(&self, range: &KeyRange, consistency: Consistency) -> Result<(Vec<Record>, Revision), Failure> {
        let mut records: Vec<Record> = Vec::new();
        let (mut bytes, mut at) = (0, None);
        let mut from = range.start.clone();
        let mut limit = self.page.load(Ordering::Relaxed);
        loop {
            let response = match self.read_page(&from, &page_options(range, limit, at), consistency).await {
                // A thousand values of a megabyte do not fit into one response.
                Err(Failure::AnswerTooLarge(_)) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                // The next list requests smaller pages. This one fails, so that the failure is reported.
                Err(Failure::Lost(cause)) => {
                    self.page.store((limit / 4).max(SMALL_PAGE), Ordering::Relaxed);
                    return Err(Failure::Lost(cause));
                }
                outcome => outcome?,
            };
            at.get_or_insert(revision_of(&response));
            let more = response.more();
            // `count` includes the keys after this page.
            let keys = records.len() + usize::try_from(response.count()).unwrap_or(0);
            let read = records.len();
            records.extend(self::records(response));
            bytes += records[read..].iter().map(limits::size).sum::<usize>();
            self.limits.check(range, keys.max(records.len()), bytes).map_err(Failure::Final)?;
            match records.last() {
                Some(last) if more => from = [&last.key[..], &[0]].concat(),
                _ => {
                    self.page.store((limit * 2).min(PAGE), Ordering::Relaxed);
                    return Ok((records, at.unwrap_or_default()));
                }
            }
        }
    }

    async fn read_page(
        &self,
        from: &[u8],
        options: &GetOptions,
        consistency: Consistency,
    ) -> Result<GetResponse, Failure> {
        match consistency {
            Consistency::Linearizable => {
                let read = |mut clients: Clients| async move { clients.kv.get(from, Some(options.clone())).await };
                self.data.ask("list", read).await
            }
            Consistency::Serializable => {
                let options = &options.clone().with_serializable();
                let read = |mut clients: Clients| async move { clients.kv.get(from, Some(options.clone())).await };
                self.data.ask_any_member("list of a member", read).await
            }
        }
    }

    /// Reads one page of the keys of a range, from `from` on, without values. `floor` is stored in the result.
    pub(crate) async fn page(&self, range: &KeyRange, from: Vec<u8>, floor: Revision) -> Result<Page, Failure> {
        let limit = self.page.load(Ordering::Relaxed);
        let options = page_options(range, limit, None).with_keys_only();
        let (from_key, options_ref) = (&from, &options);
        let read =
            |mut clients: Clients| async move { clients.kv.get(from_key.clone(), Some(options_ref.clone())).await };
        let response = self.data.ask("audit", read).await.inspect_err(|failure| {
            // The next page is smaller, as in a list.
            if let Failure::Lost(_) = failure {
                self.page.store((limit / 4).max(SMALL_PAGE), Ordering::Relaxed);
            }
        })?;
        let (revision, more) = (revision_of(&response), response.more());
        let count = usize::try_from(response.count()).unwrap_or(0);
        let records: Vec<Record> = self::records(response).collect();
        let upto = records.last().filter(|_| more).map(|last| Arc::clone(&last.key));
        Ok(Page { from, upto, records, revision, count, floor })
    }
}

/// Returns the options of a page of `range` with at most `limit` keys, at the revision `at` if it is given.
fn page_options(range: &KeyRange, limit: i64, at: Option<Revision>) -> GetOptions {
    let mut options = GetOptions::new().with_limit(limit);
    if let Some(end) = &range.end {
        options = options.with_range(end.clone());
    }
    match at {
        Some(revision) => options.with_revision(signed(revision)),
        None => options,
    }
}
