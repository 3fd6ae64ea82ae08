//! List, then watch: keeps a [`Replica`] of a range current and publishes it.
//!
//! ```text
//! Unsynced ──list at R──► Listed ──watch from R──► Live ──watch ends──► Suspect
//!                            ▲                      │ ▲                     │
//!                            │                      │ └──watch from the last complete revision
//!                            └──list── Resyncing ◄──┘ history gone, store went back, changes missed
//! ```
//!
//! A task that starts with known content begins in `Known`, with the first watch.
//!
//! A watch starts at R, not at R + 1: some releases of etcd lose a deletion at the revision to which the history was
//! compacted (etcd-io/etcd#18089, #19179), and accept a watch from there. A watch from R either reports all later
//! changes, or that R is compacted. Events that are already known are dropped.
//!
//! The states and the transition are in [`state`], the messages of a watch in [`messages`], and the first list, with
//! what readers see of it before it is complete, in [`first_list`].

use std::{convert::Infallible, sync::Arc, time::Duration};

use enlist::{
    Backoff, BackoffPolicy, Counter, Counters, Epoch, Error, Moment, Revision,
    backend::{LONGEST, PERMANENT_ERROR_RETRY, Publisher, count, count_several},
    with_causes,
};
use tokio::time::Instant;

use self::{
    live_watch::{LiveWatch, OpenedAfter},
    low_read::LowRead,
    state::{Resync, State, WatchEnd, recover},
};
use crate::{
    client::{
        connection::{
            dialled::{Dialled, ProgressReplies},
            watch_call::WatchOptions,
        },
        requests::list::Page,
        store_client::StoreClient,
        store_revision::{History, Seen},
    },
    deliberate_defects::DeliberateDefect,
    error::Failure,
    watch::{
        audit::{Audit, Outcome},
        context::WatchContext,
        partial_list::PartialList,
        probe::{Probe, ProbeReader},
        proofs::{ProbeVerdict, Proofs},
        record::KeyRange,
        replica::Replica,
        watch_stream::OpenWatch,
    },
};

mod first_list;
mod live_watch;
mod low_read;
mod messages;
mod state;

/// Delay before a range that was too large is listed again: a list up to a limit of bytes is expensive.
const OVERSIZED_RETRY: Duration = Duration::from_secs(60);

/// Start of a watch of a key with known content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At the known revision. etcd serves it within 100 ms, as every watch that starts in the past.
    Known,
    /// At the current revision, which is served at once. The changes before it are read once the watch is open.
    Now,
}

/// Task that lists and watches one range.
pub(crate) struct WatchTask {
    client: Arc<StoreClient>,
    range: KeyRange,
    publisher: Arc<Publisher<Replica>>,
    /// Pages of the first list, until it is complete.
    partial: Arc<PartialList>,
    /// Known content; `None` before the first list, unless the list of one member is shown.
    replica: Option<Replica>,
    epoch: Epoch,
    /// Time without a linearizable list after which the list of one member is shown.
    serializable_first_list: Option<Duration>,
    audit: Audit,
    /// Results of the session's probes; `None` if no reader needs the age.
    probes: Option<ProbeReader>,
    proofs: Proofs,
    counters: Arc<Counters>,
    /// Start of the first watch; `None` once a watch was open. Beside the states, because the content may be listed
    /// again before any watch was open.
    first_watch: Option<Begin>,
    /// Number of consecutive messages without new events, over all watches.
    repeats: u32,
    /// Number of consecutive watches without a sign of life, whatever the states in between.
    silences: u32,
    /// Revision of changes that a watch may not report. They are known from a list and are not requested again, also
    /// after an interruption, as long as the replica has this revision.
    skipped: Option<Revision>,
    /// The range exceeded its limits since it was last listed. In every state, it only limits the warnings.
    oversized: bool,
    backoff: Backoff,
    /// Delays of lists since a watch was refused as compacted; `None` once a watch has reported more than that it was
    /// created. etcd creates a watch before it refuses it.
    compacted: Option<Backoff>,
    /// The token was refreshed since the last success. In every state, it only limits the refreshes.
    token_refreshed: bool,
}

/// Need for a progress request after a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Request,
    NotNeeded,
}

impl WatchTask {
    /// Creates a task that publishes to `publisher`, and shows the pages of its first list in `partial`. It starts with
    /// what is `known`, if that is the whole range.
    pub(crate) fn new(
        context: &WatchContext,
        range: KeyRange,
        publisher: Arc<Publisher<Replica>>,
        partial: Arc<PartialList>,
        known: Option<(Replica, Begin)>,
    ) -> Self {
        let (replica, begin) = known.map_or((None, Begin::Known), |(replica, begin)| (Some(replica), begin));
        let probes = replica.is_none().then(|| context.probes.follow());
        Self {
            client: Arc::clone(&context.client),
            range,
            publisher,
            partial,
            replica,
            epoch: Epoch::default(),
            serializable_first_list: context.settings.serializable_first_list,
            audit: Audit::new(context.settings.audit),
            probes,
            proofs: Proofs::default(),
            counters: Arc::clone(&context.counters),
            first_watch: Some(begin),
            repeats: 0,
            silences: 0,
            skipped: None,
            oversized: false,
            backoff: BackoffPolicy::default().start(),
            compacted: None,
            token_refreshed: false,
        }
    }

    /// Lists and watches until the future is dropped.
    pub(crate) async fn run(mut self: Box<Self>) {
        let mut state = if self.replica.is_some() { State::Known } else { State::Unsynced };
        loop {
            let end = match self.step(&mut state).await {
                Ok(next) => {
                    state = next;
                    continue;
                }
                Err(end) => end,
            };
            if matches!(&state, State::Live(live) if live.has_succeeded(&end)) {
                self.succeeded();
            }
            self.audit.interrupt(self.replica.as_ref().map_or(0, Replica::len));
            state = recover(state, &end);
            let delay = self.report(end).await;
            // Other tasks run even without a delay.
            tokio::time::sleep(delay.max(Duration::from_millis(1))).await;
        }
    }

    /// Takes the step of `state`. Returns the next state, or the end that [`recover`] continues from.
    async fn step(&mut self, state: &mut State<LiveWatch>) -> Result<State<LiveWatch>, WatchEnd> {
        match state {
            // Boxed: a list is large, and the task follows the watch nearly all the time.
            State::Unsynced => Box::pin(self.list(None)).await,
            State::Resyncing(reason) => Box::pin(self.list(Some(*reason))).await,
            State::Listed => self.open(OpenedAfter::List).await,
            State::Known => self.open(OpenedAfter::Start).await,
            State::Suspect => self.open(OpenedAfter::Interruption).await,
            State::Live(live) => match self.follow(live).await? {},
        }
    }

    /// Logs, counts and publishes the end of a step. Returns the delay before the next step.
    async fn report(&mut self, end: WatchEnd) -> Duration {
        match end {
            WatchEnd::Compacted => {
                tracing::debug!("watch compacted, listing again");
                return self.delay_after_compaction();
            }
            WatchEnd::WentBack => {
                tracing::warn!("store went back, listing again");
                count(&self.counters, Counter::StoreWentBack);
                self.epoch = self.epoch.next();
                self.proofs.went_back(self.client.store.seen());
                self.client.store.suspect();
            }
            WatchEnd::Wrong(keys) => {
                tracing::warn!(keys, "watch had missed changes, listing again");
                count_several(&self.counters, Counter::AuditRepairs, keys as u64);
            }
            WatchEnd::TooLarge => tracing::debug!("watch message too large, listing again"),
            WatchEnd::Outdated => tracing::debug!("watch opened before a restore was noticed, opening it again"),
            WatchEnd::Oversized(error) => return self.report_oversized(error),
            end if end.is_refusal() && !self.token_refreshed && self.client.data.refresh_token().await.is_ok() => {
                self.token_refreshed = true;
            }
            WatchEnd::Silent(_, failure) | WatchEnd::Broken(failure) => return self.report_broken(failure),
        }
        Duration::ZERO
    }

    /// Returns the delay before the next list: none, unless the last list was of a compacted revision, too. It was
    /// stale then (etcd-io/etcd#20418), and the next one may be.
    fn delay_after_compaction(&mut self) -> Duration {
        if let Some(delays) = &mut self.compacted {
            return delays.next_delay();
        }
        self.compacted = Some(BackoffPolicy::default().start());
        Duration::ZERO
    }

    /// Publishes the failure. Returns the delay before the next step.
    fn report_broken(&mut self, failure: Failure) -> Duration {
        if DeliberateDefect::BrokenWatchForgotten.is_on() {
            return LONGEST;
        }
        let error = failure.into_error(&self.range.describe());
        tracing::debug!(cause = %with_causes(&error), "watch broken");
        if error.is_retryable() {
            self.publisher.stale(error);
            self.backoff.next_delay()
        } else {
            self.publisher.refuse(error);
            PERMANENT_ERROR_RETRY
        }
    }

    /// Publishes that the range is too large and its replica outdated. Returns the delay before the next step.
    fn report_oversized(&mut self, error: Error) -> Duration {
        if !std::mem::replace(&mut self.oversized, true) {
            tracing::warn!(cause = %with_causes(&error), "range too large, not kept up to date");
        }
        self.publisher.refuse(error);
        OVERSIZED_RETRY
    }

    /// Records that etcd served a step: the next failure is the first one.
    fn succeeded(&mut self) {
        self.backoff.reset();
        self.token_refreshed = false;
    }

    /// Lists the range and publishes it: for the first time, or again for this reason.
    async fn list(&mut self, reason: Option<Resync>) -> Result<State<LiveWatch>, WatchEnd> {
        let requested = Moment::now();
        let replica = if self.lists_by_pages() {
            self.list_by_pages().await.map_err(WatchEnd::of_list)?
        } else {
            self.relist(reason).await?
        };
        let (revision, len) = (replica.revision, replica.len());
        self.replica = Some(replica.clone());
        self.publisher.publish(replica, requested);
        self.partial.complete();
        self.proofs.start_over();
        self.skipped = matches!(reason, Some(Resync::TooLarge | Resync::Silent)).then_some(revision);
        self.audit.start_over(len);
        self.oversized = false;
        self.succeeded();
        Ok(State::Listed)
    }

    /// Lists the range again, or for the first time if the list of one member may be shown meanwhile.
    async fn relist(&mut self, reason: Option<Resync>) -> Result<Replica, WatchEnd> {
        let (records, revision) = self.listed().await.map_err(WatchEnd::of_list)?;
        if self.replica.as_ref().is_some_and(|replica| replica.epoch == self.epoch && revision < replica.revision) {
            return Err(LowRead::judge(&self.client, self.seen()).await.into());
        }
        if self.replica.is_some() && reason.is_some() {
            count(&self.counters, Counter::WatchRelists);
        }
        let mut replica = self.replica.take().unwrap_or_else(|| Replica::new(revision, self.epoch));
        let before = replica.revision;
        if reason == Some(Resync::Wrong) {
            replica.note_repair();
        }
        replica.relist(records, revision, self.epoch);
        if DeliberateDefect::ListWithoutRevision.is_on() {
            replica.revision = before;
        }
        Ok(replica)
    }

    fn seen(&self) -> Revision {
        self.replica.as_ref().map(|replica| replica.revision).unwrap_or_default()
    }

    /// Returns `true` if the next watch starts at the current revision. A watch after a list starts at the revision of
    /// that list.
    fn starts_now(&self, opened_after: OpenedAfter) -> bool {
        self.first_watch == Some(Begin::Now) && opened_after != OpenedAfter::List
    }

    /// Opens a watch at the revision of the replica.
    async fn open(&mut self, opened_after: OpenedAfter) -> Result<State<LiveWatch>, WatchEnd> {
        let (requested, store, begins) = (Moment::now(), self.client.store.seen(), self.seen());
        let past = !self.starts_now(opened_after) && begins > Revision::default();
        let from = if self.starts_now(opened_after) {
            Revision::default()
        } else if past && self.skipped != Some(begins) {
            begins
        } else {
            begins.next()
        };
        let from = if DeliberateDefect::WatchFromTooLate.is_on() && past { from.next().next() } else { from };
        let options = WatchOptions { from, reports_progress: true, ..WatchOptions::default() };
        let stream = OpenWatch::open(&self.client, &self.range, options).await.map_err(WatchEnd::Broken)?;
        let (created, read) = (None, Revision::default());
        Ok(State::Live(LiveWatch { stream, requested, store, opened_after, begins, created, read }))
    }

    /// Follows an open watch until it ends.
    async fn follow(&mut self, live: &mut LiveWatch) -> Result<Infallible, WatchEnd> {
        let (client, counters, range) = (Arc::clone(&self.client), Arc::clone(&self.counters), self.range.clone());
        let (progress, connection, opened) = (live.stream.progress(), live.stream.connection().clone(), live.store);
        loop {
            let message = {
                // One wait for all steps of an audit in between, because they are no sign of life of the watch.
                let mut next_message = std::pin::pin!(live.stream.next(&client, &counters, &range));
                loop {
                    tokio::select! {
                        message = &mut next_message => break message,
                        ready = self.audit.ready() => self.audited(ready).await?,
                        probe = next(&mut self.probes) => {
                            if self.probed(probe, opened, &connection) == Progress::Request {
                                progress.notify_one();
                            }
                        }
                    }
                }
            };
            let message = self.received(message, &connection)?;
            self.check(&message, live).await?;
            if message.created() {
                live.created = Some(Instant::now());
                self.note_open(live);
            } else {
                self.succeeded();
                self.compacted = None;
            }
            self.apply(message, live)?;
            if self.client.store.raise(live.store, self.seen()) == History::Unknown {
                return Err(WatchEnd::Outdated);
            }
        }
    }

    /// Records that etcd has accepted the watch.
    fn note_open(&mut self, live: &LiveWatch) {
        if let Some(probes) = &self.probes {
            if live.stream.connection().progress_replies().is_none() {
                probes.opened();
            } else if self.proofs.is_waiting() {
                live.stream.progress().notify_one();
            }
        }
        // The first watch may have been interrupted before it was open.
        if self.first_watch.take().is_some() && live.opened_after != OpenedAfter::Interruption {
            return;
        }
        // The interruption of the watch may have been a restore.
        self.client.store.suspect();
        if live.opened_after == OpenedAfter::Interruption {
            count(&self.counters, Counter::WatchResumes);
            self.audit.soon();
        }
    }

    /// Continues an audit.
    async fn audited(&mut self, ready: Option<Result<Page, Failure>>) -> Result<(), WatchEnd> {
        let Some(replica) = &self.replica else {
            return Ok(());
        };
        match self.audit.step(ready, replica, &self.client, &self.range) {
            Outcome::Pending => return Ok(()),
            Outcome::Compared(requested) => {
                if let Some(requested) = requested {
                    self.publisher.prove(requested);
                }
            }
            Outcome::Wrong(keys) => return Err(WatchEnd::Wrong(keys)),
            Outcome::WentBack => return Err(WatchEnd::WentBack),
            Outcome::LowRead => match LowRead::judge(&self.client, self.seen()).await {
                LowRead::WentBack => return Err(WatchEnd::WentBack),
                // Stale, or of a store that went back and has reached the known revision again since. Another audit
                // finds the difference.
                LowRead::Stale | LowRead::Unknown(_) => {
                    self.audit.soon();
                    return Ok(());
                }
            },
        }
        count(&self.counters, Counter::Audits);
        Ok(())
    }

    /// Takes a probe. If the watch is behind it, the reply to a progress request raises the revision, provided that
    /// such replies are ordered with the events.
    fn probed(&mut self, probe: Probe, opened: Seen, connection: &Dialled) -> Progress {
        match self.proofs.take(probe, self.seen(), opened) {
            ProbeVerdict::Proven(sent) => self.publisher.prove(sent),
            ProbeVerdict::Ahead if connection.progress_replies() == Some(ProgressReplies::InOrder) => {
                return Progress::Request;
            }
            ProbeVerdict::Ahead => {}
            // The store went back, or the read was stale, as those of some releases are under stress
            // (etcd-io/etcd#20418).
            ProbeVerdict::Behind => self.audit.soon(),
        }
        Progress::NotNeeded
    }

    /// Publishes the proof of the newest probe that the replica has reached.
    fn prove_reached(&mut self) {
        if let Some(sent) = self.proofs.reach(self.seen()) {
            self.publisher.prove(sent);
        }
    }
}

/// Waits for the next probe. Never returns without a reader of probes.
async fn next(probes: &mut Option<ProbeReader>) -> Probe {
    match probes {
        Some(probes) => probes.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use enlist_testkit::{Misbehavior, soon};

    use super::*;
    use crate::{testing, watch::record::Record};

    /// Each view of a service has a task.
    #[test]
    fn a_task_costs_little_memory() {
        const MOST_BYTES: usize = 3 << 10;
        fn size<F>(_: fn(Box<WatchTask>) -> F) -> usize {
            size_of::<WatchTask>() + size_of::<F>()
        }
        let bytes = size(WatchTask::run);
        assert!(bytes <= MOST_BYTES, "{bytes}");
    }

    /// A watch that began now was followed by a read. The revisions up to that read exist twice after a restore.
    #[tokio::test(start_paused = true)]
    async fn after_a_restore_a_deletion_at_a_known_revision_is_reported() {
        let (fake, etcd) = testing::session();
        fake.put("k", "v");
        let written = Revision::new(fake.revision().unsigned_abs());
        let known =
            Record { key: b"k"[..].into(), value: b"v".to_vec(), created: written, modified: written, lease: None };
        let snapshot = fake.snapshot();
        for _ in 0..5 {
            fake.put("other", "v");
        }
        let range_watches = &etcd.session.discovery.range_watches;
        let mut reader = range_watches.follow_key(b"k", Some(known), written, Begin::Now).unwrap();
        let first = soon("the key is read", reader.next()).await.unwrap();
        assert_eq!(first.value.len(), 1);
        fake.restore(&snapshot);
        let restored = async { while reader.next().await.unwrap().value.epoch == first.value.epoch {} };
        soon("the restore is noticed", restored).await;
        fake.delete(b"k");
        let deleted = async { while reader.next().await.unwrap().value.len() > 0 {} };
        soon("the key is gone", deleted).await;
    }

    /// The first watch was not opened because of a restore. The key is deleted between the list and the next watch.
    #[tokio::test(start_paused = true)]
    async fn a_deletion_before_the_next_watch_is_reported() {
        let (fake, etcd) = testing::session();
        let record = |revision: Revision| Record {
            key: b"k"[..].into(),
            value: b"v".to_vec(),
            created: revision,
            modified: revision,
            lease: None,
        };
        let lost = Revision::new(fake.revision().unsigned_abs()).next().next();
        fake.put("k", "v");
        let gap = Duration::from_secs(1);
        fake.misbehave(Misbehavior::LateWatch(Duration::ZERO));
        fake.misbehave(Misbehavior::LateWatch(gap));
        let range_watches = &etcd.session.discovery.range_watches;
        let mut reader = range_watches.follow_key(b"k", Some(record(lost)), lost, Begin::Now).unwrap();
        assert_eq!(soon("the key is listed", reader.next()).await.unwrap().value.len(), 1);
        tokio::time::sleep(gap / 2).await;
        fake.delete(b"k");
        let deleted = async { while reader.next().await.unwrap().value.len() > 0 {} };
        tokio::time::timeout(gap * 2, deleted).await.expect("the deletion is reported");
        assert!(fake.has_misbehaved());
    }
}
