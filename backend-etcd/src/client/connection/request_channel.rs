//! One request channel: a connection with deadlines for all requests. It renews a refused token, and moves to another
//! member when one is silent.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{
    Moment, Revision,
    backend::{MutexExt as _, rounded},
};
use etcd_client::{Channel, Client, GetOptions, KvClient, LeaseClient};
use futures::TryFutureExt as _;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;

use crate::{
    client::{
        connection::{
            dialled::{Dialled, Used},
            failover::Failover,
            layers::{Layers, Requests},
            recovery::{PROBE_LIMIT, Recovery},
            repetitions::{NextConnection, Repeat, Repetitions},
            token::{Token, WithToken},
            watch_call::{WatchCall, WatchOptions},
        },
        requests::limits::MAX_ANSWER,
        store_revision::{Reply, Seen, StoreRevision},
    },
    error::{Failure, classify, is_auth_off, text_cause},
    watch::record::KeyRange,
};

/// Key that is read to check that etcd answers. A refusal is an answer.
pub(crate) const PROBED: &[u8] = b"\0";

/// User and password.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: SecretString,
}

/// The sub-clients of one request channel. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) client: Client,
}

/// One connection.
pub(crate) struct RequestChannel {
    pub(crate) channel: Failover,
    /// The same connection, wrapped in the user's layers, with the token.
    requests: Requests,
    credentials: Option<Credentials>,
    token: Token,
    clients: OnceCell<Clients>,
    pub(crate) limit: Duration,
    /// Serializes refreshes of the token; contains the time of the last one.
    refreshed: tokio::sync::Mutex<Option<Moment>>,
    recovery: Recovery,
    /// Highest known revision of the store, from the replies.
    store: Arc<StoreRevision>,
    /// Connection and number of recoveries at the last check of the store's revision.
    compared: Mutex<Option<(u64, u64)>>,
}

impl std::fmt::Debug for RequestChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestChannel")
            .field("channel", &self.channel)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl RequestChannel {
    pub(crate) fn new(
        channel: Failover,
        layers: &Layers,
        credentials: Option<Credentials>,
        limit: Duration,
        store: Arc<StoreRevision>,
    ) -> Self {
        let (clients, refreshed, recovery) = (OnceCell::new(), tokio::sync::Mutex::new(None), Recovery::default());
        let (compared, token) = (Mutex::default(), Token::default());
        let mut requests = layers.around(channel.clone());
        if credentials.is_some() {
            requests = Requests::new(WithToken::new(requests, token.clone()));
        }
        Self { channel, requests, credentials, token, clients, limit, refreshed, recovery, store, compared }
    }

    /// Gives up a connection whose member does not answer. A newer connection is not affected.
    pub(crate) fn give_up(&self, connection: &Dialled) {
        self.channel.give_up(connection);
    }

    /// Returns the clients. The first call authenticates, if a user is configured. While etcd has authentication
    /// disabled, it continues without a token, as Go's client does: authentication may be enabled later.
    async fn clients(&self) -> Result<&Clients, Failure> {
        let make = async {
            let channel = Channel::Custom(self.requests.clone());
            // The user's token is renewed by `send`.
            let client = Client::from_channel(channel, None).await.map_err(|error| classify(&error))?;
            self.authenticate(&client).await?;
            Ok(Clients {
                kv: client.kv_client().max_decoding_message_size(MAX_ANSWER),
                lease: client.lease_client(),
                client,
            })
        };
        self.clients.get_or_try_init(|| Box::pin(make)).await
    }

    /// Requests a token, if a user is configured and authentication is enabled.
    async fn authenticate(&self, client: &Client) -> Result<(), Failure> {
        let Some(Credentials { user, password }) = &self.credentials else { return Ok(()) };
        match client.auth_client().authenticate(user.clone(), password.expose_secret().to_owned()).await {
            Ok(answer) => {
                let token = HeaderValue::from_str(answer.token());
                self.token.replace(Some(token.map_err(|_| Failure::Lost(text_cause("the token is no header value")))?));
            }
            Err(error) if is_auth_off(&error) => {
                tracing::debug!("authentication is not enabled, the user is not needed");
                // A former token would still be checked.
                self.token.replace(None);
            }
            Err(error) => return Err(classify(&error)),
        }
        Ok(())
    }

    /// Requests a new token, unless another caller has just done so.
    pub(crate) async fn refresh_token(&self) -> Result<(), Failure> {
        let used = Used::default();
        // Boxed: the client's futures are large, and each watch has this one in its task.
        self.within("refreshing the token", self.limit, &used, Box::pin(self.refresh(&used))).await
    }

    async fn refresh(&self, used: &Used) -> Result<(), Failure> {
        // A caller that waits for another caller's refresh has no request under way.
        used.answered();
        let asked = Moment::now();
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.is_some_and(|last| last.since(asked) > Duration::ZERO) {
            return Ok(());
        }
        let clients = self.clients().await?;
        Box::pin(self.authenticate(&clients.client)).await?;
        *refreshed = Some(Moment::now());
        Ok(())
    }

    /// Waits at most `limit` for `call`. At the limit, gives up the connection that owes an answer, if there is one.
    async fn within<T>(
        &self,
        what: &str,
        limit: Duration,
        used: &Used,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        if let Ok(outcome) = tokio::time::timeout(limit, used.by(call)).await {
            return outcome;
        }
        let connection = used.connection();
        if let Some(connection) = &connection {
            self.give_up(connection);
        }
        let late = Failure::Lost(text_cause(format!("{what}: no answer within {}", rounded(limit))));
        Err(late.at(connection.as_ref().and_then(Dialled::url)))
    }

    /// Sends a request within the deadline of the channel. A request that was certainly not applied is repeated, on
    /// another member if this one refuses to serve it. A stale token is renewed once.
    pub(crate) async fn call<T, F>(&self, what: &str, request: impl Fn(Clients) -> F) -> Result<T, Failure>
    where
        T: Reply,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.send(what, self.limit, Repeat::Unsafe, &Used::default(), request).await.map(|(answer, _)| answer)
    }

    /// As [`call`](Self::call), for a request that may be applied twice: it is also repeated on another member if this
    /// one may have applied it.
    pub(crate) async fn ask<T, F>(&self, what: &str, request: impl Fn(Clients) -> F) -> Result<T, Failure>
    where
        T: Reply,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.ask_within(what, self.limit, request).await
    }

    /// As [`ask`](Self::ask), under a deadline of its own.
    pub(crate) async fn ask_within<T, F>(
        &self,
        what: &str,
        limit: Duration,
        request: impl Fn(Clients) -> F,
    ) -> Result<T, Failure>
    where
        T: Reply,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.send(what, limit, Repeat::Harmless, &Used::default(), request).await.map(|(answer, _)| answer)
    }

    /// As [`ask`](Self::ask), for a request that a member without a leader can answer. Its outcome does not count as a
    /// recovery of etcd.
    pub(crate) async fn ask_any_member<T, F>(&self, what: &str, request: impl Fn(Clients) -> F) -> Result<T, Failure>
    where
        T: Reply,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let used = Used::leaderless();
        self.send(what, self.limit, Repeat::Harmless, &used, request).await.map(|(answer, _)| answer)
    }

    /// Sends a request. Returns the answer and its connection, on which a stream continues.
    pub(crate) async fn send<T, F>(
        &self,
        what: &str,
        limit: Duration,
        repeat: Repeat,
        used: &Used,
        request: impl Fn(Clients) -> F,
    ) -> Result<(T, Option<Dialled>), Failure>
    where
        T: Reply,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let seen = self.store.seen();
        // Boxed: the client's futures are large, and a task has one at a time, however many calls its code contains.
        let attempts = Box::pin(async {
            let mut repetitions = Repetitions::default();
            loop {
                let outcome = self.attempt(used, &mut repetitions, &request).await;
                let connection = used.connection();
                used.answered();
                let failure = match outcome {
                    Ok(answer) => return Ok((answer, connection)),
                    Err(failure) => failure,
                };
                let blamed = connection.as_ref().map(|connection| self.blame(connection, &failure));
                if !repetitions.repeats(&failure, blamed.unwrap_or(NextConnection::Same), repeat) {
                    return Err(failure.at(connection.as_ref().and_then(Dialled::url)));
                }
            }
        });
        let outcome = self.within(what, limit, used, attempts).await;
        if !used.is_leaderless() {
            self.recovery.note(&outcome);
            if let Ok((answer, connection)) = &outcome {
                self.compare(seen, answer.revision(), connection.as_ref());
            }
        }
        outcome
    }

    /// Sends a request once, and again with a new token if the token is refused.
    async fn attempt<T, F>(
        &self,
        used: &Used,
        repetitions: &mut Repetitions,
        request: &impl Fn(Clients) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        loop {
            let clients = self.clients().await?.clone();
            let failure = match request(clients).await {
                Ok(answer) => return Ok(answer),
                Err(error) => classify(&error),
            };
            if self.credentials.is_none() || !repetitions.renews_token(&failure) {
                return Err(failure);
            }
            self.refresh(used).await?;
        }
    }

    /// Compares a reply with the state of the store that was `seen` before its request. The first reply after an
    /// interruption triggers a check of the store's revision, even if the reply has none: a restore interrupts the
    /// store.
    fn compare(&self, seen: Seen, revision: Option<Revision>, connection: Option<&Dialled>) {
        if let Some(revision) = revision {
            self.store.note(seen, revision);
        }
        let now = (connection.map_or(0, |connection| connection.generation), self.recoveries());
        let before = self.compared.locked().replace(now);
        if before.is_some_and(|before| before != now) {
            self.store.suspect();
        }
    }

    /// Waits until etcd answers requests on this channel again. Never returns if it answered the latest one.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn recovered(&self) {
        self.recovered_since(self.recoveries()).await;
    }

    /// See [`Recovery::recoveries`].
    pub(crate) fn recoveries(&self) -> u64 {
        self.recovery.recoveries()
    }

    /// See [`Recovery::recovered_since`].
    pub(crate) async fn recovered_since(&self, noted: u64) {
        let count = GetOptions::new().with_count_only();
        let ask = |mut clients: Clients| {
            let options = count.clone();
            async move { clients.kv.get(PROBED, Some(options)).await }
        };
        self.recovery.recovered_since(noted, || self.ask_within("probe", PROBE_LIMIT, ask)).await;
    }

    /// Opens a watch. Returns it with its connection.
    pub(crate) async fn watch(&self, range: &KeyRange, options: WatchOptions) -> Result<(WatchCall, Dialled), Failure> {
        // The clients are made before, with the first token.
        let open = |_| WatchCall::open(self.requests.clone(), range, options).err_into();
        let (call, connection) = self.send("watch", self.limit, Repeat::Harmless, &Used::default(), open).await?;
        // An answered call has a connection.
        let connection = connection.ok_or_else(|| Failure::Lost(text_cause("a watch without a connection")))?;
        Ok((call, connection))
    }

    /// Leaves a member that answered with `failure`, if another one may serve the request. Returns the connection of
    /// the next request.
    pub(crate) fn blame(&self, connection: &Dialled, failure: &Failure) -> NextConnection {
        let is_refused = failure.is_of_the_member() && self.channel.refused(connection);
        if is_refused { NextConnection::Another } else { NextConnection::Same }
    }
}
