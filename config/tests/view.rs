//! Views over the memory backend, with a paused clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Config, ConfigPath, ConfigScope, ConfigWrite, Counter, Error, Expect, Namespace, Revision};
use enlist_config::{ConfigView, ConfigViewBuilder, Format, Reason, Source, Tree, WithoutStore};
use enlist_memory::{MemoryClient, MemoryStore};
use serde::Deserialize;

const NAME: &str = "app.toml";

#[derive(Debug, PartialEq, Deserialize)]
struct Settings {
    port: u16,
    name: String,
}

fn path(text: &str) -> ConfigPath {
    ConfigPath::parse(text).unwrap()
}

async fn put(client: &MemoryClient, at: &str, value: &str) -> Revision {
    client.put(&Namespace::default(), &path(at), value.into(), Expect::Any).await.unwrap()
}

/// Options of a view of one value, of which the port has to be set.
fn builder(client: &MemoryClient) -> ConfigViewBuilder<Settings> {
    ConfigView::builder(Arc::new(client.clone()), ConfigScope::Path(path(NAME)))
        .default_text(Format::Toml, "name = \"x\"")
        .validate(|settings: &Settings| if settings.port == 0 { Err("port is 0") } else { Ok(()) })
}

/// Lets the tasks react to what happened.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_view_follows_its_value() {
    let client = MemoryStore::new().client();
    put(&client, NAME, "port = 1").await;
    let mut view = builder(&client).open().await.unwrap();
    assert_eq!(*view.current(), Settings { port: 1, name: "x".to_owned() });
    assert_eq!((view.state().source, view.ready().await.unwrap().port), (Source::Store, 1));
    let revision = put(&client, NAME, "port = 2\nname = \"y\"").await;
    assert_eq!(*view.changed().await.unwrap(), Settings { port: 2, name: "y".to_owned() });
    assert_eq!(view.state().revision, Some(revision));
    assert!(view.freshness().unwrap().is_live());
    assert_eq!(view.counters().get(Counter::ConfigUpdates), 1);
}

#[tokio::test(start_paused = true)]
async fn bad_values_never_replace_the_last_good_one() {
    let client = MemoryStore::new().client();
    put(&client, NAME, "port = 1").await;
    let mut view = builder(&client).open().await.unwrap();
    for (count, bad) in (1..).zip(["port = ", "port = \"hunter2\"", "port = 0", "\u{0}", "name = \"y\""]) {
        let revision = put(&client, NAME, bad).await;
        settle().await;
        assert_eq!(view.current().port, 1, "{bad}");
        let rejected = view.state().rejected.unwrap();
        assert_eq!((rejected.path(), rejected.revision), (Some(&path(NAME)), revision), "{bad}");
        assert!(!format!("{rejected:?} {rejected} {view:?}").contains("hunter2"));
        assert_eq!(view.counters().get(Counter::ConfigRejections), count);
        assert!(view.freshness().unwrap().is_live() && view.ready().await.is_ok());
    }
    let revision = put(&client, NAME, "port = 2").await;
    assert_eq!(view.changed().await.unwrap().port, 2);
    assert_eq!((view.state().rejected, view.state().revision), (None, Some(revision)));
}

#[tokio::test(start_paused = true)]
async fn a_bad_initial_value_is_an_error() {
    let client = MemoryStore::new().client();
    let revision = put(&client, NAME, "port = \"hunter2\"").await;
    let error = builder(&client).open().await.unwrap_err();
    let expected = format!("invalid configuration: app.toml at revision {revision}: port: expected u16, found text");
    assert_eq!(error.to_string(), expected);
    let error = builder(&client).default_text(Format::Json, "[").open().await.unwrap_err();
    assert!(error.to_string().contains("the defaults"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_subtree_is_taken_over_as_a_whole() {
    let client = MemoryStore::new().client();
    put(&client, "app/1.toml", "port = 1\nname = \"a\"").await;
    let scope = ConfigScope::Below(path("app"));
    let mut view = ConfigView::<Settings>::builder(Arc::new(client.clone()), scope).open().await.unwrap();
    let pair = |first: &str, second: &str| {
        [("app/1.toml", first), ("app/2.json", second)]
            .map(|(at, value)| ConfigWrite::put(path(at), value, Expect::Any))
            .to_vec()
    };
    let namespace = Namespace::default();
    client.write(&namespace, pair("port = 2\nname = \"b\"", "{\"port\": true}")).await.unwrap();
    settle().await;
    assert_eq!(*view.current(), Settings { port: 1, name: "a".to_owned() });
    assert_eq!(view.state().rejected.unwrap().path(), Some(&path("app/2.json")));
    client.write(&namespace, pair("port = 3\nname = \"c\"", "{\"name\": \"d\"}")).await.unwrap();
    assert_eq!(*view.changed().await.unwrap(), Settings { port: 3, name: "d".to_owned() });
    put(&client, "app/notes.txt", "port = 9").await;
    settle().await;
    assert_eq!(view.state().rejected.unwrap().reason, Reason::UnknownFormat);
}

#[tokio::test(start_paused = true)]
async fn a_nested_tree_has_values_at_their_keys() {
    #[derive(Deserialize)]
    struct Nested {
        web: Settings,
    }
    let client = MemoryStore::new().client();
    put(&client, "app/web.json", r#"{"port": 1, "name": "a"}"#).await;
    let scope = ConfigScope::Below(path("app"));
    let view = ConfigView::<Nested>::builder(Arc::new(client.clone()), scope).tree(Tree::Nested);
    assert_eq!(view.open().await.unwrap().current().web.port, 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_the_freshness_alone() {
    let client = MemoryStore::new().client();
    put(&client, NAME, "port = 1").await;
    let view = builder(&client).open().await.unwrap();
    client.cut();
    settle().await;
    assert!(!view.freshness().unwrap().is_live());
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(view.current().port, 1);
    assert!(view.freshness().unwrap().age() >= Duration::from_secs(24 * 3600));
    client.heal();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(view.freshness().unwrap().is_live());
    assert_eq!(view.counters().get(Counter::ConfigUpdates), 0);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_store_leaves_the_last_good_value() {
    let store = MemoryStore::new();
    let client = store.client();
    put(&client, NAME, "port = 1").await;
    let mut view = builder(&client).default_text(Format::Toml, "port = 80").open().await.unwrap();
    store.wipe();
    settle().await;
    assert_eq!((view.current().port, view.state().rejected.unwrap().reason.clone()), (1, Reason::Lost));
    put(&client, NAME, "port = 2").await;
    assert_eq!(view.changed().await.unwrap().port, 2);
    client.delete(&Namespace::default(), &path(NAME), Expect::Any).await.unwrap();
    assert_eq!(view.changed().await.unwrap().port, 80, "a deletion leaves the defaults");
}

#[tokio::test(start_paused = true)]
async fn a_view_from_disk_follows_the_store() {
    let (place, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let client = store.client();
    put(&client, NAME, "port = 1").await;
    let view = builder(&client).disk(place.path()).open().await.unwrap();
    let revision = put(&client, NAME, "port = 2").await;
    written(place.path(), "port = 2").await;
    view.close().await.unwrap();

    client.cut();
    let mut view = builder(&client).disk(place.path()).open().await.unwrap();
    assert_eq!((view.current().port, view.state().source), (2, Source::Disk));
    assert_eq!(view.state().revision, Some(revision));
    assert!(!view.freshness().unwrap().is_live());
    client.heal();
    assert_eq!(view.changed().await.unwrap().port, 2);
    assert_eq!((view.ready().await.unwrap().port, view.state().source), (2, Source::Store));
    put(&client, NAME, "port = 3").await;
    assert_eq!(view.changed().await.unwrap().port, 3);
}

#[tokio::test(start_paused = true)]
async fn a_view_removes_half_written_files() {
    let client = MemoryStore::new().client();
    let place = copied(&client).await;
    let file = std::fs::read_dir(place.path()).unwrap().next().unwrap().unwrap().path();
    let half = file.with_extension("999-a.tmp");
    std::fs::write(&half, "half").unwrap();
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(86_400);
    std::fs::File::options().append(true).open(&half).unwrap().set_modified(yesterday).unwrap();
    let view = builder(&client).disk(place.path()).open().await.unwrap();
    put(&client, NAME, "port = 3").await;
    written(place.path(), "port = 3").await;
    assert!(!half.exists(), "a crash left it");
    view.close().await.unwrap();
}

/// Opens a view with a copy on disk, writes three values, and closes it. Returns the directory.
async fn copied(client: &MemoryClient) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    put(client, NAME, "port = 1").await;
    let view = builder(client).disk(place.path()).open().await.unwrap();
    put(client, "another", "").await;
    put(client, NAME, "port = 2").await;
    written(place.path(), "port = 2").await;
    view.close().await.unwrap();
    place
}

/// A view with a default, of which a loss of the store must not make use.
async fn reopened(client: &MemoryClient, place: &tempfile::TempDir) -> ConfigView<Settings> {
    builder(client).default_text(Format::Toml, "port = 80").disk(place.path()).open().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_restart_after_wipes_keeps_the_value() {
    let store = MemoryStore::new();
    let client = store.client();
    let place = copied(&client).await;
    store.wipe();
    for _ in 0..2 {
        let view = reopened(&client, &place).await;
        assert_eq!((view.current().port, view.state().source), (2, Source::Disk));
        assert_eq!(view.state().rejected.unwrap().reason, Reason::Lost);
        settle().await;
        assert_eq!(view.current().port, 2, "and the copy stays");
        view.close().await.unwrap();
    }
    let mut view = reopened(&client, &place).await;
    put(&client, NAME, "port = 3").await;
    assert_eq!(view.changed().await.unwrap().port, 3);
}

#[tokio::test(start_paused = true)]
async fn wipes_during_starts_from_disk_are_losses() {
    let store = MemoryStore::new();
    let client = store.client();
    let place = copied(&client).await;
    client.cut();
    let view = reopened(&client, &place).await;
    store.wipe();
    client.heal();
    until(|| view.state().rejected.is_some_and(|rejected| rejected.reason == Reason::Lost)).await;
    assert_eq!(view.current().port, 2);
}

/// The copy is behind a link, which is not followed.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn an_unreadable_copy_survives_an_empty_store() {
    let store = MemoryStore::new();
    let client = store.client();
    let place = copied(&client).await;
    let file = std::fs::read_dir(place.path()).unwrap().next().unwrap().unwrap().path();
    let elsewhere = place.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    store.wipe();
    let view = reopened(&client, &place).await;
    assert_eq!((view.current().port, view.state().source), (80, Source::Store), "a deletion looks the same");
    settle().await;
    drop(view);
    assert!(std::fs::symlink_metadata(&file).unwrap().is_symlink(), "the copy was not replaced");
}

#[tokio::test(start_paused = true)]
async fn defaults_replace_a_bad_copy_of_lost_data() {
    let store = MemoryStore::new();
    let client = store.client();
    let place = copied(&client).await;
    store.wipe();
    // A new version of the program wants a larger port than the copy has.
    let newer = || {
        let builder = builder(&client).default_text(Format::Toml, "port = 80").disk(place.path());
        builder.validate(|settings: &Settings| if settings.port < 80 { Err("too small") } else { Ok(()) })
    };
    assert!(matches!(newer().open().await, Err(Error::InvalidConfig { .. })));
    let view = newer().without_store(WithoutStore::UseDefaults).open().await.unwrap();
    assert_eq!((view.current().port, view.state().source), (80, Source::Defaults));
    assert_eq!(view.state().rejected.unwrap().reason, Reason::Lost);
    settle().await;
    view.close().await.unwrap();
    let former = reopened(&client, &place).await;
    assert_eq!((former.current().port, former.state().source), (2, Source::Disk), "the copy stays");
}

/// Waits until a file of the directory contains this text. Writes run on threads, whose time is not that of the test.
async fn written(directory: &std::path::Path, text: &str) {
    until(|| {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).any(|content| content.contains(text))
    })
    .await;
}

async fn until(is: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if is() {
            return;
        }
        // The clock moves on only while no blocking task runs, so this waits for them.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the condition does not hold");
}

#[tokio::test(start_paused = true)]
async fn a_bad_value_starts_from_disk() {
    let (place, client) = (tempfile::tempdir().unwrap(), MemoryStore::new().client());
    put(&client, NAME, "port = 1").await;
    let view = builder(&client).disk(place.path()).open().await.unwrap();
    written(place.path(), "port = 1").await;
    // A state that is not used is not kept either.
    let bad = put(&client, NAME, "port = 0").await;
    settle().await;
    drop(view);
    let mut view = builder(&client).disk(place.path()).open().await.unwrap();
    assert_eq!((view.current().port, view.state().source), (1, Source::Disk));
    assert_eq!((view.state().rejected.unwrap().revision, view.freshness().unwrap().is_live()), (bad, true));
    assert!(matches!(view.ready().await, Err(Error::InvalidConfig { .. })));
    settle().await;
    assert_eq!(view.counters().get(Counter::ConfigRejections), 1, "each state is reported once");
    put(&client, NAME, "port = 2").await;
    assert_eq!(view.changed().await.unwrap().port, 2);
}

#[tokio::test(start_paused = true)]
async fn a_start_without_the_store_is_bounded() {
    let client = MemoryStore::new().client();
    client.cut();
    let begun = tokio::time::Instant::now();
    let error = builder(&client).open_timeout(Duration::from_secs(3)).open().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    let place = tempfile::tempdir().unwrap();
    let error = builder(&client).open_timeout(Duration::from_secs(3)).disk(place.path()).open().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_view_starts_with_defaults_on_request() {
    let store = MemoryStore::new();
    let (client, writer) = (store.client(), store.client());
    client.cut();
    let builder = || builder(&client).without_store(WithoutStore::UseDefaults);
    assert!(matches!(builder().open().await, Err(Error::InvalidConfig { .. })), "they have no port");
    let mut view = builder().default_text(Format::Json, r#"{"port": 80}"#).open().await.unwrap();
    assert_eq!((view.current().port, view.state().source, view.state().revision), (80, Source::Defaults, None));
    assert!(view.freshness().is_none());
    put(&writer, NAME, "port = 1").await;
    client.heal();
    assert_eq!(view.ready().await.unwrap().port, 1);
    assert_eq!(view.changed().await.unwrap().port, 1);
}

#[tokio::test(start_paused = true)]
async fn variables_override_the_store() {
    #[derive(Deserialize)]
    struct OfCargo {
        manifest_dir: String,
    }
    let client = MemoryStore::new().client();
    put(&client, "app.json", r#"{"manifest_dir": "stored"}"#).await;
    let scope = ConfigScope::Path(path("app.json"));
    // Cargo sets CARGO_MANIFEST_DIR for tests.
    let view = ConfigView::<OfCargo>::builder(Arc::new(client), scope).environment("CARGO").open().await.unwrap();
    assert_eq!(view.current().manifest_dir, env!("CARGO_MANIFEST_DIR"));
}

#[tokio::test(start_paused = true)]
async fn a_panicking_callback_gets_later_values() {
    let client = MemoryStore::new().client();
    put(&client, NAME, "port = 1").await;
    let view = builder(&client).open().await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let callback = move |settings: Arc<Settings>| {
        record.lock().unwrap().push(settings.port);
        assert_ne!(settings.port, 2, "on purpose");
    };
    view.on_change(callback).unwrap();
    for port in 1..=3 {
        put(&client, NAME, &format!("port = {port}")).await;
        settle().await;
    }
    assert_eq!(*seen.lock().unwrap(), [1, 1, 2, 3], "each write is a change, even of an equal value");
    view.close().await.unwrap();
    put(&client, NAME, "port = 4").await;
    settle().await;
    assert_eq!(seen.lock().unwrap().len(), 4);
    assert!(matches!(view.on_change(|_| ()), Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_loses_no_value() {
    let client = MemoryStore::new().client();
    put(&client, NAME, "port = 1").await;
    let mut view = builder(&client).open().await.unwrap();
    let mut other = view.clone();
    assert!(tokio::time::timeout(Duration::from_secs(1), view.changed()).await.is_err());
    put(&client, NAME, "port = 2").await;
    settle().await;
    drop(view.changed());
    assert_eq!(view.changed().await.unwrap().port, 2);
    let mut later = view.clone();
    assert!(tokio::time::timeout(Duration::from_secs(1), later.changed()).await.is_err());
    assert_eq!(other.changed().await.unwrap().port, 2);
}

#[tokio::test(start_paused = true)]
async fn a_closed_view_keeps_its_value() {
    let client = MemoryStore::new().client();
    put(&client, NAME, "port = 1").await;
    let mut view = builder(&client).open().await.unwrap();
    view.close().await.unwrap();
    assert!(matches!(view.changed().await, Err(Error::Closed)));
    assert!(!view.freshness().unwrap().is_live());
    assert_eq!((view.current().port, view.ready().await.unwrap().port), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn every_observed_state_existed_during_a_burst() {
    let client = MemoryStore::new().client();
    let write = |number: u32| {
        let pair = [("app/1.toml", "port"), ("app/2.toml", "name")];
        let value =
            move |key: &str| if key == "port" { format!("port = {number}") } else { format!("name = \"{number}\"") };
        pair.map(|(at, key)| ConfigWrite::put(path(at), value(key), Expect::Any)).to_vec()
    };
    let namespace = Namespace::default();
    client.write(&namespace, write(0)).await.unwrap();
    let scope = ConfigScope::Below(path("app"));
    let mut view = ConfigView::<Settings>::builder(Arc::new(client.clone()), scope).open().await.unwrap();
    let writing = async {
        for number in 1..=1000 {
            client.write(&namespace, write(number)).await.unwrap();
            if number % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let reading = async {
        let mut last = 0;
        while last < 1000 {
            let settings = view.changed().await.unwrap();
            assert_eq!(settings.name, settings.port.to_string());
            assert!(settings.port > last);
            last = settings.port;
        }
    };
    tokio::join!(writing, reading);
    assert!(view.counters().get(Counter::ConfigUpdates) < 100, "a burst is decided as one");
}
