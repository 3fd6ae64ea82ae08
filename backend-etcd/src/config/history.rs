//! Past versions of a value, by reads at older revisions. Read `deletions.rs` next.

use std::sync::Arc;

use enlist::{ConfigVersion, Error, Revision};
use etcd_client::GetOptions;

use crate::{
    client::{requests::response::signed, store_client::StoreClient},
    config::deletions,
    error::Failure,
    watch::record::Record,
};

/// Reads the versions of a key, the newest first, until the last compaction.
///
/// A read at the revision before a change returns the version before it. Before its creation the key was absent; the
/// deletion that ended an earlier version is found by a watch (`deletions.rs`), where the member can prove its result.
pub(crate) async fn versions(client: &StoreClient, key: &Arc<[u8]>, limit: usize) -> Result<Vec<ConfigVersion>, Error> {
    let read = async {
        let (mut versions, mut at, mut deletions) = (Vec::new(), None, None);
        while versions.len() < limit {
            match version_at(client, key, at).await {
                Ok(Some(record)) => {
                    let Record { created, modified, value, .. } = record;
                    versions.push(ConfigVersion::new(Some(value.into()), modified));
                    at = Some(before(modified));
                    if created < modified {
                        continue;
                    }
                }
                Ok(None) => {}
                // The first read is of the present state, which is always there.
                Err(Failure::Compacted) if at.is_some() => break,
                Err(failure) => return Err(failure),
            }
            if versions.len() == limit {
                break;
            }
            let upto = at.unwrap_or_else(|| client.store.highest());
            if deletions.is_none() {
                deletions = Some(deletions::deletions(client, key, upto).await?);
            }
            let newest = deletions.as_mut().and_then(|deletions| last_upto(deletions, upto));
            let Some(deleted) = newest else { break };
            versions.push(ConfigVersion::new(None, deleted));
            at = Some(before(deleted));
        }
        Ok(versions)
    };
    read.await.map_err(|failure: Failure| failure.into_error(&format!("the key {}", key.escape_ascii())))
}

fn before(revision: Revision) -> Revision {
    Revision::new(revision.get().saturating_sub(1))
}

/// Takes the last of these revisions, in ascending order, that is not above `upto`.
fn last_upto(revisions: &mut Vec<Revision>, upto: Revision) -> Option<Revision> {
    while revisions.last().is_some_and(|last| *last > upto) {
        revisions.pop();
    }
    revisions.pop()
}

/// Reads a key at a revision; `None` is the present one. The read is linearizable.
pub(crate) async fn version_at(
    client: &StoreClient,
    key: &[u8],
    at: Option<Revision>,
) -> Result<Option<Record>, Failure> {
    let options = at.map_or_else(GetOptions::new, |at| GetOptions::new().with_revision(signed(at)));
    let (records, _) = client.range(key, &options).await?;
    Ok(records.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_taken_from_the_last_on() {
        let revision = Revision::new;
        let mut deletions = vec![revision(3), revision(5), revision(9)];
        assert_eq!(last_upto(&mut deletions, revision(8)), Some(revision(5)));
        assert_eq!(last_upto(&mut deletions, revision(4)), Some(revision(3)));
        assert_eq!(last_upto(&mut deletions, revision(2)), None);
    }
}
