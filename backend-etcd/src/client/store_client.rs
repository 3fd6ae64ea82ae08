//! The client of the store: two request channels, each with its own connection, and the write batchers.
//!
//! One channel is for leases and small transactions, the other one for watches and lists. A full watch connection
//! blocks all requests on it, and renewals must not wait.
//!
//! Read `request_channel.rs` next. The requests are in [`kv`](super::kv), [`list`](super::list) and
//! [`queue_requests`](super::queue_requests).

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use enlist::{LeaseId, Revision, TaskOwner};
use etcd_client::{GetOptions, LeaseTimeToLiveOptions};
use tonic::transport::Endpoint;

use crate::{
    client::{
        connection::{
            dialled::{ProgressReplies, Used},
            failover::Failover,
            layers::Layers,
            repetitions::Repeat,
            request_channel::{Clients, Credentials, PROBED, RequestChannel},
        },
        requests::{
            limits::RangeLimits, page_size::KnownPages, response::revision_of, write_batcher::WriteBatcher,
            write_proofs::WriteProofs,
        },
        store_revision::StoreRevision,
    },
    error::{Failure, classify},
    watch::record::KeyRange,
};

/// Maximum number of concurrent transactions that write registrations.
const INSTANCE_TRANSACTIONS: usize = 2;

/// Maximum number of concurrent transactions that write queue entries.
const QUEUE_TRANSACTIONS: usize = 4;

/// Client of the store: both request channels, and the write batchers.
#[derive(Debug)]
pub(crate) struct StoreClient {
    /// Leases and small transactions.
    pub(crate) control: Arc<RequestChannel>,
    /// Guarded writes of instances.
    pub(crate) instance_writes: WriteBatcher,
    /// Guarded writes of queue entries.
    pub(crate) queue_writes: WriteBatcher,
    /// Watches and lists.
    pub(crate) data: RequestChannel,
    /// Sizes of pages that arrive.
    pub(crate) pages: KnownPages,
    /// Maximum size of a range.
    pub(crate) limits: RangeLimits,
    /// Highest known revision of the store, from all replies.
    pub(crate) store: Arc<StoreRevision>,
    /// Writes that prove the revision of the store.
    pub(crate) write_proofs: WriteProofs,
    tasks: Weak<TaskOwner>,
}

impl StoreClient {
    pub(crate) fn new(
        tasks: &Arc<TaskOwner>,
        control: Failover,
        data: Failover,
        layers: &Layers,
        credentials: Option<&Credentials>,
        limit: Duration,
        limits: RangeLimits,
    ) -> Self {
        let store = Arc::<StoreRevision>::default();
        let requests = |channel| RequestChannel::new(channel, layers, credentials.cloned(), limit, Arc::clone(&store));
        let control = Arc::new(requests(control));
        let (instance_writes, queue_writes) = (
            WriteBatcher::start(tasks, &control, INSTANCE_TRANSACTIONS),
            WriteBatcher::start(tasks, &control, QUEUE_TRANSACTIONS),
        );
        let (pages, write_proofs, tasks) = (KnownPages::default(), WriteProofs::default(), Arc::downgrade(tasks));
        Self { instance_writes, queue_writes, data: requests(data), control, pages, limits, store, write_proofs, tasks }
    }

    /// Starts a task that ends with the session. After the end of the session the task does not run.
    pub(crate) fn in_background(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = self.tasks.upgrade() {
            let _ = tasks.spawn_until_stopped(name, task);
        }
    }

    /// Reads one key, which may be absent, to learn the store's revision. Not sent on the watch connection, where the
    /// response would queue behind events.
    pub(crate) async fn probe(&self, key: &[u8], limit: Duration) -> Result<Revision, Failure> {
        let read =
            |mut clients: Clients| async move { clients.kv.get(key, Some(GetOptions::new().with_count_only())).await };
        let response = self.control.ask_within("probe", limit.min(self.control.limit), read).await?;
        Ok(revision_of(&response))
    }

    /// Reads the revision of the store.
    pub(crate) async fn revision_by_a_read(&self) -> Result<Revision, Failure> {
        self.probe(PROBED, self.control.limit).await
    }

    /// Requests the version of the member that serves the watches, unless it is known.
    pub(crate) async fn learn_version(&self) -> Result<(), Failure> {
        if self.data.channel.current().is_none_or(|connection| connection.progress_replies().is_some()) {
            return Ok(());
        }
        let ask = |mut clients: Clients| async move {
            match clients.client.status().await {
                Ok(status) => Ok(Some(status.version().to_owned())),
                Err(error) if matches!(classify(&error), Failure::Denied) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (limit, used) = (self.data.limit, Used::default());
        let (version, connection) = self.data.send("version", limit, Repeat::Harmless, &used, ask).await?;
        if let Some(connection) = connection {
            // The releases that refuse this to some users answer in order (`STATUS_FOR_ROOT`).
            connection.learn(version.map_or(ProgressReplies::InOrder, |version| progress_replies(&version)));
        }
        Ok(())
    }

    /// Returns `true` if the member that serves the watches answers within `limit`. A refusal is an answer.
    pub(crate) async fn answers(&self, range: &KeyRange, limit: Duration) -> bool {
        let ask = |mut clients: Clients| {
            let start = range.start.clone();
            async move { clients.kv.get(start, Some(GetOptions::new().with_count_only())).await }
        };
        let answer = self.data.ask_within("sign of life", limit, ask).await;
        !matches!(answer, Err(Failure::NeverSent(_) | Failure::Lost(_) | Failure::Leaderless(_) | Failure::Unfit(_)))
    }

    /// Returns the client URLs that the members advertise. Learners are left out, because they refuse nearly all
    /// requests.
    pub(crate) async fn advertised(&self) -> Result<Vec<String>, Failure> {
        let ask = |mut clients: Clients| async move { clients.client.member_list().await };
        let response = self.control.ask("member list", ask).await?;
        let members = response.members().iter().filter(|member| !member.is_learner());
        Ok(members.flat_map(|member| member.client_urls().to_vec()).collect())
    }

    /// Dials these members from now on, then the configured ones.
    pub(crate) fn take_over(&self, members: &[Endpoint]) {
        self.control.channel.take_over(members);
        self.data.channel.take_over(members);
    }

    /// Returns the remaining and the granted time of a lease; `None` if it is gone.
    pub(crate) async fn time_to_live(&self, lease: LeaseId) -> Result<Option<(Duration, Duration)>, Failure> {
        let ask = |mut clients: Clients| async move { clients.lease.time_to_live(lease.get(), None).await };
        let response = self.control.ask("time to live", ask).await?;
        let seconds = |value: i64| Duration::from_secs(u64::try_from(value).unwrap_or(0));
        Ok((response.ttl() >= 0).then(|| (seconds(response.ttl()), seconds(response.granted_ttl()))))
    }

    /// Returns the keys under a lease, none if it is gone. The leader answers from its own state, which may be
    /// outdated.
    pub(crate) async fn keys_under(&self, lease: LeaseId) -> Result<Vec<Vec<u8>>, Failure> {
        let ask = |mut clients: Clients| async move {
            let keys = LeaseTimeToLiveOptions::new().with_keys();
            clients.lease.time_to_live(lease.get(), Some(keys)).await
        };
        let response = self.control.ask("keys of a lease", ask).await?;
        Ok(response.keys().to_vec())
    }
}

/// Returns the order in which members of this version answer progress requests (etcd-io/etcd#15220).
fn progress_replies(version: &str) -> ProgressReplies {
    let mut parts = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let in_order = match (parts.next(), parts.next(), parts.next()) {
        (Some(3), Some(4), Some(patch)) => patch >= 25,
        (Some(3), Some(5), Some(patch)) => patch >= 8,
        (Some(3), Some(minor), _) => minor >= 6,
        (Some(major), ..) => major > 3,
        _ => false,
    };
    if in_order { ProgressReplies::InOrder } else { ProgressReplies::Early }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::versions::STATUS_FOR_ROOT;

    #[test]
    fn releases_that_hide_their_version_answer_in_order() {
        for version in STATUS_FOR_ROOT.as_flattened() {
            assert_eq!(progress_replies(version), ProgressReplies::InOrder, "{version}");
        }
    }

    #[test]
    fn releases_that_answer_in_order_are_known_by_their_version() {
        for version in ["3.4.25", "3.4.45", "3.5.8", "3.5.30", "3.6.0", "3.6.0-rc.1", "3.7.3", "4.0.0"] {
            assert_eq!(progress_replies(version), ProgressReplies::InOrder, "{version}");
        }
        for version in ["3.3.27", "3.4.23", "3.4.24", "3.5.0", "3.5.7", "3.5.7+git", "2.3.8", "", "unknown", "3", "3.4"]
        {
            assert_eq!(progress_replies(version), ProgressReplies::Early, "{version}");
        }
    }
}
