//! Mutual exclusion: acquiring, releasing, readers and writers.

mod loss;
mod waiting;

use std::time::Duration;

use enlist::{Error, LockGuard, Moment, Released};

pub use self::{loss::*, waiting::*};
use super::support::*;
use crate::{
    conformance::harness::Harness,
    wait::{eventually, soon},
};

pub async fn impossible_lock_options_are_refused_locally(h: &impl Harness) {
    let client = h.client().await;
    client.cut().await;
    let zero = client.acquire(&lock(h, "l"), lock_options(h).ttl(Duration::ZERO)).await;
    assert!(matches!(zero, Err(Error::InvalidConfig { field: "ttl", .. })), "the TTL is refused by name: {zero:?}");
    let name = lock(h, "l");
    for interval in [Duration::from_millis(499), h.ttl() / 2] {
        let options = lock_options(h).renewal_interval(interval);
        let refused = |error: Option<Error>| {
            let by_name = matches!(error, Some(Error::InvalidConfig { field: "renewal_interval", .. }));
            assert!(by_name, "an interval of {interval:?} is refused by name: {error:?}");
        };
        refused(client.acquire(&name, options.clone()).await.err());
        refused(client.try_acquire(&name, options.clone()).await.err());
        refused(client.campaign(&name, "me", options).await.err());
    }
}

pub async fn contenders_renew_at_the_requested_interval(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    // By default the first renewal would come after a third of this.
    let options = lock_options(h).ttl(h.ttl() * 30).renewal_interval(Duration::from_millis(500));
    let begun = Moment::now();
    let guard = soon("acquired", client.acquire(&name, options.clone())).await.unwrap();
    renewed_often(&guard).await;
    soon("released", guard.release()).await.unwrap();
    let leadership = soon("elected", client.campaign(&name, "me", options)).await.unwrap();
    renewed_often(&leadership).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "six renewals took {:?}", begun.elapsed());
}

/// Waits until a lock was renewed three times. Each renewal extends its remaining time.
async fn renewed_often(guard: &LockGuard) {
    let mut left = guard.remaining();
    for renewal in ["once", "twice", "three times"] {
        eventually(&format!("it is renewed {renewal}"), || {
            let before = std::mem::replace(&mut left, guard.remaining());
            std::future::ready(if left > before { Ok(()) } else { Err(left) })
        })
        .await;
    }
}

pub async fn a_closed_client_grants_nothing(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    soon("closed", client.close()).await;
    let closed =
        |error: Option<Error>| assert!(matches!(error, Some(Error::Closed)), "a closed client says so: {error:?}");
    closed(soon("acquiring", client.acquire(&name, lock_options(h))).await.err());
    closed(soon("trying", client.try_acquire(&name, lock_options(h))).await.err());
    closed(soon("campaigning", client.campaign(&name, "me", lock_options(h))).await.err());
    closed(soon("leading", client.leader(&name)).await.err());
    closed(client.observe(&name).await.err());
}

pub async fn a_free_lock_is_acquired(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    assert!(guard.is_held());
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::Released);
    queue_has(h, &name, 0).await;
}

pub async fn a_held_lock_is_not_acquired_by_trying(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = one.try_acquire(&name, lock_options(h)).await.unwrap().expect("it is free");
    assert!(soon("tried", two.try_acquire(&name, lock_options(h))).await.unwrap().is_none());
    soon("released", guard.release()).await.unwrap();
    assert!(soon("tried", two.try_acquire(&name, lock_options(h))).await.unwrap().is_some());
}

pub async fn a_dropped_guard_releases(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300));
    drop(client.acquire(&name, long).await.unwrap());
    queue_has(h, &name, 0).await;
}

pub async fn tokens_grow_with_each_holder(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let mut last = None;
    for client in [&one, &two, &one, &one] {
        let guard = acquire(h, client, &name).await;
        let token = guard.fencing_token();
        assert!(Some(token) > last, "a later token is larger: {token:?} came after {last:?}");
        last = Some(token);
        soon("released", guard.release()).await.unwrap();
    }
}

pub async fn releasing_without_an_answer_goes_on(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300));
    let guard = soon("acquired", client.acquire(&name, long)).await.unwrap();
    client.cut().await;
    let late = soon("given up waiting", guard.release()).await;
    assert!(matches!(late, Err(Error::Timeout { op: "release", .. })), "the release gives up waiting: {late:?}");
    client.heal().await;
    queue_has(h, &name, 0).await;
}

pub async fn a_try_during_an_outage_is_unavailable(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    client.cut().await;
    let refused = soon("an answer", client.try_acquire(&name, lock_options(h))).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "no deadline has passed: {refused:?}");
    client.heal().await;
    let guard = acquire(h, &client, &name).await;
    queue_has(h, &name, 1).await;
    drop(guard);
}

pub async fn only_readers_share_a_lock(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let shared = || lock_options(h).shared();
    let first = soon("shared", one.acquire(&name, shared())).await.unwrap();
    let second = soon("shared", two.acquire(&name, shared())).await.unwrap();
    assert!(first.is_held() && second.is_held());
    assert!(two.try_acquire(&name, lock_options(h)).await.unwrap().is_none());
    let mut writer = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 3).await;
    soon("released", first.release()).await.unwrap();
    queue_has(h, &name, 2).await;
    soon("released", second.release()).await.unwrap();
    let writer = writer.done("alone").await.unwrap();
    assert!(one.try_acquire(&name, shared()).await.unwrap().is_none());
    drop(writer);
}

pub async fn a_waiting_writer_is_not_overtaken(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let reader = soon("shared", one.acquire(&name, lock_options(h).shared())).await.unwrap();
    let mut writer = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    assert!(one.try_acquire(&name, lock_options(h).shared()).await.unwrap().is_none());
    let mut late = contend(&one, &name, lock_options(h).shared());
    queue_has(h, &name, 3).await;
    soon("released", reader.release()).await.unwrap();
    let writer = writer.done("alone").await.unwrap();
    soon("released", writer.release()).await.unwrap();
    assert!(late.done("after the writer").await.unwrap().is_held());
}

pub async fn locks_with_a_common_prefix_are_separate(h: &impl Harness) {
    let client = h.client().await;
    let mut held = Vec::new();
    for name in ["a", "a/b", "a/b/c", "ab", "a%2Fb"] {
        match soon("tried", client.try_acquire(&lock(h, name), lock_options(h))).await {
            Ok(guard) => held.push(guard.unwrap_or_else(|| panic!("{name} is blocked by a name that begins alike"))),
            // A layout may refuse a name that it cannot carry.
            Err(Error::InvalidName { .. }) => {}
            Err(error) => panic!("{name} is neither acquired nor refused by name: {error:?}"),
        }
    }
    assert!(held.len() >= 2);
}

pub async fn two_acquisitions_of_one_process_exclude_each_other(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let first = acquire(h, &client, &name).await;
    assert!(client.try_acquire(&name, lock_options(h)).await.unwrap().is_none());
    let mut second = contend(&client, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    soon("released", first.release()).await.unwrap();
    assert!(second.done("its turn").await.unwrap().is_held());
}

pub async fn locks_share_no_lease_with_registrations(h: &impl Harness) {
    let (client, service, name) = (h.client().await, service(h, "svc"), lock(h, "l"));
    let _a = register(h, &client, &service, "a").await;
    let _guard = acquire(h, &client, &name).await;
    let (instance, holder) = (h.lease_of(&service, &id("a")).await, h.lease_of_holder(&name).await);
    let apart = instance.is_some() && holder.is_some() && instance != holder;
    assert!(apart, "two leases: {instance:?} of the instance, {holder:?} of the lock");
}
