//! Losses of a held lock, and their effect on its successors.

use std::time::Duration;

use enlist::{LockGuard, Loss, Moment, Released};

use super::super::support::*;
use crate::{conformance::harness::Harness, wait::soon};

/// Locks that are lost one after the other. Two losses have to be noticed in time: a single answer of a busy store may
/// be late.
const TRIES: [&str; 3] = ["l0", "l1", "l2"];

/// TTL that ends in no test.
const LONG_TTL: Duration = Duration::from_secs(300);

/// Waits for the loss, and returns it. Returns `true` beside it if it was noticed within a second.
async fn lost(guard: &LockGuard) -> (Loss, bool) {
    let begun = Moment::now();
    let loss = soon("the loss", guard.lost()).await;
    let is_in_time = begun.elapsed() < Duration::from_secs(1);
    assert!(!guard.is_held(), "what is lost is no longer held");
    (loss, is_in_time)
}

pub async fn a_revoked_lease_is_lost_within_a_second(h: &impl Harness) {
    let client = h.client().await;
    let mut in_time = 0;
    for name in TRIES.map(|name| lock(h, name)) {
        let guard = soon("acquired", client.acquire(&name, lock_options(h).ttl(LONG_TTL))).await.unwrap();
        h.revoke(h.lease_of_holder(&name).await.unwrap()).await;
        let (loss, is_in_time) = lost(&guard).await;
        assert!(matches!(loss, Loss::KeyGone | Loss::LeaseGone), "the loss says what is gone: {loss:?}");
        in_time += u32::from(is_in_time);
    }
    assert!(in_time >= 2, "{in_time} of three losses were noticed within a second");
}

pub async fn a_deleted_key_is_lost_within_a_second(h: &impl Harness) {
    let client = h.client().await;
    let mut in_time = 0;
    for name in TRIES.map(|name| lock(h, name)) {
        let guard = soon("acquired", client.acquire(&name, lock_options(h).ttl(LONG_TTL))).await.unwrap();
        h.delete_holder(&name).await;
        let (loss, is_in_time) = lost(&guard).await;
        assert_eq!(loss, Loss::KeyGone);
        in_time += u32::from(is_in_time);
    }
    assert!(in_time >= 2, "{in_time} of three losses were noticed within a second");
}

pub async fn a_cut_off_holder_stops_before_its_successor(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    let mut next = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    one.cut().await;
    assert!(guard.is_held(), "an outage is no loss yet");
    let noticed = async {
        // A wait that is under way: a later one, like `is_held`, looks at the clock itself.
        tokio::select! {
            biased;
            loss = guard.lost() => loss,
            _ = next.done("its turn") => panic!("the successor starts before the holder notices"),
        }
    };
    assert_eq!(soon("the loss", noticed).await, Loss::Expired);
    assert!(!guard.is_held());
    let _successor = next.done("its turn").await.unwrap();
}

pub async fn a_wiped_store_is_a_loss(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    h.wipe().await;
    soon("the loss", guard.lost()).await;
    assert!(!guard.is_held());
}

pub async fn loss_is_for_ever(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    client.cut().await;
    soon("the loss", guard.lost()).await;
    client.heal().await;
    // Renewals succeed again: a new lock of the same client is granted.
    let _other = acquire(h, &client, &lock(h, "other")).await;
    assert!(!guard.is_held());
    assert_eq!(soon("the loss", guard.lost()).await, Loss::Expired);
}

pub async fn a_lost_lock_is_free_before_its_drop(h: &impl Harness) {
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

pub async fn releasing_a_lost_lock_leaves_successors_alone(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    h.delete_holder(&name).await;
    soon("the loss", guard.lost()).await;
    let successor = acquire(h, &two, &name).await;
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::AlreadyLost);
    assert!(successor.is_held());
    assert_eq!(h.queue_length(&name).await, 1);
}

pub async fn a_lock_is_kept_beyond_its_ttl(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "l"));
    let guard = acquire(h, &one, &name).await;
    // The second lock is the clock: it was acquired later, and is gone when its TTL has passed.
    let clock = lock(h, "clock");
    let _ticking = acquire(h, &two, &clock).await;
    two.crash().await;
    queue_has(h, &clock, 0).await;
    assert!(guard.is_held());
    assert_eq!(h.queue_length(&name).await, 1);
}

pub async fn work_is_aborted_at_the_loss(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    let guard = acquire(h, &client, &name).await;
    assert_eq!(guard.run(async { 7 }).await, Ok(7));
    let (aborted, ()) =
        soon("aborted", async { tokio::join!(guard.run(std::future::pending::<()>()), h.delete_holder(&name)) }).await;
    assert_eq!(aborted, Err(Loss::KeyGone));
}

pub async fn a_lock_on_its_own_lease_ends_alone(h: &impl Harness) {
    let (client, other) = (h.client().await, lock(h, "other"));
    let shared = soon("acquired", client.acquire(&other, lock_options(h).ttl(LONG_TTL))).await.unwrap();
    let mut in_time = 0;
    for name in TRIES.map(|name| lock(h, name)) {
        let own = soon("acquired", client.acquire(&name, lock_options(h).own_lease())).await.unwrap();
        let lease = h.lease_of_holder(&name).await.unwrap();
        assert_ne!(Some(lease), h.lease_of_holder(&other).await);
        h.revoke(lease).await;
        let (_, is_in_time) = lost(&own).await;
        assert!(shared.is_held());
        let again = soon("acquired", client.acquire(&name, lock_options(h).own_lease())).await.unwrap();
        assert_eq!(soon("released", again.release()).await.unwrap(), Released::Released);
        queue_has(h, &name, 0).await;
        in_time += u32::from(is_in_time);
    }
    assert!(in_time >= 2, "{in_time} of three losses were noticed within a second");
}
