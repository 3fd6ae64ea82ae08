//! Reads of the queues of locks and elections.

use std::time::Duration;

use enlist::{ElectionQueue, LockMode, LockName, LockQueue, Namespace};

use super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::{eventually, soon},
};

async fn lock_queues(client: &Client, namespace: &Namespace) -> Vec<LockQueue> {
    soon("listed", client.lock_queues(namespace)).await.unwrap()
}

async fn election_queues(client: &Client, namespace: &Namespace) -> Vec<ElectionQueue> {
    soon("listed", client.election_queues(namespace)).await.unwrap()
}

/// Reads the queue until it has this number of holders and of waiting contenders.
async fn has(client: &Client, name: &LockName, holders: usize, waiting: usize) -> LockQueue {
    eventually(&format!("{holders} hold the lock and {waiting} wait"), || async {
        let queue = client.lock_queue(name).await.map_err(|error| format!("{error:?}"))?;
        let fits = (queue.holders().len(), queue.waiting().len()) == (holders, waiting);
        if fits { Ok(queue) } else { Err(format!("{queue:?}")) }
    })
    .await
}

pub async fn a_lock_queue_lists_contenders_in_order(h: &impl Harness) {
    let (one, two, client) = (h.client().await, h.client().await, h.client().await);
    let name = lock(h, "job");
    let free = soon("read", client.lock_queue(&name)).await.unwrap();
    assert_eq!((&free.name, free.entries.len(), free.delayed), (&name, 0, false));
    let guard = acquire(h, &one, &name).await;
    let mut first = contend(&two, &name, lock_options(h));
    queue_has(h, &name, 2).await;
    let mut second = contend(&one, &name, lock_options(h));
    let queue = has(&client, &name, 1, 2).await;
    assert_eq!(queue.holders()[0].token, guard.fencing_token());
    assert!(queue.entries.iter().all(|entry| entry.mode == LockMode::Exclusive), "{queue:?}");
    assert!(queue.entries.is_sorted_by(|a, b| a.token < b.token && a.created <= b.created), "in order: {queue:?}");
    soon("released", guard.release()).await.unwrap();
    let next = first.done("its turn").await.unwrap();
    let after = has(&client, &name, 1, 1).await;
    assert_eq!(after.entries, queue.entries[1..], "the released entry is gone, and the others are unchanged");
    assert_eq!(after.holders()[0].token, next.fencing_token());
    soon("released", next.release()).await.unwrap();
    let last = second.done("its turn").await.unwrap();
    soon("released", last.release()).await.unwrap();
    has(&client, &name, 0, 0).await;
}

pub async fn shared_holders_are_listed_together(h: &impl Harness) {
    let client = h.client().await;
    let name = lock(h, "job");
    let shared = || lock_options(h).shared();
    let one = soon("acquired", client.acquire(&name, shared())).await.unwrap();
    let two = soon("acquired", client.acquire(&name, shared())).await.unwrap();
    let _writer = contend(&client, &name, lock_options(h));
    queue_has(h, &name, 3).await;
    let _reader = contend(&client, &name, shared());
    let queue = has(&client, &name, 2, 2).await;
    let tokens: Vec<_> = queue.holders().iter().map(|holder| holder.token).collect();
    assert_eq!(tokens, [one.fencing_token(), two.fencing_token()]);
    let modes: Vec<_> = queue.waiting().iter().map(|entry| entry.mode).collect();
    assert_eq!(modes, [LockMode::Exclusive, LockMode::Shared]);
}

pub async fn locks_are_listed_with_their_queues(h: &impl Harness) {
    let client = h.client().await;
    let namespace = h.namespace();
    assert_eq!(lock_queues(&client, &namespace).await, []);
    let other = Namespace::parse(format!("{namespace}-2")).unwrap();
    let mut held = Vec::new();
    for name in ["b", "a/x %", "a"] {
        held.push(acquire(h, &client, &lock(h, name)).await);
    }
    let theirs = acquire(h, &client, &lock(h, "theirs").within(other.clone())).await;
    let queues = lock_queues(&client, &namespace).await;
    let names: Vec<_> = queues.iter().map(|queue| queue.name.name()).collect();
    assert_eq!(names, ["a", "a/x %", "b"], "in order, and without those of another namespace");
    for queue in &queues {
        let read = soon("read", client.lock_queue(&queue.name)).await.unwrap();
        assert_eq!((&read, queue.holders().len()), (queue, 1), "the list and the read agree");
    }
    assert_eq!(lock_queues(&client, &other).await.len(), 1);
    assert_eq!(election_queues(&client, &namespace).await, [], "locks are no elections");
    for guard in held.into_iter().chain([theirs]) {
        soon("released", guard.release()).await.unwrap();
    }
    assert_eq!(lock_queues(&client, &namespace).await, [], "a free lock is not listed");
}

pub async fn elections_are_listed_with_their_queues(h: &impl Harness) {
    let (one, two, client) = (h.client().await, h.client().await, h.client().await);
    let name = lock(h, "office");
    let free = soon("read", client.election_queue(&name)).await.unwrap();
    assert_eq!((&free.name, free.leader(), free.entries.len()), (&name, None, 0));
    let leadership = soon("elected", one.campaign(&name, "first", lock_options(h))).await.unwrap();
    let mut waiting = {
        let (two, name, options) = (two.clone(), name.clone(), lock_options(h));
        BackgroundTask::run(async move { two.campaign(&name, "second", options).await })
    };
    queue_has(h, &name, 2).await;
    let proclaimed = soon("stored", leadership.proclaim("changed")).await.unwrap();
    let queues = election_queues(&client, &h.namespace()).await;
    let [queue] = &queues[..] else { panic!("one election: {queues:?}") };
    let leader = queue.leader().unwrap();
    assert_eq!((&queue.name, leader.value.as_str(), leader.token), (&name, "changed", leadership.fencing_token()));
    assert!(leader.modified == proclaimed && leader.created < leader.modified, "{leader:?}");
    let candidates: Vec<_> = queue.waiting().iter().map(|one| one.value.as_str()).collect();
    assert_eq!(candidates, ["second"]);
    assert_eq!(soon("read", client.election_queue(&name)).await.unwrap(), *queue, "the list and the read agree");
    let read = soon("the leader", client.leader(&name)).await.unwrap().unwrap();
    assert_eq!((&read.value, read.token, read.modified), (&leader.value, leader.token, leader.modified));
    assert_eq!(lock_queues(&client, &h.namespace()).await, [], "elections are no locks");
    soon("resigned", leadership.resign()).await.unwrap();
    let second = waiting.done("its turn").await.unwrap();
    let after = soon("read", client.election_queue(&name)).await.unwrap();
    assert_eq!(after.leader().map(|leader| leader.value.as_str()), Some("second"));
    assert_eq!((after.leader().map(|leader| leader.token), after.waiting()), (Some(second.fencing_token()), &[][..]));
    soon("resigned", second.resign()).await.unwrap();
    assert_eq!(election_queues(&client, &h.namespace()).await, [], "resigned");
}

pub async fn entries_of_a_crashed_process_leave_the_queues(h: &impl Harness) {
    let (crashing, client) = (h.client().await, h.client().await);
    let name = lock(h, "job");
    let lost = acquire(h, &crashing, &name).await;
    let leader = soon("elected", crashing.campaign(&name, "v", lock_options(h))).await.unwrap();
    crashing.crash().await;
    eventually("no entry is left", || async {
        let locks = client.lock_queues(&h.namespace()).await.unwrap();
        let elections = client.election_queues(&h.namespace()).await.unwrap();
        if locks.is_empty() && elections.is_empty() { Ok(()) } else { Err((locks, elections)) }
    })
    .await;
    drop((lost, leader));
}

pub async fn a_lock_in_its_delay_has_no_holder(h: &impl Harness) {
    let (crashing, client) = (h.client().await, h.client().await);
    let name = lock(h, "job");
    let delayed = || lock_options(h).lock_delay(Duration::from_secs(3600));
    let lost = soon("acquired", crashing.acquire(&name, delayed())).await.unwrap();
    let held = has(&client, &name, 1, 0).await;
    assert!(!held.delayed, "{held:?}");
    crashing.crash().await;
    let _waiting = contend(&client, &name, delayed());
    let queue = eventually("the delay is reported", || async {
        let queue = client.lock_queue(&name).await.unwrap();
        if queue.delayed { Ok(queue) } else { Err(queue) }
    })
    .await;
    assert_eq!((queue.holders().len(), queue.waiting().len()), (0, 1));
    assert_eq!(lock_queues(&client, &h.namespace()).await, [queue]);
    drop(lost);
}

pub async fn queues_are_unknown_during_an_outage(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "job"));
    client.cut().await;
    let failures = [
        soon("failed", client.lock_queue(&name)).await.err(),
        soon("failed", client.lock_queues(&h.namespace())).await.err(),
        soon("failed", client.election_queue(&name)).await.err(),
        soon("failed", client.election_queues(&h.namespace())).await.err(),
    ];
    for failure in failures {
        assert!(failure.as_ref().is_some_and(is_outage), "{failure:?}");
    }
}
