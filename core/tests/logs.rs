//! The logged causes. A single test in a separate program, because the interest in an event is decided once per
//! process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{
    Config as _, ConfigPath, Directory, DirectoryOptions, Endpoint, Expect, Instance, InstanceId, Namespace, Once,
    PickPolicy, Pool, RegisterOptions, RegistrationState, Registry, Retry, ServiceRef, escape::is_unprintable,
};
use enlist_memory::MemoryStore;

/// The logged text.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns `true` for a character that can forge a line or change how it is displayed, but for the end of a line.
fn is_unprintable_in_line(character: char) -> bool {
    character != '\n' && is_unprintable(character)
}

/// Calls two instances, one of which fails, until that one is ejected.
async fn eject(store: &MemoryStore, id: &str) {
    let service = ServiceRef::parse("pooled").unwrap();
    let mut registrations = Vec::new();
    for id in [id, "other"] {
        let instance =
            Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
        registrations.push(store.client().register(&service, instance, RegisterOptions::new()).await.unwrap());
    }
    let view = Directory::new(Arc::new(store.client())).view(&service);
    let pool = Pool::new(view, |entry| Ok(entry.instance().id().to_string())).unwrap();
    let mut changes = pool.view().changes();
    while changes.next().await.unwrap().snapshot.len() != registrations.len() {}
    let retry = Retry::new(|_: &&str| true).attempts(1);
    for _ in 0..30 {
        let call = pool.call(PickPolicy::RoundRobin, &retry, |client| {
            let broken = **client == *id;
            async move { if broken { Err("broken") } else { Ok(()) } }
        });
        let _ = call.await;
    }
}

/// Lists the jobs of a namespace, of which one has a value that is no record.
async fn list_jobs(store: &MemoryStore, job: &str) {
    let client = Arc::new(store.client());
    let (records, path) = (Namespace::parse("once:default").unwrap(), ConfigPath::parse(job).unwrap());
    client.put(&records, &path, b"garbage".to_vec(), Expect::Any).await.unwrap();
    let listed = Once::new(client.clone(), client).records(&Namespace::default()).await.unwrap();
    assert!(listed.is_empty(), "{listed:?}");
}

#[tokio::test(start_paused = true)]
async fn causes_are_logged_in_full() {
    let logged = Logged::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(Mutex::new(logged.clone()))
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let client = MemoryStore::new().client();
    let service = ServiceRef::parse("svc\u{202e}").unwrap();
    let instance =
        Instance::new(InstanceId::parse("i0\u{200b}").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let registration = client.register(&service, instance, RegisterOptions::new()).await.unwrap();
    // A folder below a file cannot be written to.
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = DirectoryOptions::new().disk(file.path().join("views"));
    let view = Directory::with_options(Arc::new(client.clone()), options).view(&service);
    view.ready().await.unwrap();
    let mut changes = view.changes();
    tokio::time::sleep(Duration::from_nanos(1_234_567_890)).await;
    client.cut();
    while view.freshness().unwrap().is_live() {
        changes.next().await.unwrap();
    }
    let mut states = registration.states();
    while !matches!(states.next().await, Ok(RegistrationState::Suspect { .. })) {}
    eject(&MemoryStore::new(), "a\u{202e}b").await;
    list_jobs(&MemoryStore::new(), "c\u{202e}d").await;
    let logged = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let ejected = logged.lines().find(|line| line.contains("instance ejected")).unwrap();
    assert!(ejected.contains(r"instance=a\u{202e}b"), "what others stored is escaped: {ejected}");
    let unreadable = logged.lines().find(|line| line.contains("cannot be read")).unwrap();
    assert!(unreadable.contains(r"job=c\u{202e}d"), "what others stored is escaped: {unreadable}");
    assert!(!logged.contains(is_unprintable_in_line), "names are escaped in each line: {logged}");
    for (message, name) in [
        ("view not written to disk", r"service=default/svc\u{202e}"),
        ("view stale", r"service=default/svc\u{202e}"),
        ("registration suspect", r"instance=i0\u{200b}"),
    ] {
        let line =
            logged.lines().find(|line| line.contains(message)).unwrap_or_else(|| panic!("{message} in\n{logged}"));
        assert!(line.contains(name), "{line}");
    }
    let why = "cause=store unavailable: the link to the store is cut";
    for message in ["view stale", "registration suspect"] {
        let line =
            logged.lines().find(|line| line.contains(message)).unwrap_or_else(|| panic!("{message} in\n{logged}"));
        assert!(line.contains(why), "{line}");
    }
    let stale = logged.lines().find(|line| line.contains("view stale")).unwrap();
    let age = stale.split_once("age=").unwrap().1.split(" cause").next().unwrap();
    assert!(age.ends_with(" s") && age.len() <= 5 || age.ends_with(" ms") && age.len() <= 6, "{age}");
}
