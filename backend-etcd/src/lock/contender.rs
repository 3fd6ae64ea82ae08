//! The task behind one place in a line: gets in line, waits, holds, and leaves.
//!
//! The caller's future only holds a receiver, so dropping it at any point makes the task clean up. Whoever waits watches one key; a
//! turn is confirmed by a *write*, because a read can be stale; the token is the creation revision of the own key.

use std::{sync::Arc, time::Duration};

use enlist::{
    Backoff, BackoffPolicy, Counter, Error, FencingToken, Leadership, LockMode, LockName, LockOptions, Loss, Moment,
    Released, Revision,
    backend::{
        GuardDriver, LastTrouble, LeasePurpose, LeaseState, LockValidity, Proclamation, QueueEntry, QueuePosition,
        Subscriber, Timer, jitter, lease_changed, lock_guard, measured, queue_position,
    },
};
use etcd_client::{GetOptions, SortOrder, SortTarget};
use futures::{
    FutureExt,
    future::{Fuse, FusedFuture},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    client::{
        guarded_write::Guard,
        kv::Written,
        queue_requests::{LineFound, LineRead, OwnEntry},
        response::signed,
    },
    defects::Defect,
    error::{Failure, text_cause},
    layout::{LeaseScope, LockLayout, PlaceValue, QueueKind},
    lock::{Want, Won, context::LockContext, local_queue::Membership},
    session::lease::Lease,
    watch::{
        key_monitors::KeyMonitor,
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::Begin,
    },
};

mod first_to_create;
mod lock_delay;

/// Time for which `release` waits for etcd before it returns and goes on in the background.
const PATIENCE: Duration = Duration::from_secs(3);

/// A place is watched once it is this old: a lock that is held for a moment costs no watch, and a contender whose key is deleted is still told
/// within a second.
const UNWATCHED: Duration = Duration::from_millis(200);

/// The longest pause between two removals that etcd did not answer.
const MAX_REMOVAL_PAUSE: Duration = Duration::from_secs(1);

/// The pace at which a removal is tried again that somebody has to mend, for want of a permission for instance.
const SLOW: Duration = Duration::from_secs(10);

/// Whoever stood in line for so long before the place was lost gets in line again without the delays of earlier losses.
const STOOD_LONG: Duration = Duration::from_secs(10);

/// Number of times that a lease that turns out to be gone is replaced at once, before that counts as trouble.
const GRANTS: usize = 2;

/// References that a guard of this backend holds.
pub(crate) struct Source {
    pub(crate) key: Vec<u8>,
    _context: Arc<LockContext>,
}

/// The task behind one place in a line.
pub(crate) struct Contender {
    pub(crate) context: Arc<LockContext>,
    pub(crate) name: LockName,
    pub(crate) range: KeyRange,
    /// The marks beside it, with a `lock_delay`.
    pub(crate) marks: Option<KeyRange>,
    pub(crate) value: Vec<u8>,
    pub(crate) want: Want,
    pub(crate) options: LockOptions,
    /// Time at which it was asked for.
    pub(crate) begun: Moment,
    /// The last error that kept it from getting in line, or from leaving, for the caller to name at its deadline.
    pub(crate) trouble: LastTrouble,
}

/// A place that may be in etcd.
struct Queued {
    key: Vec<u8>,
    /// What tells it from the other places of this session in the line.
    number: u64,
    lease: Arc<Lease>,
    /// The key of its mark, with a `lock_delay`.
    mark: Option<Vec<u8>>,
    /// The mark may be there, and is to go with the place.
    marked: bool,
    /// A write that creates it may have been done.
    entered: bool,
    /// The answer to a write that creates it was lost.
    unknown: bool,
    /// Revision at which it was changed last, as far as that is known.
    modified: Revision,
    /// Time at which it was chosen.
    begun: Instant,
    /// What tells that it is gone, once it is watched.
    ward: Option<KeyMonitor>,
}

/// Position of a place.
enum Turn {
    /// It is the turn.
    Mine,
    /// The place to wait for, as it was last seen.
    Behind { before: Record, at: Revision },
    /// The own key is gone.
    Gone,
}

/// Outcome of getting in line.
enum Entered {
    Placed(Placed),
    /// Another contender has the only key.
    Taken(Record),
}

/// A place in line with what is known about it.
struct Placed {
    token: Revision,
    /// Revision at which it was changed last.
    modified: Revision,
    turn: Turn,
    /// The marks of holders, with a `lock_delay`.
    marks: Vec<Record>,
}

impl Queued {
    /// The mark that goes with the place when it is left in order.
    fn own_mark(&self) -> Option<&[u8]> {
        self.mark.as_deref().filter(|_| self.marked)
    }
}

/// Channel to the caller, which waits for the outcome of its acquisition.
type Answer = oneshot::Sender<Result<Won, Error>>;

impl Contender {
    /// Gets in line, waits, holds and leaves; gets in line again, at its end, if the place is lost before it is its turn.
    pub(crate) async fn run(mut self, mut answer: Answer) {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let (held, unanswered) = match self.enter(&mut answer).await {
                Ok((mut held, placed)) => {
                    let unanswered = self.stand(&mut held, placed, answer).await;
                    (held, unanswered)
                }
                Err((held, outcome)) => {
                    // The caller may be gone, which is what `answer` says then.
                    let _ = answer.send(outcome);
                    let Some(held) = held else {
                        return;
                    };
                    if held.unknown {
                        return self.withdraw(held).await;
                    }
                    if held.entered {
                        self.leave(&held, None, false).await;
                    }
                    (held, None)
                }
            };
            self.end(&held);
            let Some(unanswered) = unanswered else {
                return;
            };
            answer = unanswered;
            if held.begun.elapsed() >= STOOD_LONG {
                backoff.reset();
            }
            drop(held);
            tracing::warn!("queue entry lost, entering the queue again");
            tokio::select! {
                () = answer.closed() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Gives back what a place had that is gone.
    fn end(&self, held: &Queued) {
        // Its key is gone by now, or the lease that kept it.
        self.context.key_suffixes.give_back(&self.range.start, held.number);
        // Whoever took a lock is likely to take it again.
        if let Some(range) = self.places(held) {
            self.context.hub.linger(&range);
        }
    }

    /// Waits, holds and leaves. A place that is lost before it is its turn leaves the caller without an answer, unless it wants to
    /// hear of that; then its answer is returned.
    async fn stand(&self, held: &mut Queued, placed: Placed, mut answer: Answer) -> Option<Answer> {
        let token = placed.token;
        let here = self.context.local_queue.stay(&held.key);
        let waited = tokio::select! {
            waited = self.wait(held, placed) => Some(waited),
            () = answer.closed() => None,
        };
        let again = self.want.wait && !self.options.fail_on_lost_entry;
        match (waited, held.lease.renewed()) {
            (Some(Ok(true)), Some(sent)) => self.hold(held, token, sent, here, answer).await,
            (Some(Ok(true)), None) | (Some(Err(Error::LeaseLost)), _) if again => {
                drop(here);
                held.lease.doubt();
                self.leave(held, Some(token), false).await;
                return Some(answer);
            }
            (Some(Ok(true)), None) => {
                let _ = answer.send(Err(Error::LeaseLost));
                drop(here);
                self.leave(held, Some(token), false).await;
            }
            (Some(Ok(false)), _) => {
                self.leave(held, Some(token), false).await;
                let _ = answer.send(Ok(Won::Nothing));
            }
            (Some(Err(error)), _) => {
                let _ = answer.send(Err(error));
                drop(here);
                self.leave(held, Some(token), false).await;
            }
            (None, _) if Defect::CallerGoneStays.is_on() => {}
            (None, _) => {
                // A confirmation may have been under way; it only touches a key that exists, so nothing can come back.
                self.leave(held, Some(token), false).await;
            }
        }
        None
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&format!("the lock {}", self.name))
    }

    async fn held(&self) -> Result<Queued, Failure> {
        let LockContext { leases, lock_layout, .. } = &*self.context;
        let lease = match lock_layout.lease_scope() {
            LeaseScope::Shared if !self.options.own_lease => {
                leases.shared(LeasePurpose::Lock, self.options.lease_terms()).await?
            }
            LeaseScope::Shared | LeaseScope::PerKey => leases.own(self.options.lease_terms()).await?,
        };
        let number = self.context.key_suffixes.take(&self.range.start);
        let keys = || {
            let key = lock_layout.entry(self.want.line, &self.name, lease.id(), number)?;
            let mark = self.marks.as_ref().map(|_| lock_layout.mark_of(self.want.line, &self.name, lease.id(), number));
            Ok((key, mark.transpose()?.flatten()))
        };
        let keys = keys().inspect_err(|_| self.context.key_suffixes.give_back(&self.range.start, number));
        let (key, mark) = keys.map_err(Failure::Final)?;
        Ok(Queued {
            key,
            number,
            lease,
            mark,
            marked: false,
            entered: false,
            unknown: false,
            modified: Revision::default(),
            begun: Instant::now(),
            ward: None,
        })
    }

    /// The range of the places in this line that share the lease of this one.
    fn places(&self, held: &Queued) -> Option<KeyRange> {
        let layout = &self.context.lock_layout;
        let shares = layout.lease_scope() == LeaseScope::Shared && !self.options.own_lease;
        layout.places(self.want.line, &self.name, held.lease.id()).filter(|_| shares)
    }

    /// The place as others have to know it.
    fn own_place(&self, held: &Queued, token: Revision) -> OwnEntry {
        OwnEntry { key: held.key.clone(), value: self.value.clone(), lease: held.lease.id(), token }
    }

    /// Waits until the own place is known to be gone.
    ///
    /// Dropping the future loses nothing.
    async fn key_deleted(&self, held: &mut Queued, token: Revision) {
        let shared = self.places(held);
        let ward = match &mut held.ward {
            Some(ward) => ward,
            ward @ None => {
                tokio::time::sleep_until(held.begun + UNWATCHED).await;
                let own = Record {
                    key: (&held.key[..]).into(),
                    value: (&self.value[..]).into(),
                    created: token,
                    modified: token,
                    lease: Some(held.lease.id()),
                };
                match self.context.key_monitors.place(shared.as_ref(), own) {
                    Ok(made) => ward.insert(made),
                    // The session has ended, and this task with it.
                    Err(_) => return std::future::pending().await,
                }
            }
        };
        ward.vanished(token).await;
    }

    /// Gets in line. Who wants to wait tries until etcd answers; repeating is safe, because nobody else uses the key
    /// meanwhile, or not under the same lease, and it is only created if it is absent. Otherwise the place that may be left is returned
    /// with what the caller gets. A caller that is gone costs no further request.
    async fn enter(&mut self, answer: &mut Answer) -> Result<(Queued, Placed), (Option<Queued>, Result<Won, Error>)> {
        let mut backoff = BackoffPolicy::default().start();
        let mut held: Option<Queued> = None;
        let mut renewed = 0;
        loop {
            let failure = match self.try_enter(&mut held, answer).await {
                Ok(Entered::Placed(placed)) => match held {
                    Some(held) => {
                        self.trouble.clear();
                        return Ok((held, placed));
                    }
                    None => return Err((None, Err(Error::Closed))),
                },
                Ok(Entered::Taken(_)) if !self.want.wait => return Err((held, Ok(Won::Nothing))),
                Ok(Entered::Taken(by)) => {
                    self.trouble.clear();
                    (backoff, renewed) = (BackoffPolicy::default().start(), 0);
                    let freed = tokio::select! {
                        freed = self.freed(by) => freed,
                        () = answer.closed() => Err(Error::Closed),
                    };
                    match freed {
                        Ok(()) => continue,
                        Err(error) => return Err((held, Err(error))),
                    }
                }
                Err(failure) => failure,
            };
            let leaseless = held.take_if(|_| matches!(failure, Failure::LeaseNotFound));
            if let Some(gone) = leaseless {
                gone.lease.condemn();
                self.context.key_suffixes.give_back(&self.range.start, gone.number);
                if renewed < GRANTS {
                    renewed += 1;
                    continue;
                }
            }
            let error = self.failed(failure);
            if !error.is_retryable() || !self.want.wait {
                return Err((held, Err(error)));
            }
            self.trouble.note(error);
            tokio::select! {
                () = answer.closed() => return Err((held, Err(Error::Closed))),
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    async fn try_enter(&self, held: &mut Option<Queued>, answer: &mut Answer) -> Result<Entered, Failure> {
        if held.is_none() {
            *held = tokio::select! {
                made = self.held() => Some(made?),
                () = answer.closed() => None,
            };
        }
        if let Some(unknown) = held.take_if(|held| held.unknown) {
            match self.context.conn.get(&unknown.key).await {
                Ok((Some(own), _)) if self.is_own(&unknown, &own) => {
                    let known = held.insert(Queued { unknown: false, ..unknown });
                    return self.confirm(known, own.created).await.map(Entered::Placed);
                }
                Ok(_) => {
                    // It may yet be done. Another place is taken, under another lease.
                    self.forsake(unknown).map_err(Failure::Final)?;
                    return Err(Failure::Lost(text_cause("the answer to getting in line was lost")));
                }
                Err(failure) => {
                    *held = Some(unknown);
                    return Err(failure);
                }
            }
        }
        let Some(held) = held else {
            return Err(Failure::Final(Error::Closed));
        };
        // The own place is the last of the line then.
        let own = self.own_place(held, Revision::default());
        // Behind others of this session it has to wait anyway.
        let deferrable = self.want.wait && self.context.key_suffixes.in_use(&self.range.start) > 1;
        let conn = &self.context.conn;
        let entered = conn.enter(&own, self.read(self.last_two()), deferrable, answer.closed()).await;
        held.entered |= match &entered {
            Ok(Ok(_)) => true,
            Ok(Err(found)) => found.as_ref().is_some_and(|found| self.is_own(held, found)),
            Err(failure) => failure.is_ambiguous(),
        };
        let LineFound { at: token, line, marks } = match entered {
            Ok(Ok(entered)) => entered,
            Ok(Err(Some(other))) if !self.is_own(held, &other) => return Ok(Entered::Taken(other)),
            // Created by an attempt whose answer was lost.
            Ok(Err(Some(own))) => return self.confirm(held, own.created).await.map(Entered::Placed),
            Ok(Err(None)) => return Err(Failure::Lost(text_cause("the line changed meanwhile"))),
            Err(failure) => {
                if failure.is_ambiguous() {
                    held.unknown = true;
                    // While etcd is silent nothing more is sent under this lease.
                    held.lease.doubt();
                }
                return Err(failure);
            }
        };
        let turn = self.turn(held, token, token, line).await?;
        Ok(Entered::Placed(Placed { token, modified: token, turn, marks }))
    }

    fn read(&self, options: GetOptions) -> LineRead<'_> {
        LineRead { line: &self.range, options, marks: self.marks.as_ref() }
    }

    /// Reads the last two in line only.
    fn last_two(&self) -> GetOptions {
        self.line_options().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(2)
    }

    fn line_options(&self) -> GetOptions {
        match &self.range.end {
            Some(end) => GetOptions::new().with_range(end.clone()),
            None => GetOptions::new(),
        }
    }

    /// Proves by a write that the place is still there, and reads where it stands. The creation revision stays.
    async fn confirm(&self, held: &Queued, token: Revision) -> Result<Placed, Failure> {
        let until_here = self.last_two().with_max_create_revision(signed(token));
        let own = self.own_place(held, token);
        let (turn, LineFound { at: modified, marks, .. }) =
            match self.context.conn.confirm(&own, self.read(until_here)).await? {
                Ok(mut found) => {
                    let line = std::mem::take(&mut found.line);
                    (self.turn(held, token, found.at, line).await?, found)
                }
                Err(_) => (Turn::Gone, LineFound::default()),
            };
        Ok(Placed { token, modified, turn, marks })
    }

    /// Position of the place. `line` holds it and the one right before it, which decides in the usual case.
    async fn turn(&self, held: &Queued, token: Revision, at: Revision, line: Vec<Record>) -> Result<Turn, Failure> {
        let own = line.first().is_some_and(|own| *own.key == *held.key);
        let reads = self.options.mode == LockMode::Shared;
        if own && (Defect::QueueIgnored.is_on() || Defect::ReadersIgnoreWriters.is_on() && reads) {
            return Ok(Turn::Mine);
        }
        match line.into_iter().nth(1) {
            None if own => return Ok(Turn::Mine),
            // An exclusive place need not know more than the one right before.
            Some(before) if own && self.options.mode == LockMode::Exclusive && self.place(&before).is_some() => {
                return Ok(Turn::Behind { before, at });
            }
            _ => {}
        }
        // Something foreign is before it, or a shared place has to know who of those before it is exclusive.
        let before = self.line_options().with_max_create_revision(signed(token));
        let (records, now) = self.context.conn.range(&self.range.start, &before).await?;
        if now < at {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418); this one is from before the write.
            return Err(Failure::Lost(text_cause("the line was read from a member that lags")));
        }
        let places = records.iter().filter_map(|record| Some((record, self.place(record)?)));
        let places: Vec<(&Record, QueueEntry)> = places.collect();
        let me = FencingToken::new(token.get());
        Ok(match queue_position(places.iter().map(|(_, place)| *place), me) {
            QueuePosition::Holder => Turn::Mine,
            QueuePosition::Absent => Turn::Gone,
            QueuePosition::Behind(other) => match places.iter().find(|(_, place)| place.token == other) {
                Some((record, _)) => Turn::Behind { before: (*record).clone(), at: now },
                None => Turn::Gone,
            },
        })
    }

    fn place(&self, record: &Record) -> Option<QueueEntry> {
        let value = self.context.lock_layout.decode(self.want.line, &self.name, &record.key, &record.value)?;
        Some(QueueEntry { token: FencingToken::new(record.created.get()), mode: value.mode })
    }

    /// Waits for the turn. `false`: it is not the turn, and the caller does not want to wait.
    async fn wait(&self, held: &mut Queued, placed: Placed) -> Result<bool, Error> {
        let Placed { token, modified, mut turn, mut marks } = placed;
        held.modified = modified;
        let mut lease_expired = false;
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let (before, at) = match turn {
                Turn::Mine => return self.take_over(held, token, &marks, lease_expired).await,
                Turn::Gone => return Err(Error::LeaseLost),
                Turn::Behind { .. } if !self.want.wait => return Ok(false),
                Turn::Behind { before, at } => (before, at),
            };
            let mut lease = held.lease.state();
            let seat = self.context.local_queue.wait(&before.key, self.own_place(held, token));
            let inherits = async {
                if let Some(seat) = seat {
                    return Ok(seat.inherits().await);
                }
                let followed = self.context.hub.follow_key(&before.key, Some(before.clone()), at, Begin::Now)?;
                replaced(followed, before.created).await;
                Ok(None)
            };
            let handed_over = tokio::select! {
                confirmed = inherits => confirmed?,
                () = self.key_deleted(held, token) => return Err(Error::LeaseLost),
                () = lost(&mut lease) => return Err(Error::LeaseLost),
            };
            match handed_over {
                // What marks there are was not read then.
                Some(modified) if self.marks.is_none() => {
                    held.modified = modified;
                    return Ok(true);
                }
                Some(_) => lease_expired = false,
                None => lease_expired = self.lease_expired(&before).await,
            }
            if Defect::TurnUnconfirmed.is_on() {
                return Ok(true);
            }
            let placed = self.confirmed(held, token, &mut backoff).await?;
            (held.modified, turn, marks) = (placed.modified, placed.turn, placed.marks);
        }
    }

    /// Confirms until etcd answers. A lost answer is harmless: confirming again tells the same.
    async fn confirmed(&self, held: &Queued, token: Revision, backoff: &mut Backoff) -> Result<Placed, Error> {
        loop {
            match self.confirm(held, token).await {
                Ok(placed) => return Ok(placed),
                Err(Failure::LeaseNotFound) => return Err(Error::LeaseLost),
                Err(failure) => {
                    let error = self.failed(failure);
                    if !error.is_retryable() {
                        return Err(error);
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Returns `true` if the lease of the one before expired, and it did not release. Asked only where it matters.
    async fn lease_expired(&self, before: &Record) -> bool {
        let Some(lease) = before.lease.filter(|_| !self.options.lock_delay.is_zero()) else {
            return false;
        };
        // Without an answer the careful one is right.
        !matches!(self.context.conn.time_to_live(lease).await, Ok(Some((left, _))) if !left.is_zero())
    }

    /// Hands the guard over and watches over it until it is released or lost. `sent` is when the last renewal was sent.
    async fn hold(&self, held: &mut Queued, token: Revision, sent: Moment, here: Membership<'_>, answer: Answer) {
        let ttl = held.lease.ttl() * if Defect::ValidTwiceAsLong.is_on() { 2 } else { 1 };
        let validity = Arc::new(LockValidity::new(sent, ttl));
        let source = Arc::new(Source { key: held.key.clone(), _context: Arc::clone(&self.context) });
        let (guard, driver) = lock_guard(self.name.clone(), FencingToken::new(token.get()), validity, source);
        let (won, mut proclaimed) = match self.want.line {
            QueueKind::Lock => (Won::Lock(guard), None),
            QueueKind::Election => {
                let (leadership, proclaimed) = Leadership::new(guard);
                (Won::Leadership(leadership), Some(proclaimed))
            }
        };
        // A caller that is gone drops the guard right here, which asks for the release.
        drop(answer.send(Ok(won)));
        measured(Timer::LockWait, self.begun.elapsed());
        tracing::info!(token = token.get(), "lock acquired");
        self.watch_over(held, token, &driver, &mut proclaimed).await;
        match driver.validity().loss() {
            None | Some(Loss::Released | Loss::SessionClosed) => tracing::info!("lock released"),
            Some(loss) => {
                self.context.counters.count(Counter::LockLosses);
                tracing::warn!(token = token.get(), cause = ?loss, "lock lost");
            }
        }
        let mut leaving = std::pin::pin!(self.give_up(held, token, here, &driver));
        let outcome = self.trouble.within("release", Some(PATIENCE), async { Ok(leaving.as_mut().await) }).await;
        let goes_on = outcome.is_err();
        driver.report(outcome);
        if goes_on {
            leaving.await;
        }
    }

    /// Returns once the lock is to be released, or is lost.
    async fn watch_over(
        &self,
        held: &mut Queued,
        token: Revision,
        driver: &GuardDriver,
        proclaimed: &mut Option<mpsc::Receiver<Proclamation>>,
    ) {
        let mut lease = held.lease.state();
        let granted = held.lease.ttl() * if Defect::ValidTwiceAsLong.is_on() { 2 } else { 1 };
        let own = self.own_place(held, token);
        let mut modified = held.modified;
        // Beside all else: one that etcd does not answer must not keep a renewal from counting.
        let mut proclaiming = std::pin::pin!(Fuse::terminated());
        loop {
            tokio::select! {
                () = driver.release_wanted() => return,
                // What is lost is given up: a key that a healed session kept alive would block everybody.
                _ = driver.validity().lost() => return,
                state = lease_changed(&mut lease) => match state {
                    LeaseState::Alive { sent } => driver.validity().renewed(sent, granted),
                    LeaseState::Lost => driver.validity().lose(Loss::LeaseGone),
                    // A retired one is kept until the lock is released.
                    LeaseState::Suspect { .. } | LeaseState::Retired => {}
                },
                () = self.key_deleted(held, token), if !Defect::HolderDeaf.is_on() => driver.validity().lose(Loss::KeyGone),
                proclamation = next(proclaimed), if proclaiming.is_terminated() => {
                    proclaiming.set(self.proclaim(&own, modified, proclamation).fuse());
                }
                last = &mut proclaiming => modified = last,
            }
        }
    }

    /// Writes what the leader says, if the place was changed last at `modified`; returns when it was changed last after that. So an
    /// older proclamation whose answer was lost is refused once this one was done.
    async fn proclaim(&self, own: &OwnEntry, mut modified: Revision, proclamation: Proclamation) -> Revision {
        let Proclamation { value, reply, .. } = proclamation;
        let place = PlaceValue { mode: LockMode::Exclusive, text: value };
        let value = match self.context.lock_layout.write(self.want.line, &place) {
            Ok(value) => value,
            Err(error) => {
                let _ = reply.send(Err(error));
                return modified;
            }
        };
        let key = own.key[..].into();
        let outcome = loop {
            match self.context.conn.put(&key, Guard::Modified(modified), &value, Some(own.lease)).await {
                Ok(Written::Done(revision)) => {
                    modified = revision;
                    break Ok(revision);
                }
                // An older proclamation, or a confirmation, was done although its answer was lost.
                Ok(Written::Refused(Some(found))) if found.created == own.token => modified = found.modified,
                Ok(Written::Refused(_)) => break Err(Error::LeaseLost),
                Err(failure) => break Err(self.failed(failure)),
            }
        };
        // A leader that no longer waits for the answer needs none.
        let _ = reply.send(outcome);
        modified
    }

    /// Gives a lock up that was held: to the next of this session, if one waits and nothing was lost, else by leaving.
    async fn give_up(
        &self,
        held: &mut Queued,
        token: Revision,
        here: Membership<'_>,
        driver: &GuardDriver,
    ) -> Released {
        if !matches!(driver.validity().loss(), None | Some(Loss::Released)) {
            // Whoever waits for it may get it sooner than this one learns that its place is gone. The mark stays: the caller may not
            // have noticed yet.
            drop(here);
            held.marked = false;
            return self.leave(held, Some(token), false).await;
        }
        // After an exclusive holder whoever waits right behind it is the first.
        let alone = self.options.mode == LockMode::Exclusive || Defect::ReaderHandsOver.is_on();
        let heir = here.heir().filter(|_| alone);
        let mut removed = false;
        if let Some(heir) = heir {
            let own = (&held.key[..], token);
            match self.context.conn.hand_over(own, held.own_mark(), &heir.place, &self.range).await {
                Ok(Some(confirmed)) => {
                    heir.tell(confirmed);
                    return Released::Released;
                }
                // The heir gave up, or this place is gone.
                Ok(None) => {}
                Err(failure) => removed = failure.is_ambiguous(),
            }
        }
        self.leave(held, Some(token), removed).await
    }

    /// Removes the place until etcd has confirmed it, or said that its lease is gone: one that outlives an outage of etcd would
    /// keep the place for as long as it is renewed. No other acquisition uses the key before that, so whatever is found there is its
    /// own. `removed` says that a removal may have been done before.
    async fn leave(&self, held: &Queued, token: Option<Revision>, mut removed: bool) -> Released {
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let mut pause = backoff.next_delay().min(MAX_REMOVAL_PAUSE);
            match self.try_leave(held, token).await {
                Ok(Some(outcome)) => return if removed { Released::Released } else { outcome },
                Ok(None) => {}
                Err(failure) => {
                    if Defect::ReleaseUnconfirmed.is_on() {
                        return Released::Released;
                    }
                    removed |= failure.is_ambiguous();
                    tracing::debug!(lock = %self.name, cause = %failure, "place not removed yet");
                    let error = self.failed(failure);
                    if !error.is_retryable() {
                        pause = SLOW + jitter(SLOW / 4);
                    }
                    self.trouble.note(error);
                }
            }
            if held.lease.is_lost() {
                return Released::AlreadyLost;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Leaves a place whose creation has an unknown outcome for a caller that is gone. One that was done is removed.
    async fn withdraw(&self, held: Queued) {
        if let Ok((Some(own), _)) = self.context.conn.get(&held.key).await
            && self.is_own(&held, &own)
            && let Ok(Written::Done(_)) = self.context.conn.delete(&held.key, Guard::Created(own.created)).await
        {
            return self.context.key_suffixes.give_back(&self.range.start, held.number);
        }
        // In a session that has ended its lease is revoked all the same.
        let _ = self.forsake(held);
    }

    /// Leaves a place whose creation was not done, but may yet be: its lease is retired, and the place removed on sight until that is
    /// revoked.
    fn forsake(&self, held: Queued) -> Result<(), Error> {
        let queue = self.places(&held).unwrap_or_else(|| KeyRange::key(&held.key[..]));
        let Queued { key, number, lease, .. } = held;
        if Defect::LatePlaceForgotten.is_on() {
            self.context.key_suffixes.give_back(&self.range.start, number);
            return Ok(());
        }
        let swept = self.context.sweeps.add(&lease, key.into(), queue);
        // No other place has its keys under its lease, so the number is free. The lease is revoked once nobody holds it.
        self.context.key_suffixes.give_back(&self.range.start, number);
        swept
    }

    async fn try_leave(&self, held: &Queued, token: Option<Revision>) -> Result<Option<Released>, Failure> {
        let created = match token {
            Some(token) => token,
            None => match self.context.conn.get(&held.key).await? {
                (Some(record), _) if self.is_own(held, &record) => record.created,
                _ => return Ok(Some(Released::AlreadyLost)),
            },
        };
        Ok(match self.context.conn.remove(&held.key, created, held.own_mark()).await? {
            true => Some(Released::Released),
            false if token.is_some() => Some(Released::AlreadyLost),
            false => None,
        })
    }
}

/// Waits until the key that `reader` follows is no longer the one created at `created`. A watch that is refused is opened again, so
/// only the end of the session ends the wait for it.
async fn replaced(mut reader: Subscriber<Replica>, created: Revision) {
    loop {
        match reader.next().await {
            Ok(reading) if reading.value.records().all(|record| record.created != created) => return,
            // This task ends with the session.
            Err(Error::Closed) => return std::future::pending().await,
            Ok(_) | Err(_) => {}
        }
    }
}

async fn lost(state: &mut tokio::sync::watch::Receiver<LeaseState>) {
    while !matches!(lease_changed(state).await, LeaseState::Lost) {}
}

/// The next proclamation, where there can be one and the leader still lives.
async fn next(proclaimed: &mut Option<mpsc::Receiver<Proclamation>>) -> Proclamation {
    let received = match proclaimed {
        Some(receiver) => receiver.recv().await,
        None => None,
    };
    match received {
        Some(proclamation) => proclamation,
        None => std::future::pending().await,
    }
}
