//! Resolving and watching, also during outages.

use std::time::Duration;

use enlist::{Change, Directory, Error, Event, Freshness, Health, PickPolicy, Watcher};

use super::support::*;
use crate::{
    conformance::harness::Harness,
    wait::{begun, eventually, soon},
};

/// Returns the events from `before` to `change.snapshot`.
fn assert_exact(before: &enlist::Snapshot, change: &Change) {
    assert_eq!(change.events, change.snapshot.diff(before), "the events are the difference to what was seen");
}

pub async fn the_first_change_is_the_whole_snapshot(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let _b = register(h, &server, &service, "b").await;
    let mut watcher = watch(&client, &service).await;
    let first = next(&mut watcher).await;
    assert_eq!(endpoints(&first.snapshot), expected(&["a", "b"]));
    assert!(first.freshness.is_live());
    assert_eq!(first.events, first.snapshot.as_added());
}

pub async fn an_empty_service_is_known_to_be_empty(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "nobody"));
    let mut watcher = watch(&client, &service).await;
    let first = next(&mut watcher).await;
    assert!(first.snapshot.is_empty() && first.events.is_empty());
    assert!(resolve(&*client, &service).await.is_empty());
}

pub async fn changes_come_with_exactly_their_events(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mut watcher = watch(&client, &service).await;
    let first = next(&mut watcher).await;
    let a = register(h, &server, &service, "a").await;
    let added = next(&mut watcher).await;
    assert!(matches!(&added.events[..], [Event::Added(_)]), "one was added: {:?}", added.events);
    assert_exact(&first.snapshot, &added);
    let update = a.update(|update| {
        update.weight(7);
    });
    soon("stored", update).await.unwrap();
    let updated = next(&mut watcher).await;
    match &updated.events[..] {
        [Event::Updated { old, new }] => assert_eq!((old.instance().weight(), new.instance().weight()), (100, 7)),
        other => panic!("one was updated: {other:?}"),
    }
    soon("deregistered", a.deregister()).await.unwrap();
    let mut removed = next(&mut watcher).await;
    if let [Event::Updated { new, .. }] = &removed.events[..] {
        // A backend may first mark the instance as draining.
        assert_eq!(new.instance().health(), Health::Draining);
        removed = next(&mut watcher).await;
    }
    assert!(matches!(&removed.events[..], [Event::Removed(_)]), "one was removed: {:?}", removed.events);
    assert!(removed.snapshot.is_empty());
}

pub async fn resolving_agrees_with_watching(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mut watcher = watch(&client, &service).await;
    next(&mut watcher).await;
    let mut kept = Vec::new();
    for name in ["a", "b", "c"] {
        kept.push(register(h, &server, &service, name).await);
    }
    let resolved = resolve(&*client, &service).await;
    let seen = until(&mut watcher, "all three", |change| change.snapshot.len() == 3).await;
    assert_eq!(seen.snapshot.entries().collect::<Vec<_>>(), resolved.entries().collect::<Vec<_>>());
}

pub async fn a_slow_watcher_gets_the_net_difference(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let gone = register(h, &server, &service, "gone").await;
    let (mut slow, mut fast) = (watch(&client, &service).await, watch(&client, &service).await);
    let before = next(&mut slow).await;
    next(&mut fast).await;
    for weight in 1..=20 {
        let update = a.update(|update| {
            update.weight(weight);
        });
        soon("stored", update).await.unwrap();
    }
    soon("deregistered", gone.deregister()).await.unwrap();
    let passing = register(h, &server, &service, "passing").await;
    soon("deregistered", passing.deregister()).await.unwrap();
    let _b = register(h, &server, &service, "b").await;
    let weight = |change: &Change| change.snapshot.get(&id("a")).map(|entry| entry.instance().weight());
    let settled = |change: &Change| endpoints(&change.snapshot) == expected(&["a", "b"]) && weight(change) == Some(20);
    until(&mut fast, "the end", settled).await;
    let change = next(&mut slow).await;
    assert!(settled(&change), "one step to the latest: {change:?}");
    assert_exact(&before.snapshot, &change);
    assert_eq!(change.events.len(), 3, "one update, one removal and one addition: {:?}", change.events);
}

pub async fn watchers_of_one_service_are_independent(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let (mut one, mut two) = (watch(&client, &service).await, watch(&client, &service).await);
    next(&mut one).await;
    next(&mut two).await;
    drop(one);
    let _a = register(h, &server, &service, "a").await;
    assert_eq!(endpoints(&next(&mut two).await.snapshot), expected(&["a"]));
}

pub async fn a_dropped_next_loses_nothing(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mut watcher = watch(&client, &service).await;
    let mut seen = next(&mut watcher).await.snapshot;
    let mut kept = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let early = begun(watcher.next()).await;
        kept.push(register(h, &server, &service, name).await);
        for change in [early.map(Result::unwrap), begun(watcher.next()).await.map(Result::unwrap)].into_iter().flatten()
        {
            assert_exact(&seen, &change);
            seen = change.snapshot;
        }
    }
    if seen.len() < 4 {
        let change = until(&mut watcher, "all four", |change| change.snapshot.len() == 4).await;
        seen = change.snapshot;
    }
    assert_eq!(endpoints(&seen), expected(&["a", "b", "c", "d"]));
}

pub async fn a_restart_under_one_id_is_visible(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let mut watcher = watch(&client, &service).await;
    let before = next(&mut watcher).await.snapshot;
    soon("deregistered", a.deregister()).await.unwrap();
    let _a = register(h, &server, &service, "a").await;
    let created = before.get(&id("a")).unwrap().created();
    let anew = |change: &Change| change.snapshot.get(&id("a")).is_some_and(|entry| entry.created() > created);
    until(&mut watcher, "created anew", anew).await;
}

/// Waits until the watcher reports staleness, and checks that its set does not change meanwhile.
async fn stale(watcher: &mut Box<dyn Watcher>, names: &[&str]) -> Change {
    loop {
        let change = next(watcher).await;
        assert_eq!(endpoints(&change.snapshot), expected(names));
        if !change.freshness.is_live() {
            return change;
        }
    }
}

pub async fn an_outage_changes_only_the_freshness(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let mut watcher = watch(&client, &service).await;
    next(&mut watcher).await;
    client.cut().await;
    let cut = stale(&mut watcher, &["a"]).await;
    assert!(cut.events.is_empty());
    let Freshness::Stale { cause, .. } = &cut.freshness else { panic!("it is stale: {:?}", cut.freshness) };
    assert!(is_outage(cause), "the cause is the outage: {cause:?}");
    client.heal().await;
    let back = until(&mut watcher, "live again", |change| change.freshness.is_live()).await;
    assert_eq!(endpoints(&back.snapshot), expected(&["a"]));
}

pub async fn healthy_watches_are_at_most_ten_seconds_old(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let mut watcher = watch(&client, &service).await;
    stays_fresh(&next(&mut watcher).await.freshness).await;
}

pub async fn age_grows_during_an_outage(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "svc"));
    let mut watcher = watch(&client, &service).await;
    next(&mut watcher).await;
    client.cut().await;
    let cut = stale(&mut watcher, &[]).await;
    let long = Duration::from_millis(300);
    eventually("it has aged", || async {
        let age = cut.freshness.age();
        if age > long { Ok(()) } else { Err(age) }
    })
    .await;
    client.heal().await;
    let back = until(&mut watcher, "live again", |change| change.freshness.is_live()).await;
    assert!(back.freshness.age() < cut.freshness.age());
}

pub async fn changes_during_an_outage_are_reported_exactly(h: &impl Harness) {
    outage(h, History::Kept).await;
}

pub async fn compaction_during_an_outage_loses_nothing(h: &impl Harness) {
    outage(h, History::Compacted).await;
}

/// History of the store after an outage.
#[derive(Clone, Copy, PartialEq)]
enum History {
    Kept,
    Compacted,
}

/// Adds, changes, removes and keeps instances while the watcher has no connection.
async fn outage(h: &impl Harness, history: History) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _kept = register(h, &server, &service, "kept").await;
    let changed = register(h, &server, &service, "changed").await;
    let removed = register(h, &server, &service, "removed").await;
    let mut watcher = watch(&client, &service).await;
    next(&mut watcher).await;
    client.cut().await;
    let before = stale(&mut watcher, &["kept", "changed", "removed"]).await;
    let update = changed.update(|update| {
        update.weight(7);
    });
    soon("stored", update).await.unwrap();
    soon("deregistered", removed.deregister()).await.unwrap();
    let _added = register(h, &server, &service, "added").await;
    if history == History::Compacted {
        h.compact().await;
    }
    client.heal().await;
    let mut seen = before.snapshot.clone();
    let end = expected(&["kept", "changed", "added"]);
    loop {
        let change = next(&mut watcher).await;
        assert_exact(&seen, &change);
        assert!(!change.snapshot.is_empty() && change.snapshot.get(&id("kept")).is_some());
        seen = change.snapshot;
        if endpoints(&seen) == end {
            break;
        }
    }
    assert_eq!(seen.get(&id("kept")), before.snapshot.get(&id("kept")), "what did not change was not touched");
    assert_eq!(seen.get(&id("changed")).unwrap().instance().weight(), 7);
}

pub async fn a_store_that_went_back_is_noticed(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    client.publish(&service, instance("fixed")).await.unwrap();
    for _ in 0..20 {
        // The revision has to be well above that of an empty store.
        client.publish(&service, instance("fixed")).await.unwrap();
    }
    let _a = register(h, &server, &service, "a").await;
    let mut watcher = watch(&client, &service).await;
    let before = next(&mut watcher).await.snapshot;
    assert_eq!(endpoints(&before), expected(&["a", "fixed"]));
    h.wipe().await;
    let anew = |change: &Change| endpoints(&change.snapshot) == expected(&["a"]);
    let after = until(&mut watcher, "only what came back", anew).await;
    assert!(after.snapshot.epoch() > before.epoch());
}

pub async fn a_watch_begun_during_an_outage_heals(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    client.cut().await;
    let mut watcher = watch(&client, &service).await;
    assert!(begun(watcher.next()).await.is_none(), "unknown is not empty");
    client.heal().await;
    assert_eq!(endpoints(&next(&mut watcher).await.snapshot), expected(&["a"]));
}

pub async fn revisions_only_grow(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mut watcher = watch(&client, &service).await;
    let mut last = next(&mut watcher).await.snapshot.revision();
    for _ in 0..5 {
        let a = register(h, &server, &service, "a").await;
        let added = until(&mut watcher, "it comes", |change| change.snapshot.len() == 1).await.snapshot.revision();
        soon("deregistered", a.deregister()).await.unwrap();
        let removed = until(&mut watcher, "it goes", |change| change.snapshot.is_empty()).await.snapshot.revision();
        assert!(last < added && added < removed, "revisions grow: {last}, {added}, {removed}");
        last = removed;
    }
}

pub async fn resolving_fails_during_an_outage(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "svc"));
    client.cut().await;
    let failed = soon("failed", client.resolve(&service)).await;
    assert!(is_outage(&failed.unwrap_err()));
}

pub async fn a_view_survives_an_outage(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let directory = Directory::new(client.resolver());
    let view = directory.view(&service);
    assert!(soon("ready", view.ready()).await.unwrap().is_empty());
    let _a = register(h, &server, &service, "a").await;
    let mut picker = view.picker(PickPolicy::Weighted);
    let mut changes = view.changes();
    while picker.pick().is_err() {
        soon("a change", changes.next()).await.unwrap();
    }
    client.cut().await;
    while view.freshness().is_some_and(|freshness| freshness.is_live()) {
        soon("a change", changes.next()).await.unwrap();
    }
    assert_eq!(picker.pick().unwrap().instance().endpoints()[0].to_string(), endpoint("a"));
    soon("closed", directory.close(Duration::from_secs(5))).await.unwrap();
}

pub async fn services_are_listed(h: &impl Harness) {
    let client = h.client().await;
    let namespace = h.namespace();
    assert!(client.services(&namespace).await.unwrap().is_empty());
    let mut kept = Vec::new();
    for name in ["b", "a", "a/x", "ü"] {
        kept.push(register(h, &client, &service(h, name), "i").await);
        kept.push(register(h, &client, &service(h, name), "j").await);
    }
    let names: Vec<_> = client.services(&namespace).await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a", "a/x", "b", "ü"]);
}

pub async fn a_watch_of_a_closed_client_ends(h: &impl Harness) {
    let (client, service) = (h.client().await, service(h, "svc"));
    let mut watcher = watch(&client, &service).await;
    next(&mut watcher).await;
    soon("closed", client.close()).await;
    let ended = async {
        loop {
            match watcher.next().await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    };
    assert!(matches!(soon("the end", ended).await, Error::Closed));
}
