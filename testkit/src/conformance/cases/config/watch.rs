//! Watches of configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

use super::*;

pub(super) async fn watch_scope(h: &impl Harness, client: &Client, scope: &ConfigScope) -> Box<dyn ConfigWatcher> {
    client.config().watch(&h.namespace(), scope).await.unwrap()
}

pub(super) async fn next_change(watcher: &mut Box<dyn ConfigWatcher>) -> ConfigChange {
    soon("a change", watcher.next()).await.unwrap()
}

/// Reads changes until one `fits`. Each has to lead from the snapshot before it to its own.
async fn until_change(
    watcher: &mut Box<dyn ConfigWatcher>,
    what: &str,
    fits: impl Fn(&ConfigChange) -> bool,
) -> ConfigChange {
    let mut last: Option<ConfigChange> = None;
    let read = async {
        loop {
            let change = watcher.next().await.unwrap();
            if let Some(last) = &last {
                assert_eq!(change.events, change.snapshot.diff(&last.snapshot), "the events are the difference");
            }
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

/// Returns the kind of each event, with its path.
pub(super) fn kinds(events: &[ConfigEvent]) -> Vec<String> {
    let sign = |event: &ConfigEvent| match event {
        ConfigEvent::Added(_) => '+',
        ConfigEvent::Updated { .. } => '~',
        ConfigEvent::Removed(_) => '-',
    };
    events.iter().map(|event| format!("{}{}", sign(event), event.path())).collect()
}

pub async fn a_configuration_watch_returns_exactly_the_changes(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let first = set(h, &writer, "app/a", "1").await;
    let mut watcher = watch_scope(h, &client, &below("app")).await;
    let change = next_change(&mut watcher).await;
    assert_eq!((kinds(&change.events), change.snapshot.len()), (vec!["+app/a".to_owned()], 1));
    assert!(change.freshness.is_live() && change.snapshot.revision() >= first, "{change:?}");
    let added = set(h, &writer, "app/deep/b", "1").await;
    let change = next_change(&mut watcher).await;
    assert_eq!((kinds(&change.events), change.snapshot.revision()), (vec!["+app/deep/b".to_owned()], added));
    let stored = set(h, &writer, "app/a", "2").await;
    let change = next_change(&mut watcher).await;
    let [ConfigEvent::Updated { old, new }] = &change.events[..] else { panic!("{change:?}") };
    assert_eq!((&*old.value, &*new.value, new.created, new.modified), (&b"1"[..], &b"2"[..], first, stored));
    let gone = delete(h, &writer, "app/deep/b", Expect::Any).await.unwrap();
    let change = next_change(&mut watcher).await;
    assert_eq!((kinds(&change.events), change.snapshot.revision()), (vec!["-app/deep/b".to_owned()], gone));
    assert_eq!(content(&change.snapshot), expected_content(&[("app/a", "2")]));
    stays_fresh(&change.freshness).await;
}

pub async fn an_absent_value_is_watched_until_written(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let mut watcher = watch_scope(h, &client, &ConfigScope::Path(path("a"))).await;
    let change = next_change(&mut watcher).await;
    assert!(change.snapshot.is_empty() && change.events.is_empty(), "{change:?}");
    set(h, &writer, "a/b", "below").await;
    set(h, &writer, "ab", "beside").await;
    let stored = set(h, &writer, "a", "1").await;
    let change = next_change(&mut watcher).await;
    assert_eq!((kinds(&change.events), change.snapshot.revision()), (vec!["+a".to_owned()], stored));
}

pub async fn a_slow_configuration_watch_gets_the_net_difference(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    for name in ["a", "b", "same"] {
        set(h, &writer, name, "0").await;
    }
    let all = ConfigScope::All;
    let (mut slow, mut quick) = (watch_scope(h, &client, &all).await, watch_scope(h, &client, &all).await);
    next_change(&mut slow).await;
    for value in ["1", "2", "3"] {
        set(h, &writer, "a", value).await;
    }
    delete(h, &writer, "b", Expect::Any).await.unwrap();
    set(h, &writer, "brief", "0").await;
    delete(h, &writer, "brief", Expect::Any).await.unwrap();
    set(h, &writer, "c", "0").await;
    let content_now = expected_content(&[("a", "3"), ("c", "0"), ("same", "0")]);
    until_change(&mut quick, "all of it", |change| content(&change.snapshot) == content_now).await;
    assert_eq!(kinds(&next_change(&mut slow).await.events), ["~a", "-b", "+c"]);
}

/// Writes a value that comes and goes: it is there with each even number.
fn write_of_third(number: usize, value: &[u8]) -> ConfigWrite {
    match number % 2 {
        0 => ConfigWrite::put(path("app/third"), value, Expect::Absent),
        _ => ConfigWrite::delete(path("app/third"), Expect::Any),
    }
}

pub async fn a_subtree_is_always_one_consistent_snapshot(h: &impl Harness) {
    const TRANSACTIONS: usize = 50;
    let (writer, client, namespace) = (h.client().await, h.client().await, h.namespace());
    let mut watcher = watch_scope(h, &client, &below("app")).await;
    let mut writing = BackgroundTask::run(async move {
        let mut written = BTreeMap::new();
        for number in 0..TRANSACTIONS {
            let value = number.to_string().into_bytes();
            let put = |name: &str| ConfigWrite::put(path(name), value.clone(), Expect::Any);
            let batch = vec![put("app/a"), put("app/deep/b"), write_of_third(number, &value)];
            let revision = writer.config().write(&namespace, batch).await.unwrap();
            written.insert(revision, number);
        }
        written
    });
    let consistent = |snapshot: &ConfigSnapshot| {
        let number = |name: &str| {
            let entry = snapshot.get(&path(name))?;
            str::from_utf8(&entry.value).ok()?.parse::<usize>().ok()
        };
        let (a, b, third) = (number("app/a"), number("app/deep/b"), number("app/third"));
        let expected_third = a.filter(|number| number % 2 == 0);
        assert!(a == b && third == expected_third, "{:?}", content(snapshot));
        a
    };
    let mut seen = Vec::new();
    let read = async {
        let mut last = None;
        while last != Some(TRANSACTIONS - 1) {
            let change = watcher.next().await.unwrap();
            last = consistent(&change.snapshot);
            seen.extend(last.map(|number| (change.snapshot.revision(), number)));
            let listed = client.config().list(&h.namespace(), &below("app")).await.unwrap();
            consistent(&listed);
        }
    };
    soon("all transactions", read).await;
    let written = writing.done("written").await;
    for (revision, number) in &seen {
        let expected = written.range(..=revision).next_back();
        assert_eq!(expected.map(|(_, expected)| expected), Some(number), "at revision {revision}");
    }
    assert!(seen.windows(2).all(|pair| pair[0] <= pair[1]), "{seen:?}");
}

pub async fn an_outage_keeps_the_last_known_configuration(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    set(h, &writer, "a", "1").await;
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    next_change(&mut watcher).await;
    client.cut().await;
    let stale = until_change(&mut watcher, "the outage", |change| !change.freshness.is_live()).await;
    assert_eq!((content(&stale.snapshot), stale.events.len()), (expected_content(&[("a", "1")]), 0));
    let before = stale.freshness.age();
    let unanswered = soon("refused", client.config().list(&h.namespace(), &ConfigScope::All)).await;
    assert!(unanswered.as_ref().is_err_and(is_outage), "{unanswered:?}");
    eventually("it ages", || async {
        let age = stale.freshness.age();
        if age > before { Ok(()) } else { Err(age) }
    })
    .await;
    set(h, &writer, "a", "2").await;
    set(h, &writer, "b", "1").await;
    client.heal().await;
    let live = until_change(&mut watcher, "its end", |change| {
        change.freshness.is_live() && content(&change.snapshot) == expected_content(&[("a", "2"), ("b", "1")])
    })
    .await;
    stays_fresh(&live.freshness).await;
}

pub async fn a_configuration_watch_survives_compaction(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    set(h, &writer, "a", "1").await;
    set(h, &writer, "b", "1").await;
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    next_change(&mut watcher).await;
    client.cut().await;
    until_change(&mut watcher, "the outage", |change| !change.freshness.is_live()).await;
    set(h, &writer, "a", "2").await;
    delete(h, &writer, "b", Expect::Any).await.unwrap();
    h.compact().await;
    client.heal().await;
    let after = until_change(&mut watcher, "what happened", |change| !change.events.is_empty()).await;
    assert_eq!(kinds(&after.events), ["~a", "-b"]);
    assert_eq!(content(&after.snapshot), expected_content(&[("a", "2")]));
}

pub async fn a_wiped_store_raises_the_epoch_of_configuration(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    for name in ["a", "b", "c"] {
        set(h, &writer, name, "1").await;
    }
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    let first = next_change(&mut watcher).await;
    h.wipe().await;
    let gone = until_change(&mut watcher, "the wipe", |change| change.snapshot.epoch() > first.snapshot.epoch()).await;
    assert_eq!(gone.events, gone.snapshot.diff(&first.snapshot));
    assert_eq!((kinds(&gone.events), gone.snapshot.len()), (["-a", "-b", "-c"].map(str::to_owned).to_vec(), 0));
    // Nothing is written again by itself, and revisions of the lost history guard nothing.
    let lost = first.snapshot.get(&path("a")).unwrap().modified;
    let config = writer.config();
    let refused = eventually("the store answers", || async {
        match config.put(&h.namespace(), &path("a"), b"2".to_vec(), Expect::Revision(lost)).await {
            Err(error) if is_outage(&error) => Err(error),
            other => Ok(other),
        }
    })
    .await;
    assert_eq!(conflict(refused), ("a".to_owned(), Revision::default()));
    set(h, &writer, "b", "2").await;
    let change = until_change(&mut watcher, "a new value", |change| !change.events.is_empty()).await;
    assert_eq!(
        (kinds(&change.events), content(&change.snapshot)),
        (vec!["+b".to_owned()], expected_content(&[("b", "2")]))
    );
}

pub async fn a_dropped_read_of_configuration_loses_nothing(h: &impl Harness) {
    let (writer, client) = (h.client().await, h.client().await);
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    next_change(&mut watcher).await;
    let mut names = BTreeSet::new();
    let mut note = |change: ConfigChange| {
        for event in change.events {
            assert!(matches!(event, ConfigEvent::Added(_)) && names.insert(event.path().clone()), "{event:?}");
        }
        names.len()
    };
    for number in 0..20 {
        let name = format!("n/{number}");
        let mut write = pin!(set(h, &writer, &name, "1"));
        tokio::select! {
            biased;
            // The read is dropped as soon as the write is acknowledged, whether or not its change has arrived.
            _ = &mut write => {}
            change = watcher.next() => {
                note(change.unwrap());
                write.await;
            }
        }
    }
    while note(next_change(&mut watcher).await) < 20 {}
}

pub async fn a_configuration_watch_of_a_closed_client_ends(h: &impl Harness) {
    let client = h.client().await;
    set(h, &client, "a", "1").await;
    let mut watcher = watch_scope(h, &client, &ConfigScope::All).await;
    assert_eq!(content(&next_change(&mut watcher).await.snapshot), expected_content(&[("a", "1")]));
    soon("closed", client.close()).await;
    let end = async {
        loop {
            if let Err(error) = watcher.next().await {
                return error;
            }
        }
    };
    let end = soon("the end", end).await;
    assert!(matches!(end, Error::Closed), "{end:?}");
}
