//! A connection to one member, and the record of the connection that a call uses.
//!
//! A failure counts against the connection on which it occurred, never against a newer one. Each connection is a
//! [`Dialled`], and [`Used`] carries it from the failover channel to the request layer, which detects missing answers.

use std::sync::{Arc, Mutex, OnceLock};

use enlist::backend::MutexExt as _;
use tokio_util::sync::CancellationToken;

/// One connection of a [`Failover`]. Clones are the same connection.
#[derive(Clone, Debug)]
pub(crate) struct Dialled {
    /// Number of this connection among those of its channel.
    pub(crate) generation: u64,
    pub(crate) given_up: CancellationToken,
    /// URL of its member; `None` for a channel that the user made.
    url: Option<Arc<http::Uri>>,
    /// Order of the member's replies to progress requests, once it is known.
    progress_replies: Arc<OnceLock<ProgressReplies>>,
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
        Self {
            generation,
            given_up: CancellationToken::new(),
            url: url.map(Arc::new),
            progress_replies: Arc::default(),
        }
    }

    /// Returns the URL of its member, if it is known.
    pub(crate) fn url(&self) -> Option<&http::Uri> {
        self.url.as_deref()
    }

    /// Returns the order of its member's replies to progress requests, if it is known.
    pub(crate) fn progress_replies(&self) -> Option<ProgressReplies> {
        self.progress_replies.get().copied()
    }

    /// Records the order of its member's replies.
    pub(crate) fn learn(&self, replies: ProgressReplies) {
        // A second answer of the same member is equal.
        let _ = self.progress_replies.set(replies);
    }

    /// Waits until the connection is given up. Streams on it then have to move; otherwise it stays open beside its
    /// successor.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

tokio::task_local! {
    /// Slot for the connection of the present call, set by the channel. The client library in between cannot return it.
    static USED: Used;
}

/// Connection that a call uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    connection: Arc<Mutex<Option<Dialled>>>,
    /// The member may be without a leader.
    leaderless: bool,
}

impl Used {
    /// Creates the record of a call that a member without a leader may answer.
    pub(crate) fn leaderless() -> Self {
        Self { leaderless: true, ..Self::default() }
    }

    pub(crate) fn is_leaderless(&self) -> bool {
        self.leaderless
    }

    /// Runs `call`. Its requests record their connection here.
    pub(crate) async fn by<F: Future>(&self, call: F) -> F::Output {
        USED.scope(self.clone(), call).await
    }

    /// Returns the record of the running call, to be attached to a request that another task may send.
    pub(crate) fn present() -> Self {
        USED.try_with(Self::clone).unwrap_or_default()
    }

    /// Returns the connection of the latest request; `None` while it is being dialled.
    pub(crate) fn connection(&self) -> Option<Dialled> {
        self.connection.locked().clone()
    }

    /// Records that nothing is outstanding: the connection has answered.
    pub(crate) fn answered(&self) {
        self.set(None);
    }

    pub(crate) fn set(&self, connection: Option<Dialled>) {
        *self.connection.locked() = connection;
    }
}
