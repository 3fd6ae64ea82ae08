//! Audits: is a watched range still what etcd holds? A watch can lose an event without a word.
//!
//! An audit asks for two numbers, how many keys there are and when the newest was changed: together they tell whether any key
//! was put or deleted since. Only where they differ, and every few times anyway, the whole range is read and compared. What is
//! still on its way over the watch is no difference: the comparison waits, and leaves out keys that moved meanwhile.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use enlist::{Moment, Revision, backoff::spread};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

use crate::{connection::Connection, error::Failure, mirror::Mirror, record::KeyRange, record::Record};

/// Every so many audits read the whole range although the two numbers agree.
const WHOLE: u32 = 4;

/// How long what differs gets to arrive over the watch before it is looked at again; twice as long each time.
const GRACE: Duration = Duration::from_secs(2);

/// How often what differs is looked at before it counts.
const LOOKS: u32 = 4;

/// After a reconnection, or after an audit that failed, one comes this soon, spread by as much again.
const SOON: Duration = Duration::from_secs(2);

/// What etcd says of a range.
#[derive(Debug)]
pub(crate) enum Answer {
    /// How many keys there are, and when the newest was changed.
    Numbers { count: usize, newest: Revision },
    /// All of it.
    Whole(Whole),
}

/// A range as etcd holds it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) records: Vec<Record>,
    pub(crate) revision: Revision,
    /// The mirror's revision when etcd was asked: a linearizable read cannot be older.
    pub(crate) floor: Revision,
}

/// What a comparison shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Right,
    /// So many keys are not as in etcd.
    Wrong(usize),
    /// The store's history is not the one that the mirror was made from.
    WentBack,
}

/// Compares the mirror with what etcd said. `moved` are the keys that the watch told of since etcd was asked.
pub(crate) fn verdict(whole: &Whole, mirror: &Mirror, moved: &HashSet<Arc<[u8]>>) -> Verdict {
    if whole.revision < whole.floor {
        return Verdict::WentBack;
    }
    let mut wrong = 0;
    let mut both = 0;
    for record in &whole.records {
        match mirror.get(&record.key) {
            Some(known) => {
                both += 1;
                if known.modified > record.modified && known.modified <= whole.revision {
                    // One history cannot have two latest changes of one key at or before one revision.
                    return Verdict::WentBack;
                }
                if known.modified < record.modified && !moved.contains(&record.key) {
                    wrong += 1;
                }
            }
            None if moved.contains(&record.key) => {}
            None => wrong += 1,
        }
    }
    if both < mirror.len() {
        let listed: HashSet<&[u8]> = whole.records.iter().map(|record| &*record.key).collect();
        let extra = mirror.records().filter(|record| record.modified <= whole.revision);
        wrong += extra.filter(|record| !listed.contains(&*record.key) && !moved.contains(&record.key)).count();
    }
    if wrong == 0 { Verdict::Right } else { Verdict::Wrong(wrong) }
}

/// The audits of one range.
pub(crate) struct Audit {
    every: Option<Duration>,
    finished: u32,
    stage: Stage,
    /// Keys that the watch told of since etcd was asked for everything.
    moved: HashSet<Arc<[u8]>>,
}

enum Stage {
    Idle { due: Option<Instant> },
    Asking { asked: Moment, answer: BoxFuture<'static, Result<Answer, Failure>> },
    Comparing { asked: Moment, whole: Whole, look: u32, due: Instant },
}

/// What the owner of an audit has to do with its outcome.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing; it goes on.
    Pending,
    Verdict(Verdict),
}

impl Audit {
    /// Audits that come every `every`, jittered by half; none without it.
    pub(crate) fn new(every: Option<Duration>) -> Self {
        let mut audit = Self { every, finished: 0, stage: Stage::Idle { due: None }, moved: HashSet::new() };
        audit.rest();
        audit
    }

    /// Waits for the regular time of the next one.
    pub(crate) fn rest(&mut self) {
        self.moved = HashSet::new();
        self.stage = Stage::Idle { due: self.every.map(|every| Instant::now() + every / 2 + spread(every)) };
    }

    /// Has one soon: something may have been missed.
    pub(crate) fn soon(&mut self) {
        if let (Some(every), Stage::Idle { due }) = (self.every, &mut self.stage) {
            let wait = SOON.min(every / 2);
            let soon = Instant::now() + wait + spread(wait);
            *due = Some(due.map_or(soon, |due| due.min(soon)));
        }
    }

    /// Drops a request that is under way, and has another one soon. Nobody polls it between two watches, where it could keep others from
    /// a token or from the first connection.
    pub(crate) fn interrupt(&mut self) {
        if matches!(self.stage, Stage::Asking { .. }) {
            self.rest();
            self.soon();
        }
    }

    /// Notes that the watch told of `key`.
    pub(crate) fn moved(&mut self, key: &Arc<[u8]>) {
        if !matches!(self.stage, Stage::Idle { .. }) {
            self.moved.insert(Arc::clone(key));
        }
    }

    /// Waits until [`step`](Self::step) has something to do. Dropping the future loses nothing.
    pub(crate) async fn ready(&mut self) -> Option<Result<Answer, Failure>> {
        match &mut self.stage {
            Stage::Idle { due: None } => std::future::pending().await,
            Stage::Idle { due: Some(due) } | Stage::Comparing { due, .. } => {
                tokio::time::sleep_until(*due).await;
                None
            }
            Stage::Asking { answer, .. } => Some(answer.await),
        }
    }

    /// Goes on with what [`ready`](Self::ready) returned. With a verdict comes the moment at which etcd was asked.
    pub(crate) fn step(
        &mut self,
        ready: Option<Result<Answer, Failure>>,
        mirror: &Mirror,
        conn: &Arc<Connection>,
        range: &KeyRange,
    ) -> (Outcome, Moment) {
        let stage = std::mem::replace(&mut self.stage, Stage::Idle { due: None });
        match (stage, ready) {
            (Stage::Asking { asked, .. }, Some(Ok(Answer::Numbers { count, newest }))) => {
                if count == mirror.len() && newest == mirror.newest() {
                    return (self.finish(Verdict::Right), asked);
                }
                self.ask(conn, range, mirror.revision, true);
            }
            (Stage::Asking { asked, .. }, Some(Ok(Answer::Whole(whole)))) => return self.look(asked, whole, 1, mirror),
            (Stage::Comparing { asked, whole, look, .. }, _) => return self.look(asked, whole, look + 1, mirror),
            (Stage::Asking { .. }, Some(Err(failure))) => {
                tracing::debug!(range = %range.describe(), ?failure, "audit not answered");
                self.rest();
                self.soon();
            }
            (Stage::Idle { .. } | Stage::Asking { .. }, _) => {
                self.ask(conn, range, mirror.revision, self.finished % WHOLE == WHOLE - 1);
            }
        }
        (Outcome::Pending, Moment::now())
    }

    fn ask(&mut self, conn: &Arc<Connection>, range: &KeyRange, floor: Revision, whole: bool) {
        self.moved = HashSet::new();
        let (conn, range) = (Arc::clone(conn), range.clone());
        let answer = async move {
            if whole {
                let (records, revision) = conn.list(&range).await?;
                Ok(Answer::Whole(Whole { records, revision, floor }))
            } else {
                let (count, newest) = conn.numbers(&range).await?;
                Ok(Answer::Numbers { count, newest })
            }
        };
        self.stage = Stage::Asking { asked: Moment::now(), answer: answer.boxed() };
    }

    fn look(&mut self, asked: Moment, whole: Whole, look: u32, mirror: &Mirror) -> (Outcome, Moment) {
        match verdict(&whole, mirror, &self.moved) {
            Verdict::Wrong(_) if look < LOOKS => {
                let due = Instant::now() + GRACE * 2u32.pow(look - 1);
                self.stage = Stage::Comparing { asked, whole, look, due };
                (Outcome::Pending, asked)
            }
            verdict => (self.finish(verdict), asked),
        }
    }

    fn finish(&mut self, verdict: Verdict) -> Outcome {
        self.finished = self.finished.wrapping_add(1);
        self.rest();
        Outcome::Verdict(verdict)
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("every", &self.every).field("finished", &self.finished).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enlist::Epoch;

    fn record(key: &str, modified: u64) -> Record {
        let modified = Revision::new(modified);
        Record { key: key.as_bytes().into(), value: [][..].into(), created: modified, modified, lease: None }
    }

    fn judge(etcd: &[(&str, u64)], revision: u64, mirror: &[(&str, u64)], at: u64, moved: &[&str]) -> Verdict {
        let records = |list: &[(&str, u64)]| list.iter().map(|(key, modified)| record(key, *modified)).collect();
        let floor = Revision::new(if moved.is_empty() { at } else { 0 });
        let whole = Whole { records: records(etcd), revision: Revision::new(revision), floor };
        let mut known = Mirror::new(Revision::default(), Epoch::default());
        known.relist(records(mirror), Revision::new(at), Epoch::default());
        let moved = moved.iter().map(|key| key.as_bytes().into()).collect();
        verdict(&whole, &known, &moved)
    }

    #[test]
    fn what_is_alike_or_newer_in_the_mirror_is_right() {
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 3)], 3, &[]), Verdict::Right);
        // The watch was faster than the answer: a new key, a changed one, one that is gone.
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 3), ("b", 10)], 10, &["b"]), Verdict::Right);
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 10)], 10, &["a"]), Verdict::Right);
        assert_eq!(judge(&[("a", 3)], 9, &[], 10, &["a"]), Verdict::Right);
    }

    #[test]
    fn what_the_watch_never_told_is_wrong() {
        assert_eq!(judge(&[("a", 3), ("b", 4)], 9, &[("a", 3)], 3, &[]), Verdict::Wrong(1));
        assert_eq!(judge(&[("a", 5)], 9, &[("a", 3)], 3, &[]), Verdict::Wrong(1));
        assert_eq!(judge(&[], 9, &[("a", 3), ("b", 4)], 4, &[]), Verdict::Wrong(2));
    }

    #[test]
    fn two_histories_are_told_from_one_that_lags() {
        assert_eq!(judge(&[("a", 3)], 9, &[("a", 5)], 5, &[]), Verdict::WentBack);
        assert_eq!(judge(&[], 2, &[("a", 5)], 5, &[]), Verdict::WentBack);
    }
}
