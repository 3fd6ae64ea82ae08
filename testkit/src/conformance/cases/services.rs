//! The list of services, and the list of namespaces.

use enlist::{Error, Namespace, ServiceName, ServiceRef, ServicesChange, ServicesWatcher};

use super::support::*;
use crate::{
    conformance::harness::{Client, Harness},
    wait::{LIMIT, begun, eventually, soon},
};

async fn watch_services(client: &Client, namespace: &Namespace) -> Box<dyn ServicesWatcher> {
    client.watch_services(namespace).await.unwrap()
}

async fn next_services(watcher: &mut Box<dyn ServicesWatcher>) -> ServicesChange {
    soon("a change of the services", watcher.next()).await.unwrap()
}

fn texts<'a>(names: impl IntoIterator<Item = &'a ServiceName>) -> Vec<&'a str> {
    names.into_iter().map(ServiceName::as_str).collect()
}

fn shown(change: &ServicesChange) -> Vec<&str> {
    texts(change.services.names())
}

/// Returns the difference of a change: added services, then removed ones.
fn difference(change: &ServicesChange) -> (Vec<&str>, Vec<&str>) {
    (texts(&change.added), texts(&change.removed))
}

/// Reads changes until one `fits`, and returns it.
async fn until_services(
    watcher: &mut Box<dyn ServicesWatcher>,
    what: &str,
    fits: impl Fn(&ServicesChange) -> bool,
) -> ServicesChange {
    let mut last = None;
    let read = async {
        loop {
            let change = watcher.next().await.unwrap();
            if fits(&change) {
                return change;
            }
            last = Some(change);
        }
    };
    match tokio::time::timeout(LIMIT, read).await {
        Ok(change) => change,
        Err(elapsed) => panic!("never seen ({elapsed}): {what}; last: {last:?}"),
    }
}

pub async fn a_service_is_listed_while_it_has_instances(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let _a = register(h, &server, &service(h, "a"), "i").await;
    let mut watcher = watch_services(&client, &h.namespace()).await;
    let first = next_services(&mut watcher).await;
    assert_eq!((shown(&first), difference(&first)), (vec!["a"], (vec!["a"], vec![])), "the whole list comes first");
    assert!(first.freshness.is_live() && *first.services.namespace() == h.namespace());
    let one = register(h, &server, &service(h, "b"), "i").await;
    let two = register(h, &server, &service(h, "b"), "j").await;
    let added = next_services(&mut watcher).await;
    assert_eq!((shown(&added), difference(&added)), (vec!["a", "b"], (vec!["b"], vec![])));
    assert!(added.services.revision() > first.services.revision(), "{added:?}");
    soon("deregistered", one.deregister()).await.unwrap();
    soon("deregistered", two.deregister()).await.unwrap();
    let removed = next_services(&mut watcher).await;
    assert_eq!((shown(&removed), difference(&removed)), (vec!["a"], (vec![], vec!["b"])));
    let names = soon("listed", client.services(&h.namespace())).await.unwrap();
    assert_eq!(texts(&names), shown(&removed), "the read and the watch agree");
}

pub async fn an_empty_namespace_is_known_to_be_empty(h: &impl Harness) {
    let client = h.client().await;
    let first = next_services(&mut watch_services(&client, &h.namespace()).await).await;
    assert!(first.services.is_empty() && first.added.is_empty() && first.freshness.is_live(), "{first:?}");
}

pub async fn a_slow_services_watch_gets_the_net_difference(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let gone = register(h, &server, &service(h, "gone"), "i").await;
    let back = register(h, &server, &service(h, "back"), "i").await;
    let mut slow = watch_services(&client, &h.namespace()).await;
    let mut quick = watch_services(&client, &h.namespace()).await;
    next_services(&mut slow).await;
    soon("deregistered", gone.deregister()).await.unwrap();
    soon("deregistered", back.deregister()).await.unwrap();
    let flickering = register(h, &server, &service(h, "flickering"), "i").await;
    soon("deregistered", flickering.deregister()).await.unwrap();
    let _back = register(h, &server, &service(h, "back"), "j").await;
    let _new = register(h, &server, &service(h, "new"), "i").await;
    until_services(&mut quick, "the end", |change| shown(change) == ["back", "new"]).await;
    let net = next_services(&mut slow).await;
    assert_eq!(difference(&net), (vec!["new"], vec!["gone"]), "what flickered is not reported");
}

pub async fn a_dropped_next_loses_no_service(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let mut watcher = watch_services(&client, &h.namespace()).await;
    next_services(&mut watcher).await;
    let (mut kept, mut added) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        let early = begun(watcher.next()).await;
        kept.push(register(h, &server, &service(h, name), "i").await);
        added.extend(early.into_iter().flat_map(|change| change.unwrap().added));
    }
    while added.len() < 3 {
        added.extend(next_services(&mut watcher).await.added);
    }
    assert_eq!(texts(&added), ["a", "b", "c"], "each once");
}

pub async fn a_changed_instance_leaves_the_list_of_services(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let a = register(h, &server, &service(h, "a"), "i").await;
    let mut watcher = watch_services(&client, &h.namespace()).await;
    next_services(&mut watcher).await;
    soon("stored", a.update(|update| _ = update.weight(7))).await.unwrap();
    let _second = register(h, &server, &service(h, "a"), "j").await;
    let early = begun(watcher.next()).await;
    assert!(early.is_none(), "instances of a listed service are no change: {early:?}");
    let _b = register(h, &server, &service(h, "b"), "i").await;
    assert_eq!(difference(&next_services(&mut watcher).await), (vec!["b"], vec![]));
}

pub async fn an_outage_keeps_the_list_of_services(h: &impl Harness) {
    outage(h, History::Kept).await;
}

pub async fn compaction_during_an_outage_loses_no_service(h: &impl Harness) {
    outage(h, History::Compacted).await;
}

/// History of the store after an outage.
#[derive(Clone, Copy, PartialEq)]
enum History {
    Kept,
    Compacted,
}

async fn outage(h: &impl Harness, history: History) {
    let (server, client) = (h.client().await, h.client().await);
    let _kept = register(h, &server, &service(h, "kept"), "i").await;
    let removed = register(h, &server, &service(h, "removed"), "i").await;
    let mut watcher = watch_services(&client, &h.namespace()).await;
    next_services(&mut watcher).await;
    client.cut().await;
    let stale = until_services(&mut watcher, "the outage", |change| !change.freshness.is_live()).await;
    assert_eq!((shown(&stale), difference(&stale)), (vec!["kept", "removed"], (vec![], vec![])));
    let age = stale.freshness.age();
    eventually("the list ages", || async {
        let now = stale.freshness.age();
        if now > age { Ok(()) } else { Err(now) }
    })
    .await;
    let unanswered = soon("refused", client.services(&h.namespace())).await;
    assert!(unanswered.as_ref().is_err_and(is_outage), "{unanswered:?}");
    soon("deregistered", removed.deregister()).await.unwrap();
    let _added = register(h, &server, &service(h, "added"), "i").await;
    if history == History::Compacted {
        h.compact().await;
    }
    client.heal().await;
    let (mut added, mut gone) = (Vec::new(), Vec::new());
    let end = loop {
        let change = next_services(&mut watcher).await;
        assert!(shown(&change).contains(&"kept"), "{change:?}");
        added.extend(change.added.clone());
        gone.extend(change.removed.clone());
        if change.freshness.is_live() && shown(&change) == ["added", "kept"] {
            break change;
        }
    };
    assert_eq!((texts(&added), texts(&gone)), (vec!["added"], vec!["removed"]), "exactly what happened");
    stays_fresh(&end.freshness).await;
}

pub async fn a_wiped_store_changes_the_list_of_services(h: &impl Harness) {
    let (server, crashing, client) = (h.client().await, h.client().await, h.client().await);
    let _kept = register(h, &server, &service(h, "kept"), "i").await;
    let _lost = register(h, &crashing, &service(h, "lost"), "i").await;
    for _ in 0..10 {
        // The revision has to be well above that of an empty store.
        let passing = register(h, &server, &service(h, "passing"), "i").await;
        soon("deregistered", passing.deregister()).await.unwrap();
    }
    let mut watcher = watch_services(&client, &h.namespace()).await;
    let before = next_services(&mut watcher).await;
    assert_eq!(shown(&before), ["kept", "lost"]);
    crashing.crash().await;
    h.wipe().await;
    until_services(&mut watcher, "only the service that came back, in another epoch", |change| {
        shown(change) == ["kept"] && change.services.epoch() > before.services.epoch()
    })
    .await;
}

pub async fn a_services_watch_begun_during_an_outage_heals(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let _a = register(h, &server, &service(h, "a"), "i").await;
    client.cut().await;
    let mut watcher = watch_services(&client, &h.namespace()).await;
    assert!(begun(watcher.next()).await.is_none(), "unknown is not empty");
    client.heal().await;
    assert_eq!(shown(&next_services(&mut watcher).await), ["a"]);
}

pub async fn a_watch_of_services_ends_with_its_client(h: &impl Harness) {
    let client = h.client().await;
    let mut watcher = watch_services(&client, &h.namespace()).await;
    next_services(&mut watcher).await;
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
    assert!(matches!(client.watch_services(&h.namespace()).await.err(), Some(Error::Closed)));
}

/// Returns namespaces whose names begin alike, and one whose name a layout has to escape.
fn others(h: &impl Harness) -> Vec<Namespace> {
    let name = |suffix: &str| Namespace::parse(format!("{}{suffix}", h.namespace())).unwrap();
    vec![name("-2"), name("/a %")]
}

fn within(namespace: &Namespace, name: &str) -> ServiceRef {
    ServiceRef::new(namespace.clone(), ServiceName::parse(name).unwrap())
}

pub async fn services_of_other_namespaces_are_not_listed(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let mut watcher = watch_services(&client, &h.namespace()).await;
    next_services(&mut watcher).await;
    let mut kept = Vec::new();
    for namespace in others(h) {
        let mut theirs = watch_services(&client, &namespace).await;
        next_services(&mut theirs).await;
        kept.push(register(h, &server, &within(&namespace, "theirs"), "i").await);
        assert_eq!(difference(&next_services(&mut theirs).await), (vec!["theirs"], vec![]));
    }
    assert!(begun(watcher.next()).await.is_none(), "other namespaces are no change");
    kept.push(register(h, &server, &service(h, "ours"), "i").await);
    let change = next_services(&mut watcher).await;
    assert_eq!((shown(&change), difference(&change)), (vec!["ours"], (vec!["ours"], vec![])));
}

pub async fn each_namespace_is_listed_once(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let namespaces = async || soon("listed", client.namespaces()).await.unwrap();
    let mut expected = others(h);
    expected.push(h.namespace());
    expected.sort();
    // A shared store may have others.
    let own = |found: Vec<Namespace>| found.into_iter().filter(|one| expected.contains(one)).collect::<Vec<_>>();
    assert_eq!(own(namespaces().await), []);
    let mut kept = Vec::new();
    for namespace in &expected {
        for name in ["a", "b"] {
            for id in ["i", "j"] {
                kept.push(register(h, &server, &within(namespace, name), id).await);
            }
        }
    }
    let found = namespaces().await;
    assert!(found.is_sorted(), "{found:?}");
    assert_eq!(own(found), expected, "each once");
    for registration in kept {
        soon("deregistered", registration.deregister()).await.unwrap();
    }
    assert_eq!(own(namespaces().await), []);
    client.cut().await;
    let unanswered = soon("refused", client.namespaces()).await;
    assert!(unanswered.as_ref().is_err_and(is_outage), "{unanswered:?}");
}
