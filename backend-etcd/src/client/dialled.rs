//! A connection to one member, and the note of a call about which one it uses.
//!
//! A failure counts against the connection on which it occurred, never against a newer one: each connection is a
//! [`Dialled`], and [`Used`] carries it from the failover channel to the request layer, which notices that an answer
//! does not come.

use std::sync::{Arc, Mutex, OnceLock};

use enlist::backend::MutexExt as _;
use tokio_util::sync::CancellationToken;

/// One connection of a [`Failover`]. Clones are the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Dialled {
    /// Counts the connections of its channel.
    pub(crate) generation: u64,
    pub(crate) given_up: CancellationToken,
    /// Member that it leads to; `None` for a channel that the user made.
    url: Option<Arc<http::Uri>>,
    /// Order in which its member answers requests for progress: `true` is after the events before; `None` is not known
    /// yet.
    ordered: Arc<OnceLock<bool>>,
}

/// Order of the replies of a member to progress requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgressReplies {
    /// After all events before them.
    InOrder,
    /// Possibly before some of these events.
    Early,
}

impl Dialled {
    pub(crate) fn new(generation: u64, url: Option<http::Uri>) -> Self {
        Self { generation, given_up: CancellationToken::new(), url: url.map(Arc::new), ordered: Arc::default() }
    }

    /// The endpoint that it leads to, if that is known.
    pub(crate) fn url(&self) -> Option<&http::Uri> {
        self.url.as_deref()
    }

    /// Returns `true` if an answer to a request for progress comes after the events before it. `None` is not known yet.
    pub(crate) fn answers_in_order(&self) -> Option<bool> {
        self.ordered.get().copied()
    }

    /// Notes the order of the replies of its member.
    pub(crate) fn learn(&self, replies: ProgressReplies) {
        // A second answer of the member is the same.
        let _ = self.ordered.set(replies == ProgressReplies::InOrder);
    }

    /// Waits until the connection is given up. Its streams have to move then, or it stays open beside its successor.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

tokio::task_local! {
    /// Slot in which the channel stores the connection of the present call, as the client in between passes nothing on.
    static USED: Used;
}

/// The connection that a call uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    connection: Arc<Mutex<Option<Dialled>>>,
    /// Its member need not know a leader.
    leaderless: bool,
}

impl Used {
    /// That of a call which a member without a leader may answer.
    pub(crate) fn leaderless() -> Self {
        Self { leaderless: true, ..Self::default() }
    }

    pub(crate) fn is_leaderless(&self) -> bool {
        self.leaderless
    }

    /// Runs `call`, whose requests note their connection here.
    pub(crate) async fn by<F: Future>(&self, call: F) -> F::Output {
        USED.scope(self.clone(), call).await
    }

    /// That of the call that runs now, to go with its request where that may be sent by another task.
    pub(crate) fn present() -> Self {
        USED.try_with(Self::clone).unwrap_or_default()
    }

    /// The connection of the latest request; `None` while it is being dialled.
    pub(crate) fn connection(&self) -> Option<Dialled> {
        self.connection.locked().clone()
    }

    /// Notes that nothing is outstanding: the connection has answered.
    pub(crate) fn answered(&self) {
        self.set(None);
    }

    pub(crate) fn set(&self, connection: Option<Dialled>) {
        *self.connection.locked() = connection;
    }
}
