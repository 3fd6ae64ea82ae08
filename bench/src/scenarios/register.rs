//! Registrations, next to the equivalent transactions and puts.

use std::time::Duration;

use enlist::{Counter, Instance, Moment, RegisterOptions, Registration, Registry, ServiceRef};
use enlist_etcd::Etcd;
use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn};
use futures::{StreamExt, TryStreamExt};

use crate::{
    measure::{Result, Spread, in_turns, processor_time},
    report::{Bound, Report},
    world::{World, instance, pair, put},
};

/// Number of instances in a round.
const FEW: usize = 320;

/// Number of keys per lease of the reference.
const KEYS_PER_LEASE: usize = 20;

const ROUNDS: usize = 9;

/// Number of instances of one process.
const MANY: usize = 10_000;

/// Length of the measurement of the steady state.
const STEADY: Duration = Duration::from_secs(45);

pub(crate) async fn few(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("registered")?);
    let (ours, raw) = (world.ours().await?, world.raw().await?);
    for (at_once, case) in
        [(1, "one after the other, beside a guarded transaction"), (32, "32 at a time, beside a guarded transaction")]
    {
        let turns = in_turns(
            ROUNDS,
            || async {
                let begun = Moment::now();
                let registrations = register(&ours, &service, FEW, at_once).await?;
                let rate = rate(FEW, begun.elapsed());
                let ends = registrations.into_iter().map(|registration| async move { registration.deregister().await });
                futures::stream::iter(ends).buffer_unordered(32).try_collect::<Vec<_>>().await?;
                Ok(rate)
            },
            || async {
                let leases = leases(&raw, FEW.div_ceil(KEYS_PER_LEASE)).await?;
                let begun = Moment::now();
                let writes = futures::stream::iter(0..FEW).map(|number| {
                    let mut client = raw.kv_client();
                    let (service, lease) = (&service, leases[number / KEYS_PER_LEASE]);
                    async move {
                        let (key, _) = pair(service, number, 100)?;
                        let absent = Compare::create_revision(key, CompareOp::Equal, 0);
                        let txn = Txn::new().when([absent]).and_then([put(service, number, 100, Some(lease))?]);
                        let written = client.txn(txn).await?;
                        if written.succeeded() { Result::Ok(()) } else { Err("there already".into()) }
                    }
                });
                writes.buffer_unordered(at_once).try_collect::<()>().await?;
                let rate = rate(FEW, begun.elapsed());
                revoke(&raw, leases).await?;
                Ok(rate)
            },
        )
        .await?;
        report.turns("register", case, "per s", &turns, Some(Bound::AtLeast(0.9)));
    }
    Ok(())
}

pub(crate) async fn many(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("registered")?);
    let raw = world.raw().await?;
    let ours = || async {
        let ours = world.ours().await?;
        let begun = Moment::now();
        let registrations = register(&ours, &service, MANY, MANY).await?;
        let rate = rate(MANY, begun.elapsed());
        ours.close().await?;
        drop(registrations);
        Ok(rate)
    };
    let puts = || by_leases(&raw, |leases| put_all(&raw, &service, leases));
    let turns = in_turns(5, ours, puts).await?;
    let case = "10,000 instances, beside plain puts, 32 at a time";
    report.turns("many", case, "per s", &turns, Some(Bound::AtLeast(5.0)));
    let transactions = || by_leases(&raw, |leases| create_all(&raw, &service, leases));
    let turns = in_turns(5, ours, transactions).await?;
    let case = "10,000 instances, beside the same writes in plain transactions of 128";
    report.turns("many", case, "per s", &turns, None);
    Ok(())
}

/// Returns the keys per second that `write` writes under leases for a thousand keys each.
async fn by_leases<F: Future<Output = Result>>(raw: &Client, write: impl FnOnce(Vec<i64>) -> F) -> Result<f64> {
    let leases = leases(raw, MANY.div_ceil(1000)).await?;
    let begun = Moment::now();
    write(leases.clone()).await?;
    let rate = rate(MANY, begun.elapsed());
    revoke(raw, leases).await?;
    Ok(rate)
}

async fn put_all(raw: &Client, service: &ServiceRef, leases: Vec<i64>) -> Result {
    let writes = futures::stream::iter(0..MANY).map(|number| {
        let (mut client, lease) = (raw.kv_client(), leases[number / 1000]);
        async move {
            let (key, value) = pair(service, number, 100)?;
            client.put(key, value, Some(PutOptions::new().with_lease(lease))).await?;
            Result::Ok(())
        }
    });
    writes.buffer_unordered(32).try_collect::<()>().await
}

/// Creates the keys in as many transactions at a time as a session does.
async fn create_all(raw: &Client, service: &ServiceRef, leases: Vec<i64>) -> Result {
    let numbers: Vec<usize> = (0..MANY).collect();
    let writes = futures::stream::iter(numbers.chunks(128)).map(|numbers| {
        let (mut client, leases) = (raw.kv_client(), &leases);
        async move {
            let (mut absent, mut puts) = (Vec::new(), Vec::new());
            for &number in numbers {
                absent.push(Compare::create_revision(pair(service, number, 100)?.0, CompareOp::Equal, 0));
                puts.push(put(service, number, 100, Some(leases[number / 1000]))?);
            }
            let written = client.txn(Txn::new().when(absent).and_then(puts)).await?;
            if written.succeeded() { Result::Ok(()) } else { Err("there already".into()) }
        }
    });
    writes.buffer_unordered(2).try_collect::<()>().await
}

pub(crate) async fn steady(report: &mut Report) -> Result {
    let (world, service) = (World::start().await, ServiceRef::parse("registered")?);
    let ours = world.ours().await?;
    let registrations = register(&ours, &service, MANY, MANY).await?;
    // The watches of the own keys are open by now.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (renewals, used, requests) =
        (ours.counters().get(Counter::Renewals), processor_time(), world.requests().await?);
    tokio::time::sleep(STEADY).await;
    let renewals = ours.counters().get(Counter::Renewals) - renewals;
    let used = (processor_time() - used) / STEADY.as_secs_f64() / 1e4;
    let requests = (world.requests().await? - requests) / STEADY.as_secs_f64();
    // Expected renewals: each granted lease every third of 15 s, with a tolerance of a tenth.
    let leases = MANY.div_ceil(1000);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let per_lease = renewals as f64 / leases as f64 / (STEADY.as_secs_f64() / 5.0);
    let case = "renewals per lease and third of its TTL, of 10,000 instances";
    report.number("steady", case, "", Spread::exactly(per_lease), Some(Bound::AtMost(1.15)));
    report.number("steady", "processor time, of one core", "%", Spread::exactly(used), Some(Bound::AtMost(0.5)));
    report.number("steady", "requests to etcd, renewals aside", "per s", Spread::exactly(requests), None);
    ours.close().await?;
    drop(registrations);
    Ok(())
}

/// Registers instances, with this number of concurrent calls.
pub(crate) async fn register(
    ours: &Etcd,
    service: &ServiceRef,
    count: usize,
    at_once: usize,
) -> Result<Vec<Registration>> {
    let instances: Result<Vec<Instance>> = (0..count).map(instance).collect();
    let all = instances?.into_iter().map(|instance| ours.register(service, instance, RegisterOptions::new()));
    Ok(futures::stream::iter(all).buffer_unordered(at_once).try_collect().await?)
}

async fn leases(raw: &Client, count: usize) -> Result<Vec<i64>> {
    let mut client = raw.lease_client();
    let mut leases = Vec::new();
    for _ in 0..count {
        leases.push(client.grant(60, None).await?.id());
    }
    Ok(leases)
}

async fn revoke(raw: &Client, leases: Vec<i64>) -> Result {
    let mut client = raw.lease_client();
    for lease in leases {
        client.revoke(lease).await?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
