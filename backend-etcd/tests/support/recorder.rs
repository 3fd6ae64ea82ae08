//! Recorded history of a store. With it, tests check that each observed snapshot of configuration existed in the store.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{ConfigChange, ConfigPath, ConfigScope, ConfigSnapshot, ConfigWatcher, Namespace, TaskOwner};
use enlist_etcd::ConfigLayout;
use enlist_testkit::{FakeEtcd, LIMIT, eventually};
use etcd_client::{EventType, WatchOptions};

use super::in_background;

/// Maximum size of a message of the recording watch.
const MAX_MESSAGE: usize = 256 << 20;

/// Interval between attempts to watch a server that does not answer.
const RETRY: Duration = Duration::from_millis(50);

/// Values by path, with the revision of their last change.
type Content = BTreeMap<ConfigPath, (Vec<u8>, u64)>;

/// Changes of one revision: keys with their values; `None` if a key was deleted.
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Changes of all keys, by revision.
#[derive(Debug, Default)]
pub(crate) struct History {
    changes: BTreeMap<u64, Changes>,
}

impl History {
    /// Returns the history of a scripted etcd.
    pub(crate) fn of(fake: &FakeEtcd) -> Self {
        let mut history = Self::default();
        for change in fake.journal() {
            history.note(change.revision, change.key, change.value);
        }
        history
    }

    fn note(&mut self, revision: i64, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.changes.entry(u64::try_from(revision).unwrap()).or_default().push((key, value));
    }

    fn newest(&self) -> u64 {
        self.changes.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// Checks that each snapshot is the content of the store at its revision. They are given in the order of revisions.
    pub(crate) fn assert_existed<'a>(
        &self,
        layout: &ConfigLayout,
        scope: &ConfigScope,
        snapshots: impl IntoIterator<Item = &'a ConfigSnapshot>,
    ) -> usize {
        let (mut content, mut changes) = (Content::new(), self.changes.iter().peekable());
        let mut checked = 0;
        for snapshot in snapshots {
            let upto = snapshot.revision().get();
            while let Some((revision, changes)) = changes.next_if(|(revision, _)| **revision <= upto) {
                apply(&mut content, layout, scope, *revision, changes);
            }
            assert_equal(&content, snapshot);
            checked += 1;
        }
        checked
    }
}

/// Applies the changes of one revision to the values of a scope.
fn apply(
    content: &mut Content,
    layout: &ConfigLayout,
    scope: &ConfigScope,
    revision: u64,
    changes: &[(Vec<u8>, Option<Vec<u8>>)],
) {
    for (key, value) in changes {
        let path = layout.path_of(&Namespace::default(), key).filter(|path| scope.contains(path));
        match (path, value) {
            (Some(path), Some(value)) => _ = content.insert(path, (value.clone(), revision)),
            (Some(path), None) => _ = content.remove(&path),
            (None, _) => {}
        }
    }
}

fn assert_equal(content: &Content, snapshot: &ConfigSnapshot) {
    let shown: Vec<_> = snapshot.entries().map(|entry| (&entry.path, &*entry.value, entry.modified.get())).collect();
    let existed: Vec<_> = content.iter().map(|(path, (value, modified))| (path, &value[..], *modified)).collect();
    if shown != existed {
        // Without values, which can be large.
        let brief = |content: Vec<(&ConfigPath, &[u8], u64)>| {
            content.iter().map(|(path, value, modified)| (path.to_string(), value.len(), *modified)).collect::<Vec<_>>()
        };
        let (revision, shown, existed) = (snapshot.revision(), brief(shown), brief(existed));
        panic!("this was not the content at revision {revision}: {shown:?}, but {existed:?}");
    }
}

/// Records all changes of one etcd, until it is dropped. It continues after an outage, but not after a wipe.
#[derive(Debug)]
pub(crate) struct Recorder {
    history: Arc<Mutex<History>>,
    _tasks: TaskOwner,
}

impl Recorder {
    /// Starts to record, from the first revision on.
    pub(crate) fn start(url: String) -> Self {
        let (history, tasks) = (Arc::<Mutex<History>>::default(), TaskOwner::new());
        let recorded = Arc::clone(&history);
        in_background(&tasks, async move {
            loop {
                // An outage ends the watch; it continues where it ended.
                let _ = record(&url, &recorded).await;
                tokio::time::sleep(RETRY).await;
            }
        });
        Self { history, _tasks: tasks }
    }

    /// Waits until the changes up to `revision` are recorded.
    async fn upto(&self, revision: u64) {
        eventually("the history is recorded", || async {
            let newest = self.history.lock().unwrap().newest();
            if newest >= revision { Ok(()) } else { Err((newest, revision)) }
        })
        .await;
    }

    /// Checks that each snapshot is the content of the store at its revision. They are given in the order of revisions.
    pub(crate) async fn assert_existed(
        &self,
        layout: &ConfigLayout,
        scope: &ConfigScope,
        snapshots: &[ConfigSnapshot],
    ) -> usize {
        let newest = snapshots.iter().map(|snapshot| snapshot.revision().get()).max();
        self.upto(newest.unwrap_or_default()).await;
        self.history.lock().unwrap().assert_existed(layout, scope, snapshots)
    }
}

async fn record(url: &str, history: &Mutex<History>) -> Result<(), etcd_client::Error> {
    let client = etcd_client::Client::connect([url], None).await?;
    let next = i64::try_from(history.lock().unwrap().newest()).unwrap() + 1;
    let options = WatchOptions::new().with_all_keys().with_start_revision(next);
    let mut watch = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
    let mut stream = watch.watch("", Some(options)).await?;
    while let Some(response) = stream.message().await? {
        assert!(response.compact_revision() == 0, "compacted before it was recorded");
        let mut history = history.lock().unwrap();
        for event in response.events() {
            let pair = event.kv().unwrap();
            let value = (event.event_type() == EventType::Put).then(|| pair.value().to_vec());
            history.note(pair.mod_revision(), pair.key().to_vec(), value);
        }
    }
    Ok(())
}

/// A watcher that keeps all snapshots that it has returned, to check them.
#[derive(Debug)]
pub(crate) struct Observer {
    watcher: Box<dyn ConfigWatcher>,
    layout: ConfigLayout,
    scope: ConfigScope,
    /// All snapshots so far, oldest first.
    pub(crate) observed: Vec<ConfigSnapshot>,
}

impl Observer {
    pub(crate) fn new(watcher: Box<dyn ConfigWatcher>, layout: ConfigLayout, scope: ConfigScope) -> Self {
        Self { watcher, layout, scope, observed: Vec::new() }
    }

    /// Returns the next change. Its events have to be the difference from the last snapshot.
    pub(crate) async fn next(&mut self) -> ConfigChange {
        let change = self.watcher.next().await.unwrap();
        match self.observed.last() {
            Some(last) => {
                assert_eq!(change.events, change.snapshot.diff(last), "the events are the difference");
                let (before, after) = (last.epoch(), change.snapshot.epoch());
                let grows = change.snapshot.revision() >= last.revision();
                assert!(after > before || (after == before && grows), "{:?} after {last:?}", change.snapshot);
            }
            None => assert_eq!(change.events, change.snapshot.as_added()),
        }
        self.observed.push(change.snapshot.clone());
        change
    }

    /// Reads changes until one `fits`.
    pub(crate) async fn until(&mut self, what: &str, fits: impl Fn(&ConfigChange) -> bool) -> ConfigChange {
        self.until_within(what, LIMIT, fits).await
    }

    /// As [`until`](Self::until), with a limit of its own.
    pub(crate) async fn until_within(
        &mut self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&ConfigChange) -> bool,
    ) -> ConfigChange {
        let mut last = None;
        let read = async {
            loop {
                let change = self.next().await;
                if fits(&change) {
                    return change;
                }
                last = Some((change.snapshot.revision(), change.snapshot.len(), change.freshness));
            }
        };
        match tokio::time::timeout(limit, read).await {
            Ok(change) => change,
            Err(elapsed) => panic!("never seen ({elapsed}): {what}; last: {last:?}"),
        }
    }

    /// Checks that each observed snapshot existed in a store that was never wiped. Returns their number.
    pub(crate) async fn assert_existed(&self, recorder: &Recorder) -> usize {
        recorder.assert_existed(&self.layout, &self.scope, &self.observed).await
    }

    /// As [`assert_existed`](Self::assert_existed), for a scripted etcd.
    pub(crate) fn assert_existed_in(&self, history: &History) -> usize {
        history.assert_existed(&self.layout, &self.scope, &self.observed)
    }
}

/// Returns paths and values of a snapshot, as texts.
pub(crate) fn texts(snapshot: &ConfigSnapshot) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    snapshot.entries().map(|entry| (entry.path.to_string(), text(&entry.value))).collect()
}

/// Returns pairs as [`texts`] does.
pub(crate) fn pairs<P: Debug + ToString, V: ToString>(
    pairs: impl IntoIterator<Item = (P, V)>,
) -> Vec<(String, String)> {
    pairs.into_iter().map(|(path, value)| (path.to_string(), value.to_string())).collect()
}
