//! The log lines of a view. A single test in a separate program, because the interest in an event is decided once per
//! process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{Config, ConfigPath, ConfigScope, Expect, Namespace};
use enlist_config::{ConfigView, Secret};
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

#[derive(Debug, serde::Deserialize)]
struct Settings {
    #[expect(dead_code, reason = "only read")]
    port: u16,
    #[expect(dead_code, reason = "only shown")]
    password: Secret<String>,
}

#[tokio::test(start_paused = true)]
async fn each_bad_revision_is_logged_once() {
    let logged = Logged::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(Mutex::new(logged.clone()))
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let client = MemoryStore::new().client();
    let (namespace, path) = (Namespace::default(), ConfigPath::parse("app.json").unwrap());
    let put = async |value: &str| client.put(&namespace, &path, value.into(), Expect::Any).await.unwrap();
    put(r#"{"port": 1, "password": "hunter2"}"#).await;
    let scope = ConfigScope::Path(path.clone());
    let view = ConfigView::<Settings>::builder(Arc::new(client.clone()), scope).open().await.unwrap();
    let mut revisions = Vec::new();
    for bad in [r#"{"port": "hunter2"}"#, r#"{"port": 1, "password": hunter2}"#] {
        revisions.push(put(bad).await);
        // Each of these wakes the view without a new value.
        for _ in 0..3 {
            client.cut();
            tokio::time::sleep(Duration::from_secs(30)).await;
            client.heal();
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
    }
    tracing::info!(settings = ?view.current(), "the current value");
    // An orderly end is no warning.
    view.close().await.unwrap();
    let logged = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    assert!(!logged.contains("hunter2"), "{logged}");
    let rejected: Vec<_> = logged.lines().filter(|line| line.contains("configuration rejected")).collect();
    assert_eq!(rejected.len(), 2, "{logged}");
    for (line, (revision, reason)) in
        rejected.iter().zip(revisions.iter().zip(["port: expected u16, found text", "it is not JSON, see line 1"]))
    {
        assert!(line.contains("WARN") && line.contains("origin=app.json"), "{line}");
        assert!(line.contains(&format!("revision={revision}")) && line.contains(reason), "{line}");
    }
    for message in ["configuration stale", "configuration live again"] {
        assert_eq!(logged.lines().filter(|line| line.contains(message)).count(), 6, "{message} in\n{logged}");
    }
}
