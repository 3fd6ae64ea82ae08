//! Raw keys and values.

use std::time::Duration;

use enlist::{
    Deregistered, Error, MAX_RAW_BYTES, RawChange, RawEvent, RawRegistration, RawSnapshot, RawWatcher, RegisterOptions,
    RegistrationState, Start,
};

use super::support::*;
use crate::{
    conformance::harness::{Client, Harness},
    wait::{LIMIT, eventually, soon},
};

/// Returns a key that no other case uses.
fn key(h: &impl Harness, rest: &str) -> Vec<u8> {
    format!("raw/{}/{rest}", h.namespace()).into_bytes()
}

async fn put(h: &impl Harness, client: &Client, rest: &str, value: impl Into<Vec<u8>>) -> RawRegistration {
    let key = key(h, rest);
    soon("registered", client.register_value(&key, value.into(), options(h))).await.unwrap()
}

async fn list(h: &impl Harness, client: &Client, rest: &str) -> RawSnapshot {
    soon("listed", client.list_prefix(&key(h, rest))).await.unwrap()
}

/// Returns keys, without the common prefix of the case, and values.
fn content(h: &impl Harness, snapshot: &RawSnapshot) -> Vec<(String, Vec<u8>)> {
    let root = key(h, "").len();
    let rest = |key: &[u8]| String::from_utf8_lossy(&key[root..]).into_owned();
    snapshot.entries().map(|entry| (rest(&entry.key), entry.value.to_vec())).collect()
}

fn expected_content(pairs: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
}

/// Lists until the content is as expected.
async fn contains(h: &impl Harness, client: &Client, pairs: &[(&str, &str)]) -> RawSnapshot {
    eventually(&format!("{pairs:?} are listed"), || async {
        match client.list_prefix(&key(h, "")).await {
            Ok(snapshot) if content(h, &snapshot) == expected_content(pairs) => Ok(snapshot),
            other => Err(other),
        }
    })
    .await
}

async fn watch_raw(h: &impl Harness, client: &Client) -> Box<dyn RawWatcher> {
    client.watch_prefix(&key(h, "")).await.unwrap()
}

async fn next_raw(watcher: &mut Box<dyn RawWatcher>) -> RawChange {
    soon("a change", watcher.next()).await.unwrap()
}

/// Reads changes until one `fits`.
async fn until_raw(watcher: &mut Box<dyn RawWatcher>, what: &str, fits: impl Fn(&RawChange) -> bool) -> RawChange {
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

/// Returns the kind of each event, with the last byte of its key.
fn kinds(events: &[RawEvent]) -> Vec<String> {
    let sign = |event: &RawEvent| match event {
        RawEvent::Added(_) => '+',
        RawEvent::Updated { .. } => '~',
        RawEvent::Removed(_) => '-',
    };
    let name = |event: &RawEvent| char::from(event.key()[event.key().len() - 1]);
    events.iter().map(|event| format!("{}{}", sign(event), name(event))).collect()
}

pub async fn a_prefix_is_listed_recursively(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let mut kept = Vec::new();
    for (name, value) in [("svc", "of its own"), ("svc/a", ""), ("svc/a/b/c", "deep"), ("svc2/d", "alike"), ("sv", "-")]
    {
        kept.push(put(h, &server, name, value).await);
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let odd = [&key(h, "svc/")[..], &bytes].concat();
    let odd = soon("registered", server.register_value(&odd, bytes.clone(), options(h))).await.unwrap();
    let all = list(h, &client, "svc").await;
    assert_eq!(all.len(), 5, "{all:?}");
    let entry = all.get(odd.key()).unwrap();
    assert_eq!((&*entry.value, entry.lease), (&bytes[..], odd.lease()));
    assert!(entry.created == entry.modified && entry.modified <= all.revision(), "{entry:?}");
    // In the order of bytes.
    let names: Vec<_> = content(h, &all).into_iter().map(|(name, _)| name).filter(|name| name.is_ascii()).collect();
    assert_eq!(names, ["svc", "svc/a", "svc/a/b/c", "svc2/d"]);
    assert_eq!(content(h, &list(h, &client, "svc/a/").await), expected_content(&[("svc/a/b/c", "deep")]));
    assert!(list(h, &client, "svc/a/b/c/").await.is_empty());
}

pub async fn a_prefix_watch_reports_exactly_the_changes(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let a = put(h, &server, "a", "1").await;
    let mut watcher = watch_raw(h, &client).await;
    let first = next_raw(&mut watcher).await;
    assert_eq!((kinds(&first.events), first.snapshot.len()), (vec!["+a".to_owned()], 1));
    assert!(first.freshness.is_live());
    let b = put(h, &server, "deep/er/b", "1").await;
    let added = next_raw(&mut watcher).await;
    assert_eq!(kinds(&added.events), ["+b"]);
    let stored = soon("stored", a.set(*b"2")).await.unwrap();
    let changed = next_raw(&mut watcher).await;
    let [RawEvent::Updated { old, new }] = &changed.events[..] else { panic!("{changed:?}") };
    assert_eq!((&*old.value, &*new.value, new.modified), (&b"1"[..], &b"2"[..], stored));
    soon("gone", b.deregister()).await.unwrap();
    let gone = next_raw(&mut watcher).await;
    assert_eq!((kinds(&gone.events), gone.snapshot.revision() > stored), (vec!["-b".to_owned()], true));
    assert_eq!(content(h, &gone.snapshot), expected_content(&[("a", "2")]));
}

pub async fn a_slow_prefix_watch_gets_the_net_difference(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let (a, b) = (put(h, &server, "a", "0").await, put(h, &server, "b", "0").await);
    let (mut slow, mut quick) = (watch_raw(h, &client).await, watch_raw(h, &client).await);
    next_raw(&mut slow).await;
    for value in ["1", "2", "3"] {
        soon("stored", a.set(value.as_bytes())).await.unwrap();
    }
    soon("gone", b.deregister()).await.unwrap();
    let _c = put(h, &server, "c", "0").await;
    until_raw(&mut quick, "all of it", |change| {
        content(h, &change.snapshot) == expected_content(&[("a", "3"), ("c", "0")])
    })
    .await;
    let net = next_raw(&mut slow).await;
    assert_eq!(kinds(&net.events), ["~a", "-b", "+c"]);
}

pub async fn an_outage_keeps_the_prefix_snapshot(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let a = put(h, &server, "a", "1").await;
    let mut watcher = watch_raw(h, &client).await;
    next_raw(&mut watcher).await;
    client.cut().await;
    let stale = until_raw(&mut watcher, "the outage", |change| !change.freshness.is_live()).await;
    assert_eq!((stale.snapshot.len(), stale.events.len()), (1, 0));
    let unanswered = soon("refused", client.list_prefix(&key(h, ""))).await;
    assert!(unanswered.as_ref().is_err_and(is_outage), "{unanswered:?}");
    soon("stored", a.set(*b"2")).await.unwrap();
    client.heal().await;
    let live = until_raw(&mut watcher, "its end", |change| {
        change.freshness.is_live() && content(h, &change.snapshot) == expected_content(&[("a", "2")])
    })
    .await;
    stays_fresh(&live.freshness).await;
}

pub async fn a_prefix_watch_survives_lost_history(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let (a, b) = (put(h, &server, "a", "1").await, put(h, &server, "b", "1").await);
    let mut watcher = watch_raw(h, &client).await;
    next_raw(&mut watcher).await;
    client.cut().await;
    until_raw(&mut watcher, "the outage", |change| !change.freshness.is_live()).await;
    soon("stored", a.set(*b"2")).await.unwrap();
    soon("gone", b.deregister()).await.unwrap();
    h.compact().await;
    client.heal().await;
    let after = until_raw(&mut watcher, "what happened", |change| !change.events.is_empty()).await;
    assert_eq!(kinds(&after.events), ["~a", "-b"]);
    let epoch = after.snapshot.epoch();
    h.wipe().await;
    until_raw(&mut watcher, "it is back, in another epoch", |change| {
        change.snapshot.epoch() != epoch && content(h, &change.snapshot) == expected_content(&[("a", "2")])
    })
    .await;
}

pub async fn a_raw_value_is_changed_in_place(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let a = put(h, &server, "a", "1").await;
    let before = list(h, &client, "a").await;
    let before = before.get(a.key()).unwrap();
    for number in 2..=20 {
        drop(a.set(number.to_string().into_bytes()));
    }
    let stored = soon("stored", a.set(*b"last")).await.unwrap();
    let after = list(h, &client, "a").await;
    let after = after.get(a.key()).unwrap();
    assert_eq!((&*after.value, &*a.value()), (&b"last"[..], &b"last"[..]));
    assert_eq!((after.created, after.lease), (before.created, before.lease));
    assert!(after.modified >= stored && stored > before.modified);
    let large = soon("refused", a.set(vec![0; MAX_RAW_BYTES])).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    assert_eq!(&*a.value(), b"last");
}

pub async fn a_raw_value_comes_back_after_a_revocation(h: &impl Harness) {
    let (server, client) = (h.client().await, h.client().await);
    let a = put(h, &server, "a", "1").await;
    soon("stored", a.set(*b"2")).await.unwrap();
    let (lease, before) = (a.lease(), list(h, &client, "").await);
    h.revoke(lease.unwrap()).await;
    eventually("it is back, created anew", || async {
        match client.list_prefix(a.key()).await {
            Ok(now) if now.get(a.key()).is_some_and(|entry| entry.created > before.revision()) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    contains(h, &client, &[("a", "2")]).await;
    // The key exists before its writer has the answer.
    eventually("it has another lease", || async { if a.lease() == lease { Err(lease) } else { Ok(()) } }).await;
}

pub async fn a_foreign_raw_value_is_not_overwritten(h: &impl Harness) {
    let (one, two) = (h.client().await, h.client().await);
    let mine = put(h, &one, "a", "mine").await;
    for other in [&two, &one] {
        let refused = soon("refused", other.register_value(mine.key(), b"theirs".to_vec(), options(h))).await;
        assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })), "{refused:?}");
    }
    contains(h, &one, &[("a", "mine")]).await;
    let taken = options(h).on_conflict(enlist::OnConflict::TakeOver);
    let theirs = soon("taken over", two.register_value(mine.key(), b"theirs".to_vec(), taken)).await.unwrap();
    eventually("the older one is superseded", || async {
        match mine.state() {
            RegistrationState::Superseded { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(soon("gone", mine.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    contains(h, &one, &[("a", "theirs")]).await;
    assert_eq!(soon("gone", theirs.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn a_raw_value_ends_with_its_registration(h: &impl Harness) {
    let (server, crashing, client) = (h.client().await, h.client().await, h.client().await);
    let a = put(h, &server, "a", "1").await;
    assert_eq!(soon("gone", a.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(list(h, &client, "").await.is_empty(), "at once");
    drop(put(h, &server, "b", "1").await);
    contains(h, &client, &[]).await;
    let own = RegisterOptions::new().ttl(h.ttl()).lease(enlist::LeaseChoice::Own);
    soon("registered", server.register_value(&key(h, "c"), b"1".to_vec(), own)).await.unwrap().abandon();
    let lease = server.grant_lease(h.ttl()).await.unwrap();
    let given = options(h).lease(&lease);
    let d = soon("registered", server.register_value(&key(h, "d"), b"1".to_vec(), given)).await.unwrap();
    assert_eq!(d.lease(), Some(lease.id()));
    let _e = put(h, &crashing, "e", "1").await;
    crashing.crash().await;
    contains(h, &client, &[("d", "1")]).await;
    soon("revoked", lease.revoke()).await.unwrap();
    assert!(list(h, &client, "").await.is_empty());
}

pub async fn an_invalid_raw_value_is_refused(h: &impl Harness) {
    let server = h.client().await;
    let refused = soon("refused", server.list_prefix(b"")).await.err();
    assert!(matches!(refused, Some(Error::InvalidConfig { field: "prefix", .. })), "{refused:?}");
    let refused = soon("refused", server.watch_prefix(b"")).await.err();
    assert!(matches!(refused, Some(Error::InvalidConfig { field: "prefix", .. })), "{refused:?}");
    server.cut().await;
    let register = async |key: &[u8], value: Vec<u8>, options| {
        soon("refused", server.register_value(key, value, options)).await.err()
    };
    let a = key(h, "a");
    let empty = register(b"", vec![], options(h)).await;
    assert!(matches!(empty, Some(Error::InvalidConfig { field: "key", .. })), "{empty:?}");
    let owned = register(&a, vec![], options(h).owner("me")).await;
    assert!(matches!(owned, Some(Error::Unsupported { .. })), "{owned:?}");
    let large = register(&a, vec![0; MAX_RAW_BYTES], options(h)).await;
    assert!(matches!(large, Some(Error::TooLarge { .. })), "{large:?}");
    let zero = register(&a, vec![], options(h).ttl(Duration::ZERO)).await;
    assert!(matches!(zero, Some(Error::InvalidConfig { field: "ttl", .. })), "{zero:?}");
    let unanswered = register(&a, vec![], options(h).start(Start::FailFast)).await;
    assert!(unanswered.as_ref().is_some_and(is_outage), "{unanswered:?}");
    server.heal().await;
    soon("closed", server.close()).await;
    assert!(matches!(register(&a, vec![], options(h)).await, Some(Error::Closed)));
    assert!(matches!(soon("refused", server.list_prefix(&a)).await, Err(Error::Closed)));
    assert!(matches!(server.watch_prefix(&a).await.err(), Some(Error::Closed)));
}
