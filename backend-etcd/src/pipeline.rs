//! List, then watch, for ever: keeps a [`Mirror`] of a range up to date and publishes it.
//!
//! ```text
//! Unsynced ─list at R─► Live ─stream ends─► resume from the last complete revision R, less what it told before
//!     ▲                  │
//!     └── history gone, or the store went back: list again, and the readers see the difference
//! ```
//!
//! Not from R + 1: some releases of etcd forget a deletion at the revision to which the history was compacted
//! (etcd-io/etcd#18089, #19179), and accept a watch from there. One from R is either told everything after it, or that R is
//! gone.
//!
//! Each way in which a watch can end is told apart by [`End`]; what follows is decided in [`Worker::run`]. A watch that is
//! silent is asked for a sign of life, because a dead peer says nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use enlist::{BackoffPolicy, Counter, Counters, Epoch, Error, Feed, Moment, Revision, TaskOwner, feed::FeedReader};
use etcd_client::{GetOptions, WatchOptions, WatchResponse, WatchStream};
use tracing::Instrument;

use crate::{
    audit::{Answer, Audit, Outcome, Verdict},
    channel::Dialled,
    connection::{Connection, header_revision, signed},
    error::{Failure, classify, classify_cancel, said},
    mirror::{KeyEvent, Mirror},
    record::{KeyRange, Record},
    session::Session,
};

/// How long a watch may be silent before it is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(5);

/// How long it may take to give one; a healthy one needs milliseconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How long its member may then take to answer another request.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a watch may stay silent all the same if its member answers other requests, twice as long after each time that this
/// did not help. A member that prepares a revision of a hundred thousand keys says nothing on the watch for 10 s and more, and
/// would start over at each resumption.
const PATIENCE: Duration = Duration::from_secs(24);

/// The most doublings of that.
const MAX_DOUBLINGS: u32 = 3;

/// After so many messages in a row that told nothing new the watch goes to another member.
const MAX_REPEATS: u32 = 3;

/// How long trouble that somebody has to mend is left alone.
const SLOW: Duration = Duration::from_secs(10);

/// A running pipeline. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Pipeline {
    feed: Arc<Feed<Mirror>>,
    _tasks: TaskOwner,
}

/// How long a pipeline goes on after the last reader, where somebody is likely to read it again.
const LINGER: Duration = Duration::from_secs(5);

/// The pipelines of a session: one per range, however many readers.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    running: Mutex<HashMap<KeyRange, Weak<Pipeline>>>,
    /// Those that somebody keeps for a while.
    lingering: Arc<Mutex<HashSet<KeyRange>>>,
}

impl Hub {
    /// A reader of `range`, which keeps its pipeline and `session` alive.
    pub(crate) fn follow(&self, session: &Arc<Session>, range: &KeyRange) -> Result<FeedReader<Mirror>, Error> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pipeline| pipeline.strong_count() > 0);
        let pipeline = if let Some(pipeline) = running.get(range).and_then(Weak::upgrade) {
            pipeline
        } else {
            let pipeline = Arc::new(start(session, range.clone(), None)?);
            running.insert(range.clone(), Arc::downgrade(&pipeline));
            pipeline
        };
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, Arc::clone(session)))))
    }

    /// Keeps the pipeline of `range`, if there is one, for a while after its last reader. It does not keep the session.
    pub(crate) fn linger(&self, tasks: &TaskOwner, range: &KeyRange) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pipeline) = running.get(range).and_then(Weak::upgrade) else {
            return;
        };
        drop(running);
        let lingering = Arc::clone(&self.lingering);
        if !lingering.lock().unwrap_or_else(PoisonError::into_inner).insert(range.clone()) {
            return;
        }
        let (range, stop) = (range.clone(), tasks.stop_signal());
        // After the end of the session nothing lingers.
        let _ = tasks.spawn("linger", async move {
            stop.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            lingering.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
            drop(pipeline);
        });
    }

    /// A reader of one key that begins with what is known of it, without a list. Not shared.
    pub(crate) fn follow_key(
        session: &Arc<Session>,
        key: &[u8],
        known: Option<Record>,
        revision: Revision,
        begin: Begin,
    ) -> Result<FeedReader<Mirror>, Error> {
        let range = KeyRange::key(key);
        let mut mirror = Mirror::new(revision, Epoch::default());
        mirror.relist(known.into_iter().collect(), revision, Epoch::default());
        let pipeline = start(session, range, Some((mirror, begin)))?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, Arc::clone(session)))))
    }
}

/// Where the watch of a key begins of which something is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// After what is known. Where others wrote meanwhile, etcd serves it within 100 ms, as each watch that begins in the past.
    Known,
    /// Now, which is served at once. What happened in between is read once it is open.
    Now,
}

fn start(session: &Arc<Session>, range: KeyRange, known: Option<(Mirror, Begin)>) -> Result<Pipeline, Error> {
    session.check_open()?;
    let (mirror, begin) = known.map_or((None, Begin::Known), |(mirror, begin)| (Some(mirror), begin));
    let feed = Arc::new(Feed::new());
    let tasks = TaskOwner::on(session.runtime());
    let (stop, closed) = (tasks.stop_signal(), session.tasks.stop_signal());
    let worker = Worker {
        conn: Arc::clone(&session.conn),
        range,
        feed: Arc::clone(&feed),
        mirror,
        epoch: Epoch::default(),
        audit: Audit::new(session.audit),
        counters: Arc::clone(&session.counters),
        opened: false,
        begin,
        begins: Revision::default(),
        read: Revision::default(),
        repeats: 0,
        silences: 0,
    };
    let published = Arc::clone(&feed);
    let span = tracing::info_span!("watch", range = %worker.range.describe());
    let run = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.cancelled() => published.close(),
            () = worker.run() => {}
        }
    };
    tasks.spawn("watch", run.instrument(span))?;
    Ok(Pipeline { feed, _tasks: tasks })
}

/// How a round of list and watch came to its end.
#[derive(Debug)]
enum End {
    /// The history after the last revision is gone.
    Compacted,
    /// The store's revision is lower than it was.
    WentBack,
    /// An audit found so many keys that are not as in etcd.
    Wrong(usize),
    /// A request failed, or the stream ended or fell silent.
    Broken(Failure),
}

struct Worker {
    conn: Arc<Connection>,
    range: KeyRange,
    feed: Arc<Feed<Mirror>>,
    /// What is known; `None` before the first list.
    mirror: Option<Mirror>,
    epoch: Epoch,
    audit: Audit,
    counters: Arc<Counters>,
    /// A watch was open before.
    opened: bool,
    /// Where the first one begins.
    begin: Begin,
    /// Where the watch begins that is open. What it tells of this revision itself is known.
    begins: Revision,
    /// What the watch tells up to this revision was read once it was open.
    read: Revision,
    /// How many messages in a row told nothing new.
    repeats: u32,
    /// How often in a row a watch was given up because it was silent.
    silences: u32,
}

impl Worker {
    async fn run(mut self) {
        let mut backoff = BackoffPolicy::default().start();
        let mut list = self.mirror.is_none();
        let mut refreshed = false;
        loop {
            let mut progressed = false;
            let end = match self.round(list, &mut progressed).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.audit.interrupt();
            if progressed {
                backoff.reset();
                refreshed = false;
            }
            list = self.mirror.is_none();
            let delay = match end {
                End::Compacted => {
                    tracing::debug!("watch compacted, listing again");
                    list = true;
                    Duration::ZERO
                }
                End::WentBack => {
                    tracing::warn!("store went back, listing again");
                    self.counters.count(Counter::StoreWentBack);
                    self.epoch = self.epoch.next();
                    list = true;
                    Duration::ZERO
                }
                End::Wrong(keys) => {
                    tracing::warn!(keys, "watch had missed changes, listing again");
                    self.counters.add(Counter::AuditRepairs, keys as u64);
                    list = true;
                    Duration::ZERO
                }
                // etcd 3.5 calls an expired token on a watch a missing permission: a fresh one tells them apart.
                End::Broken(Failure::StaleToken(_) | Failure::Denied)
                    if !refreshed && self.conn.bulk.refresh_token().await.is_ok() =>
                {
                    refreshed = true;
                    Duration::ZERO
                }
                End::Broken(failure) => self.broken(failure, &mut backoff),
            };
            // Also without a delay the others get their turn.
            tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
        }
    }

    /// Publishes the trouble; returns how long to leave it alone.
    fn broken(&self, failure: Failure, backoff: &mut enlist::Backoff) -> Duration {
        let error = failure.into_error(&self.range.describe());
        tracing::debug!(cause = %error, "watch broken");
        if error.is_retryable() {
            self.feed.stale(error);
            backoff.next_delay()
        } else {
            self.feed.refuse(error);
            SLOW
        }
    }

    /// Lists if asked to, then follows a watch until it ends.
    async fn round(&mut self, list: bool, progressed: &mut bool) -> Result<std::convert::Infallible, End> {
        if list {
            self.list().await?;
            *progressed = true;
        }
        let asked = Moment::now();
        let (mut stream, connection) = self.open(list).await?;
        let mut parts = Vec::new();
        let (conn, counters, range) = (Arc::clone(&self.conn), Arc::clone(&self.counters), self.range.clone());
        loop {
            let patience = PATIENCE * 2u32.pow(self.silences);
            // One wait however many steps of an audit come in between: they are no sign of life.
            let mut reading = std::pin::pin!(message(&conn, &counters, &range, &mut stream, patience));
            let message = loop {
                tokio::select! {
                    message = &mut reading => break message,
                    ready = self.audit.ready() => self.audited(ready)?,
                    () = connection.given_up() => return Err(lost("the connection of the watch was given up")),
                }
            };
            let message = self.heard(message, &connection)?;
            let created = message.created();
            self.check(&message, created).await?;
            *progressed = true;
            if created && std::mem::replace(&mut self.opened, true) && !list {
                self.counters.count(Counter::WatchResumes);
                self.audit.soon();
            }
            self.take(message, created, asked, &mut parts, &connection)?;
        }
    }

    /// Takes note of whether the watch is alive.
    fn heard(
        &mut self,
        message: Option<Result<WatchResponse, Failure>>,
        connection: &Dialled,
    ) -> Result<WatchResponse, End> {
        let Some(message) = message else {
            self.silences = (self.silences + 1).min(MAX_DOUBLINGS);
            self.conn.bulk.give_up(connection);
            return Err(lost("the watch gives no sign of life"));
        };
        let message = message.map_err(|failure| {
            self.conn.bulk.blame(connection, &failure);
            End::Broken(failure)
        })?;
        if !message.created() {
            self.silences = 0;
        }
        Ok(message)
    }

    /// Goes on with an audit.
    fn audited(&mut self, ready: Option<Result<Answer, Failure>>) -> Result<(), End> {
        let Some(mirror) = &self.mirror else {
            return Ok(());
        };
        let (outcome, asked) = self.audit.step(ready, mirror, &self.conn, &self.range);
        let Outcome::Verdict(verdict) = outcome else {
            return Ok(());
        };
        self.counters.count(Counter::Audits);
        match verdict {
            Verdict::Right => {
                self.feed.prove(asked);
                Ok(())
            }
            Verdict::Wrong(keys) => Err(End::Wrong(keys)),
            Verdict::WentBack => Err(End::WentBack),
        }
    }

    async fn list(&mut self) -> Result<(), End> {
        let asked = Moment::now();
        let (records, revision) = self.conn.list(&self.range).await.map_err(|failure| match failure {
            Failure::Compacted | Failure::FutureRevision => End::Compacted,
            failure => End::Broken(failure),
        })?;
        if self.mirror.as_ref().is_some_and(|mirror| mirror.epoch == self.epoch && revision < mirror.revision) {
            return Err(End::WentBack);
        }
        if self.mirror.is_some() {
            self.counters.count(Counter::WatchRelists);
        }
        let mirror = self.mirror.get_or_insert_with(|| Mirror::new(revision, self.epoch));
        mirror.relist(records, revision, self.epoch);
        self.feed.publish(mirror.clone(), asked);
        self.audit.rest();
        Ok(())
    }

    fn seen(&self) -> Revision {
        self.mirror.as_ref().map(|mirror| mirror.revision).unwrap_or_default()
    }

    async fn open(&mut self, listed: bool) -> Result<(WatchStream, Dialled), End> {
        self.begins = self.seen();
        // A key that was read a moment ago is watched from the next revision on: etcd serves that at once, and a watch that
        // begins in the past within 100 ms.
        let past = (listed || self.opened) && self.begins > Revision::default();
        let from = match self.begin {
            _ if past => self.begins,
            Begin::Known => self.begins.next(),
            Begin::Now => Revision::default(),
        };
        let mut options = WatchOptions::new().with_start_revision(signed(from)).with_progress_notify().with_fragment();
        if let Some(end) = &self.range.end {
            options = options.with_range(end.clone());
        }
        self.conn.bulk.watch(&self.range.start, &options).await.map_err(End::Broken)
    }

    /// Reads what happened between what is known and `opened`, the revision after which a watch tells that began now.
    async fn catch_up(&mut self, opened: Revision) -> Result<(), End> {
        let Some(mirror) = self.mirror.as_mut().filter(|mirror| mirror.revision != opened) else {
            return Ok(());
        };
        let (record, now) = self.conn.look(&self.range.start).await.map_err(End::Broken)?;
        if now < mirror.revision {
            return Err(End::WentBack);
        }
        if now < opened {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418); what is between would be missed.
            return Err(End::Broken(Failure::Lost(said("a read was answered by a member that lags"))));
        }
        mirror.relist(record.into_iter().collect(), now, self.epoch);
        self.read = now;
        Ok(())
    }

    /// Tells whether the message ends the watch.
    async fn check(&mut self, message: &WatchResponse, created: bool) -> Result<(), End> {
        if message.compact_revision() > 0 {
            return Err(End::Compacted);
        }
        if message.canceled() {
            return Err(End::Broken(classify_cancel(message.cancel_reason())));
        }
        if created && self.begin == Begin::Now && !self.opened {
            return self.catch_up(header_revision(message.header())).await;
        }
        if created && header_revision(message.header()) < self.seen() {
            // A member that lags, or a store that went back: a linearizable read tells them apart.
            let count = GetOptions::new().with_count_only();
            let (_, now) = self.conn.range(&self.range.start, &count).await.map_err(End::Broken)?;
            if now < self.seen() {
                return Err(End::WentBack);
            }
        }
        Ok(())
    }

    /// Takes what the message says; publishes at the end of a revision only.
    fn take(
        &mut self,
        message: WatchResponse,
        created: bool,
        asked: Moment,
        parts: &mut Vec<KeyEvent>,
        connection: &Dialled,
    ) -> Result<(), End> {
        let now = Moment::now();
        let header = header_revision(message.header());
        let (fragment, watch_id) = (message.0.fragment, message.watch_id());
        let has_events = !message.events().is_empty();
        for event in message.0.events {
            match key_event(event) {
                Some(event) if event.revision() == self.begins || event.revision() <= self.read => {}
                Some(event) => {
                    self.audit.moved(event.key());
                    parts.push(event);
                }
                // Nothing is known about its key, so something may be missed.
                None => self.audit.soon(),
            }
        }
        if fragment {
            return Ok(());
        }
        let Some(mirror) = &mut self.mirror else {
            return Ok(());
        };
        if !parts.is_empty() {
            let told = parts.len();
            let dropped = mirror.apply(std::mem::take(parts));
            self.counters.add(Counter::WatchEvents, (told - dropped) as u64);
            self.counters.add(Counter::WatchRepeats, dropped as u64);
            if dropped == told && told > 0 {
                return self.repeated(connection);
            }
            self.repeats = 0;
            self.feed.publish(mirror.clone(), now);
        } else if has_events {
            // Nothing but what was known. Its header may be ahead of events that are still to come, so it is no notice.
        } else if created {
            // No proof: a member that is cut off from the others says its own revision. An audit follows a resumption.
            if self.feed.latest().is_none() {
                self.feed.publish(mirror.clone(), asked);
            } else {
                self.feed.live();
            }
        } else if watch_id >= 0 && header >= mirror.revision {
            // A periodic notice is ordered with the events; the answer to a manual request has the id -1 and is not.
            mirror.revision = header;
            self.feed.prove(now);
        }
        Ok(())
    }

    /// A stream that tells nothing but what is known is not to be trusted for long.
    fn repeated(&mut self, connection: &Dialled) -> Result<(), End> {
        tracing::debug!("events repeated");
        self.repeats += 1;
        if self.repeats < MAX_REPEATS {
            return Ok(());
        }
        self.repeats = 0;
        self.conn.bulk.give_up(connection);
        Err(lost("the watch repeats itself"))
    }
}

/// A watch that ended without a word of etcd.
fn lost(why: &str) -> End {
    End::Broken(Failure::Lost(said(why)))
}

/// The event; `None` for a type of a later etcd, or without a key.
fn key_event(event: etcd_client::proto::PbEvent) -> Option<KeyEvent> {
    let kv = event.kv?;
    let revision = Revision::new(u64::try_from(kv.mod_revision).unwrap_or(0));
    let pair = Record::from(kv);
    match event.r#type {
        0 => Some(KeyEvent::Put(pair)),
        1 => Some(KeyEvent::Delete { key: pair.key, revision }),
        _ => None,
    }
}

/// The next message; `None` from a silent stream that was asked for a sign of life and gave none.
async fn message(
    conn: &Connection,
    counters: &Counters,
    range: &KeyRange,
    stream: &mut WatchStream,
    patience: Duration,
) -> Option<Result<WatchResponse, Failure>> {
    if let Ok(read) = tokio::time::timeout(SILENCE, stream.message()).await {
        return Some(told(read));
    }
    counters.count(Counter::WatchChecks);
    if let Err(error) = stream.request_progress().await {
        return Some(Err(classify(&error)));
    }
    if let Ok(read) = tokio::time::timeout(SIGN_OF_LIFE, stream.message()).await {
        return Some(told(read));
    }
    let mut asking = std::pin::pin!(conn.answers(range, ANSWER));
    let mut limit = std::pin::pin!(tokio::time::sleep(ANSWER));
    let mut answers = None;
    loop {
        tokio::select! {
            read = stream.message() => return Some(told(read)),
            answer = &mut asking, if answers.is_none() => answers = Some(answer),
            () = &mut limit => break,
        }
    }
    if answers != Some(true) {
        return None;
    }
    tokio::time::timeout(patience, stream.message()).await.ok().map(told)
}

fn told(read: Result<Option<WatchResponse>, etcd_client::Error>) -> Result<WatchResponse, Failure> {
    match read {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Failure::Lost(said("the watch ended"))),
        Err(error) => Err(classify(&error)),
    }
}
