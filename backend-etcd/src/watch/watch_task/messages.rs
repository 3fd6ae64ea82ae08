//! Messages of a watch: the end of the watch, or changes of the replica.

use enlist::{Counter, Moment, Revision, backend::count_several};
use etcd_client::{GetOptions, WatchResponse};

use super::{
    LiveWatch, WatchTask,
    low_read::LowRead,
    state::{MAX_SILENCES, WatchEnd},
};
use crate::{
    client::{
        connection::dialled::{Dialled, ProgressReplies},
        requests::response::header_revision,
    },
    deliberate_defects::DeliberateDefect,
    error::{Failure, classify_cancel, text_cause},
    watch::{
        replica::{KeyEvent, key_event},
        watch_stream::StreamEnd,
    },
};

/// Number of consecutive messages without new events after which the watch moves to another member.
const MAX_REPEATS: u32 = 3;

impl WatchTask {
    /// Records a sign of life of the watch, or its absence.
    pub(super) fn received(
        &mut self,
        message: Result<WatchResponse, StreamEnd>,
        connection: &Dialled,
    ) -> Result<WatchResponse, WatchEnd> {
        match message {
            Ok(message) => {
                if DeliberateDefect::MessagesProve.is_on() {
                    self.publisher.prove(Moment::now());
                }
                if !message.created() {
                    self.silences = 0;
                }
                Ok(message)
            }
            Err(StreamEnd::Silent { member_answers }) => {
                self.silences += 1;
                // A member that answers may have lost only this watch.
                if !member_answers || self.silences >= MAX_SILENCES {
                    self.client.data.give_up(connection);
                }
                let silent = Failure::Lost(text_cause("the watch gives no sign of life"));
                Err(WatchEnd::Silent(self.silences, silent.at(connection.url())))
            }
            Err(StreamEnd::Broken(Failure::AnswerTooLarge(_))) => Err(WatchEnd::TooLarge),
            Err(StreamEnd::Broken(failure)) => {
                self.client.data.blame(connection, &failure);
                Err(WatchEnd::Broken(failure.at(connection.url())))
            }
        }
    }

    /// Returns an error if the message ends the watch.
    pub(super) async fn check(&mut self, message: &WatchResponse, live: &mut LiveWatch) -> Result<(), WatchEnd> {
        if message.compact_revision() > 0 {
            if let Some(replica) = self.replica.as_mut().filter(|_| DeliberateDefect::NoListAfterCompaction.is_on()) {
                replica.revision = Revision::new(message.compact_revision().unsigned_abs());
                return Err(lost("the history is gone"));
            }
            return Err(WatchEnd::Compacted);
        }
        if message.canceled() {
            return Err(WatchEnd::Broken(classify_cancel(message.cancel_reason())));
        }
        if !message.created() {
            return Ok(());
        }
        let opened = header_revision(message.header());
        if self.starts_now(live.opened_after) {
            // Boxed, as the other steps that are rare: each watch has a place for them in its task.
            return Box::pin(self.catch_up(live, opened)).await;
        }
        if opened < self.seen() {
            // A member that lags, or a store that went back.
            let count = GetOptions::new().with_count_only();
            let count = self.client.range(&self.range.start, &count);
            let (_, now) = Box::pin(count).await.map_err(WatchEnd::Broken)?;
            if now < self.seen() {
                return Err(LowRead::judge(&self.client, self.seen()).await.into());
            }
        }
        Ok(())
    }

    /// Reads the changes between the replica and `opened`, the revision after which a watch that starts now reports.
    async fn catch_up(&mut self, live: &mut LiveWatch, opened: Revision) -> Result<(), WatchEnd> {
        let Some(replica) = self.replica.as_mut().filter(|replica| replica.revision != opened) else {
            return Ok(());
        };
        let (record, now) = self.client.get_with_queue_writes(&self.range.start).await.map_err(WatchEnd::Broken)?;
        if now < replica.revision {
            return Err(LowRead::judge(&self.client, self.seen()).await.into());
        }
        if now < opened {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418). The changes in between would
            // be missed.
            return Err(lost("a read was answered by a member that lags"));
        }
        replica.relist(record.into_iter().collect(), now, self.epoch);
        live.read = now;
        Ok(())
    }

    /// Applies a message. It contains whole revisions, so the published replica is always the state at one revision.
    pub(super) fn apply(&mut self, message: WatchResponse, live: &LiveWatch) -> Result<(), WatchEnd> {
        let (header, watch_id) = (header_revision(message.header()), message.watch_id());
        let (created, has_events) = (message.created(), !message.events().is_empty());
        let connection = live.stream.connection();
        let news = self.news(message, live);
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        if !news.is_empty() {
            return self.apply_news(news, connection);
        }
        if has_events {
            // Only known events. The header may be ahead of events that are still to come, so it proves no progress.
        } else if created {
            if self.publisher.latest().is_none() || live.read > Revision::default() {
                // A key that was written just before, or one that was read since.
                self.publisher.publish(replica.clone(), live.requested);
            } else {
                self.publisher.live();
            }
        } else if header > replica.revision
            && (watch_id >= 0 || connection.progress_replies() == Some(ProgressReplies::InOrder))
        {
            // A periodic notification is ordered with the events. The reply to a request has the id -1, and is ordered
            // in releases that have the fix.
            replica.revision = header;
            self.prove_reached();
        }
        Ok(())
    }

    /// Returns the events of a message that are not known from a list or a read.
    fn news(&mut self, message: WatchResponse, live: &LiveWatch) -> Vec<KeyEvent> {
        let mut news = Vec::with_capacity(message.events().len());
        for event in message.0.events {
            match key_event(event) {
                Some(event) if event.revision() == live.begins || event.revision() <= live.read => {}
                Some(event) => {
                    self.audit.moved(event.key());
                    news.push(event);
                }
                // Its key is unknown, so a change may be missed.
                None => self.audit.soon(),
            }
        }
        news
    }

    /// Applies events to the replica and publishes it, unless it would exceed its limits.
    fn apply_news(&mut self, news: Vec<KeyEvent>, connection: &Dialled) -> Result<(), WatchEnd> {
        let Some(replica) = &mut self.replica else {
            return Ok(());
        };
        let count = news.len();
        let mut next = replica.clone();
        let dropped = next.apply(news);
        count_several(&self.counters, Counter::WatchEvents, (count - dropped) as u64);
        count_several(&self.counters, Counter::WatchRepeats, dropped as u64);
        if dropped == count {
            return self.repeated(connection);
        }
        self.repeats = 0;
        self.client.limits.check(&self.range, next.len(), next.bytes()).map_err(WatchEnd::Oversized)?;
        *replica = next;
        self.publisher.advance(replica.clone());
        self.prove_reached();
        Ok(())
    }

    /// Counts a message that contains only repeated events, and leaves a member that keeps sending them.
    fn repeated(&mut self, connection: &Dialled) -> Result<(), WatchEnd> {
        tracing::debug!("events repeated");
        self.repeats += 1;
        if self.repeats < MAX_REPEATS {
            return Ok(());
        }
        self.repeats = 0;
        self.client.data.give_up(connection);
        Err(lost("the watch repeats itself"))
    }
}

/// Returns the end of a watch for which etcd gave no reason.
fn lost(why: &str) -> WatchEnd {
    WatchEnd::Broken(Failure::Lost(text_cause(why)))
}
