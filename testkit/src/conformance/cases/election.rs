//! Elections.

use enlist::{Error, LeaderChange, LeaderWatcher, Leadership, LockName, LockOptions};

use super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::{eventually, soon},
};

fn campaign(
    client: &Client,
    name: &LockName,
    value: &'static str,
    options: LockOptions,
) -> BackgroundTask<Result<Leadership, Error>> {
    let (client, name) = (client.clone(), name.clone());
    BackgroundTask::run(async move { client.campaign(&name, value, options).await })
}

async fn lead(h: &impl Harness, client: &Client, name: &LockName, value: &str) -> Leadership {
    soon("elected", client.campaign(name, value, lock_options(h))).await.unwrap()
}

async fn queue_has(h: &impl Harness, name: &LockName, count: usize) {
    eventually(&format!("the queue has {count} entries"), || async {
        let now = h.queue_length(name).await;
        if now == count { Ok(()) } else { Err(now) }
    })
    .await;
}

async fn led_by(client: &Client, name: &LockName) -> Option<String> {
    soon("the leader", client.leader(name)).await.unwrap().map(|leader| leader.value)
}

/// Reads until `value` is observed as the leader.
async fn observed(watcher: &mut LeaderWatcher, value: Option<&str>) -> LeaderChange {
    loop {
        let change = soon("a change of leaders", watcher.next()).await.unwrap();
        if change.leader.as_ref().map(|leader| &*leader.value) == value {
            return change;
        }
    }
}

pub async fn a_lone_candidate_leads(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    assert_eq!(led_by(&two, &name).await, None);
    let leadership = lead(h, &one, &name, "one").await;
    assert!(leadership.is_held());
    let leader = two.leader(&name).await.unwrap().unwrap();
    assert_eq!((leader.value.as_str(), leader.token), ("one", leadership.fencing_token()));
}

pub async fn resigning_hands_over(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let leadership = lead(h, &one, &name, "one").await;
    let mut next = campaign(&two, &name, "two", lock_options(h));
    queue_has(h, &name, 2).await;
    assert_eq!(led_by(&two, &name).await.as_deref(), Some("one"));
    soon("resigned", leadership.resign()).await.unwrap();
    let next = next.done("elected").await.unwrap();
    assert_eq!(led_by(&one, &name).await.as_deref(), Some("two"));
    drop(next);
    queue_has(h, &name, 0).await;
}

pub async fn a_crashed_leader_is_succeeded(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let old = lead(h, &one, &name, "one").await;
    let mut next = campaign(&two, &name, "two", lock_options(h));
    queue_has(h, &name, 2).await;
    one.crash().await;
    let next = next.done("elected").await.unwrap();
    assert!(!old.is_held() && next.fencing_token() > old.fencing_token());
}

pub async fn a_proclamation_is_seen(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let leadership = lead(h, &one, &name, "one").await;
    let mut watcher = two.observe(&name).await.unwrap();
    observed(&mut watcher, Some("one")).await;
    let revision = soon("proclaimed", leadership.proclaim("uno")).await.unwrap();
    let change = observed(&mut watcher, Some("uno")).await.leader.unwrap();
    assert_eq!((change.token, change.modified), (leadership.fencing_token(), revision));
    assert!(leadership.is_held());
}

pub async fn a_lost_leader_proclaims_nothing(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let old = lead(h, &one, &name, "one").await;
    h.delete_holder(&name).await;
    soon("the loss", old.lost()).await;
    let _new = lead(h, &two, &name, "two").await;
    let refused = soon("refused", old.proclaim("still me")).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "a lost leader is refused as such: {refused:?}");
    assert_eq!(led_by(&one, &name).await.as_deref(), Some("two"));
}

pub async fn an_observer_sees_each_leader(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let mut watcher = two.observe(&name).await.unwrap();
    let first = soon("known to have no leader", watcher.next()).await.unwrap();
    assert!(first.leader.is_none() && first.freshness.is_live());
    let leadership = lead(h, &one, &name, "one").await;
    observed(&mut watcher, Some("one")).await;
    soon("resigned", leadership.resign()).await.unwrap();
    observed(&mut watcher, None).await;
}

pub async fn an_observer_is_at_most_ten_seconds_behind(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let _leadership = lead(h, &one, &name, "one").await;
    let mut watcher = two.observe(&name).await.unwrap();
    stays_fresh(&observed(&mut watcher, Some("one")).await.freshness).await;
}

pub async fn an_outage_leaves_the_observed_leader(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let _leadership = lead(h, &one, &name, "one").await;
    let mut watcher = two.observe(&name).await.unwrap();
    observed(&mut watcher, Some("one")).await;
    two.cut().await;
    let stale = loop {
        let change = soon("staleness", watcher.next()).await.unwrap();
        if !change.freshness.is_live() {
            break change;
        }
    };
    assert_eq!(stale.leader.unwrap().value, "one");
    two.heal().await;
    let live = observed(&mut watcher, Some("one")).await;
    assert!(live.freshness.is_live());
}

pub async fn a_dropped_campaign_leaves_the_queue(h: &impl Harness) {
    let (one, two, name) = (h.client().await, h.client().await, lock(h, "e"));
    let _leadership = lead(h, &one, &name, "one").await;
    let waiting = campaign(&two, &name, "two", lock_options(h).ttl(std::time::Duration::from_secs(300)));
    queue_has(h, &name, 2).await;
    waiting.abort().await;
    queue_has(h, &name, 1).await;
}

pub async fn elections_are_apart_from_locks(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "both"));
    let guard = soon("acquired", client.acquire(&name, lock_options(h))).await.unwrap();
    assert_eq!(led_by(&client, &name).await, None);
    let leadership = lead(h, &client, &name, "me").await;
    assert!(guard.is_held() && leadership.is_held());
}

pub async fn an_election_has_no_shared_mode(h: &impl Harness) {
    let (client, name) = (h.client().await, lock(h, "e"));
    let refused = client.campaign(&name, "me", lock_options(h).shared()).await;
    assert!(
        matches!(refused, Err(Error::InvalidConfig { field: "mode", .. })),
        "the mode is refused by name: {refused:?}"
    );
}
