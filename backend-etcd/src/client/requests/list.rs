//! Lists of a range, page by page.

use std::sync::Arc;

use enlist::{Error, Revision};
use etcd_client::{GetOptions, GetResponse};
use tokio::time::Instant;

use crate::{
    client::{
        connection::request_channel::Clients,
        requests::{
            limits,
            page_size::{PAGE, PageSize},
            response::{records, revision_of, signed},
        },
        store_client::StoreClient,
    },
    error::Failure,
    watch::record::{KeyRange, Record},
};

/// Keys per read of a list of groups. Doubled while no group is found.
const GROUP_PAGE: i64 = 16;

/// Part of the cluster that answers a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    /// A quorum: contains every write that was acknowledged before.
    Linearizable,
    /// One member, which may lag behind.
    Serializable,
}

/// Part of each record that a list contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    KeysAndValues,
    Keys,
}

impl Content {
    /// Returns options that read this part.
    fn of(self, options: GetOptions) -> GetOptions {
        match self {
            Self::KeysAndValues => options,
            Self::Keys => options.with_keys_only(),
        }
    }
}

/// Page of a list.
#[derive(Debug)]
pub(crate) struct ListedPage {
    pub(crate) records: Vec<Record>,
    /// Revision of the whole list.
    pub(crate) revision: Revision,
    /// `true` if further pages follow.
    pub(crate) more: bool,
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

impl StoreClient {
    /// Lists a range page by page, at one revision. Fails as soon as the range is known to exceed the limits.
    pub(crate) async fn list(&self, range: &KeyRange) -> Result<(Vec<Record>, Revision), Failure> {
        self.list_as(range, Consistency::Linearizable, Content::KeysAndValues, None).await
    }

    /// Lists a range page by page, at one revision, as [`list`](Self::list). Hands over each page as soon as it has
    /// arrived.
    pub(crate) async fn list_pages(
        &self,
        range: &KeyRange,
        mut take: impl FnMut(ListedPage) + Send,
    ) -> Result<(), Failure> {
        self.pages_as(range, Consistency::Linearizable, Content::KeysAndValues, None, &mut take).await.map(drop)
    }

    /// Lists the keys of a range page by page, at one revision. The records have no values.
    pub(crate) async fn list_keys(&self, range: &KeyRange) -> Result<Vec<Record>, Failure> {
        let (records, _) = self.list_as(range, Consistency::Linearizable, Content::Keys, None).await?;
        Ok(records)
    }

    /// Lists a range page by page, at the revision of an earlier read.
    pub(crate) async fn list_at(&self, range: &KeyRange, at: Revision) -> Result<Vec<Record>, Failure> {
        let (records, _) = self.list_as(range, Consistency::Linearizable, Content::KeysAndValues, Some(at)).await?;
        Ok(records)
    }

    /// Lists a range from the state of one member, which may lag behind the others and needs no leader.
    pub(crate) async fn list_of_a_member(&self, range: &KeyRange) -> Result<(Vec<Record>, Revision), Failure> {
        self.list_as(range, Consistency::Serializable, Content::KeysAndValues, None).await
    }

    async fn list_as(
        &self,
        range: &KeyRange,
        consistency: Consistency,
        content: Content,
        at: Option<Revision>,
    ) -> Result<(Vec<Record>, Revision), Failure> {
        let mut records = Vec::new();
        let mut take = |page: ListedPage| records.extend(page.records);
        let revision = self.pages_as(range, consistency, content, at, &mut take).await?;
        Ok((records, revision))
    }

    async fn pages_as(
        &self,
        range: &KeyRange,
        consistency: Consistency,
        content: Content,
        mut at: Option<Revision>,
        take: &mut (dyn FnMut(ListedPage) + Send),
    ) -> Result<Revision, Failure> {
        let (mut from, mut read, mut bytes) = (range.start.clone(), 0, 0);
        let mut pages = PageSize::new(&self.pages, self.data.limit);
        loop {
            let options = content.of(page_options(range, pages.keys(), at));
            let (begun, request) = (Instant::now(), pages.request());
            let outcome = self.read_page(&from, &options, consistency).await;
            request.answered();
            let response = match outcome {
                // A thousand values of a megabyte do not fit into one response. A proxy may report its own limit, with
                // the text for a request that is too large.
                Err(Failure::AnswerTooLarge(_) | Failure::Final(Error::TooLarge { .. })) if pages.reduce() => continue,
                // The page is read again with fewer keys.
                Err(Failure::Lost(_) | Failure::Leaderless(_)) if pages.stop_growing() => continue,
                // The next list begins with smaller pages. This one fails, so that the failure is reported.
                Err(Failure::Lost(cause)) => {
                    self.pages.lost(pages.keys());
                    return Err(Failure::Lost(cause));
                }
                outcome => outcome?,
            };
            let (took, more) = (begun.elapsed(), response.more());
            let revision = *at.get_or_insert(revision_of(&response));
            // `count` includes the keys after this page.
            let keys = read + usize::try_from(response.count()).unwrap_or(0);
            let records: Vec<Record> = self::records(response).collect();
            let (count, page_bytes) = (records.len(), records.iter().map(limits::size).sum::<usize>());
            (read, bytes) = (read + count, bytes + page_bytes);
            self.limits.check(range, keys.max(read), bytes).map_err(Failure::Final)?;
            if let Some(last) = records.last() {
                from = [&last.key[..], &[0]].concat();
            }
            take(ListedPage { records, revision, more });
            if !more {
                self.pages.succeeded(pages.keys());
                return Ok(revision);
            }
            pages.arrived(count, page_bytes, took);
        }
    }

    /// Lists the groups of a range that have a key, at one revision, without reading all of their keys: after the first
    /// key of a group, continues behind the range of that group. `group` returns the group of a key with its range.
    /// Long runs of other keys are read in larger pages. Fails as soon as the groups and the other keys exceed the
    /// limits.
    pub(crate) async fn list_groups<G>(
        &self,
        range: &KeyRange,
        group: impl Fn(&[u8]) -> Option<(G, KeyRange)>,
    ) -> Result<Vec<G>, Failure> {
        let (mut groups, mut at) = (Vec::new(), None);
        let (mut others, mut limit) = (0, GROUP_PAGE);
        let mut from = range.start.clone();
        loop {
            let options = page_options(range, limit, at).with_keys_only();
            let response = self.read_page(&from, &options, Consistency::Linearizable).await?;
            at.get_or_insert(revision_of(&response));
            let (more, known) = (response.more(), groups.len());
            let keys = self::records(response).map(|record| record.key);
            let page = after_page(&mut groups, keys, &group);
            others += page.others;
            self.limits.check(range, groups.len() + others, 0).map_err(Failure::Final)?;
            limit = if groups.len() > known { GROUP_PAGE } else { (limit * 2).min(PAGE) };
            match page.next {
                Some(next) if more && range.contains(&next) => from = next,
                _ => return Ok(groups),
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
        let limit = self.pages.first();
        let options = page_options(range, limit, None).with_keys_only();
        let (from_key, options_ref) = (&from, &options);
        let read =
            |mut clients: Clients| async move { clients.kv.get(from_key.clone(), Some(options_ref.clone())).await };
        let response = self.data.ask("audit", read).await.inspect_err(|failure| {
            // The next page is smaller, as in a list.
            if let Failure::Lost(_) | Failure::AnswerTooLarge(_) | Failure::Final(Error::TooLarge { .. }) = failure {
                self.pages.lost(limit);
            }
        })?;
        let (revision, more) = (revision_of(&response), response.more());
        let count = usize::try_from(response.count()).unwrap_or(0);
        let records: Vec<Record> = self::records(response).collect();
        let upto = records.last().filter(|_| more).map(|last| Arc::clone(&last.key));
        Ok(Page { from, upto, records, revision, count, floor })
    }
}

/// Rest of a list of groups after a page of keys.
#[derive(Debug, Default, PartialEq, Eq)]
struct AfterPage {
    /// First key that may be of another group; `None` after an empty page.
    next: Option<Vec<u8>>,
    /// Number of keys of the page that are of no group.
    others: usize,
}

/// Adds the groups of a page of keys.
fn after_page<G>(
    groups: &mut Vec<G>,
    keys: impl Iterator<Item = Arc<[u8]>>,
    group: impl Fn(&[u8]) -> Option<(G, KeyRange)>,
) -> AfterPage {
    let mut page = AfterPage::default();
    for key in keys {
        if page.next.as_ref().is_some_and(|next| *key < **next) {
            continue;
        }
        let end = if let Some((found, own)) = group(&key) {
            groups.push(found);
            own.end
        } else {
            page.others += 1;
            None
        };
        page.next = Some(end.filter(|end| **end > *key).unwrap_or_else(|| [&key[..], &[0]].concat()));
    }
    page
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_listed_once_and_its_other_keys_are_skipped() {
        let group = |key: &[u8]| {
            let at = key.iter().position(|byte| *byte == b'/')?;
            Some((String::from_utf8_lossy(&key[..at]).into_owned(), KeyRange::prefix(&key[..=at])))
        };
        let page = |groups: &mut Vec<String>, keys: &[&str]| {
            let keys = keys.iter().map(|key| Arc::from(key.as_bytes()));
            let AfterPage { next, others } = after_page(groups, keys, group);
            (next.map(|next| String::from_utf8(next).unwrap()), others)
        };
        let mut groups = Vec::new();
        assert_eq!(page(&mut groups, &["a", "a/1", "a/2", "b/1", "c"]), (Some("c\0".to_owned()), 2));
        assert_eq!(groups, ["a", "b"]);
        assert_eq!(page(&mut groups, &["d/1", "d/2"]), (Some("d0".to_owned()), 0));
        assert_eq!(page(&mut groups, &[]), (None, 0));
        assert_eq!(groups, ["a", "b", "d"]);
    }
}
