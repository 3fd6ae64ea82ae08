//! Waiting contenders: their order, deadlines and lost queue entries.

use std::time::Duration;

use enlist::{Error, Moment};

use super::super::support::*;
use crate::{conformance::harness::Harness, wait::soon};

pub async fn a_released_lock_goes_to_the_next(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    soon("released", guard.release()).await.unwrap();
    assert!(next.done("its turn").await.unwrap().is_held());
}

pub async fn a_crashed_holder_is_succeeded(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    one.crash().await;
    let next = next.done("its turn").await.unwrap();
    assert!(next.is_held() && !guard.is_held());
}

pub async fn contenders_are_served_in_order(h: &impl Harness) {
    let (holder, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &holder, &name).await;
    let mut waiting = Vec::new();
    for ahead in 0..5 {
        let client = h.client().await;
        waiting.push(contend(&client, &name, lock_options(h)));
        queue_has(h, &name, ahead + 2).await;
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

pub async fn a_cancelled_contender_leaves_the_queue(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300));
    let guard = acquire(h, &one, &name).await;
    let waiting = contend(&two, &name, long.clone());
    queue_has(h, &name, 2).await;
    waiting.abort().await;
    queue_has(h, &name, 1).await;
    // The future is dropped before its entry is in the queue, or while it is created.
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
    queue_has(h, &name, 1).await;
    soon("released", guard.release()).await.unwrap();
    let guard = acquire(h, &two, &name).await;
    queue_has(h, &name, 1).await;
    drop(guard);
}

pub async fn a_deadline_ends_the_wait_in_the_queue(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let _guard = acquire(h, &one, &name).await;
    let limit = Duration::from_millis(300);
    let options = lock_options(h).ttl(Duration::from_secs(300)).deadline(limit);
    let late = soon("the deadline", two.acquire(&name, options)).await;
    assert!(
        matches!(late, Err(Error::Timeout { limit: passed, .. }) if passed == limit),
        "the deadline ends the wait: {late:?}"
    );
    queue_has(h, &name, 1).await;
}

pub async fn a_failed_try_leaves_the_queue(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let _guard = acquire(h, &one, &name).await;
    let long = lock_options(h).ttl(Duration::from_secs(300));
    assert!(two.try_acquire(&name, long).await.unwrap().is_none());
    // At once, not eventually: the entry is removed before the call returns.
    assert_eq!(h.queue_length(&name).await, 1);
}

pub async fn a_deadline_during_an_outage_leaves_nothing_behind(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let long = lock_options(h).ttl(Duration::from_secs(300)).deadline(Duration::from_millis(300));
    client.cut().await;
    let late = soon("the deadline", client.acquire(&name, long)).await;
    assert!(matches!(late, Err(Error::Timeout { .. })), "the deadline ends the wait: {late:?}");
    client.heal().await;
    // A marker: pending requests are applied before it.
    let guard = acquire(h, &client, &name).await;
    queue_has(h, &name, 1).await;
    drop(guard);
}

pub async fn a_contender_with_a_lost_lease_fails(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    // The contender shares the lease of another lock of its process, by which the case finds it.
    let other = lock(h, "other");
    let long = lock_options(h).ttl(Duration::from_secs(300));
    let _other = two.acquire(&other, long.clone()).await.unwrap();
    let mut waiting = contend(&two, &name, long.fail_on_lost_entry());
    queue_has(h, &name, 2).await;
    let lease = h.lease_of_last_contender(&name).await.unwrap();
    h.revoke(lease).await;
    let died = waiting.done("the contender's end").await;
    assert!(matches!(died, Err(Error::LeaseLost)), "the contender learns that its lease is lost: {died:?}");
    assert!(guard.is_held());
    queue_has(h, &name, 1).await;
}

pub async fn a_contender_without_lease_enters_the_queue_again(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut revoked = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    let lease = h.lease_of_last_contender(&name).await.unwrap();
    let mut behind = contend(&three, &name, lock_options(h));
    queue_has(h, &name, 3).await;
    h.revoke(lease).await;
    queue_has(h, &name, 3).await;
    assert!(guard.is_held());
    revoked.assert_running();
    // Its queue entry is lost: the contender behind it acquires the lock first.
    soon("released", guard.release()).await.unwrap();
    let guard = behind.done("its turn").await.unwrap();
    revoked.assert_running();
    let before = guard.fencing_token();
    soon("released", guard.release()).await.unwrap();
    let guard = revoked.done("its turn after all").await.unwrap();
    assert!(guard.is_held() && guard.fencing_token() > before);
    soon("released", guard.release()).await.unwrap();
    queue_has(h, &name, 0).await;
}

pub async fn contenders_enter_the_queue_again_after_a_wipe(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut waiting = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    h.wipe().await;
    let successor = waiting.done("its turn").await.unwrap();
    assert!(successor.is_held());
    soon("the loss", guard.lost()).await;
    queue_has(h, &name, 1).await;
}

pub async fn a_contender_in_the_queue_again_keeps_deadlines(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let _guard = acquire(h, &one, &name).await;
    let limit = h.ttl() * 2;
    let begun = Moment::now();
    let mut waiting = contend(&two, &name, lock_options(h).deadline(limit));
    queue_has(h, &name, 2).await;
    h.revoke(h.lease_of_last_contender(&name).await.unwrap()).await;
    let late = waiting.done("the deadline").await;
    assert!(matches!(late, Err(Error::Timeout { limit: passed, .. }) if passed == limit), "{late:?}");
    assert!(begun.elapsed() >= limit && begun.elapsed() < limit * 2, "{:?}", begun.elapsed());
    queue_has(h, &name, 1).await;
}
