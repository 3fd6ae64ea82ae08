//! Configuration: reads, guarded writes and history. Its watches are in `watch.rs`.

mod watch;

use std::{collections::BTreeSet, sync::Arc};

use enlist::{
    ConfigChange, ConfigEntry, ConfigEvent, ConfigPath, ConfigScope, ConfigSnapshot, ConfigVersion, ConfigWatcher,
    ConfigWrite, Error, Expect, MAX_CONFIG_BYTES, MAX_CONFIG_WRITES, Namespace, Revision,
};

pub use self::watch::*;
use super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::{LIMIT, eventually, soon},
};

fn path(text: &str) -> ConfigPath {
    ConfigPath::parse(text).unwrap()
}

fn below(text: &str) -> ConfigScope {
    ConfigScope::Below(path(text))
}

async fn put(h: &impl Harness, client: &Client, at: &str, value: &str, expect: Expect) -> Result<Revision, Error> {
    let config = client.config();
    soon("written", config.put(&h.namespace(), &path(at), value.as_bytes().to_vec(), expect)).await
}

async fn set(h: &impl Harness, client: &Client, at: &str, value: &str) -> Revision {
    put(h, client, at, value, Expect::Any).await.unwrap()
}

async fn delete(h: &impl Harness, client: &Client, at: &str, expect: Expect) -> Result<Revision, Error> {
    soon("deleted", client.config().delete(&h.namespace(), &path(at), expect)).await
}

async fn write(h: &impl Harness, client: &Client, writes: Vec<ConfigWrite>) -> Result<Revision, Error> {
    soon("written", client.config().write(&h.namespace(), writes)).await
}

async fn get(h: &impl Harness, client: &Client, at: &str) -> Option<Arc<ConfigEntry>> {
    soon("read", client.config().get(&h.namespace(), &path(at))).await.unwrap()
}

async fn list(h: &impl Harness, client: &Client, scope: &ConfigScope) -> ConfigSnapshot {
    soon("listed", client.config().list(&h.namespace(), scope)).await.unwrap()
}

async fn history(h: &impl Harness, client: &Client, at: &str, limit: usize) -> Vec<ConfigVersion> {
    soon("read", client.config().history(&h.namespace(), &path(at), limit)).await.unwrap()
}

/// Returns paths and values, as texts.
fn content(snapshot: &ConfigSnapshot) -> Vec<(String, String)> {
    let text = |entry: &Arc<ConfigEntry>| String::from_utf8_lossy(&entry.value).into_owned();
    snapshot.entries().map(|entry| (entry.path.to_string(), text(entry))).collect()
}

fn expected_content(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect()
}

/// Returns the path and the revision of a conflict.
fn conflict(outcome: Result<Revision, Error>) -> (String, Revision) {
    match outcome {
        Err(Error::Conflict { what, revision }) => (what, revision),
        other => panic!("a conflict was expected, not {other:?}"),
    }
}

fn written(version: &ConfigVersion) -> (Option<&[u8]>, Revision) {
    (version.value.as_deref(), version.modified)
}

pub async fn a_configuration_value_is_read_back_verbatim(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let bytes: Vec<u8> = (0..=255).collect();
    for (name, value) in
        [("a", &bytes[..]), ("a/50% größe/🚀.toml", &b""[..]), ("../.", &b"\n"[..]), ("a b%2Fc", &b"x"[..])]
    {
        let config = writer.config();
        let at =
            soon("written", config.put(&h.namespace(), &path(name), value.to_vec(), Expect::Absent)).await.unwrap();
        // At once, not eventually: `put` returns after the store has it.
        let entry = get(h, &client, name).await.unwrap();
        assert_eq!((&entry.path, &*entry.value), (&path(name), value));
        assert_eq!((entry.created, entry.modified), (at, at));
    }
    let first = get(h, &client, "a").await.unwrap().created;
    let second = set(h, &writer, "a", "2").await;
    let entry = get(h, &client, "a").await.unwrap();
    assert_eq!((&*entry.value, entry.created, entry.modified), (&b"2"[..], first, second));
    assert!(second > first && get(h, &client, "absent").await.is_none());
    let all = list(h, &client, &ConfigScope::All).await;
    assert!(all.len() == 4 && all.revision() >= second && all.get(&path("a")) == Some(&*entry), "{all:?}");
}

pub async fn a_guarded_write_refuses_a_changed_value(h: &impl Harness) {
    let (one, two) = (h.client().await, h.client().await);
    let name = || "app/log".to_owned();
    let first = put(h, &one, "app/log", "1", Expect::Absent).await.unwrap();
    assert_eq!(conflict(put(h, &two, "app/log", "2", Expect::Absent).await), (name(), first));
    let second = put(h, &two, "app/log", "2", Expect::Revision(first)).await.unwrap();
    assert_eq!(conflict(put(h, &one, "app/log", "3", Expect::Revision(first)).await), (name(), second));
    assert_eq!(conflict(delete(h, &one, "app/log", Expect::Revision(first)).await), (name(), second));
    assert_eq!(conflict(delete(h, &one, "app/log", Expect::Absent).await), (name(), second));
    let entry = get(h, &one, "app/log").await.unwrap();
    assert_eq!((&*entry.value, entry.modified), (&b"2"[..], second));
    // An absent value is at revision 0.
    let absent = Revision::default();
    assert_eq!(conflict(put(h, &one, "x", "1", Expect::Revision(second)).await), ("x".to_owned(), absent));
    let created = put(h, &one, "x", "1", Expect::Revision(absent)).await.unwrap();
    assert_eq!(conflict(put(h, &one, "x", "2", Expect::Revision(absent)).await), ("x".to_owned(), created));
}

pub async fn several_values_are_written_together_or_none(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let first = set(h, &writer, "a", "1").await;
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    next_change(&mut watcher).await;
    let batch = |guard| {
        vec![
            ConfigWrite::put(path("b/deep"), *b"2", Expect::Absent),
            ConfigWrite::put(path("a"), *b"2", Expect::Revision(guard)),
            ConfigWrite::delete(path("c"), Expect::Any),
            ConfigWrite::put(path("d"), *b"2", Expect::Any),
        ]
    };
    let refused = write(h, &writer, batch(first.next())).await;
    assert_eq!(conflict(refused), ("a".to_owned(), first));
    assert_eq!(content(&list(h, &client, &ConfigScope::All).await), expected_content(&[("a", "1")]));
    let second = write(h, &writer, batch(first)).await.unwrap();
    let all = list(h, &client, &ConfigScope::All).await;
    assert_eq!(content(&all), expected_content(&[("a", "2"), ("b/deep", "2"), ("d", "2")]));
    assert!(all.entries().all(|entry| entry.modified == second), "{all:?}");
    let change = next_change(&mut watcher).await;
    assert_eq!(
        (kinds(&change.events), change.snapshot.revision()),
        (vec!["~a".to_owned(), "+b/deep".to_owned(), "+d".to_owned()], second)
    );
    let batch = ["a", "b/deep", "d"].map(|name| ConfigWrite::delete(path(name), Expect::Revision(second)));
    write(h, &writer, batch.to_vec()).await.unwrap();
    let change = next_change(&mut watcher).await;
    assert!(change.events.len() == 3 && change.snapshot.is_empty(), "{change:?}");
}

pub async fn a_transaction_that_changes_nothing_succeeds(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let first = set(h, &writer, "a", "1").await;
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    next_change(&mut watcher).await;
    let nothing = delete(h, &writer, "absent", Expect::Any).await.unwrap();
    assert!(nothing >= first);
    assert!(delete(h, &writer, "absent", Expect::Absent).await.unwrap() >= nothing);
    assert!(write(h, &writer, vec![]).await.unwrap() >= nothing);
    assert_eq!(conflict(delete(h, &writer, "absent", Expect::Revision(first)).await).1, Revision::default());
    // Equal bytes are a change, which the watch returns next.
    let second = set(h, &writer, "a", "1").await;
    let change = next_change(&mut watcher).await;
    let [ConfigEvent::Updated { old, new }] = &change.events[..] else { panic!("{change:?}") };
    assert_eq!((old.modified, new.modified, &old.value), (first, second, &new.value));
}

pub async fn a_deleted_configuration_value_is_gone(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let first = set(h, &writer, "a/b", "1").await;
    set(h, &writer, "a/b/c", "1").await;
    let deleted = delete(h, &writer, "a/b", Expect::Revision(first)).await.unwrap();
    assert!(deleted > first && get(h, &client, "a/b").await.is_none());
    assert_eq!(content(&list(h, &client, &ConfigScope::All).await), expected_content(&[("a/b/c", "1")]));
    let second = put(h, &writer, "a/b", "2", Expect::Absent).await.unwrap();
    let entry = get(h, &client, "a/b").await.unwrap();
    assert_eq!((entry.created, entry.modified), (second, second));
}

pub async fn guarded_writes_of_many_clients_lose_no_update(h: &impl Harness) {
    const WRITERS: usize = 4;
    const UPDATES: usize = 10;
    let client = h.client().await;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (writer, namespace) = (h.client().await, h.namespace());
        writers.push(BackgroundTask::run(async move {
            let mut revisions = Vec::new();
            while revisions.len() < UPDATES {
                let entry = writer.config().get(&namespace, &path("counter")).await.unwrap();
                let count: usize =
                    entry.as_ref().map_or(0, |entry| str::from_utf8(&entry.value).unwrap().parse().unwrap());
                let expect = entry.map_or(Expect::Absent, |entry| Expect::Revision(entry.modified));
                let next = (count + 1).to_string().into_bytes();
                match writer.config().put(&namespace, &path("counter"), next, expect).await {
                    Ok(revision) => revisions.push(revision),
                    Err(Error::Conflict { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            revisions
        }));
    }
    let mut revisions = BTreeSet::new();
    for mut writer in writers {
        revisions.extend(writer.done("all updates").await);
    }
    let entry = get(h, &client, "counter").await.unwrap();
    assert_eq!((&*entry.value, revisions.len()), ((WRITERS * UPDATES).to_string().as_bytes(), WRITERS * UPDATES));
    assert_eq!(revisions.last(), Some(&entry.modified));
}

pub async fn the_history_is_listed_newest_first(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    assert_eq!(history(h, &client, "a", 10).await, []);
    let first = set(h, &writer, "a", "1").await;
    set(h, &writer, "a/b", "other").await;
    let second = set(h, &writer, "a", "2").await;
    let third = set(h, &writer, "a", "3").await;
    let versions = history(h, &client, "a", 10).await;
    let expected: [(Option<&[u8]>, _); 3] = [(Some(b"3"), third), (Some(b"2"), second), (Some(b"1"), first)];
    assert_eq!(versions.iter().map(written).collect::<Vec<_>>(), expected);
    assert_eq!(history(h, &client, "a", 2).await, versions[..2]);
    assert_eq!(history(h, &client, "a", 0).await, []);
    h.compact().await;
    let fourth = set(h, &writer, "a", "4").await;
    // The store may still have some of the older ones.
    let versions = history(h, &client, "a", 10).await;
    let expected: [(Option<&[u8]>, _); 4] =
        [(Some(b"4"), fourth), (Some(b"3"), third), (Some(b"2"), second), (Some(b"1"), first)];
    assert!(!versions.is_empty() && versions.len() <= 4, "{versions:?}");
    assert_eq!(versions.iter().map(written).collect::<Vec<_>>(), expected[..versions.len()]);
}

pub async fn the_history_begins_with_the_present_value(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let first = set(h, &writer, "a", "1").await;
    let deleted = delete(h, &writer, "a", Expect::Any).await.unwrap();
    // A store may list the deletion and the value before it, or nothing.
    let known = [(None, deleted), (Some(&b"1"[..]), first)];
    let versions = history(h, &client, "a", 10).await;
    assert_eq!(versions.iter().map(written).collect::<Vec<_>>(), known[..versions.len()]);
    let second = set(h, &writer, "a", "2").await;
    let versions = history(h, &client, "a", 10).await;
    assert_eq!(written(&versions[0]), (Some(&b"2"[..]), second));
    assert_eq!(versions[1..].iter().map(written).collect::<Vec<_>>(), known[..versions.len() - 1]);
}

pub async fn a_scope_has_exactly_its_values(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    for name in ["app", "app/log", "app/log/level", "app2/log", "app.toml", "ap"] {
        set(h, &writer, name, name).await;
    }
    let same = |names: &[&str]| expected_content(&names.iter().map(|name| (*name, *name)).collect::<Vec<_>>());
    for (scope, names) in [
        (ConfigScope::Path(path("app")), &["app"][..]),
        (ConfigScope::Path(path("absent")), &[]),
        (below("app"), &["app/log", "app/log/level"]),
        (below("app/log"), &["app/log/level"]),
        (below("app/log/level"), &[]),
        (ConfigScope::All, &["ap", "app", "app.toml", "app/log", "app/log/level", "app2/log"]),
    ] {
        assert_eq!(content(&list(h, &client, &scope).await), same(names), "{scope}");
        let mut watcher = watch_scope(h, &client, &scope).await;
        assert_eq!(content(&next_change(&mut watcher).await.snapshot), same(names), "{scope}");
    }
}

pub async fn configuration_of_another_namespace_is_never_shown(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let other = Namespace::parse(format!("{}2", h.namespace())).unwrap();
    set(h, &writer, "a", "ours").await;
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    assert_eq!(content(&next_change(&mut watcher).await.snapshot), expected_content(&[("a", "ours")]));
    let config = writer.config();
    for name in ["a", "b"] {
        soon("written", config.put(&other, &path(name), b"theirs".to_vec(), Expect::Absent)).await.unwrap();
    }
    let theirs = soon("listed", client.config().list(&other, &ConfigScope::All)).await.unwrap();
    assert_eq!(content(&theirs), expected_content(&[("a", "theirs"), ("b", "theirs")]));
    assert_eq!(content(&list(h, &client, &ConfigScope::All).await), expected_content(&[("a", "ours")]));
    set(h, &writer, "c", "ours").await;
    let change = next_change(&mut watcher).await;
    assert_eq!(kinds(&change.events), ["+c"], "the first change after those of the other namespace");
}

pub async fn configuration_of_the_maximum_size_is_written(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    next_change(&mut watcher).await;
    let value = vec![7; MAX_CONFIG_BYTES - 1];
    soon("written", writer.config().put(&h.namespace(), &path("a"), value.clone(), Expect::Any)).await.unwrap();
    assert!(get(h, &client, "a").await.unwrap().value.iter().eq(&value));
    let change = next_change(&mut watcher).await;
    assert!(change.snapshot.get(&path("a")).unwrap().value.iter().eq(&value));
    let many =
        (0..MAX_CONFIG_WRITES).map(|number| ConfigWrite::put(path(&format!("m/{number}")), *b"1", Expect::Absent));
    let at = write(h, &writer, many.collect()).await.unwrap();
    let listed = list(h, &client, &below("m")).await;
    assert!(listed.len() == MAX_CONFIG_WRITES && listed.entries().all(|entry| entry.modified == at), "{listed:?}");
}

pub async fn invalid_configuration_is_refused(h: &impl Harness) {
    let client = h.client().await;
    let first = set(h, &client, "a", "1").await;
    client.cut().await;
    let put = |name: &str, bytes| ConfigWrite::put(path(name), vec![0; bytes], Expect::Any);
    let large = write(h, &client, vec![put("a", MAX_CONFIG_BYTES)]).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    let many = (0..=MAX_CONFIG_WRITES).map(|number| put(&number.to_string(), 0)).collect();
    let many = write(h, &client, many).await;
    assert!(matches!(many, Err(Error::InvalidConfig { field: "writes", .. })), "{many:?}");
    let twice = write(h, &client, vec![put("a", 0), put("b", 0), put("a", 0)]).await;
    assert!(matches!(twice, Err(Error::InvalidConfig { field: "writes", .. })), "{twice:?}");
    let unanswered = write(h, &client, vec![put("b", 0)]).await;
    assert!(unanswered.as_ref().is_err_and(is_outage), "{unanswered:?}");
    client.heal().await;
    let entry = get(h, &client, "a").await.unwrap();
    assert_eq!((&*entry.value, entry.modified), (&b"1"[..], first));
    soon("closed", client.close()).await;
    let (config, namespace) = (client.config(), h.namespace());
    assert!(matches!(config.list(&namespace, &ConfigScope::All).await, Err(Error::Closed)));
    assert!(matches!(config.watch(&namespace, &ConfigScope::All).await.err(), Some(Error::Closed)));
    assert!(matches!(config.write(&namespace, vec![]).await, Err(Error::Closed)));
    assert!(matches!(config.history(&namespace, &path("a"), 1).await, Err(Error::Closed)));
}
