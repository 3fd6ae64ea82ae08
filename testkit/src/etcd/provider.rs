//! Sources of etcd servers and tools: the environment, containers, local programs.
//!
//! | variable | meaning |
//! |---|---|
//! | `ENLIST_TEST_ETCD` | address (`host:port`) of an etcd that the tests may fill and empty; it is never stopped or wiped |
//! | `ENLIST_TEST_PROVIDER` | `process` (default) or `container` |
//! | `ENLIST_ETCD_BIN` | the `etcd` to start or to put into a container; default: the one on the `PATH` |
//!
//! A missing etcd is a failure with a message that states the remedy, never a skip.

use std::{env, net::SocketAddr, path::PathBuf};

/// Source of etcd servers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// An existing server.
    Environment(SocketAddr),
    /// One container per server.
    Container,
    /// One local process per server.
    Process,
}

impl Provider {
    /// Returns the source that the environment selects, for a test that stops its server: an existing server is
    /// replaced by processes.
    pub fn own() -> Self {
        match Self::from_env() {
            Self::Environment(_) => Self::Process,
            own => own,
        }
    }

    /// Returns the source that the environment selects.
    ///
    /// # Panics
    ///
    /// If a variable cannot be read.
    pub fn from_env() -> Self {
        if let Ok(address) = env::var("ENLIST_TEST_ETCD") {
            let bare = address.trim_start_matches("http://").trim_end_matches('/');
            return Self::Environment(bare.parse().expect("ENLIST_TEST_ETCD is an address such as 127.0.0.1:2379"));
        }
        match env::var("ENLIST_TEST_PROVIDER").as_deref() {
            Ok("container") => Self::Container,
            Ok("process") | Err(_) => Self::Process,
            Ok(other) => panic!("ENLIST_TEST_PROVIDER={other}: expected `process` or `container`"),
        }
    }
}

/// Returns the path of the `etcd` to run.
///
/// # Panics
///
/// With a message that states the remedy, if there is none.
pub(super) fn binary() -> PathBuf {
    if let Ok(path) = env::var("ENLIST_ETCD_BIN") {
        return path.into();
    }
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).map(|directory| directory.join("etcd")).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "these tests need an etcd: run them through `cargo xtask test`, which gets one, or install it (Debian: \
             `apt-get install etcd-server`), or set ENLIST_ETCD_BIN to an `etcd` or ENLIST_TEST_ETCD to its address"
        )
    })
}

/// Returns the path of the tool that restores snapshots: given, next to the etcd of the tests, or on the `PATH`. From
/// etcd 3.6 on it is only `etcdutl`.
///
/// # Panics
///
/// With a message that states the remedy, if there is none.
pub(super) fn restorer() -> PathBuf {
    let given = env::var_os("ENLIST_ETCDCTL_BIN").map(PathBuf::from);
    let binary = binary();
    let paths = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> =
        given.iter().chain([&binary]).filter_map(|path| path.parent()).map(Into::into).collect();
    directories.extend(env::split_paths(&paths));
    let siblings = directories.iter().flat_map(|directory| [directory.join("etcdutl"), directory.join("etcdctl")]);
    siblings.chain(given.clone()).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "these tests restore snapshots with `etcdutl` or `etcdctl` (Debian: `apt-get install etcd-client`), \
             next to the etcd, on the PATH or given by ENLIST_ETCDCTL_BIN"
        )
    })
}
