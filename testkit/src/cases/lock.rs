//! Mutual exclusion, its end, and what is left behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{Error, LockGuard, LockName, LockOptions, Loss, Moment, Released};

use super::support::*;
use crate::{
    background_task::BackgroundTask,
    harness::{Client, Harness, LayoutFeature},
    wait::{eventually, soon},
};

pub(super) async fn acquire(h: &impl Harness, client: &Client, name: &LockName) -> LockGuard {
    soon("acquired", client.acquire(name, lock_options(h))).await.unwrap()
}

/// A contender that runs beside the case.
pub(super) fn contend(
    client: &Client,
    name: &LockName,
    options: LockOptions,
) -> BackgroundTask<Result<LockGuard, Error>> {
    let (client, name) = (client.clone(), name.clone());
    BackgroundTask::run(async move { client.acquire(&name, options).await })
}

/// Waits until so many are in line. Those that only wait are not seen where there is no queue.
pub(super) async fn in_line(h: &impl Harness, name: &LockName, count: usize) {
    let count = if h.carries().contains(&LayoutFeature::LockQueue) { count } else { count.min(1) };
    eventually(&format!("{count} are in line"), || async {
        let now = h.in_line(name).await;
        if now == count { Ok(()) } else { Err(now) }
    })
    .await;
}

pub async fn impossible_options_of_a_lock_are_refused_before_anything_is_sent(h: &impl Harness) {
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

pub async fn locks_and_elections_are_renewed_at_the_interval_asked_for(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    // By default the first renewal would come after a third of this.
    let ttl = h.ttl() * 10;
    let options = lock_options(h).ttl(ttl).renewal_interval(Duration::from_millis(500));
    let begun = Moment::now();
    let guard = soon("acquired", client.acquire(&name, options.clone())).await.unwrap();
    renewed_often(&guard).await;
    soon("released", guard.release()).await.unwrap();
    let leadership = soon("elected", client.campaign(&name, "me", options)).await.unwrap();
    renewed_often(&leadership).await;
    assert!(begun.elapsed() < ttl / 3, "six renewals took {:?}", begun.elapsed());
}

/// Waits until a lock was renewed three times, each of which adds to what is left of it.
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
    in_line(h, &name, 0).await;
}

pub async fn a_held_lock_is_not_acquired_by_trying(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = one.try_acquire(&name, lock_options(h)).await.unwrap().expect("it is free");
    assert!(soon("tried", two.try_acquire(&name, lock_options(h))).await.unwrap().is_none());
    soon("released", guard.release()).await.unwrap();
    assert!(soon("tried", two.try_acquire(&name, lock_options(h))).await.unwrap().is_some());
}

pub async fn a_released_lock_goes_to_the_next(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h));
    in_line(h, &name, 2).await;
    soon("released", guard.release()).await.unwrap();
    assert!(next.done("its turn").await.unwrap().is_held());
}

pub async fn a_dropped_guard_releases(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300));
    drop(client.acquire(&name, long).await.unwrap());
    in_line(h, &name, 0).await;
}

pub async fn a_crashed_holder_is_succeeded(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h));
    in_line(h, &name, 2).await;
    one.crash().await;
    let next = next.done("its turn").await.unwrap();
    assert!(next.is_held() && !guard.is_held());
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

pub async fn waiters_are_served_in_order(h: &impl Harness) {
    let (holder, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &holder, &name).await;
    let mut waiting = Vec::new();
    for place in 0..5 {
        let client = h.client().await;
        waiting.push(contend(&client, &name, lock_options(h)));
        in_line(h, &name, place + 2).await;
    }
    let mut before = guard.fencing_token();
    soon("released", guard.release()).await.unwrap();
    for mut next in waiting {
        let guard = next.done("its turn").await.unwrap();
        assert!(guard.fencing_token() > before);
        before = guard.fencing_token();
        soon("released", guard.release()).await.unwrap();
    }
}

pub async fn a_cancelled_waiter_leaves_the_line(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300));
    let guard = acquire(h, &one, &name).await;
    let waiting = contend(&two, &name, long.clone());
    in_line(h, &name, 2).await;
    waiting.abort().await;
    in_line(h, &name, 1).await;
    // Dropped before it is in line, or while it gets there.
    for polls in 0..10 {
        let mut acquiring = Box::pin(two.acquire(&name, long.clone()));
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut acquiring => panic!("it is held"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    in_line(h, &name, 1).await;
    soon("released", guard.release()).await.unwrap();
    let guard = acquire(h, &two, &name).await;
    in_line(h, &name, 1).await;
    drop(guard);
}

pub async fn a_deadline_ends_the_wait_and_leaves_the_line(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let _guard = acquire(h, &one, &name).await;
    let limit = Duration::from_millis(300);
    let options = lock_options(h).ttl(Duration::from_secs(300)).deadline(limit);
    let late = soon("the deadline", two.acquire(&name, options)).await;
    assert!(
        matches!(late, Err(Error::Timeout { limit: passed, .. }) if passed == limit),
        "the deadline ends the wait: {late:?}"
    );
    in_line(h, &name, 1).await;
}

pub async fn a_failed_try_leaves_the_line(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let _guard = acquire(h, &one, &name).await;
    let long = lock_options(h).ttl(Duration::from_secs(300));
    assert!(two.try_acquire(&name, long).await.unwrap().is_none());
    // At once, not eventually: it has left before it returns.
    assert_eq!(h.in_line(&name).await, 1);
}

async fn lost_within_a_second(guard: &LockGuard) -> Loss {
    let begun = Moment::now();
    let loss = soon("the loss", guard.lost()).await;
    assert_within("the loss is noticed", begun, Duration::from_secs(1));
    assert!(!guard.is_held(), "what is lost is no longer held");
    loss
}

pub async fn a_revoked_lease_is_a_loss_within_a_second(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = soon("acquired", client.acquire(&name, lock_options(h).ttl(Duration::from_secs(300)))).await.unwrap();
    h.revoke(h.lease_of_holder(&name).await.unwrap()).await;
    let loss = lost_within_a_second(&guard).await;
    assert!(matches!(loss, Loss::KeyGone | Loss::LeaseGone), "the loss says what is gone: {loss:?}");
}

pub async fn a_deleted_key_is_a_loss_within_a_second(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    h.delete_holder(&name).await;
    assert_eq!(lost_within_a_second(&guard).await, Loss::KeyGone);
}

pub async fn a_cut_off_holder_stops_before_its_successor_starts(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h));
    in_line(h, &name, 2).await;
    one.cut().await;
    assert!(guard.is_held(), "an outage is no loss yet");
    let order = Arc::new(AtomicUsize::new(0));
    let losing = {
        let order = Arc::clone(&order);
        async move {
            let loss = guard.lost().await;
            (loss, order.fetch_add(1, Ordering::SeqCst))
        }
    };
    let winning = async {
        let guard = next.done("its turn").await.unwrap();
        (guard, order.fetch_add(1, Ordering::SeqCst))
    };
    let ((loss, lost_at), (_successor, won_at)) = soon("both", async { tokio::join!(losing, winning) }).await;
    assert!(lost_at < won_at, "the holder stops before its successor starts, and not for {loss:?} after it");
    assert_eq!(loss, Loss::Expired);
}

pub async fn a_wiped_store_is_a_loss(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    h.wipe().await;
    soon("the loss", guard.lost()).await;
    assert!(!guard.is_held());
}

pub async fn releasing_without_an_answer_returns_and_goes_on(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300));
    let guard = soon("acquired", client.acquire(&name, long)).await.unwrap();
    client.cut().await;
    let late = soon("given up waiting", guard.release()).await;
    assert!(matches!(late, Err(Error::Timeout { op: "release", .. })), "the release gives up waiting: {late:?}");
    client.heal().await;
    in_line(h, &name, 0).await;
}

pub async fn a_deadline_during_an_outage_leaves_nothing_behind(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300)).deadline(Duration::from_millis(300));
    client.cut().await;
    let late = soon("the deadline", client.acquire(&name, long)).await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "the deadline ends the wait: {late:?}");
    client.heal().await;
    // A marker: what was still under way came before it.
    let guard = acquire(h, &client, &name).await;
    in_line(h, &name, 1).await;
    drop(guard);
}

pub async fn a_try_during_an_outage_says_that_the_store_is_unavailable(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    client.cut().await;
    let refused = soon("an answer", client.try_acquire(&name, lock_options(h))).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "no deadline has passed: {refused:?}");
    client.heal().await;
    let guard = acquire(h, &client, &name).await;
    in_line(h, &name, 1).await;
    drop(guard);
}

pub async fn loss_is_for_ever(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    client.cut().await;
    soon("the loss", guard.lost()).await;
    client.heal().await;
    // Renewals get through again: a new lock of the same client is granted.
    let _other = acquire(h, &client, &lock(h, "other")).await;
    assert!(!guard.is_held());
    assert_eq!(soon("the loss", guard.lost()).await, Loss::Expired);
}

pub async fn a_lost_lock_is_free_for_others_although_its_guard_lives(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = soon("acquired", one.acquire(&name, lock_options(h))).await.unwrap();
    one.cut().await;
    soon("the loss", guard.lost()).await;
    one.heal().await;
    let successor = acquire(h, &two, &name).await;
    assert!(successor.is_held() && !guard.is_held());
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::AlreadyLost);
    assert!(successor.is_held());
}

pub async fn releasing_a_lost_lock_says_so_and_leaves_its_successor_alone(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    h.delete_holder(&name).await;
    soon("the loss", guard.lost()).await;
    let successor = acquire(h, &two, &name).await;
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::AlreadyLost);
    assert!(successor.is_held());
    assert_eq!(h.in_line(&name).await, 1);
}

pub async fn a_lock_is_kept_beyond_its_ttl(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    // The second one is the clock: a lock that was taken later, and is gone when its TTL is over.
    let clock = lock(h, "clock");
    let _ticking = acquire(h, &two, &clock).await;
    two.crash().await;
    in_line(h, &clock, 0).await;
    assert!(guard.is_held());
    assert_eq!(h.in_line(&name).await, 1);
}

pub async fn readers_share_and_a_writer_excludes(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let shared = || lock_options(h).shared();
    let first = soon("shared", one.acquire(&name, shared())).await.unwrap();
    let second = soon("shared", two.acquire(&name, shared())).await.unwrap();
    assert!(first.is_held() && second.is_held());
    assert!(two.try_acquire(&name, lock_options(h)).await.unwrap().is_none());
    let mut writer = contend(&two, &name, lock_options(h));
    in_line(h, &name, 3).await;
    soon("released", first.release()).await.unwrap();
    in_line(h, &name, 2).await;
    soon("released", second.release()).await.unwrap();
    let writer = writer.done("alone").await.unwrap();
    assert!(one.try_acquire(&name, shared()).await.unwrap().is_none());
    drop(writer);
}

pub async fn a_waiting_writer_is_not_overtaken(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let reader = soon("shared", one.acquire(&name, lock_options(h).shared())).await.unwrap();
    let mut writer = contend(&two, &name, lock_options(h));
    in_line(h, &name, 2).await;
    assert!(one.try_acquire(&name, lock_options(h).shared()).await.unwrap().is_none());
    let mut late = contend(&one, &name, lock_options(h).shared());
    in_line(h, &name, 3).await;
    soon("released", reader.release()).await.unwrap();
    let writer = writer.done("alone").await.unwrap();
    soon("released", writer.release()).await.unwrap();
    assert!(late.done("after the writer").await.unwrap().is_held());
}

pub async fn locks_whose_names_begin_alike_do_not_see_each_other(h: &impl Harness) {
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
    in_line(h, &name, 2).await;
    soon("released", first.release()).await.unwrap();
    assert!(second.done("its turn").await.unwrap().is_held());
}

pub async fn work_is_aborted_at_the_loss(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    assert_eq!(guard.run(async { 7 }).await, Ok(7));
    let (aborted, ()) =
        soon("aborted", async { tokio::join!(guard.run(std::future::pending::<()>()), h.delete_holder(&name)) }).await;
    assert_eq!(aborted, Err(Loss::KeyGone));
}

pub async fn a_lock_on_a_lease_of_its_own_dies_alone(h: &impl Harness) {
    let (client, name, other) = (h.client().await, lock(h, "own"), lock(h, "other"));
    let shared = acquire(h, &client, &other).await;
    let own = soon("acquired", client.acquire(&name, lock_options(h).own_lease())).await.unwrap();
    let lease = h.lease_of_holder(&name).await.unwrap();
    assert_ne!(Some(lease), h.lease_of_holder(&other).await);
    h.revoke(lease).await;
    lost_within_a_second(&own).await;
    assert!(shared.is_held());
    let again = soon("acquired", client.acquire(&name, lock_options(h).own_lease())).await.unwrap();
    assert_eq!(soon("released", again.release()).await.unwrap(), Released::Released);
    in_line(h, &name, 0).await;
}

pub async fn a_waiter_whose_lease_dies_learns_it(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    // The waiter shares the lease of another lock of its process, which is how the case finds it.
    let other = lock(h, "other");
    let long = lock_options(h).ttl(Duration::from_secs(300));
    let _other = two.acquire(&other, long.clone()).await.unwrap();
    let mut waiting = contend(&two, &name, long.fail_on_lost_entry());
    in_line(h, &name, 2).await;
    let lease = h.lease_of_waiter(&name).await.unwrap();
    h.revoke(lease).await;
    let died = waiting.done("the waiter's end").await;
    assert!(matches!(died, Err(Error::LeaseLost)), "the waiter learns that its lease is lost: {died:?}");
    assert!(guard.is_held());
    in_line(h, &name, 1).await;
}

pub async fn a_waiter_whose_lease_is_revoked_enters_the_queue_again(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut robbed = contend(&two, &name, lock_options(h));
    in_line(h, &name, 2).await;
    let lease = h.lease_of_waiter(&name).await.unwrap();
    let mut behind = contend(&three, &name, lock_options(h));
    in_line(h, &name, 3).await;
    h.revoke(lease).await;
    in_line(h, &name, 3).await;
    assert!(guard.is_held());
    robbed.assert_running();
    // Its place is lost: whoever was behind it is served before it now.
    soon("released", guard.release()).await.unwrap();
    let guard = behind.done("its turn").await.unwrap();
    robbed.assert_running();
    let before = guard.fencing_token();
    soon("released", guard.release()).await.unwrap();
    let guard = robbed.done("its turn after all").await.unwrap();
    assert!(guard.is_held() && guard.fencing_token() > before);
    soon("released", guard.release()).await.unwrap();
    in_line(h, &name, 0).await;
}

pub async fn a_waiter_enters_the_queue_again_after_a_wipe(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut waiting = contend(&two, &name, lock_options(h));
    in_line(h, &name, 2).await;
    h.wipe().await;
    let successor = waiting.done("its turn").await.unwrap();
    assert!(successor.is_held());
    soon("the loss", guard.lost()).await;
    in_line(h, &name, 1).await;
}

pub async fn a_waiter_that_entered_the_queue_again_keeps_its_deadline(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let _guard = acquire(h, &one, &name).await;
    let limit = h.ttl() * 2;
    let begun = Moment::now();
    let mut waiting = contend(&two, &name, lock_options(h).deadline(limit));
    in_line(h, &name, 2).await;
    h.revoke(h.lease_of_waiter(&name).await.unwrap()).await;
    let late = waiting.done("the deadline").await;
    assert!(matches!(late, Err(Error::Timeout { limit: passed, .. }) if passed == limit), "{late:?}");
    assert!(begun.elapsed() >= limit && begun.elapsed() < limit * 2, "{:?}", begun.elapsed());
    in_line(h, &name, 1).await;
}

pub async fn locks_and_registrations_never_share_a_lease(h: &impl Harness) {
    let (client, service, name) = (h.client().await, service(h, "svc"), lock(h, "l"));
    let _a = register(h, &client, &service, "a").await;
    let _guard = acquire(h, &client, &name).await;
    let (instance, holder) = (h.lease_of(&service, &id("a")).await, h.lease_of_holder(&name).await);
    let apart = instance.is_some() && holder.is_some() && instance != holder;
    assert!(apart, "two leases: {instance:?} of the instance, {holder:?} of the lock");
}
