//! Configuration in etcd: keys of other programs, faults, sizes, and lost replies. Each observed snapshot has to be one
//! that existed in the store.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    Config, ConfigChange, ConfigEvent, ConfigPath, ConfigScope, ConfigWrite, Counter, Error, Expect, MAX_CONFIG_BYTES,
    MAX_CONFIG_WRITES, Namespace, Revision,
};
use enlist_etcd::{ConfigLayout, Etcd};
use enlist_testkit::{BackgroundTask, Direction, EtcdServer, FakeEtcd, Misbehavior, Mode, Proxy, eventually, soon};
use etcd_client::PutOptions;
use support::{
    between::{Between, Fault, Victim},
    pass, raw,
    recorder::{History, Observer, Recorder, pairs, texts},
    scripted::client,
    server,
};

/// Prefix of the native keys of the default namespace.
const ROOT: &str = "enlist/config/default/";

/// Maximum duration of a request in tests that lose one.
const SHORT: Duration = Duration::from_secs(2);

/// Pause between two writes of a background task.
const PACE: Duration = Duration::from_millis(5);

fn namespace() -> Namespace {
    Namespace::default()
}

fn path(text: &str) -> ConfigPath {
    ConfigPath::parse(text).unwrap()
}

fn revision(number: i64) -> Revision {
    Revision::new(u64::try_from(number).unwrap())
}

async fn observe(etcd: &Etcd, scope: ConfigScope) -> Observer {
    let watcher = etcd.watch(&namespace(), &scope).await.unwrap();
    Observer::new(watcher, etcd.config_layout().clone(), scope)
}

async fn put(etcd: &Etcd, name: &str, value: impl Into<Vec<u8>>) -> Revision {
    soon("written", etcd.put(&namespace(), &path(name), value.into(), Expect::Any)).await.unwrap()
}

/// Returns the value, the revision of the last change and the number of writes of a native key.
async fn stored(raw: &mut etcd_client::Client, name: &str) -> Option<(Vec<u8>, Revision, i64)> {
    let found = raw.get(format!("{ROOT}{name}"), None).await.unwrap();
    found.kvs().first().map(|pair| (pair.value().to_vec(), revision(pair.mod_revision()), pair.version()))
}

/// Writes `app/a` and `app/deep/b` together, with the same number.
async fn write_both(etcd: &Etcd, number: usize) -> Result<Revision, Error> {
    let write = |name: &str| ConfigWrite::put(path(name), number.to_string(), Expect::Any);
    etcd.write(&namespace(), vec![write("app/a"), write("app/deep/b")]).await
}

/// Writes increasing numbers until it is stopped, through outages. Returns the last number.
fn write_on(etcd: Etcd, stop: &Arc<AtomicBool>) -> BackgroundTask<usize> {
    let stop = Arc::clone(stop);
    BackgroundTask::run(async move {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            while write_both(&etcd, number).await.is_err() {
                pass(PACE).await;
            }
            pass(PACE).await;
        }
        number
    })
}

fn shows(last: usize) -> Vec<(String, String)> {
    pairs([("app/a", last), ("app/deep/b", last)])
}

#[tokio::test]
async fn plain_keys_of_other_programs_are_shared() {
    let server = EtcdServer::start().await;
    let (mut raw, layout) = (raw(&server).await, ConfigLayout::plain("/prefix"));
    let etcd = Etcd::builder([server.url()]).config_layout(layout.clone()).connect().await.unwrap();
    assert_eq!(etcd.config_layout().name(), "plain");
    raw.put("/prefix/app.toml", "level = \"info\"", None).await.unwrap();
    raw.put("/prefix2/app.toml", "another prefix", None).await.unwrap();
    let mut observer = observe(&etcd, ConfigScope::All).await;
    let first = observer.next().await;
    assert_eq!(texts(&first.snapshot), pairs([("app.toml", "level = \"info\"")]));
    // A key under a lease is a value as well.
    let lease = raw.lease_grant(60, None).await.unwrap().id();
    raw.put("/prefix/db/50%/größe", "x", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let change = soon("a change", observer.next()).await;
    assert!(matches!(&change.events[..], [ConfigEvent::Added(entry)] if entry.path == path("db/50%/größe")));

    let at = put(&etcd, "db/pool.json", r#"{"size":4}"#).await;
    let found = raw.get("/prefix/db/pool.json", None).await.unwrap();
    let [pair] = found.kvs() else { panic!("{found:?}") };
    assert_eq!((pair.value(), revision(pair.mod_revision()), pair.lease()), (&br#"{"size":4}"#[..], at, 0));
    observer.until("our own", |change| change.snapshot.len() == 3).await;
    let refused = etcd.put(&namespace(), &path("app.toml"), b"x".to_vec(), Expect::Absent).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    raw.delete("/prefix/app.toml", None).await.unwrap();
    let change = soon("a change", observer.next()).await;
    assert!(matches!(&change.events[..], [ConfigEvent::Removed(entry)] if entry.path == path("app.toml")));
    let recorder = Recorder::start(server.url());
    assert_eq!(observer.assert_existed(&recorder).await, 4);

    let team = Namespace::parse("team").unwrap();
    let refused = etcd.list(&team, &ConfigScope::All).await;
    assert!(matches!(refused, Err(Error::InvalidName { field: "namespace", .. })), "{refused:?}");
    // Without a prefix the path is the key.
    let bare = Etcd::builder([server.url()]).config_layout(ConfigLayout::plain("")).connect().await.unwrap();
    raw.put("single", "of its own", None).await.unwrap();
    let entry = bare.get(&namespace(), &path("single")).await.unwrap().unwrap();
    assert_eq!(&*entry.value, b"of its own");
    let refused = bare.list(&namespace(), &ConfigScope::All).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}

#[tokio::test]
async fn native_keys_are_as_documented() {
    let server = EtcdServer::start().await;
    let (mut raw, etcd) = (raw(&server).await, Etcd::connect(server.url()).await.unwrap());
    put(&etcd, "app/50%.toml", *b"\x00\xff").await;
    let ours = Etcd::builder([server.url()]).prefix("ours").connect().await.unwrap();
    let team = Namespace::parse("team/a").unwrap();
    soon("written", ours.put(&team, &path("a"), b"1".to_vec(), Expect::Absent)).await.unwrap();
    for (key, value) in [("enlist/config/default/app/50%25.toml", &b"\x00\xff"[..]), ("ours/config/team%2Fa/a", b"1")] {
        let found = raw.get(key, None).await.unwrap();
        assert_eq!(found.kvs().first().map(etcd_client::KeyValue::value), Some(value), "{key}");
    }
    raw.put("enlist/config/default/app/raw", "2", None).await.unwrap();
    let listed = etcd.list(&namespace(), &ConfigScope::Below(path("app"))).await.unwrap();
    assert_eq!(listed.entries().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), ["app/50%.toml", "app/raw"]);
}

#[tokio::test]
async fn skipped_garbage_is_never_shown() {
    let server = EtcdServer::start().await;
    let (mut raw, etcd) = (raw(&server).await, Etcd::connect(server.url()).await.unwrap());
    let recorder = Recorder::start(server.url());
    let garbage: [&[u8]; 9] = [b"", b"/", b"a/", b"/a", b"a//b", b"a\xff", b"%0A", b"50%", b"%2f"];
    let put_garbage = async |raw: &mut etcd_client::Client, rest: &[u8]| {
        raw.put([ROOT.as_bytes(), rest].concat(), vec![0xff], None).await.unwrap();
    };
    for rest in &garbage[..4] {
        put_garbage(&mut raw, rest).await;
    }
    let values = vec![0, 159, 146, 150, 10];
    put(&etcd, "a", values.clone()).await;
    let mut observer = observe(&etcd, ConfigScope::All).await;
    let first = soon("the list", observer.next()).await;
    assert_eq!((first.snapshot.len(), &*first.snapshot.get(&path("a")).unwrap().value), (1, &values[..]));
    for rest in &garbage[4..] {
        put_garbage(&mut raw, rest).await;
    }
    for rest in garbage {
        raw.delete([ROOT.as_bytes(), rest].concat(), None).await.unwrap();
    }
    put(&etcd, "b", "1").await;
    let change = observer.until("the first change after the garbage", |change| !change.events.is_empty()).await;
    assert!(matches!(&change.events[..], [ConfigEvent::Added(entry)] if entry.path == path("b")), "{change:?}");
    let skipped = etcd.counters().get(Counter::MalformedValues);
    assert!(skipped >= 4, "{skipped} were counted");
    observer.assert_existed(&recorder).await;
}

#[tokio::test]
async fn history_ends_at_the_oldest_known_version() {
    let server = EtcdServer::start().await;
    let (mut raw, etcd) = (raw(&server).await, Etcd::connect(server.url()).await.unwrap());
    let mut revisions = Vec::new();
    for number in 1..=5 {
        revisions.push(put(&etcd, "a", number.to_string()).await);
        put(&etcd, "other", "x").await;
    }
    let history = async |limit| {
        let versions = soon("read", etcd.history(&namespace(), &path("a"), limit)).await.unwrap();
        versions.into_iter().map(|version| version.modified).collect::<Vec<_>>()
    };
    let newest_first: Vec<_> = revisions.iter().rev().copied().collect();
    assert_eq!(history(100).await, newest_first);
    // The version that was present at the compacted revision remains.
    raw.compact(i64::try_from(revisions[2].get()).unwrap() + 1, None).await.unwrap();
    assert_eq!(history(100).await, newest_first[..3]);
    let deleted = raw.delete(format!("{ROOT}a"), None).await.unwrap();
    let deleted = revision(deleted.header().unwrap().revision());
    let anew = put(&etcd, "a", "6").await;
    // Some releases end the history at the deletion.
    let known = [&[anew, deleted], &newest_first[..3]].concat();
    let listed = history(100).await;
    assert!([1, 5].contains(&listed.len()) && known.starts_with(&listed), "{listed:?} of {known:?}");
}

/// Deletions are listed where the member proves which there were: etcd 3.4.25, 3.5.8 and later.
#[tokio::test(start_paused = true)]
async fn history_passes_deletions_where_progress_is_in_order() {
    let fake = FakeEtcd::start();
    let key = format!("{ROOT}a");
    for (value, other) in [("1", "x"), ("2", "y")] {
        fake.put(key.clone(), value);
        fake.put(format!("{ROOT}other"), other);
        fake.put(key.clone(), format!("{value}b"));
        fake.delete(key.as_bytes());
        fake.delete(format!("{ROOT}other").as_bytes());
    }
    let connect = || client(&fake);
    let etcd = connect();
    let history = async |etcd: &Etcd, limit| {
        let versions = soon("read", etcd.history(&namespace(), &path("a"), limit)).await.unwrap();
        let text = |value: Arc<[u8]>| String::from_utf8_lossy(&value).into_owned();
        versions.into_iter().map(|version| (version.value.map(text), version.modified.get())).collect::<Vec<_>>()
    };
    let value = |value: &str, revision| (Some(value.to_owned()), revision);
    let all = [(None, 10), value("2b", 9), value("2", 7), (None, 5), value("1b", 4), value("1", 2)];
    assert_eq!(history(&etcd, 100).await, all);
    assert_eq!(history(&etcd, 4).await, all[..4]);
    fake.put(key.clone(), "3");
    assert_eq!(history(&etcd, 2).await, [value("3", 12), (None, 10)]);
    fake.compact();
    assert_eq!(history(&etcd, 100).await, [value("3", 12)]);
    fake.delete(key.as_bytes());
    assert_eq!(history(&etcd, 100).await, [(None, 13), value("3", 12)]);
    // Of an older member no deletion is assumed, and none that hides its version from users is older.
    fake.set_version("3.4.23");
    assert_eq!(history(&connect(), 100).await, []);
    fake.hide_version();
    assert_eq!(history(&connect(), 100).await, [(None, 13), value("3", 12)]);
}

#[tokio::test]
async fn compaction_during_outages_leaves_no_gap_in_configuration() {
    let server = EtcdServer::start().await;
    let recorder = Recorder::start(server.url());
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (etcd, writer) = (Etcd::connect(proxy.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let mut observer = observe(&etcd, ConfigScope::Below(path("app"))).await;
    soon("the list", observer.next()).await;
    let mut raw = raw(&server).await;
    for round in 1..=5 {
        proxy.set(Mode::Cut);
        for number in 0..20 {
            put(&writer, "app/a", format!("{round}/{number}")).await;
        }
        let brief = put(&writer, "app/brief", "x").await;
        let deleted = writer.delete(&namespace(), &path("app/brief"), Expect::Revision(brief)).await.unwrap();
        recorder_has(&recorder, &writer, deleted).await;
        raw.compact(i64::try_from(deleted.get()).unwrap(), None).await.unwrap();
        proxy.heal();
        let content = pairs([("app/a", format!("{round}/19"))]);
        observer.until("the values after the compaction", |change| texts(&change.snapshot) == content).await;
    }
    observer.assert_existed(&recorder).await;
}

/// Waits until a revision is recorded, so that it can be compacted.
async fn recorder_has(recorder: &Recorder, etcd: &Etcd, at: Revision) {
    let listed = etcd.list(&namespace(), &ConfigScope::All).await.unwrap();
    assert!(listed.revision() >= at);
    recorder.assert_existed(etcd.config_layout(), &ConfigScope::All, &[listed]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_leave_no_gap_in_configuration() {
    let mut server = server().await;
    let recorder = Recorder::start(server.url());
    let proxy = Proxy::start(server.address()).await.unwrap();
    let through = async |url: String| Etcd::builder([url]).request_timeout(SHORT).connect().await.unwrap();
    let (etcd, writer) = (through(proxy.url()).await, through(server.url()).await);
    let mut observer = observe(&etcd, ConfigScope::Below(path("app"))).await;
    soon("the list", observer.next()).await;
    let stop = Arc::<AtomicBool>::default();
    let mut writing = write_on(writer, &stop);
    let number = |change: &ConfigChange| {
        let entry = change.snapshot.get(&path("app/a"))?;
        str::from_utf8(&entry.value).ok()?.parse::<usize>().ok()
    };
    observer.until("the first values", |change| !change.snapshot.is_empty()).await;
    for fault in [Mode::BlackHole(Direction::Both), Mode::BlackHole(Direction::ToClient), Mode::Reset] {
        proxy.set(fault);
        let stale = observer.until("silence", |change| !change.freshness.is_live()).await;
        assert!(!stale.snapshot.is_empty(), "the last known values stay");
        proxy.heal();
        let newer = |change: &ConfigChange| change.freshness.is_live() && number(change) > number(&stale);
        observer.until("newer values", newer).await;
    }
    for _ in 0..2 {
        server.kill().await;
        let stale = observer.until("the crash", |change| !change.freshness.is_live()).await;
        assert!(!stale.snapshot.is_empty(), "the last known values stay");
        server.restart().await;
        let newer = |change: &ConfigChange| change.freshness.is_live() && number(change) > number(&stale);
        observer.until("newer values", newer).await;
    }
    stop.store(true, Ordering::Relaxed);
    let last = writing.done("the last write").await;
    if texts(observer.observed.last().unwrap()) != shows(last) {
        observer.until("the last values", |change| texts(&change.snapshot) == shows(last)).await;
    }
    assert!(observer.assert_existed(&recorder).await > 10);
}

#[tokio::test]
async fn a_wipe_raises_the_epoch_with_exact_differences() {
    let mut server = server().await;
    let recorder = Recorder::start(server.url());
    let (etcd, writer) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    for name in ["app/a", "app/b", "app/c"] {
        put(&writer, name, "1").await;
    }
    let mut observer = observe(&etcd, ConfigScope::Below(path("app"))).await;
    let first = soon("the list", observer.next()).await;
    observer.assert_existed(&recorder).await;
    drop(recorder);
    server.wipe().await;
    let recorder = Recorder::start(server.url());
    // A store that has passed the old revision when the watch finds it is another case, see `views`.
    observer.until("the new store", |change| change.snapshot.epoch() > first.snapshot.epoch()).await;
    let mut direct = raw(&server).await;
    for number in 0..10 {
        direct.put("elsewhere", number.to_string(), None).await.unwrap();
    }
    direct.put(format!("{ROOT}app/b"), "2", None).await.unwrap();
    let written = |change: &ConfigChange| texts(&change.snapshot) == pairs([("app/b", "2")]);
    let after = observer.until("the value in the new store", written).await;
    let (old, new): (Vec<_>, Vec<_>) =
        observer.observed.iter().cloned().partition(|snapshot| snapshot.epoch() == first.snapshot.epoch());
    assert!(old.iter().all(|snapshot| texts(snapshot) == texts(&first.snapshot)), "{old:?}");
    let scope = ConfigScope::Below(path("app"));
    assert!(recorder.assert_existed(etcd.config_layout(), &scope, &new).await > 0, "{after:?}");
}

#[tokio::test]
async fn values_of_the_maximum_size_are_watched() {
    let server = EtcdServer::start().await;
    let recorder = Recorder::start(server.url());
    let (etcd, writer) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let mut observer = observe(&etcd, ConfigScope::All).await;
    soon("the list", observer.next()).await;
    let value = |number: u8| vec![number; MAX_CONFIG_BYTES - 8];
    for number in 0..8 {
        put(&writer, &format!("large/{number}"), value(number)).await;
    }
    let all = observer.until("all values", |change| change.snapshot.len() == 8).await;
    for number in 0..8 {
        assert!(all.snapshot.get(&path(&format!("large/{number}"))).unwrap().value.iter().eq(&value(number)));
    }
    let listed = soon("listed", etcd.list(&namespace(), &ConfigScope::All)).await.unwrap();
    assert_eq!(listed.diff(&all.snapshot), []);
    // A refused transaction does not return the values.
    let batch = (0..8).map(|number| ConfigWrite::put(path(&format!("large/{number}")), *b"x", Expect::Absent));
    let refused = soon("refused", etcd.write(&namespace(), batch.collect())).await;
    assert!(matches!(&refused, Err(Error::Conflict { what, .. }) if what == "large/0"), "{refused:?}");
    let large = etcd.put(&namespace(), &path("large/0"), vec![0; MAX_CONFIG_BYTES], Expect::Any).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    // The keys of a transaction count as well, and etcd refuses what is too large.
    let long = |number: usize| path(&format!("{}/{number}", "ö".repeat(500)));
    let batch = (0..MAX_CONFIG_WRITES).map(|number| ConfigWrite::put(long(number), vec![0; 13_000], Expect::Absent));
    let large = soon("refused", etcd.write(&namespace(), batch.collect())).await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    observer.assert_existed(&recorder).await;
}

#[tokio::test]
async fn ten_thousand_values_are_one_snapshot() {
    const VALUES: usize = 10_000;
    let server = EtcdServer::start().await;
    let (etcd, writer) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let recorder = Recorder::start(server.url());
    let name = |number: usize| format!("many/{}/{number}", number % 97);
    let mut early = observe(&etcd, ConfigScope::All).await;
    soon("the list", early.next()).await;
    for from in (0..VALUES).step_by(MAX_CONFIG_WRITES) {
        let batch = (from..from + MAX_CONFIG_WRITES)
            .map(|number| ConfigWrite::put(path(&name(number)), number.to_string(), Expect::Absent));
        soon("written", writer.write(&namespace(), batch.collect())).await.unwrap();
    }
    early.until("all values", |change| change.snapshot.len() == VALUES).await;
    let listed = soon("listed", etcd.list(&namespace(), &ConfigScope::All)).await.unwrap();
    assert_eq!((listed.len(), listed.diff(early.observed.last().unwrap())), (VALUES, vec![]));
    let mut late = observe(&writer, ConfigScope::Below(path("many"))).await;
    assert_eq!(soon("the list", late.next()).await.snapshot.len(), VALUES);
    put(&writer, &name(5000), "changed").await;
    let change = soon("a change", late.next()).await;
    assert!(matches!(&change.events[..], [ConfigEvent::Updated { new, .. }] if new.path == path(&name(5000))));
    recorder.assert_existed(etcd.config_layout(), &ConfigScope::All, &[listed]).await;
    assert!(early.assert_existed(&recorder).await > 1 && late.assert_existed(&recorder).await == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_changes_is_conflated_without_gaps() {
    const LAST: usize = 999;
    let server = EtcdServer::start().await;
    let recorder = Recorder::start(server.url());
    let (etcd, writer) = (Etcd::connect(server.url()).await.unwrap(), Etcd::connect(server.url()).await.unwrap());
    let (mut quick, mut slow) =
        (observe(&etcd, ConfigScope::All).await, observe(&etcd, ConfigScope::Below(path("app"))).await);
    soon("the list", slow.next()).await;
    let mut writing = BackgroundTask::run(async move {
        for number in 0..=LAST {
            write_both(&writer, number).await.unwrap();
        }
    });
    let all = |change: &ConfigChange| texts(&change.snapshot) == shows(LAST);
    // A thousand writes, one after the other.
    quick.until_within("the last values", Duration::from_secs(180), all).await;
    writing.done("all writes").await;
    slow.until("the last values", |change| texts(&change.snapshot) == shows(LAST)).await;
    assert!(slow.observed.len() <= 4, "a slow watcher skips: {} changes", slow.observed.len());
    let checked = quick.assert_existed(&recorder).await + slow.assert_existed(&recorder).await;
    assert!(checked >= 4, "{checked} snapshots");
}

/// A client whose requests pass a proxy that spoils one transaction.
struct Spoilt {
    _server: EtcdServer,
    between: Between,
    etcd: Etcd,
    raw: etcd_client::Client,
}

impl Spoilt {
    async fn start() -> Self {
        Self::with_timeout(SHORT).await
    }

    async fn with_timeout(timeout: Duration) -> Self {
        let server = server().await;
        let between = Between::start(&server).await;
        let etcd = Etcd::builder([&between.url]).request_timeout(timeout).connect().await.unwrap();
        let raw = raw(&server).await;
        Self { _server: server, between, etcd, raw }
    }

    fn spoil(&self, fault: Fault) {
        self.between.spoil(Victim { method: "Txn", after: 0, fault });
    }

    async fn set(&mut self, name: &str, value: &str) -> Revision {
        let put = self.raw.put(format!("{ROOT}{name}"), value, None).await.unwrap();
        revision(put.header().unwrap().revision())
    }

    async fn put(&self, name: &str, value: &str, expect: Expect) -> Result<Revision, Error> {
        let put = soon("written", self.etcd.put(&namespace(), &path(name), value.into(), expect)).await;
        assert!(self.between.has_spoilt(), "no transaction was spoilt");
        put
    }
}

#[tokio::test]
async fn a_write_whose_reply_is_lost_succeeds_once() {
    let mut spoilt = Spoilt::start().await;
    for fault in [Fault::Broken, Fault::Silent] {
        let name = |expect: &str| format!("{fault:?}/{expect}");
        let before = spoilt.set(&name("revision"), "1").await;
        let cases = [("any", Expect::Any), ("absent", Expect::Absent), ("revision", Expect::Revision(before))];
        for (expected, expect) in cases {
            spoilt.spoil(fault);
            let written = spoilt.put(&name(expected), "2", expect).await.unwrap();
            let writes = if expected == "revision" { 2 } else { 1 };
            assert_eq!(stored(&mut spoilt.raw, &name(expected)).await, Some((b"2".to_vec(), written, writes)));
        }
        let before = spoilt.set(&name("deleted"), "1").await;
        spoilt.spoil(fault);
        let gone = path(&name("deleted"));
        let (etcd, namespace) = (&spoilt.etcd, namespace());
        let deleted = soon("deleted", etcd.delete(&namespace, &gone, Expect::Revision(before))).await.unwrap();
        assert!(spoilt.between.has_spoilt() && deleted == before.next());
        assert_eq!(stored(&mut spoilt.raw, &name("deleted")).await, None);
    }
}

#[tokio::test]
async fn a_transaction_without_reply_is_found_whole() {
    let mut spoilt = Spoilt::start().await;
    let (a, b) = (spoilt.set("a", "1").await, spoilt.set("b", "1").await);
    spoilt.spoil(Fault::Broken);
    let writes = vec![
        ConfigWrite::put(path("new"), *b"2", Expect::Absent),
        ConfigWrite::put(path("a"), *b"2", Expect::Revision(a)),
        ConfigWrite::delete(path("b"), Expect::Revision(b)),
    ];
    let written = soon("written", spoilt.etcd.write(&namespace(), writes)).await.unwrap();
    assert!(spoilt.between.has_spoilt());
    assert_eq!(stored(&mut spoilt.raw, "a").await, Some((b"2".to_vec(), written, 2)));
    assert_eq!(stored(&mut spoilt.raw, "new").await, Some((b"2".to_vec(), written, 1)));
    assert_eq!(stored(&mut spoilt.raw, "b").await, None);
    // Without a condition on a revision, it is found by its values.
    spoilt.spoil(Fault::Silent);
    let writes = ["a", "new", "c"].map(|name| ConfigWrite::put(path(name), *b"3", Expect::Any));
    let written = soon("written", spoilt.etcd.write(&namespace(), writes.to_vec())).await.unwrap();
    assert!(spoilt.between.has_spoilt());
    assert_eq!(stored(&mut spoilt.raw, "c").await, Some((b"3".to_vec(), written, 1)));
}

#[tokio::test]
async fn a_write_that_never_arrived_is_not_assumed() {
    let mut spoilt = Spoilt::start().await;
    let before = spoilt.set("a", "1").await;
    spoilt.spoil(Fault::Dropped);
    let written = spoilt.put("a", "2", Expect::Revision(before)).await.unwrap();
    assert_eq!(stored(&mut spoilt.raw, "a").await, Some((b"2".to_vec(), written, 2)), "it was sent again");
    for expect in [Expect::Absent, Expect::Any] {
        spoilt.spoil(Fault::Dropped);
        let unknown = spoilt.put("b", "2", expect).await;
        assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
        assert_eq!(stored(&mut spoilt.raw, "b").await, None);
    }
    // Another value at the path is no proof either.
    spoilt.set("c", "1").await;
    spoilt.spoil(Fault::Dropped);
    let unknown = spoilt.put("c", "2", Expect::Any).await;
    assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
    // Nor is an equal value that was there before.
    let listed = spoilt.etcd.list(&namespace(), &ConfigScope::All).await.unwrap();
    assert!(listed.get(&path("c")).is_some());
    spoilt.spoil(Fault::Dropped);
    let unknown = spoilt.put("c", "1", Expect::Any).await;
    assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
}

#[tokio::test]
async fn a_refusal_without_reply_stays_a_conflict() {
    let mut spoilt = Spoilt::start().await;
    for fault in [Fault::Broken, Fault::Dropped] {
        let before = spoilt.set("a", "1").await;
        let present = spoilt.set("a", "2").await;
        for name in ["a", "a"] {
            spoilt.spoil(fault);
            match spoilt.put(name, "3", Expect::Revision(before)).await {
                Err(Error::Conflict { what, revision }) => assert_eq!((&*what, revision), (name, present)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stored(&mut spoilt.raw, "a").await.unwrap().1, present);
        // A revision at which the value never was.
        spoilt.spoil(fault);
        let refused = spoilt.put("a", "3", Expect::Revision(present.next())).await;
        assert!(matches!(refused, Err(Error::Conflict { revision, .. }) if revision == present), "{refused:?}");
    }
}

#[tokio::test]
async fn a_late_write_after_its_repetition_changes_nothing() {
    let mut spoilt = Spoilt::start().await;
    let before = spoilt.set("a", "1").await;
    spoilt.spoil(Fault::Held);
    let written = spoilt.put("a", "2", Expect::Revision(before)).await.unwrap();
    spoilt.between.release().await;
    assert_eq!(stored(&mut spoilt.raw, "a").await, Some((b"2".to_vec(), written, 2)));
}

/// Begins a write whose reply does not come, and waits until etcd has it.
async fn begin_silent(spoilt: &Spoilt, name: &'static str, expect: Expect) -> BackgroundTask<Result<Revision, Error>> {
    spoilt.spoil(Fault::Silent);
    let etcd = spoilt.etcd.clone();
    let writing =
        BackgroundTask::run(async move { etcd.put(&namespace(), &path(name), b"ours".to_vec(), expect).await });
    let raw = &spoilt.raw;
    eventually("etcd has it", || {
        let mut raw = raw.clone();
        async move {
            match stored(&mut raw, name).await {
                Some((value, ..)) if value == b"ours" => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
    writing
}

#[tokio::test]
async fn an_overwritten_write_is_found_in_the_history() {
    let mut spoilt = Spoilt::start().await;
    let before = spoilt.set("a", "1").await;
    let mut writing = begin_silent(&spoilt, "a", Expect::Revision(before)).await;
    let (_, ours, _) = stored(&mut spoilt.raw, "a").await.unwrap();
    for number in 0..50 {
        spoilt.set("a", &number.to_string()).await;
        spoilt.set("elsewhere", "x").await;
    }
    assert_eq!(writing.done("its outcome").await.unwrap(), ours);
    // Also if the value is absent by then.
    let before = spoilt.set("b", "1").await;
    let mut writing = begin_silent(&spoilt, "b", Expect::Revision(before)).await;
    let (_, ours, _) = stored(&mut spoilt.raw, "b").await.unwrap();
    spoilt.raw.delete(format!("{ROOT}b"), None).await.unwrap();
    assert_eq!(writing.done("its outcome").await.unwrap(), ours);
}

#[tokio::test]
async fn an_outcome_that_was_compacted_is_unknown() {
    // The history is compacted before the write is given up.
    let mut spoilt = Spoilt::with_timeout(Duration::from_secs(8)).await;
    let before = spoilt.set("a", "1").await;
    let mut writing = begin_silent(&spoilt, "a", Expect::Revision(before)).await;
    let present = spoilt.set("a", "3").await;
    spoilt.raw.compact(i64::try_from(present.get()).unwrap(), None).await.unwrap();
    let unknown = writing.done("its outcome").await;
    assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
}

/// A scripted etcd misbehaves. No misbehaviour that leaves the truth recognizable makes a wrong snapshot.
#[tokio::test(start_paused = true)]
async fn a_misbehaving_server_shows_no_invented_configuration() {
    let mut checked = 0;
    for misbehavior in [
        Misbehavior::Twice,
        Misbehavior::Again(10),
        Misbehavior::Backwards,
        Misbehavior::EarlyProgress,
        Misbehavior::EarlyAnswer,
        Misbehavior::UnknownType,
        Misbehavior::NoKey,
        Misbehavior::NoRevision,
        Misbehavior::Silence,
        Misbehavior::Refuse("a reason"),
        Misbehavior::LateWatch(Duration::from_secs(3)),
        Misbehavior::LaggingWatch(Duration::from_secs(3)),
        Misbehavior::NoList,
    ] {
        let fake = FakeEtcd::start();
        fake.put(format!("{ROOT}app/a"), "0");
        if !matches!(misbehavior, Misbehavior::NoList) {
            fake.misbehave(misbehavior);
        }
        let etcd = client(&fake);
        let mut observer = observe(&etcd, ConfigScope::Below(path("app"))).await;
        soon("the list", observer.next()).await;
        if matches!(misbehavior, Misbehavior::NoList) {
            fake.misbehave(misbehavior);
            fake.compact();
        }
        for number in 1..=5 {
            let (a, b) = (format!("{ROOT}app/a"), format!("{ROOT}app/deep/b"));
            fake.put_all([(a, number.to_string()), (b, number.to_string())]);
            let shown = pairs([("app/a", number), ("app/deep/b", number)]);
            let seen = observer
                .until_within("the values", Duration::from_secs(3600), |change| texts(&change.snapshot) == shown);
            seen.await;
        }
        let history = History::of(&fake);
        checked += observer.assert_existed_in(&history);
    }
    assert!(checked >= 13 * 3, "{checked} snapshots");
}

/// The check of the other tests finds a wrong snapshot.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_never_was_fails_the_check() {
    let (fake, other) = (FakeEtcd::start(), FakeEtcd::start());
    fake.put(format!("{ROOT}app/a"), "0");
    other.put(format!("{ROOT}app/a"), "1");
    let etcd = client(&fake);
    let scope = ConfigScope::Below(path("app"));
    let listed = [soon("listed", etcd.list(&namespace(), &scope)).await.unwrap()];
    assert_eq!(History::of(&fake).assert_existed(etcd.config_layout(), &scope, &listed), 1);
    let check = || History::of(&other).assert_existed(etcd.config_layout(), &scope, &listed);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err(), "the check accepts everything");
}
