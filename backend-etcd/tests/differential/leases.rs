//! Leases of both sides: renewals, the remaining time, and leases whose ids the server chooses.

use std::{collections::BTreeSet, fmt::Write as _};

use enlist_testkit::soon;
use etcd_client::{
    Client, Error, LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions, PutOptions,
    proto::{PbKeyValue, PbResponseHeader},
};

use super::plain;

/// Maximum difference between the remaining times of both sides in a run of random requests, in seconds. The requests
/// are not simultaneous. `remaining_times_fall_as_in_etcd` compares them strictly.
const TOLERANCE: u64 = 20;

/// Stands for an id that the server chose.
const CHOSEN: i64 = -1;

/// Leases of one side, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// All ids that the server has chosen.
    chosen: BTreeSet<i64>,
    /// Remaining times that were reported and not compared yet, in seconds.
    remaining: Vec<i64>,
}

impl Leases {
    /// Compares the remaining times that were reported since the last time.
    pub(super) fn compare(&mut self, other: &mut Self) {
        let (found, expected) = (std::mem::take(&mut self.remaining), std::mem::take(&mut other.remaining));
        let are_similar = found.iter().zip(&expected).all(|(one, other)| one.abs_diff(*other) <= TOLERANCE);
        assert!(found.len() == expected.len() && are_similar, "remaining seconds: {found:?}, with etcd {expected:?}");
    }

    /// Asks for the remaining time of a lease and for its keys. The time is not part of the result.
    pub(super) async fn time_to_live(&mut self, client: &mut Client, id: i64) -> Result<String, Error> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let mut answer = client.lease_time_to_live(id, Some(options)).await?.0;
        plain(&mut answer.header);
        answer.keys.sort();
        answer.id = without_chosen(answer.id);
        if answer.ttl >= 0 {
            self.remaining.push(std::mem::take(&mut answer.ttl));
        }
        Ok(format!("{answer:?}\n"))
    }

    /// Uses a lease whose id the server chooses, from its grant to its end.
    pub(super) async fn of_chosen_id(&mut self, client: &mut Client, ttl: i64, key: &str) -> Result<String, Error> {
        let mut granted = client.lease_grant(ttl, None).await?.0;
        let id = std::mem::replace(&mut granted.id, CHOSEN);
        assert!(id > 0 && self.chosen.insert(id), "chosen again: {id}");
        plain(&mut granted.header);
        let mut lines = format!("{granted:?}\n");
        client.put(key, "leased", Some(PutOptions::new().with_lease(id))).await?;
        let mut read = client.get(key, None).await?.0;
        without_chosen_lease(&mut read.kvs[0]);
        writeln!(lines, "{:?}", read.kvs).unwrap();
        lines += &self.time_to_live(client, id).await?;
        let (mut keeper, mut renewals) = client.lease_keep_alive(id).await?;
        lines += &renewed(&mut keeper, &mut renewals).await?;
        lines += &of_revocation(client.lease_revoke(id).await?.0.header);
        lines += &renewed(&mut keeper, &mut renewals).await?;
        lines += &self.time_to_live(client, id).await?;
        Ok(lines)
    }
}

fn of_revocation(mut header: Option<PbResponseHeader>) -> String {
    plain(&mut header);
    format!("revoked: {header:?}\n")
}

/// Renews a lease twice. The client hides the first answer.
pub(super) async fn renewed_twice(client: &mut Client, id: i64) -> Result<String, Error> {
    let (mut keeper, mut renewals) = client.lease_keep_alive(id).await?;
    renewed(&mut keeper, &mut renewals).await
}

async fn renewed(keeper: &mut LeaseKeeper, renewals: &mut LeaseKeepAliveStream) -> Result<String, Error> {
    keeper.keep_alive().await?;
    let mut answer = soon("the renewal is answered", renewals.message()).await?.unwrap().0;
    plain(&mut answer.header);
    answer.id = without_chosen(answer.id);
    Ok(format!("{answer:?}\n"))
}

/// Replaces an id that the server chose. The others are small.
fn without_chosen(id: i64) -> i64 {
    if id > 200 { CHOSEN } else { id }
}

/// Replaces the lease of a key if the server chose its id.
pub(super) fn without_chosen_lease(pair: &mut PbKeyValue) {
    pair.lease = without_chosen(pair.lease);
}

/// Replaces the ids that the server chose, in a text with one field per line: reads of the past have them.
pub(super) fn without_chosen_ids(text: &str) -> String {
    let line = |line: &str| {
        let id = line.trim().strip_prefix("lease: ").and_then(|id| id.trim_end_matches(',').parse().ok());
        match id.map(without_chosen) {
            Some(CHOSEN) => format!("lease: {CHOSEN}\n"),
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}
