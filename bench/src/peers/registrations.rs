//! Many registrations of one process.

use etcd_client::{Client, GetOptions};
use futures::StreamExt;

use super::{Plan, in_turns, library::REGISTRARS, program::Program};
use crate::{
    measure::Result,
    report::{Bound, Report},
    world::World,
};

/// Number of leases that are revoked at the same time.
const AT_ONCE: usize = 64;

/// Maximum number of attempts to revoke all leases.
const ROUNDS: usize = 10;

pub(super) async fn run(report: &mut Report, plan: &Plan) -> Result {
    let count = plan.registered;
    for peer in REGISTRARS {
        let world = World::start().await;
        let client = world.raw().await?;
        let [rate, processor] = in_turns(plan, peer, async |library, round| {
            let service = format!("registered{round}");
            let before = keys(&client).await?;
            let arguments = [&*service, &count.to_string()];
            let mut program = Program::start(library, "register", &world.url(), &arguments).await?;
            let time = program.ask("go", "registered").await?;
            let used = program.processor_time().await?;
            let stored = keys(&client).await? - before;
            if stored < i64::try_from(count)? {
                return Err(format!("{stored} of {count} keys are stored").into());
            }
            program.kill().await?;
            revoke_all(&client).await?;
            #[expect(clippy::cast_precision_loss, reason = "thousands")]
            let count = count as f64;
            Ok([count / (time / 1e6), used / count])
        })
        .await?;
        let case = format!("{count} instances, beside {}", peer.name());
        report.turns("register", &*case, "per s", &rate, plan.bound(Bound::AtLeast(5.0)));
        report.turns("register", format!("{case}: processor"), "µs", &processor, None);
    }
    Ok(())
}

/// Returns the number of all keys.
async fn keys(client: &Client) -> Result<i64> {
    let all = GetOptions::new().with_all_keys().with_count_only();
    Ok(client.kv_client().get("", Some(all)).await?.count())
}

/// Ends what a killed process has registered. Leases may also expire meanwhile.
async fn revoke_all(client: &Client) -> Result {
    for _ in 0..ROUNDS {
        let leases = client.lease_client().leases().await?;
        let ids: Vec<i64> = leases.leases().iter().map(etcd_client::LeaseStatus::id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let revocations = ids.into_iter().map(|id| {
            let mut client = client.lease_client();
            async move { client.revoke(id).await }
        });
        futures::stream::iter(revocations).buffer_unordered(AT_ONCE).for_each(|_| async {}).await;
    }
    Err("leases remain".into())
}
