//! Many registrations of one process.

use std::time::Duration;

use enlist::Moment;
use etcd_client::{Client, GetOptions};
use futures::{StreamExt, TryStreamExt};
use tonic::Code;

use super::{
    Plan, in_turns,
    library::{Library, REGISTRARS},
    program::Program,
};
use crate::{
    measure::{Result, Turns},
    report::{Bound, Report},
    world::World,
};

/// Number of leases that are revoked at the same time.
const AT_ONCE: usize = 64;

/// Maximum number of attempts to revoke all leases.
const ROUNDS: usize = 10;

/// Maximum time until all instances are back after their leases were revoked.
const LIMIT: Duration = Duration::from_secs(60);

/// Interval at which the keys are counted meanwhile.
const COUNT_INTERVAL: Duration = Duration::from_millis(20);

/// Libraries that register again after their leases were revoked.
const RETURNING: [Library; 2] = [Library::GoZero, Library::Kratos];

pub(super) async fn run(report: &mut Report, plan: &Plan) -> Result {
    for (index, count) in plan.registered.iter().enumerate() {
        let bound = (index + 1 == plan.registered.len()).then_some(Bound::AtLeast(5.0));
        for peer in REGISTRARS {
            in_turns_with(report, plan, peer, (*count, plan.bound(bound))).await?;
        }
    }
    Ok(())
}

/// Registers `count` instances by `enlist` and by another library.
async fn in_turns_with(
    report: &mut Report,
    plan: &Plan,
    peer: Library,
    (count, bound): (usize, Option<Bound>),
) -> Result {
    let world = World::start().await;
    let client = world.raw().await?;
    let [rate, processor, back] = in_turns(plan, peer, async |library, round| {
        let service = format!("registered{round}");
        let prefix = library.registered(&service)?;
        let arguments = [&*service, &count.to_string()];
        let mut program = Program::start(library, "register", &world.url(), &arguments).await?;
        let time = program.ask("go", "registered").await?;
        let used = program.processor_time().await?;
        let stored = keys(&client, &prefix).await?;
        if stored < i64::try_from(count)? {
            return Err(format!("{stored} of {count} keys are stored").into());
        }
        let back = if RETURNING.contains(&peer) { back_after(&client, &prefix, stored, library).await? } else { 0.0 };
        // A program that has ended is not late.
        program.processor_time().await?;
        program.kill().await?;
        revoke_all(&client).await?;
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let count = count as f64;
        Ok([count / (time / 1e6), used / count, back])
    })
    .await?;
    let instances = if count == 1 { "instance" } else { "instances" };
    let case = format!("{count} {instances}, beside {}", peer.name());
    report.turns("register", &*case, "per s", &rate, bound);
    report.turns("register", format!("{case}: processor"), "µs", &processor, None);
    if RETURNING.contains(&peer) {
        let case = format!("{case}: all back after their leases were revoked{}", late(&back, peer));
        report.turns("register", case, "ms", &back, None);
    }
    Ok(())
}

/// Returns an addition to the name of a case: in how many turns `peer` was not back in time. Their times are bounds.
fn late(back: &Turns, peer: Library) -> String {
    let late = back.reference.iter().filter(|time| **time >= LIMIT.as_secs_f64() * 1e3).count();
    if late == 0 {
        return String::new();
    }
    format!(", {} not within {LIMIT:?} in {late} of {} turns", peer.name(), back.reference.len())
}

/// Revokes all leases, and returns the time from the first revocation until there are `wanted` keys again, in
/// milliseconds. Another library that needs longer than [`LIMIT`] counts with that, and [`late`] marks it as a bound.
async fn back_after(client: &Client, prefix: &str, wanted: i64, library: Library) -> Result<f64> {
    let begun = Moment::now();
    revoke(client).await?;
    // The revoked leases have no keys any more, so all of these are new.
    while keys(client, prefix).await? < wanted {
        if begun.elapsed() > LIMIT {
            if library != Library::Ours {
                break;
            }
            return Err(format!("{} of {wanted} keys are back after {LIMIT:?}", keys(client, prefix).await?).into());
        }
        tokio::time::sleep(COUNT_INTERVAL).await;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Returns the number of keys with this prefix. Those of other turns do not count: requests of a killed process may be
/// executed later, and their keys expire in the next turn.
async fn keys(client: &Client, prefix: &str) -> Result<i64> {
    let counted = GetOptions::new().with_prefix().with_count_only();
    Ok(client.kv_client().get(prefix, Some(counted)).await?.count())
}

/// Ends what a killed process has registered. Leases may also expire meanwhile.
pub(super) async fn revoke_all(client: &Client) -> Result {
    for _ in 0..ROUNDS {
        if revoke(client).await? == 0 {
            return Ok(());
        }
    }
    Err("leases remain".into())
}

/// Revokes the leases that exist now, and returns their number. One may have ended meanwhile, which is no failure.
async fn revoke(client: &Client) -> Result<usize> {
    let leases = client.lease_client().leases().await?;
    let ids: Vec<i64> = leases.leases().iter().map(etcd_client::LeaseStatus::id).collect();
    let count = ids.len();
    let revocations = ids.into_iter().map(|id| {
        let mut client = client.lease_client();
        async move {
            match client.revoke(id).await {
                Err(etcd_client::Error::GRpcStatus(status)) if status.code() == Code::NotFound => Ok(()),
                revoked => revoked.map(drop),
            }
        }
    });
    futures::stream::iter(revocations).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_exceed_the_limit_are_marked() {
        let back = |times: [f64; 2]| Turns { ours: vec![900.0; 2], reference: times.to_vec() };
        assert_eq!(late(&back([1000.0, 59_980.0]), Library::GoZero), "");
        assert_eq!(late(&back([1000.0, 60_010.0]), Library::GoZero), ", go-zero not within 60s in 1 of 2 turns");
    }
}
