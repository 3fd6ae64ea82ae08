//! Releases of etcd, and what differs between them.

use enlist_testkit::EtcdServer;

/// A release of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Release {
    pub(crate) async fn of(server: &EtcdServer) -> Self {
        let (version, _) = server.versions().await.expect("it states its version");
        Self::parse(&version)
    }

    pub(crate) fn parse(version: &str) -> Self {
        let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or_default());
        let mut next = || parts.next().unwrap_or_default();
        Self(next(), next(), next())
    }

    /// Returns `true` if it has what these releases began with, one of each line, oldest first. Later lines have it.
    pub(crate) fn has(self, since: &[Self]) -> bool {
        let first = since.iter().find(|first| (first.0, first.1) >= (self.0, self.1));
        first.is_none_or(|first| self >= *first)
    }
}
