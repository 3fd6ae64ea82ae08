//! List, then watch, for ever: keeps a [`Replica`] of a range up to date and publishes it.
//!
//! ```text
//! Unsynced ─list at R─► Live ─stream ends─► resume from the last complete revision R, less what it told before
//!     ▲                  │
//!     └── history gone, or the store went back: list again, and the readers see the difference
//! ```
//!
//! Not from R + 1: some releases of etcd forget a deletion at the revision to which the history was compacted
//! (etcd-io/etcd#18089, #19179), and accept a watch from there. One from R is either told everything after it, or that
//! R is gone.
//!
//! Each way in which a watch can end is told apart by [`WatchEnd`]; what follows is decided in [`WatchTask::run`]. What
//! is shown while there is no list yet is in [`first_list`].

use std::{sync::Arc, time::Duration};

use enlist::{BackoffPolicy, Counter, Counters, Epoch, Error, Moment, Revision, backend::Publisher, with_causes};
use etcd_client::{GetOptions, WatchOptions, WatchResponse};

use crate::{
    client::{
        connection::Connection,
        dialled::Dialled,
        list::Page,
        response::{header_revision, signed},
    },
    defects::Defect,
    error::{Failure, classify_cancel, text_cause},
    session::probe::{Probe, ProbeReader},
    watch::{
        audit::{Audit, Outcome},
        context::WatchContext,
        proofs::{Proofs, Said},
        record::{KeyRange, Record},
        replica::{KeyEvent, Replica},
        watch_stream::{OpenWatch, StreamEnd},
    },
};

mod first_list;

/// After so many messages in a row that told nothing new the watch goes to another member.
const MAX_REPEATS: u32 = 3;

/// After so many watches in a row that fell silent the range is listed again: what one of them waits for may not arrive
/// over it at all, such as a large message over a slow connection, while a list comes by pages.
const MAX_SILENCES: u32 = 2;

/// Time for which a failure that an operator has to repair is left alone.
const SLOW: Duration = Duration::from_secs(10);

/// Time after which a range is listed again that was too large: a list up to a limit of bytes is expensive.
const OVERSIZED_RETRY: Duration = Duration::from_secs(60);

/// Begin of the watch of a key of which something is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// After what is known. Where others wrote meanwhile, etcd serves it within 100 ms, as each watch that begins in
    /// the past.
    Known,
    /// Now, which is served at once. What happened in between is read once it is open.
    Now,
}

/// End of a round of list and watch.
#[derive(Debug)]
enum WatchEnd {
    /// The history after the last revision is gone.
    Compacted,
    /// The store's revision is lower than it was.
    WentBack,
    /// An audit found so many keys that are not as in etcd.
    Wrong(usize),
    /// A message of the watch is larger than what is accepted, and would be at each resumption.
    TooLarge,
    /// The range is larger than it may be.
    Oversized(Error),
    /// So many watches in a row gave no sign of life, the last one of which failed so.
    Silent(u32, Failure),
    /// A request failed, or the stream ended.
    Broken(Failure),
}

/// Reason for which the range is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relist {
    /// Nothing is known yet.
    First,
    Compacted,
    WentBack,
    Wrong,
    TooLarge,
    Oversized,
    Silent,
}

/// The task that lists and watches one range.
pub(crate) struct WatchTask {
    conn: Arc<Connection>,
    range: KeyRange,
    publisher: Arc<Publisher<Replica>>,
    /// Known state; `None` before the first list, or what one member knows.
    replica: Option<Replica>,
    epoch: Epoch,
    /// After so long without a linearizable list the first picture is that of one member.
    serializable_first_list: Option<Duration>,
    audit: Audit,
    /// The results of the session's probes; none where nobody asks for the age.
    probes: Option<ProbeReader>,
    proofs: Proofs,
    counters: Arc<Counters>,
    /// A watch was open before.
    opened: bool,
    /// Begin of the first one.
    begin: Begin,
    /// Where the watch begins that is open. What it tells of this revision itself is known.
    begins: Revision,
    /// What the watch tells up to this revision was read once it was open.
    read: Revision,
    /// Number of messages in a row that told nothing new.
    repeats: u32,
    /// Number of watches in a row that gave no sign of life.
    silences: u32,
    /// A revision whose changes may be what did not arrive over a watch. They are known from a list, and not asked for
    /// again.
    skipped: Option<Revision>,
    /// The range was larger than it may be when it was last looked at.
    oversized: bool,
}

impl WatchTask {
    /// One that publishes to `publisher`, and begins with what is `known` where that is all of the range.
    pub(crate) fn new(
        context: &WatchContext,
        range: KeyRange,
        publisher: Arc<Publisher<Replica>>,
        known: Option<(Replica, Begin)>,
    ) -> Self {
        let (replica, begin) = known.map_or((None, Begin::Known), |(replica, begin)| (Some(replica), begin));
        let probes = replica.is_none().then(|| context.probes.follow());
        Self {
            conn: Arc::clone(&context.conn),
            range,
            publisher,
            replica,
            epoch: Epoch::default(),
            serializable_first_list: context.settings.serializable_first_list,
            audit: Audit::new(context.settings.audit),
            probes,
            proofs: Proofs::new(Revision::default()),
            counters: Arc::clone(&context.counters),
            opened: false,
            begin,
            begins: Revision::default(),
            read: Revision::default(),
            repeats: 0,
            silences: 0,
            skipped: None,
            oversized: false,
        }
    }

    /// Lists and watches for ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = BackoffPolicy::default().start();
        // Kept until a list succeeds.
        let mut wanted = self.replica.is_none().then_some(Relist::First);
        let mut refreshed = false;
        loop {
            let mut progressed = false;
            let end = match self.round(&mut wanted, &mut progressed).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.audit.interrupt(self.replica.as_ref().map_or(0, Replica::len));
            if progressed {
                backoff.reset();
                refreshed = false;
            }
            let delay = match end {
                WatchEnd::Compacted => {
                    tracing::debug!("watch compacted, listing again");
                    wanted = Some(Relist::Compacted);
                    Duration::ZERO
                }
                WatchEnd::WentBack => {
                    tracing::warn!("store went back, listing again");
                    self.counters.count(Counter::StoreWentBack);
                    self.epoch = self.epoch.next();
                    self.conn.store.suspect();
                    wanted = Some(Relist::WentBack);
                    Duration::ZERO
                }
                WatchEnd::Wrong(keys) => {
                    tracing::warn!(keys, "watch had missed changes, listing again");
                    self.counters.add(Counter::AuditRepairs, keys as u64);
                    wanted = Some(Relist::Wrong);
                    Duration::ZERO
                }
                WatchEnd::TooLarge => {
                    tracing::debug!("watch message too large, listing again");
                    wanted = Some(Relist::TooLarge);
                    Duration::ZERO
                }
                WatchEnd::Oversized(error) => {
                    wanted = wanted.or(Some(Relist::Oversized));
                    self.outgrown(error)
                }
                WatchEnd::Silent(times, failure) => {
                    wanted = wanted.or((times >= MAX_SILENCES).then_some(Relist::Silent));
                    self.broken(failure, &mut backoff)
                }
                // etcd 3.5 calls an expired token on a watch a missing permission: a fresh one tells them apart.
                WatchEnd::Broken(Failure::StaleAuthToken(_) | Failure::NoUser(_) | Failure::Denied)
                    if !refreshed && self.conn.bulk.refresh_token().await.is_ok() =>
                {
                    refreshed = true;
                    Duration::ZERO
                }
                WatchEnd::Broken(failure) => self.broken(failure, &mut backoff),
            };
            // Also without a delay the others get their turn.
            tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
        }
    }

    /// Publishes the trouble; returns how long to leave it alone.
    fn broken(&self, failure: Failure, backoff: &mut enlist::Backoff) -> Duration {
        if Defect::BrokenWatchForgotten.is_on() {
            return enlist::backend::LONGEST;
        }
        let error = failure.into_error(&self.range.describe());
        tracing::debug!(cause = %with_causes(&error), "watch broken");
        if error.is_retryable() {
            self.publisher.stale(error);
            backoff.next_delay()
        } else {
            self.publisher.refuse(error);
            SLOW
        }
    }

    /// Publishes that the range is too large, and that what is known of it is out of date; returns how long to leave it
    /// alone.
    fn outgrown(&mut self, error: Error) -> Duration {
        if !std::mem::replace(&mut self.oversized, true) {
            tracing::warn!(cause = %with_causes(&error), "range too large, not kept up to date");
        }
        self.publisher.refuse(error);
        OVERSIZED_RETRY
    }

    /// Lists if that is wanted, then follows a watch until it ends.
    async fn round(
        &mut self,
        wanted: &mut Option<Relist>,
        progressed: &mut bool,
    ) -> Result<std::convert::Infallible, WatchEnd> {
        let listed = wanted.is_some();
        if let Some(why) = *wanted {
            self.list(why).await?;
            *wanted = None;
            *progressed = true;
        }
        let asked = Moment::now();
        let mut watch = self.open(listed).await?;
        let progress = watch.progress();
        let (conn, counters, range) = (Arc::clone(&self.conn), Arc::clone(&self.counters), self.range.clone());
        let connection = watch.connection().clone();
        loop {
            // One wait however many steps of an audit come in between: they are no sign of life.
            let mut reading = std::pin::pin!(watch.next(&conn, &counters, &range));
            let message = loop {
                tokio::select! {
                    message = &mut reading => break message,
                    ready = self.audit.ready() => self.audited(ready)?,
                    probe = next(&mut self.probes) => {
                        if self.probed(probe, &connection) {
                            progress.notify_one();
                        }
                    }
                }
            };
            let message = self.heard(message, &connection)?;
            let created = message.created();
            self.check(&message, created).await?;
            *progressed = true;
            if created && let Some(probes) = &self.probes {
                if connection.answers_in_order().is_none() {
                    probes.opened();
                } else if self.proofs.is_waiting() {
                    progress.notify_one();
                }
            }
            let again = created && std::mem::replace(&mut self.opened, true);
            if again {
                // The interruption of the watch may have been a restore.
                self.conn.store.suspect();
            }
            if again && !listed {
                self.counters.count(Counter::WatchResumes);
                self.audit.soon();
            }
            self.take(message, created, asked, &connection)?;
            self.conn.store.raise(self.seen());
        }
    }

    /// Takes note of whether the watch is alive.
    fn heard(
        &mut self,
        message: Result<WatchResponse, StreamEnd>,
        connection: &Dialled,
    ) -> Result<WatchResponse, WatchEnd> {
        match message {
            Ok(message) => {
                if Defect::MessagesProve.is_on() {
                    self.publisher.prove(Moment::now());
                }
                if !message.created() {
                    self.silences = 0;
                }
                Ok(message)
            }
            Err(StreamEnd::Silent { member_answers }) => {
                self.silences += 1;
                // A member that answers may have lost this one watch only.
                if !member_answers || self.silences >= MAX_SILENCES {
                    self.conn.bulk.give_up(connection);
                }
                let silent = Failure::Lost(text_cause("the watch gives no sign of life"));
                Err(WatchEnd::Silent(self.silences, silent.at(connection.url())))
            }
            Err(StreamEnd::Broken(Failure::AnswerTooLarge(_))) => Err(WatchEnd::TooLarge),
            Err(StreamEnd::Broken(failure)) => {
                self.conn.bulk.blame(connection, &failure);
                Err(WatchEnd::Broken(failure.at(connection.url())))
            }
        }
    }

    /// Goes on with an audit.
    fn audited(&mut self, ready: Option<Result<Page, Failure>>) -> Result<(), WatchEnd> {
        let Some(replica) = &self.replica else {
            return Ok(());
        };
        match self.audit.step(ready, replica, &self.conn, &self.range) {
            Outcome::Pending => return Ok(()),
            Outcome::Compared(asked) => {
                if let Some(asked) = asked {
                    self.publisher.prove(asked);
                }
            }
            Outcome::Wrong(keys) => return Err(WatchEnd::Wrong(keys)),
            Outcome::WentBack => return Err(WatchEnd::WentBack),
        }
        self.counters.count(Counter::Audits);
        Ok(())
    }

    /// Takes a probe. Says whether the watch has to be asked how far it is: its answer raises the revision, where it is
    /// in order.
    fn probed(&mut self, probe: Probe, connection: &Dialled) -> bool {
        match self.proofs.take(probe, self.seen()) {
            Said::Proven(sent) => self.publisher.prove(sent),
            Said::Ahead => return connection.answers_in_order() == Some(true),
            // The store went back, or the read was stale, as those of some releases are under stress
            // (etcd-io/etcd#20418).
            Said::Behind => self.audit.soon(),
        }
        false
    }

    /// Notes how far the picture is, and proves what it has reached with that.
    fn reached(&mut self) {
        if let Some(sent) = self.proofs.reach(self.seen()) {
            self.publisher.prove(sent);
        }
    }

    async fn list(&mut self, why: Relist) -> Result<(), WatchEnd> {
        let asked = Moment::now();
        let (records, revision) = self.listed().await.map_err(|failure| match failure {
            Failure::Compacted | Failure::FutureRevision => WatchEnd::Compacted,
            Failure::Final(error @ Error::RangeTooLarge { .. }) => WatchEnd::Oversized(error),
            failure => WatchEnd::Broken(failure),
        })?;
        if self.replica.as_ref().is_some_and(|replica| replica.epoch == self.epoch && revision < replica.revision) {
            return Err(WatchEnd::WentBack);
        }
        if self.replica.is_some() && why != Relist::First {
            self.counters.count(Counter::WatchRelists);
        }
        let replica = self.replica.get_or_insert_with(|| Replica::new(revision, self.epoch));
        let before = replica.revision;
        if why == Relist::Wrong {
            replica.note_repair();
        }
        replica.relist(records, revision, self.epoch);
        if Defect::ListWithoutRevision.is_on() {
            replica.revision = before;
        }
        self.publisher.publish(replica.clone(), asked);
        self.proofs = Proofs::new(revision);
        self.skipped = matches!(why, Relist::TooLarge | Relist::Silent).then_some(revision);
        self.audit.rest(replica.len());
        self.oversized = false;
        Ok(())
    }

    fn seen(&self) -> Revision {
        self.replica.as_ref().map(|replica| replica.revision).unwrap_or_default()
    }

    async fn open(&mut self, listed: bool) -> Result<OpenWatch, WatchEnd> {
        self.begins = self.seen();
        // Revisions that were read over an earlier watch exist again after a restore.
        self.read = Revision::default();
        // A key that was read a moment ago is watched from the next revision on: etcd serves that at once, and a watch
        // that begins in the past within 100 ms.
        let past = (listed || self.opened) && self.begins > Revision::default();
        let from = match self.begin {
            _ if past && self.skipped != Some(self.begins) => self.begins,
            Begin::Now if !past => Revision::default(),
            Begin::Known | Begin::Now => self.begins.next(),
        };
        let from = if Defect::WatchFromTooLate.is_on() && past { from.next().next() } else { from };
        let options = WatchOptions::new().with_start_revision(signed(from)).with_progress_notify();
        OpenWatch::open(&self.conn, &self.range, options).await.map_err(WatchEnd::Broken)
    }

    /// Reads what happened between what is known and `opened`, the revision after which a watch tells that began now.
    async fn catch_up(&mut self, opened: Revision) -> Result<(), WatchEnd> {
        let Some(replica) = self.replica.as_mut().filter(|replica| replica.revision != opened) else {
            return Ok(());
        };
        let (record, now) = self.conn.get_with_queue_writes(&self.range.start).await.map_err(WatchEnd::Broken)?;
        if now < replica.revision {
            return Err(WatchEnd::WentBack);
        }
        if now < opened {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418); what is between would be
            // missed.
            return Err(WatchEnd::Broken(Failure::Lost(text_cause("a read was answered by a member that lags"))));
        }
        replica.relist(record.into_iter().collect(), now, self.epoch);
        self.read = now;
        Ok(())
    }

    /// Tells whether the message ends the watch.
    async fn check(&mut self, message: &WatchResponse, created: bool) -> Result<(), WatchEnd> {
        if message.compact_revision() > 0 {
            if let Some(replica) = self.replica.as_mut().filter(|_| Defect::NoListAfterCompaction.is_on()) {
                replica.revision = Revision::new(message.compact_revision().unsigned_abs());
                return Err(lost("the history is gone"));
            }
            return Err(WatchEnd::Compacted);
        }
        if message.canceled() {
            return Err(WatchEnd::Broken(classify_cancel(message.cancel_reason())));
        }
        if created && self.begin == Begin::Now && !self.opened {
            return self.catch_up(header_revision(message.header())).await;
        }
        if created && header_revision(message.header()) < self.seen() {
            // A member that lags, or a store that went back: a linearizable read tells them apart.
            let count = GetOptions::new().with_count_only();
            let (_, now) = self.conn.range(&self.range.start, &count).await.map_err(WatchEnd::Broken)?;
            if now < self.seen() {
                return Err(WatchEnd::WentBack);
            }
        }
        Ok(())
    }

    /// Takes what the message says. It has whole revisions: what is published is always the state at one.
    fn take(
        &mut self,
        message: WatchResponse,
        created: bool,
        asked: Moment,
        connection: &Dialled,
    ) -> Result<(), WatchEnd> {
        let header = header_revision(message.header());
        let watch_id = message.watch_id();
        let has_events = !message.events().is_empty();
        let mut events = Vec::with_capacity(message.events().len());
        for event in message.0.events {
            match key_event(event) {
                Some(event) if event.revision() == self.begins || event.revision() <= self.read => {}
                Some(event) => {
                    self.audit.moved(event.key());
                    events.push(event);
                }
                // Nothing is known about its key, so something may be missed.
                None => self.audit.soon(),
            }
        }
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        if !events.is_empty() {
            let told = events.len();
            // What is too large is not kept.
            let mut next = replica.clone();
            let dropped = next.apply(events);
            self.counters.add(Counter::WatchEvents, (told - dropped) as u64);
            self.counters.add(Counter::WatchRepeats, dropped as u64);
            if dropped == told {
                return self.repeated(connection);
            }
            self.repeats = 0;
            self.conn.limits.check(&self.range, next.len(), next.bytes()).map_err(WatchEnd::Oversized)?;
            *replica = next;
            self.publisher.advance(replica.clone());
            self.reached();
        } else if has_events {
            // Nothing but what was known. Its header may be ahead of events that are still to come, so it is no notice.
        } else if created {
            if self.publisher.latest().is_none() {
                // A key that was written a moment ago.
                self.publisher.publish(replica.clone(), asked);
            } else {
                self.publisher.live();
            }
        } else if header > replica.revision && (watch_id >= 0 || connection.answers_in_order() == Some(true)) {
            // A periodic notice is ordered with the events. The answer to a request has the id -1, and is where that
            // was mended.
            replica.revision = header;
            self.reached();
        }
        Ok(())
    }

    /// A stream that tells nothing but what is known is not to be trusted for long.
    fn repeated(&mut self, connection: &Dialled) -> Result<(), WatchEnd> {
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
fn lost(why: &str) -> WatchEnd {
    WatchEnd::Broken(Failure::Lost(text_cause(why)))
}

async fn next(probes: &mut Option<ProbeReader>) -> Probe {
    match probes {
        Some(probes) => probes.next().await,
        None => std::future::pending().await,
    }
}

/// The event; `None` for a type of a later etcd, or without a key.
pub(crate) fn key_event(event: etcd_client::proto::PbEvent) -> Option<KeyEvent> {
    let kv = event.kv?;
    let revision = Revision::new(u64::try_from(kv.mod_revision).unwrap_or(0));
    let pair = Record::from(kv);
    match event.r#type {
        0 => Some(KeyEvent::Put(pair)),
        1 => Some(KeyEvent::Delete { key: pair.key, revision }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use enlist_testkit::{FakeEtcd, soon};

    use super::*;
    use crate::{Etcd, SessionRuntime};

    /// A watch that began now was followed by a read. The revisions up to that read exist twice after a restore.
    #[tokio::test(start_paused = true)]
    async fn after_a_restore_a_deletion_at_a_known_revision_is_reported() {
        let fake = FakeEtcd::start();
        let etcd = Etcd::from_channel(fake.channel()).runtime(SessionRuntime::Caller).build().unwrap();
        fake.put("k", "v");
        let written = Revision::new(fake.revision().unsigned_abs());
        let known =
            Record { key: b"k"[..].into(), value: b"v".to_vec(), created: written, modified: written, lease: None };
        let snapshot = fake.snapshot();
        for _ in 0..5 {
            fake.put("other", "v");
        }
        let hub = &etcd.session.discovery.hub;
        let mut reader = hub.follow_key(b"k", Some(known), written, Begin::Now).unwrap();
        let first = soon("the key is read", reader.next()).await.unwrap();
        assert_eq!(first.value.len(), 1);
        fake.restore(&snapshot);
        let restored = async { while reader.next().await.unwrap().value.epoch == first.value.epoch {} };
        soon("the restore is noticed", restored).await;
        fake.delete(b"k");
        let deleted = async { while reader.next().await.unwrap().value.len() > 0 {} };
        soon("the key is gone", deleted).await;
    }
}
