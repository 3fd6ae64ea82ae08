//! Configuration under plain keys, as other libraries read and write it. Each program's module calls the tests here.

use enlist::{Config, ConfigPath, ConfigScope, ConfigWatcher, Expect, Namespace};
use enlist_etcd::{ConfigLayout, Etcd};
use enlist_testkit::{EtcdServer, LIMIT, soon};

use super::Go;

/// Prefix of the keys; each program gets whole keys.
pub(super) const PREFIX: &str = "/config";

/// Our client under plain keys.
pub(super) struct Settings {
    etcd: Etcd,
}

impl Settings {
    pub(super) async fn connect(server: &EtcdServer) -> Self {
        let builder = Etcd::builder([server.url()]).config_layout(ConfigLayout::plain(PREFIX));
        Self { etcd: builder.connect().await.unwrap() }
    }

    pub(super) async fn put(&self, name: &str, value: &str) {
        let (namespace, path) = (Namespace::default(), path(name));
        soon("written", self.etcd.put(&namespace, &path, value.as_bytes().to_vec(), Expect::Any)).await.unwrap();
    }

    pub(super) async fn delete(&self, name: &str) {
        soon("deleted", self.etcd.delete(&Namespace::default(), &path(name), Expect::Any)).await.unwrap();
    }

    pub(super) async fn get(&self, name: &str) -> Option<String> {
        let entry = soon("read", self.etcd.get(&Namespace::default(), &path(name))).await.unwrap();
        entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
    }

    /// Watches all values.
    pub(super) async fn watch(&self) -> View {
        View(Config::watch(&self.etcd, &Namespace::default(), &ConfigScope::All).await.unwrap())
    }
}

fn path(name: &str) -> ConfigPath {
    ConfigPath::parse(name).unwrap()
}

/// All values, as our side follows them.
pub(super) struct View(Box<dyn ConfigWatcher>);

impl View {
    /// Waits until there are exactly these values.
    pub(super) async fn has(&mut self, wanted: &[(&str, &str)]) {
        let mut last = Vec::new();
        let reading = async {
            loop {
                let change = self.0.next().await.unwrap();
                last = change
                    .snapshot
                    .entries()
                    .map(|entry| (entry.path.to_string(), String::from_utf8_lossy(&entry.value).into_owned()))
                    .collect();
                if last.iter().map(|(path, value)| (path.as_str(), value.as_str())).eq(wanted.iter().copied()) {
                    return;
                }
            }
        };
        let outcome = tokio::time::timeout(LIMIT, reading).await;
        assert!(outcome.is_ok(), "ours has {last:?}, not {wanted:?}");
    }
}

/// Writes a value with etcd's own client, as `etcdctl put` does.
pub(super) async fn put(server: &EtcdServer, key: &str, value: &str) {
    assert_eq!(Go::start(server, "etcd", &["put", key, value]).line().await, "put");
}

pub(super) async fn delete(server: &EtcdServer, key: &str) {
    assert_eq!(Go::start(server, "etcd", &["delete", key]).line().await, "deleted");
}

/// Reads lines until one is as wanted. Programs may print a value twice, and values between.
pub(super) async fn says(go: &mut Go, wanted: &str) {
    let mut before = Vec::new();
    let reading = async {
        loop {
            let line = go.line().await;
            if line == wanted {
                return;
            }
            assert!(!line.starts_with("failed"), "{line}");
            before.push(line);
        }
    };
    let outcome = tokio::time::timeout(LIMIT, reading).await;
    assert!(outcome.is_ok(), "it says {before:?}, not {wanted:?}");
}
