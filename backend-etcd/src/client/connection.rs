//! Requests to etcd: a deadline for each, a fresh token when the old one is refused, another member when one is silent.
//!
//! Two lanes, each a connection of its own: one for leases and small transactions, one for watches and lists. A full
//! watch connection blocks every request on it, and renewals must not wait.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use enlist::{LeaseId, Moment, Revision, TaskOwner, backend::rounded};
use etcd_client::{
    Channel, Client, ConnectOptions, GetOptions, GetResponse, KvClient, LeaseClient, LeaseTimeToLiveOptions,
    PutOptions, TxnOp, WatchClient, WatchOptions, WatchStream,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;
use tonic::transport::Endpoint;

use crate::{
    client::{
        channel::{Dialled, Failover, Used},
        hooks::{Layers, Requests},
        limits::{self, RangeLimits},
        writes::{Guard, Outcome, QueueEffect, Write, WriteBatcher},
    },
    error::{Failure, classify, is_auth_off, text_cause},
    lock::local_queue::OwnEntry,
    session::recovery::{PROBE_LIMIT, Recovery},
    watch::{
        audit::Page,
        record::{KeyRange, Record},
    },
};

/// The largest answer that is accepted. tonic's own limit is 4 MiB, which 12,000 instances exceed.
const MAX_ANSWER: usize = 64 << 20;

/// Keys per page of a list, at most.
pub(crate) const PAGE: i64 = 1000;

/// Keys per page of a list over a slow connection.
const SMALL_PAGE: i64 = 16;

/// The key that is read to see whether etcd answers. A refusal is an answer too.
const PROBED: &[u8] = b"\0";

/// Number of times that a request that was never sent is sent again within its deadline.
const RESENDS: usize = 3;

/// Number of members that a request is sent to within its deadline because others did not serve it.
const MEMBERS: usize = 4;

/// Repeatability of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// It only reads, or is the same when it is done again.
    Harmless,
    /// It is sent again only if it certainly was not done.
    Unsafe,
}

/// Part of the cluster that answers a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    /// A quorum: nothing that was acknowledged before is missing.
    Linearizable,
    /// One member, as far as it has got.
    Serializable,
}

/// User and password.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: SecretString,
}

/// The sub-clients of one lane. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
    client: Client,
}

/// One connection.
pub(crate) struct RequestChannel {
    channel: Failover,
    /// The same connection, inside of the user's layers.
    requests: Requests,
    credentials: Option<Credentials>,
    clients: OnceCell<Clients>,
    limit: Duration,
    /// One refresh of the token at a time; holds when the last one was.
    refreshed: tokio::sync::Mutex<Option<Moment>>,
    recovery: Recovery,
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
    fn new(channel: Failover, layers: &Layers, credentials: Option<Credentials>, limit: Duration) -> Self {
        let (clients, refreshed, recovery) = (OnceCell::new(), tokio::sync::Mutex::new(None), Recovery::default());
        let requests = layers.around(channel.clone());
        Self { channel, requests, credentials, clients, limit, refreshed, recovery }
    }

    /// Gives a connection up because its member does not answer. A newer one is left alone.
    pub(crate) fn give_up(&self, connection: &Dialled) {
        self.channel.give_up(connection);
    }

    /// The clients; the first call authenticates, if there is a user. Where users are not asked for, it goes on without, as Go's client
    /// does: they may be from one moment on.
    async fn clients(&self) -> Result<&Clients, Failure> {
        let make = async {
            let channel = Channel::Custom(self.requests.clone());
            // A refused token is renewed by `send`.
            let options = ConnectOptions::new().with_require_leader(true);
            let mut client = Client::from_channel(channel, Some(options)).await.map_err(|error| classify(&error))?;
            self.authenticate(&mut client).await?;
            Ok(Clients {
                kv: client.kv_client().max_decoding_message_size(MAX_ANSWER),
                lease: client.lease_client(),
                watch: client.watch_client().max_decoding_message_size(MAX_ANSWER),
                client,
            })
        };
        self.clients.get_or_try_init(|| Box::pin(make)).await
    }

    /// Gets a token for the user, if there is one, and if users are asked for.
    async fn authenticate(&self, client: &mut Client) -> Result<(), Failure> {
        let Some(Credentials { user, password }) = &self.credentials else { return Ok(()) };
        match client.update_user(Some((user.clone(), password.expose_secret().to_owned()))).await {
            Err(error) if is_auth_off(&error) => {
                tracing::debug!("authentication is not enabled, the user is not needed");
                // A token of before would be looked at all the same.
                client.update_user(None).await.map_err(|error| classify(&error))
            }
            outcome => outcome.map_err(|error| classify(&error)),
        }
    }

    /// Gets a new token, unless another caller just did.
    pub(crate) async fn refresh_token(&self) -> Result<(), Failure> {
        let used = Used::default();
        self.within("refreshing the token", self.limit, &used, self.refresh(&used)).await
    }

    async fn refresh(&self, used: &Used) -> Result<(), Failure> {
        // Whoever waits for another one to be done with it waits for no answer.
        used.answered();
        let asked = Moment::now();
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.is_some_and(|last| last.since(asked) > Duration::ZERO) {
            return Ok(());
        }
        let clients = self.clients().await?;
        Box::pin(self.authenticate(&mut clients.client.clone())).await?;
        *refreshed = Some(Moment::now());
        Ok(())
    }

    /// Waits for `call`, at most `limit`. At the limit the connection that owes an answer is given up, if there is one.
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

    /// Sends a request under the lane's deadline. What certainly was not done is sent again, to another member if this one refuses
    /// it, and a stale token is renewed once.
    pub(crate) async fn call<T, F>(&self, what: &str, request: impl Fn(Clients) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.send(what, self.limit, Repeat::Unsafe, &Used::default(), request).await.map(|(answer, _)| answer)
    }

    /// As [`call`](Self::call), for what may be done twice: it also goes to another member if this one may have done it.
    pub(crate) async fn ask<T, F>(&self, what: &str, request: impl Fn(Clients) -> F) -> Result<T, Failure>
    where
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
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.send(what, limit, Repeat::Harmless, &Used::default(), request).await.map(|(answer, _)| answer)
    }

    /// As [`ask`](Self::ask), for what a member may answer that knows no leader. It says nothing about whether etcd is back.
    async fn ask_any_member<T, F>(&self, what: &str, request: impl Fn(Clients) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let used = Used::leaderless();
        self.send(what, self.limit, Repeat::Harmless, &used, request).await.map(|(answer, _)| answer)
    }

    /// Sends a request. With the answer comes the connection that it came over, on which a stream goes on.
    async fn send<T, F>(
        &self,
        what: &str,
        limit: Duration,
        repeat: Repeat,
        used: &Used,
        request: impl Fn(Clients) -> F,
    ) -> Result<(T, Option<Dialled>), Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        // Boxed: the client's futures are large, and a task has one at a time however many calls its code names.
        let attempts = Box::pin(async {
            let (mut renewed, mut sends, mut members) = (false, 0, 1);
            loop {
                let mut outcome = match self.clients().await {
                    Ok(clients) => request(clients.clone()).await.map_err(|error| classify(&error)),
                    Err(failure) => Err(failure),
                };
                let has_user = self.credentials.is_some();
                if matches!(outcome, Err(Failure::StaleAuthToken(_) | Failure::NoUser(_))) && has_user && !renewed {
                    renewed = true;
                    match self.refresh(used).await {
                        Ok(()) => continue,
                        Err(failure) => outcome = Err(failure),
                    }
                }
                let connection = used.connection();
                used.answered();
                let failure = match outcome {
                    Ok(answer) => return Ok((answer, connection)),
                    Err(failure) => failure,
                };
                let moved = connection.as_ref().is_some_and(|connection| self.blame(connection, &failure));
                match failure {
                    Failure::NeverSent(_) if sends < RESENDS => sends += 1,
                    Failure::Unfit(_) if moved && members < MEMBERS => members += 1,
                    Failure::Leaderless(_) if moved && members < MEMBERS && repeat == Repeat::Harmless => members += 1,
                    failure => return Err(failure.at(connection.as_ref().and_then(Dialled::url))),
                }
            }
        });
        let outcome = self.within(what, limit, used, attempts).await;
        if !used.is_leaderless() {
            self.recovery.note(&outcome);
        }
        outcome
    }

    /// Waits until etcd answers requests on this lane again. Never returns if it answered the latest one.
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

    /// Opens a watch. With it comes its connection.
    pub(crate) async fn watch(&self, start: &[u8], options: &WatchOptions) -> Result<(WatchStream, Dialled), Failure> {
        let open = |mut clients: Clients| async move { clients.watch.watch(start, Some(options.clone())).await };
        let (stream, connection) = self.send("watch", self.limit, Repeat::Harmless, &Used::default(), open).await?;
        // What was answered was sent over some connection.
        let connection = connection.ok_or_else(|| Failure::Lost(text_cause("a watch without a connection")))?;
        Ok((stream, connection))
    }

    /// Leaves a member that answered with `failure`, if another one may do better. Says whether the next request goes over another
    /// connection.
    pub(crate) fn blame(&self, connection: &Dialled, failure: &Failure) -> bool {
        failure.is_of_the_member() && self.channel.refused(connection)
    }
}

/// Maximum number of marks of a line that are looked at: with those a transaction is full.
const MAX_MARKS: i64 = 100;

/// Number of transactions with registrations that are under way at a time.
const REGISTRATIONS: usize = 2;

/// Number of transactions with places in line that are under way at a time.
const PLACES: usize = 4;

/// Both lanes.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Leases and small transactions.
    pub(crate) fast: Arc<RequestChannel>,
    /// Guarded writes of instances.
    writes: WriteBatcher,
    /// Guarded writes of places in line.
    places: WriteBatcher,
    /// Watches and lists.
    pub(crate) bulk: RequestChannel,
    /// Keys per page of the next list: few after one did not arrive in time, more again after one that did.
    page: AtomicI64,
    /// Maximum size of a range.
    pub(crate) limits: RangeLimits,
}

/// A revision as etcd's API has it.
pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

/// Outcome of a guarded write.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    /// It was done, at this revision.
    Done(Revision),
    /// The guard did not hold; this is what the key is.
    Refused(Option<Record>),
}

impl Written {
    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { revision, .. } => Self::Done(revision),
            Outcome::Refused(found) => Self::Refused(found.into_iter().flatten().next()),
        }
    }
}

/// The part of a line that is read after a write to it.
#[derive(Debug)]
pub(crate) struct LineRead<'a> {
    pub(crate) line: &'a KeyRange,
    pub(crate) options: GetOptions,
    /// The marks beside it, where they matter.
    pub(crate) marks: Option<&'a KeyRange>,
}

impl LineRead<'_> {
    fn ops(self) -> impl Iterator<Item = TxnOp> {
        let marks = self.marks.map(|marks| {
            let options = GetOptions::new().with_limit(MAX_MARKS);
            let options = marks.end.iter().fold(options, |options, end| options.with_range(end.clone()));
            TxnOp::get(&marks.start[..], Some(options))
        });
        std::iter::once(TxnOp::get(&self.line.start[..], Some(self.options))).chain(marks)
    }
}

/// The part of a line that was read, at a revision.
#[derive(Debug, Default)]
pub(crate) struct LineFound {
    pub(crate) at: Revision,
    pub(crate) line: Vec<Record>,
    pub(crate) marks: Vec<Record>,
}

impl Connection {
    pub(crate) fn new(
        tasks: &TaskOwner,
        fast: Failover,
        bulk: Failover,
        layers: &Layers,
        credentials: Option<&Credentials>,
        limit: Duration,
        limits: RangeLimits,
    ) -> Self {
        let lane = |channel| RequestChannel::new(channel, layers, credentials.cloned(), limit);
        let fast = Arc::new(lane(fast));
        let (writes, places) =
            (WriteBatcher::start(tasks, &fast, REGISTRATIONS), WriteBatcher::start(tasks, &fast, PLACES));
        Self { fast, writes, places, bulk: lane(bulk), page: AtomicI64::new(PAGE), limits }
    }

    /// One linearizable read of a key.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
        let response = self.fast.ask("get", |mut clients| async move { clients.kv.get(key, None).await }).await?;
        let revision = revision_of(&response);
        Ok((records(response).next(), revision))
    }

    /// Puts a key under a guard.
    pub(crate) async fn put(
        &self,
        key: &Arc<[u8]>,
        guard: Guard,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> Result<Written, Failure> {
        self.put_unless(key, guard, value, lease, std::future::pending()).await
    }

    /// As [`put`](Self::put). Given up before it was sent, it is not sent.
    pub(crate) async fn put_unless(
        &self,
        key: &Arc<[u8]>,
        guard: Guard,
        value: &[u8],
        lease: Option<LeaseId>,
        given_up: impl Future<Output = ()>,
    ) -> Result<Written, Failure> {
        let ops = vec![put(key, value, lease)];
        let write = Write {
            guards: vec![(Arc::clone(key), guard)],
            ops,
            size: key.len() + value.len(),
            line: QueueEffect::Apart,
            deferrable: false,
        };
        self.writes.send_unless(write, given_up).await.map(Written::of)
    }

    /// Deletes a key under a guard.
    pub(crate) async fn delete(&self, key: &[u8], guard: Guard) -> Result<Written, Failure> {
        let ops = vec![TxnOp::delete(key, None)];
        let write = Write {
            guards: vec![(key.into(), guard)],
            ops,
            size: key.len(),
            line: QueueEffect::Apart,
            deferrable: false,
        };
        self.writes.send(write).await.map(Written::of)
    }

    /// Creates a place in a line and reads the line after that: `Ok` if it was not there, else what it is. Who is `deferrable` may
    /// wait a moment for another write to go along with. Given up before it was sent, it is not sent.
    pub(crate) async fn enter(
        &self,
        place: &OwnEntry,
        read: LineRead<'_>,
        deferrable: bool,
        given_up: impl Future<Output = ()>,
    ) -> Result<Result<LineFound, Option<Record>>, Failure> {
        let line = QueueEffect::Enters(read.line.start.clone());
        let ops = std::iter::once(place.create()).chain(read.ops()).collect();
        let guards = vec![(place.key[..].into(), Guard::Absent)];
        let write = Write { guards, ops, size: place.size(), line, deferrable };
        self.places.send_unless(write, given_up).await.map(read_of)
    }

    /// Writes a place again, which proves that it is there, and reads the line after that: `Ok` if the place is the one that was
    /// created then.
    pub(crate) async fn confirm(
        &self,
        place: &OwnEntry,
        read: LineRead<'_>,
    ) -> Result<Result<LineFound, Option<Record>>, Failure> {
        let ops = std::iter::once(place.rewrite()).chain(read.ops()).collect();
        let guards = vec![(place.key[..].into(), Guard::Created(place.token))];
        self.places
            .send(Write { guards, ops, size: place.size(), line: QueueEffect::Apart, deferrable: false })
            .await
            .map(read_of)
    }

    /// Reads a key along with what is written for places at the moment. The answer is at least as new as every earlier one.
    pub(crate) async fn look(&self, key: &[u8]) -> Result<(Option<Record>, Revision), Failure> {
        let ops = vec![TxnOp::get(key, None)];
        let guards = vec![(key.into(), Guard::Any)];
        let write = Write { guards, ops, size: key.len(), line: QueueEffect::Apart, deferrable: false };
        match self.places.send(write).await? {
            Outcome::Done { revision, reads } => Ok((reads.into_iter().flatten().next(), revision)),
            Outcome::Refused(_) => Err(Failure::Lost(text_cause("a read without a condition was refused"))),
        }
    }

    /// Deletes a place together with its mark, if it has one, under a guard. Says whether it was done.
    pub(crate) async fn remove(&self, key: &[u8], created: Revision, mark: Option<&[u8]>) -> Result<bool, Failure> {
        let mut guards = vec![(key.into(), Guard::Created(created))];
        let mut ops = vec![TxnOp::delete(key, None)];
        guards.extend(mark.map(|mark| (mark.into(), Guard::Any)));
        ops.extend(mark.map(|mark| TxnOp::delete(mark, None)));
        let size = key.len() + mark.map_or(0, <[u8]>::len);
        let write = Write { guards, ops, size, line: QueueEffect::Apart, deferrable: false };
        self.writes.send(write).await.map(|outcome| matches!(outcome, Outcome::Done { .. }))
    }

    /// Marks the holder of a place, and removes what holders before it have left, if the place is still there. Says whether it is.
    pub(crate) async fn mark(&self, place: &OwnEntry, mark: &[u8], left: &[Record]) -> Result<bool, Failure> {
        let others = || left.iter().filter(|record| *record.key != *mark);
        let mut guards = vec![(place.key[..].into(), Guard::Created(place.token)), (mark.into(), Guard::Any)];
        guards.extend(others().map(|record| (Arc::clone(&record.key), Guard::Any)));
        let mut ops = vec![put(mark, &place.value, None)];
        ops.extend(others().map(|record| TxnOp::delete(&record.key[..], None)));
        let size = mark.len() + place.size() + others().map(|record| record.key.len()).sum::<usize>();
        let write = Write { guards, ops, size, line: QueueEffect::Apart, deferrable: false };
        self.places.send(write).await.map(|outcome| matches!(outcome, Outcome::Done { .. }))
    }

    /// Puts marks as they were seen under a lease, if all of them are still so.
    pub(crate) async fn attach(&self, marks: &[&Record], lease: LeaseId) -> Result<(), Failure> {
        let guards = marks.iter().map(|mark| (Arc::clone(&mark.key), Guard::Modified(mark.modified))).collect();
        let options = || Some(PutOptions::new().with_lease(lease.get()).with_ignore_value());
        let ops = marks.iter().map(|mark| TxnOp::put(&mark.key[..], "", options())).collect();
        let size = marks.iter().map(|mark| mark.key.len()).sum();
        self.places.send(Write { guards, ops, size, line: QueueEffect::Apart, deferrable: false }).await.map(drop)
    }

    /// Deletes the place in `line` that was created at `created`, with its mark, and confirms that of `successor`, in one transaction,
    /// at the revision that is returned. `None`: one of them was not there, and nothing was done.
    pub(crate) async fn hand_over(
        &self,
        (key, created): (&[u8], Revision),
        mark: Option<&[u8]>,
        successor: &OwnEntry,
        line: &KeyRange,
    ) -> Result<Option<Revision>, Failure> {
        let mut guards =
            vec![(key.into(), Guard::Created(created)), (successor.key[..].into(), Guard::Created(successor.token))];
        guards.extend(mark.map(|mark| (mark.into(), Guard::Any)));
        let mut ops = vec![TxnOp::delete(key, None), successor.rewrite()];
        ops.extend(mark.map(|mark| TxnOp::delete(mark, None)));
        let write = Write {
            guards,
            ops,
            size: key.len() + successor.size(),
            line: QueueEffect::Leaves(line.start.clone()),
            deferrable: false,
        };
        self.places.send(write).await.map(|outcome| match outcome {
            Outcome::Done { revision, .. } => Some(revision),
            Outcome::Refused(_) => None,
        })
    }

    /// Reads a range, sorted or limited as `options` say.
    pub(crate) async fn range(&self, start: &[u8], options: &GetOptions) -> Result<(Vec<Record>, Revision), Failure> {
        let read = |mut clients: Clients| async move { clients.kv.get(start, Some(options.clone())).await };
        let response = self.fast.ask("range", read).await?;
        let revision = revision_of(&response);
        Ok((records(response).collect(), revision))
    }

    /// Lists a range by pages, all at one revision. One that exceeds the limits is given up as soon as that is known.
    pub(crate) async fn list(&self, range: &KeyRange) -> Result<(Vec<Record>, Revision), Failure> {
        self.list_as(range, Consistency::Linearizable).await
    }

    /// Lists a range as one member has it, which may lag behind the others and need not know a leader.
    pub(crate) async fn list_of_a_member(&self, range: &KeyRange) -> Result<(Vec<Record>, Revision), Failure> {
        self.list_as(range, Consistency::Serializable).await
    }

    async fn list_as(&self, range: &KeyRange, consistency: Consistency) -> Result<(Vec<Record>, Revision), Failure> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        let mut at = None;
        let mut from = range.start.clone();
        let mut page = self.page.load(Ordering::Relaxed);
        loop {
            let mut options = GetOptions::new().with_limit(page);
            if let Some(end) = &range.end {
                options = options.with_range(end.clone());
            }
            if let Some(revision) = at {
                options = options.with_revision(signed(revision));
            }
            if consistency == Consistency::Serializable {
                options = options.with_serializable();
            }
            let (from_key, options_ref) = (&from, &options);
            let read =
                |mut clients: Clients| async move { clients.kv.get(from_key.clone(), Some(options_ref.clone())).await };
            let answer = match consistency {
                Consistency::Linearizable => self.bulk.ask("list", read).await,
                Consistency::Serializable => self.bulk.ask_any_member("list of a member", read).await,
            };
            let response = match answer {
                // A thousand values of a megabyte do not fit into one answer.
                Err(Failure::AnswerTooLarge(_)) if page > 1 => {
                    page = (page / 8).max(1);
                    continue;
                }
                // The next list asks for less at a time; this one is given up, so that trouble shows.
                Err(Failure::Lost(cause)) => {
                    self.page.store((page / 4).max(SMALL_PAGE), Ordering::Relaxed);
                    return Err(Failure::Lost(cause));
                }
                outcome => outcome?,
            };
            at.get_or_insert(revision_of(&response));
            let more = response.more();
            // Of the rest of the range.
            let keys = records.len() + usize::try_from(response.count()).unwrap_or(0);
            let read = records.len();
            records.extend(self::records(response));
            bytes += records[read..].iter().map(limits::size).sum::<usize>();
            self.limits.check(range, keys.max(records.len()), bytes).map_err(Failure::Final)?;
            match records.last() {
                Some(last) if more => from = [&last.key[..], &[0]].concat(),
                _ => {
                    self.page.store((page * 2).min(PAGE), Ordering::Relaxed);
                    return Ok((records, at.unwrap_or_default()));
                }
            }
        }
    }

    /// Reads the keys of a range from `from` on, without their values, as many as go into a page. `floor` goes along with it.
    pub(crate) async fn page(&self, range: &KeyRange, from: Vec<u8>, floor: Revision) -> Result<Page, Failure> {
        let limit = self.page.load(Ordering::Relaxed);
        let mut options = GetOptions::new().with_limit(limit).with_keys_only();
        if let Some(end) = &range.end {
            options = options.with_range(end.clone());
        }
        let (from_key, options_ref) = (&from, &options);
        let read =
            |mut clients: Clients| async move { clients.kv.get(from_key.clone(), Some(options_ref.clone())).await };
        let response = self.bulk.ask("audit", read).await.inspect_err(|failure| {
            // The next page is smaller, as that of a list.
            if let Failure::Lost(_) = failure {
                self.page.store((limit / 4).max(SMALL_PAGE), Ordering::Relaxed);
            }
        })?;
        let (revision, more) = (revision_of(&response), response.more());
        let count = usize::try_from(response.count()).unwrap_or(0);
        let records: Vec<Record> = self::records(response).collect();
        let upto = records.last().filter(|_| more).map(|last| Arc::clone(&last.key));
        Ok(Page { from, upto, records, revision, count, floor })
    }

    /// Reads one key, which need not be there: at which revision is the store? Not over the connection of the watches, where the answer
    /// would come behind what they are told.
    pub(crate) async fn probe(&self, key: &[u8], limit: Duration) -> Result<Revision, Failure> {
        let read =
            |mut clients: Clients| async move { clients.kv.get(key, Some(GetOptions::new().with_count_only())).await };
        let response = self.fast.ask_within("probe", limit.min(self.fast.limit), read).await?;
        Ok(revision_of(&response))
    }

    /// Asks the member that watches go to for its version, unless that is known.
    pub(crate) async fn learn_version(&self) -> Result<(), Failure> {
        if self.bulk.channel.current().is_none_or(|connection| connection.answers_in_order().is_some()) {
            return Ok(());
        }
        let ask = |mut clients: Clients| async move {
            match clients.client.status().await {
                Ok(status) => Ok(Some(status.version().to_owned())),
                Err(error) if matches!(classify(&error), Failure::Denied) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (limit, used) = (self.bulk.limit, Used::default());
        let (version, connection) = self.bulk.send("version", limit, Repeat::Harmless, &used, ask).await?;
        if let Some(connection) = connection {
            // Only releases that answer in order want a permission for this: 3.5.28 and later, 3.6.9 and later.
            connection.learn(version.is_none_or(|version| answers_in_order(&version)));
        }
        Ok(())
    }

    /// Returns `true` if the member that watches go to answers anything within `limit`. A refusal is an answer.
    pub(crate) async fn answers(&self, range: &KeyRange, limit: Duration) -> bool {
        let ask = |mut clients: Clients| {
            let start = range.start.clone();
            async move { clients.kv.get(start, Some(GetOptions::new().with_count_only())).await }
        };
        let answer = self.bulk.ask_within("sign of life", limit, ask).await;
        !matches!(answer, Err(Failure::NeverSent(_) | Failure::Lost(_) | Failure::Leaderless(_) | Failure::Unfit(_)))
    }

    /// The URLs at which the members that serve clients say to be found. Learners refuse nearly everything.
    pub(crate) async fn advertised(&self) -> Result<Vec<String>, Failure> {
        let ask = |mut clients: Clients| async move { clients.client.member_list().await };
        let response = self.fast.ask("member list", ask).await?;
        let members = response.members().iter().filter(|member| !member.is_learner());
        Ok(members.flat_map(|member| member.client_urls().to_vec()).collect())
    }

    /// Dials these members from now on, and then the configured ones.
    pub(crate) fn take_over(&self, members: &[Endpoint]) {
        self.fast.channel.take_over(members);
        self.bulk.channel.take_over(members);
    }

    /// Remaining time of a lease, and the time that it was granted for; `None` if it is gone.
    pub(crate) async fn time_to_live(&self, lease: LeaseId) -> Result<Option<(Duration, Duration)>, Failure> {
        let ask = |mut clients: Clients| async move { clients.lease.time_to_live(lease.get(), None).await };
        let response = self.fast.ask("time to live", ask).await?;
        let seconds = |value: i64| Duration::from_secs(u64::try_from(value).unwrap_or(0));
        Ok((response.ttl() >= 0).then(|| (seconds(response.ttl()), seconds(response.granted_ttl()))))
    }

    /// The keys under a lease, as its leader knows them, which need not be the latest; none if it is gone.
    pub(crate) async fn keys_under(&self, lease: LeaseId) -> Result<Vec<Vec<u8>>, Failure> {
        let ask = |mut clients: Clients| async move {
            let keys = LeaseTimeToLiveOptions::new().with_keys();
            clients.lease.time_to_live(lease.get(), Some(keys)).await
        };
        let response = self.fast.ask("keys of a lease", ask).await?;
        Ok(response.keys().to_vec())
    }
}

/// Returns `true` if a member of this version sends all events before it answers a request for progress (etcd-io/etcd#15220).
fn answers_in_order(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next(), parts.next()) {
        (Some(3), Some(4), Some(patch)) => patch >= 25,
        (Some(3), Some(5), Some(patch)) => patch >= 8,
        (Some(3), Some(minor), _) => minor >= 6,
        (Some(major), ..) => major > 3,
        _ => false,
    }
}

/// Records that were read.
pub(crate) fn records(response: GetResponse) -> impl Iterator<Item = Record> {
    response.0.kvs.into_iter().map(Record::from)
}

fn revision_of(response: &GetResponse) -> Revision {
    header_revision(response.header())
}

/// The revision in a header; 0 where there is none, which orders before everything.
pub(crate) fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    Revision::new(header.map_or(0, |header| u64::try_from(header.revision()).unwrap_or(0)))
}

/// A put of a key that `lease` keeps.
fn put(key: &[u8], value: &[u8], lease: Option<LeaseId>) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease.map_or(0, LeaseId::get))))
}

/// The result of a write to a line: the state found, or its key.
fn read_of(outcome: Outcome) -> Result<LineFound, Option<Record>> {
    match outcome {
        Outcome::Done { revision, reads } => {
            let mut reads = reads.into_iter();
            let mut next = || reads.next().unwrap_or_default();
            Ok(LineFound { at: revision, line: next(), marks: next() })
        }
        Outcome::Refused(found) => Err(found.into_iter().flatten().next()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_answer_in_order_are_known_by_their_version() {
        for version in ["3.4.25", "3.4.45", "3.5.8", "3.5.30", "3.6.0", "3.6.0-rc.1", "3.7.3", "4.0.0"] {
            assert!(answers_in_order(version), "{version}");
        }
        for version in ["3.3.27", "3.4.23", "3.4.24", "3.5.0", "3.5.7", "3.5.7+git", "2.3.8", "", "unknown", "3", "3.4"]
        {
            assert!(!answers_in_order(version), "{version}");
        }
    }
}
