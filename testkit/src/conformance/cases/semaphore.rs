//! Semaphores: the number of permits in use, the order of the queue, changes of the number, and lost permits.

use std::time::Duration;

use enlist::{Error, LockName, Loss, PermitGuard, Released, SemaphoreOptions};

use super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::soon,
};

/// TTL beyond the length of a case, so that no lease expires.
const LONG: Duration = Duration::from_secs(300);

fn want(h: &impl Harness, permits: u32) -> SemaphoreOptions {
    SemaphoreOptions::new().ttl(h.ttl()).permits(permits)
}

async fn take(h: &impl Harness, client: &Client, name: &LockName, permits: u32) -> PermitGuard {
    soon("granted", client.acquire_permits(name, want(h, permits))).await.unwrap()
}

async fn set(client: &Client, name: &LockName, permits: u32) {
    soon("set", client.set_permits(name, permits)).await.unwrap();
}

async fn release(guard: PermitGuard) {
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::Released);
}

type Waiting = BackgroundTask<Result<PermitGuard, Error>>;

/// Starts a contender in the background and waits until the queue has `count` entries.
async fn wait_for(
    h: &impl Harness,
    client: &Client,
    name: &LockName,
    options: SemaphoreOptions,
    count: usize,
) -> Waiting {
    let (client, named) = (client.clone(), name.clone());
    let waiting = BackgroundTask::run(async move { client.acquire_permits(&named, options).await });
    queue_has(h, name, count).await;
    waiting
}

/// Checks that a contender waits. An attempt to take one permit comes after everything that the store has done so far.
async fn still_waits(h: &impl Harness, client: &Client, name: &LockName, waiting: &mut Waiting) {
    let tried = soon("tried", client.try_acquire_permits(name, want(h, 1))).await.unwrap();
    assert!(tried.is_none(), "a contender waits, and is not overtaken: {tried:?}");
    waiting.assert_running();
}

pub async fn impossible_requests_for_permits_are_refused_locally(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "s"));
    client.cut().await;
    let refused = |error: Option<Error>, expected: &str| {
        let by_name = matches!(&error, Some(Error::InvalidConfig { field, .. }) if *field == expected);
        assert!(by_name, "{expected} is refused by name: {error:?}");
    };
    refused(client.acquire_permits(&name, want(h, 0)).await.err(), "permits");
    refused(client.try_acquire_permits(&name, want(h, 0)).await.err(), "permits");
    refused(client.acquire_permits(&name, want(h, 1).ttl(Duration::ZERO)).await.err(), "ttl");
}

pub async fn a_closed_client_grants_no_permits(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "s"));
    soon("closed", client.close()).await;
    let closed =
        |error: Option<Error>| assert!(matches!(error, Some(Error::Closed)), "a closed client says so: {error:?}");
    closed(soon("acquiring", client.acquire_permits(&name, want(h, 1))).await.err());
    closed(soon("trying", client.try_acquire_permits(&name, want(h, 1))).await.err());
    closed(soon("reading", client.permits(&name)).await.err());
    closed(soon("setting", client.set_permits(&name, 1)).await.err());
}

pub async fn the_number_of_permits_is_stored_if_unset(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    assert_eq!(soon("read", one.permits(&name)).await.unwrap(), None);
    let guard = soon("granted", one.acquire_permits(&name, want(h, 2).permits_if_unset(2))).await.unwrap();
    assert_eq!(soon("read", two.permits(&name)).await.unwrap(), Some(2));
    let more = soon("tried", two.try_acquire_permits(&name, want(h, 1).permits_if_unset(9))).await.unwrap();
    assert!(more.is_none(), "a stored number is not changed");
    assert_eq!((guard.permits(), guard.is_held()), (2, true));
    release(guard).await;
    queue_has(h, &name, 0).await;
    assert_eq!(soon("read", two.permits(&name)).await.unwrap(), Some(2), "the number outlives its users");
    set(&two, &name, 0).await;
    assert_eq!(soon("read", one.permits(&name)).await.unwrap(), Some(0));
}

pub async fn a_semaphore_without_a_number_waits_for_it(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    let mut waiting = wait_for(h, &one, &name, want(h, 1), 1).await;
    still_waits(h, &two, &name, &mut waiting).await;
    set(&two, &name, 1).await;
    assert!(waiting.done("its permit").await.unwrap().is_held());
}

pub async fn a_later_contender_can_bring_the_number(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    let mut first = wait_for(h, &one, &name, want(h, 1), 1).await;
    let second = soon("granted", two.acquire_permits(&name, want(h, 1).permits_if_unset(2))).await.unwrap();
    let first = first.done("its permit").await.unwrap();
    assert!(first.is_held() && second.is_held());
    assert!(first.fencing_token() < second.fencing_token());
}

pub async fn no_more_permits_are_used_than_exist(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 2).await;
    let mut held = vec![take(h, &one, &name, 1).await, take(h, &two, &name, 1).await];
    let mut waiting = Vec::new();
    for number in 0..4 {
        let client = h.client().await;
        waiting.push(wait_for(h, &client, &name, want(h, 1), number + 3).await);
    }
    for number in 0..4 {
        still_waits(h, &one, &name, &mut waiting[number]).await;
        release(held.remove(0)).await;
        held.push(waiting[number].done("its permit").await.unwrap());
        waiting[number + 1..].iter_mut().for_each(BackgroundTask::assert_running);
        assert!(held.iter().all(|guard| guard.is_held()));
    }
}

pub async fn permits_are_granted_in_queue_order(h: &impl Harness) {
    let (holder, name) = (h.client().await, lock(h, "s"));
    set(&holder, &name, 4).await;
    let guard = take(h, &holder, &name, 4).await;
    let mut before = guard.fencing_token();
    let mut waiting = Vec::new();
    for (number, permits) in [2, 1, 3, 1, 4].into_iter().enumerate() {
        let client = h.client().await;
        waiting.push(wait_for(h, &client, &name, want(h, permits), number + 2).await);
    }
    release(guard).await;
    // Each is granted once so many holders are left. The third fits together with the second only.
    let mut held = std::collections::VecDeque::new();
    for (number, others_before) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 0)] {
        while held.len() > others_before {
            waiting[number].assert_running();
            release(held.pop_front().unwrap()).await;
        }
        let guard = waiting[number].done("its permits").await.unwrap();
        assert!(guard.fencing_token() > before, "a later token is larger");
        before = guard.fencing_token();
        held.push_back(guard);
    }
}

pub async fn a_large_request_is_not_overtaken(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 3).await;
    let guard = take(h, &one, &name, 2).await;
    let mut large = wait_for(h, &two, &name, want(h, 3), 2).await;
    still_waits(h, &one, &name, &mut large).await;
    let mut small = wait_for(h, &one, &name, want(h, 1), 3).await;
    still_waits(h, &two, &name, &mut small).await;
    release(guard).await;
    let guard = large.done("all permits").await.unwrap();
    still_waits(h, &two, &name, &mut small).await;
    release(guard).await;
    assert!(small.done("its permit").await.unwrap().is_held());
}

pub async fn small_requests_pass_a_large_one_given_up(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 3).await;
    let guard = take(h, &one, &name, 1).await;
    let large = wait_for(h, &two, &name, want(h, 3), 2).await;
    let mut small = Vec::new();
    for (number, client) in [&one, &two].into_iter().enumerate() {
        small.push(wait_for(h, client, &name, want(h, 1), number + 3).await);
    }
    still_waits(h, &two, &name, &mut small[0]).await;
    large.abort().await;
    for small in &mut small {
        assert!(small.done("its permit").await.unwrap().is_held());
    }
    assert!(guard.is_held());
}

pub async fn raising_the_number_grants_the_next(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 1).await;
    let guard = take(h, &one, &name, 1).await;
    let mut next = wait_for(h, &two, &name, want(h, 1), 2).await;
    let mut large = wait_for(h, &one, &name, want(h, 3), 3).await;
    still_waits(h, &two, &name, &mut next).await;
    set(&one, &name, 2).await;
    let next = next.done("the second permit").await.unwrap();
    still_waits(h, &two, &name, &mut large).await;
    set(&two, &name, 5).await;
    let large = large.done("permits that there were not").await.unwrap();
    assert!(guard.is_held() && next.is_held() && large.is_held());
}

pub async fn lowering_the_number_revokes_nothing(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 3).await;
    let (first, second) = (take(h, &one, &name, 2).await, take(h, &two, &name, 1).await);
    set(&one, &name, 1).await;
    let mut next = wait_for(h, &two, &name, want(h, 1), 3).await;
    still_waits(h, &one, &name, &mut next).await;
    assert!(first.is_held() && second.is_held());
    release(first).await;
    still_waits(h, &one, &name, &mut next).await;
    release(second).await;
    let next = next.done("the only permit").await.unwrap();
    let mut last = wait_for(h, &one, &name, want(h, 1), 2).await;
    still_waits(h, &two, &name, &mut last).await;
    release(next).await;
    assert!(last.done("its permit").await.unwrap().is_held());
}

pub async fn permits_of_a_crashed_holder_pass_on(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "s"));
    set(&two, &name, 2).await;
    let (crashed, other) = (take(h, &one, &name, 1).await, take(h, &two, &name, 1).await);
    let mut next = wait_for(h, &three, &name, want(h, 1), 3).await;
    one.crash().await;
    let next = next.done("its permit").await.unwrap();
    assert!(next.is_held() && other.is_held() && !crashed.is_held());
}

pub async fn lost_permits_are_reported(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 1).await;
    let guard = soon("granted", one.acquire_permits(&name, want(h, 1).ttl(LONG))).await.unwrap();
    let mut next = wait_for(h, &two, &name, want(h, 1).ttl(LONG), 2).await;
    h.delete_holder(&name).await;
    assert_eq!(soon("the loss", guard.lost()).await, Loss::KeyGone);
    assert!(!guard.is_held());
    let next = next.done("its permit").await.unwrap();
    assert_eq!(soon("released", guard.release()).await.unwrap(), Released::AlreadyLost);
    assert!(next.is_held());
    h.revoke(h.lease_of_holder(&name).await.unwrap()).await;
    let loss = soon("the loss", next.lost()).await;
    assert!(matches!(loss, Loss::KeyGone | Loss::LeaseGone), "the loss says what is gone: {loss:?}");
    queue_has(h, &name, 0).await;
}

pub async fn a_failed_try_for_permits_leaves_the_queue(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 2).await;
    let first = soon("tried", one.try_acquire_permits(&name, want(h, 1))).await.unwrap().expect("they are free");
    let too_many = soon("tried", two.try_acquire_permits(&name, want(h, 2).ttl(LONG))).await.unwrap();
    assert!(too_many.is_none());
    // At once, not eventually: the entry is removed before the call returns.
    assert_eq!(h.queue_length(&name).await, 1);
    let second = soon("tried", two.try_acquire_permits(&name, want(h, 1))).await.unwrap().expect("one is free");
    assert!(first.is_held() && second.is_held());
}

pub async fn a_deadline_ends_the_wait_for_permits(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 1).await;
    let _guard = take(h, &one, &name, 1).await;
    let limit = Duration::from_millis(300);
    let late = soon("the deadline", two.acquire_permits(&name, want(h, 1).ttl(LONG).deadline(limit))).await;
    let ended = matches!(late, Err(Error::Timeout { limit: passed, .. }) if passed == limit);
    assert!(ended, "the deadline ends the wait: {late:?}");
    queue_has(h, &name, 1).await;
}

pub async fn a_cancelled_request_for_permits_leaves_the_queue(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 1).await;
    let guard = take(h, &one, &name, 1).await;
    let waiting = wait_for(h, &two, &name, want(h, 1).ttl(LONG), 2).await;
    waiting.abort().await;
    queue_has(h, &name, 1).await;
    // The future is dropped before its entry is in the queue, or while it is created.
    for polls in 0..10 {
        let mut acquiring = Box::pin(two.acquire_permits(&name, want(h, 1).ttl(LONG)));
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut acquiring => panic!("it is held"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    queue_has(h, &name, 1).await;
    release(guard).await;
    let guard = take(h, &two, &name, 1).await;
    queue_has(h, &name, 1).await;
    drop(guard);
    queue_has(h, &name, 0).await;
}

pub async fn a_contender_for_permits_enters_the_queue_again(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 1).await;
    let guard = take(h, &one, &name, 1).await;
    let mut revoked = wait_for(h, &two, &name, want(h, 1), 2).await;
    let lease = h.lease_of_last_contender(&name).await.unwrap();
    let mut behind = wait_for(h, &three, &name, want(h, 1), 3).await;
    h.revoke(lease).await;
    queue_has(h, &name, 3).await;
    revoked.assert_running();
    // Its queue entry is lost: the contender behind it is first.
    release(guard).await;
    let guard = behind.done("its permit").await.unwrap();
    revoked.assert_running();
    let before = guard.fencing_token();
    release(guard).await;
    let guard = revoked.done("its permit after all").await.unwrap();
    assert!(guard.is_held() && guard.fencing_token() > before);
}

pub async fn a_wiped_store_loses_its_semaphores(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "s"));
    let guard = soon("granted", one.acquire_permits(&name, want(h, 1).permits_if_unset(1))).await.unwrap();
    let mut waiting = wait_for(h, &two, &name, want(h, 1).permits_if_unset(1), 2).await;
    h.wipe().await;
    let successor = waiting.done("its permit").await.unwrap();
    assert!(successor.is_held());
    soon("the loss", guard.lost()).await;
    assert_eq!(soon("read", one.permits(&name)).await.unwrap(), Some(1));
    queue_has(h, &name, 1).await;
}

pub async fn compaction_does_not_disturb_a_wait_for_permits(h: &impl Harness) {
    let (one, two, three, name) = (h.client().await, h.client().await, h.client().await, lock(h, "s"));
    set(&one, &name, 1).await;
    let guard = take(h, &one, &name, 1).await;
    let mut first = wait_for(h, &two, &name, want(h, 1).ttl(LONG), 2).await;
    let mut second = wait_for(h, &three, &name, want(h, 1).ttl(LONG), 3).await;
    // Their watches are interrupted, and the events meanwhile are no longer in the history.
    two.cut().await;
    three.cut().await;
    release(guard).await;
    set(&one, &name, 2).await;
    h.compact().await;
    two.heal().await;
    three.heal().await;
    assert!(first.done("its permit").await.unwrap().is_held());
    assert!(second.done("its permit").await.unwrap().is_held());
}

pub async fn semaphores_are_apart_from_locks(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "l"));
    set(&client, &name, 1).await;
    let _guard = acquire(h, &client, &name).await;
    let _permit = take(h, &client, &name, 1).await;
    for other in ["l/a", "l%2Fa"] {
        set(&client, &lock(h, other), 1).await;
        drop(take(h, &client, &lock(h, other), 1).await);
    }
    assert_eq!(soon("read", client.permits(&name)).await.unwrap(), Some(1));
}
