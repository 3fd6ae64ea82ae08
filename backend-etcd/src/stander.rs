//! The task behind one place in a line: gets in line, waits, holds, and leaves.
//!
//! The caller's future only holds a receiver, so dropping it at any point makes the task clean up. Whoever waits watches one key; a
//! turn is confirmed by a *write*, because a read can be stale; the token is the creation revision of the own key.

use std::{sync::Arc, time::Duration};

use enlist::{
    Backoff, BackoffPolicy, Counter, Error, FencingToken, Leadership, LockMode, LockName, LockOptions, Loss, Moment,
    Released, Revision, Tenure,
    election::Proclamation,
    feed::FeedReader,
    lock::{GuardDriver, Place, Standing, lock_guard},
    standing,
    telemetry::{Timer, measured},
};
use etcd_client::{GetOptions, SortOrder, SortTarget};
use tokio::sync::{mpsc, oneshot};

use crate::{
    connection::{Guard, SETTLED, Written, signed},
    error::{Failure, said},
    handover::Successor,
    layout::{LeaseScope, Line, PlaceValue},
    lease::{Lease, LeaseState, Purpose},
    lock::{Want, Won},
    mirror::Mirror,
    pipeline::Hub,
    record::{KeyRange, Record},
    registry::lease_changed,
    session::Session,
};

/// How long `release` waits for etcd before it returns and goes on in the background.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a lease that turns out to be gone is replaced at once, before that counts as trouble.
const GRANTS: usize = 2;

/// What a guard of this backend holds on to.
pub(crate) struct Source {
    pub(crate) key: Vec<u8>,
    _session: Arc<Session>,
}

/// The task behind one place in a line.
pub(crate) struct Stander {
    pub(crate) session: Arc<Session>,
    pub(crate) name: LockName,
    pub(crate) range: KeyRange,
    pub(crate) value: Vec<u8>,
    pub(crate) want: Want,
    pub(crate) options: LockOptions,
    /// When it was asked for.
    pub(crate) begun: Moment,
}

/// A place that may be in etcd.
struct Held {
    key: Vec<u8>,
    lease: Arc<Lease>,
    /// When a write was sent whose answer was lost.
    unsettled: Option<Moment>,
}

/// Where a place stands.
enum Turn {
    /// It is the turn.
    Mine,
    /// The place to wait for, as it was last seen.
    Behind { before: Record, at: Revision },
    /// The own key is gone.
    Gone,
}

/// A place in line with what is known about it.
struct Placed {
    token: Revision,
    turn: Turn,
}

impl Stander {
    pub(crate) async fn run(mut self, mut answer: oneshot::Sender<Result<Won, Error>>) {
        let (mut held, placed) = match self.enter(&mut answer).await {
            Ok(entered) => entered,
            Err((held, error)) => {
                // The caller may be gone, which is what `answer` says then.
                let _ = answer.send(Err(error));
                if let Some(held) = held {
                    self.leave(&held, None, false).await;
                }
                return;
            }
        };
        let token = placed.token;
        let waited = tokio::select! {
            waited = self.wait(&mut held, placed) => Some(waited),
            () = answer.closed() => None,
        };
        match waited {
            Some(Ok(true)) => self.hold(held, token, answer).await,
            Some(Ok(false)) => {
                self.leave(&held, Some(token), false).await;
                let _ = answer.send(Ok(Won::Nothing));
            }
            Some(Err(error)) => {
                let _ = answer.send(Err(error));
                self.leave(&held, Some(token), false).await;
            }
            None => {
                // A confirmation may have been under way; it only touches a key that exists, so nothing can come back.
                self.leave(&held, Some(token), false).await;
            }
        }
    }

    fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&format!("the lock {}", self.name))
    }

    async fn held(&self) -> Result<Held, Failure> {
        let Session { tasks, leases, lock_layout, .. } = &*self.session;
        let lease = match lock_layout.lease_scope() {
            LeaseScope::Shared if !self.options.own_lease => {
                leases.shared(tasks, Purpose::Lock, self.options.ttl).await?
            }
            LeaseScope::Shared | LeaseScope::PerKey => leases.own(tasks, self.options.ttl).await?,
        };
        let key = lock_layout.place(self.want.line, &self.name, lease.id(), fastrand::u64(..));
        Ok(Held { key: key.map_err(Failure::Final)?, lease, unsettled: None })
    }

    /// Gets in line. Who wants to wait tries until etcd answers; repeating is safe, because the key is unique and only
    /// created once. On an error the place that may be left is returned with it.
    async fn enter(
        &mut self,
        answer: &mut oneshot::Sender<Result<Won, Error>>,
    ) -> Result<(Held, Placed), (Option<Held>, Error)> {
        let mut backoff = BackoffPolicy::default().start();
        let mut held: Option<Held> = None;
        let mut renewed = 0;
        loop {
            let failure = match self.try_enter(&mut held).await {
                Ok(placed) => match held {
                    Some(held) => return Ok((held, placed)),
                    None => return Err((None, Error::Closed)),
                },
                Err(failure) => failure,
            };
            let leaseless = held.take_if(|_| matches!(failure, Failure::LeaseNotFound));
            if let Some(gone) = leaseless {
                gone.lease.condemn();
                if renewed < GRANTS {
                    renewed += 1;
                    continue;
                }
            }
            let error = self.failed(failure);
            if !error.is_retryable() || !self.want.wait {
                return Err((held, error));
            }
            tokio::select! {
                () = answer.closed() => return Err((held, Error::Closed)),
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    async fn try_enter(&self, held: &mut Option<Held>) -> Result<Placed, Failure> {
        let held = match held {
            Some(held) => held,
            None => held.insert(self.held().await?),
        };
        let sent = Moment::now();
        let first = (&self.range.start[..], self.first());
        let put = self.session.conn.put_and_read(&held.key, Guard::Absent, &self.value, held.lease.id(), first);
        let (token, line) = match put.await {
            Ok(Ok(entered)) => entered,
            // Created by an attempt whose answer was lost.
            Ok(Err(Some(own))) => return self.confirm(held, own.created).await,
            Ok(Err(None)) => return Err(Failure::Lost(said("the line changed meanwhile"))),
            Err(failure) => {
                if failure.is_ambiguous() {
                    held.unsettled = Some(sent);
                }
                return Err(failure);
            }
        };
        let turn = self.turn(held, token, token, line).await?;
        Ok(Placed { token, turn })
    }

    /// Reads the first in line only.
    fn first(&self) -> GetOptions {
        self.line_options().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1)
    }

    fn line_options(&self) -> GetOptions {
        match &self.range.end {
            Some(end) => GetOptions::new().with_range(end.clone()),
            None => GetOptions::new(),
        }
    }

    /// Proves by a write that the place is still there, and reads where it stands. The creation revision stays.
    async fn confirm(&self, held: &Held, token: Revision) -> Result<Placed, Failure> {
        let first = (&self.range.start[..], self.first());
        let guard = Guard::Created(token);
        let put = self.session.conn.put_and_read(&held.key, guard, &self.value, held.lease.id(), first);
        let turn = match put.await? {
            Ok((at, line)) => self.turn(held, token, at, line).await?,
            Err(_) => Turn::Gone,
        };
        Ok(Placed { token, turn })
    }

    /// Where the place stands: `line` holds the first key of the range, which decides in the usual case.
    async fn turn(&self, held: &Held, token: Revision, at: Revision, line: Vec<Record>) -> Result<Turn, Failure> {
        if line.first().is_some_and(|first| *first.key == *held.key) {
            return Ok(Turn::Mine);
        }
        // Somebody, or something foreign, is before it. An exclusive place need not know more than the one right before.
        let before = self.line_options().with_max_create_revision(signed(token));
        let two = before.clone().with_sort(SortTarget::Create, SortOrder::Descend).with_limit(2);
        let exclusive = self.options.mode == LockMode::Exclusive;
        let nearest = if exclusive { &two } else { &before };
        let (mut records, mut now) = self.session.conn.range(&self.range.start, nearest).await?;
        if exclusive && records.iter().any(|record| self.place(record).is_none()) {
            // The one right before is nobody in line, so the whole line has to tell.
            (records, now) = self.session.conn.range(&self.range.start, &before).await?;
        }
        if now < at {
            // Some releases of etcd answer stale reads under stress (etcd-io/etcd#20418); this one is from before the write.
            return Err(Failure::Lost(said("the line was read from a member that lags")));
        }
        let places = records.iter().filter_map(|record| Some((record, self.place(record)?)));
        let places: Vec<(&Record, Place)> = places.collect();
        let me = FencingToken::new(token.get());
        Ok(match standing(places.iter().map(|(_, place)| *place), me) {
            Standing::Holder => Turn::Mine,
            Standing::Absent => Turn::Gone,
            Standing::Behind(other) => match places.iter().find(|(_, place)| place.token == other) {
                Some((record, _)) => Turn::Behind { before: (*record).clone(), at: now },
                None => Turn::Gone,
            },
        })
    }

    fn place(&self, record: &Record) -> Option<Place> {
        let value = self.session.lock_layout.decode(self.want.line, &self.name, &record.key, &record.value)?;
        Some(Place { token: FencingToken::new(record.created.get()), mode: value.mode })
    }

    /// Waits for the turn. `false`: it is not the turn, and the caller does not want to wait.
    async fn wait(&self, held: &mut Held, placed: Placed) -> Result<bool, Error> {
        let Placed { token, mut turn } = placed;
        let mut backoff = BackoffPolicy::default().start();
        let mut own: Option<FeedReader<Mirror>> = None;
        loop {
            let (before, at) = match turn {
                Turn::Mine => return Ok(true),
                Turn::Gone => return Err(Error::LeaseLost),
                Turn::Behind { .. } if !self.want.wait => return Ok(false),
                Turn::Behind { before, at } => (before, at),
            };
            let own_key = match &mut own {
                Some(own) => own,
                None => own.insert(self.session.hub.follow(&self.session, &KeyRange::key(held.key.clone()))?),
            };
            let predecessor = Hub::follow_key(&self.session, &before.key, Some(before.clone()), at)?;
            let mut seat = self.session.heirs.wait(&before.key, self.successor(held, token));
            let mut lease = held.lease.state();
            tokio::select! {
                // Handed over in order, so no delay is called for.
                () = seat.confirmed() => return Ok(true),
                () = replaced(predecessor, before.created) => {}
                () = vanished(own_key, &held.key, token) => return Err(Error::LeaseLost),
                () = lost(&mut lease) => return Err(Error::LeaseLost),
            }
            if seat.handed_over().await {
                return Ok(true);
            }
            let fell = self.fell(&before).await;
            turn = self.confirmed(held, token, &mut backoff).await?;
            if fell && matches!(turn, Turn::Mine) {
                tokio::select! {
                    () = tokio::time::sleep(self.options.lock_delay) => {}
                    () = vanished(own_key, &held.key, token) => return Err(Error::LeaseLost),
                }
            }
        }
    }

    fn successor(&self, held: &Held, token: Revision) -> Successor {
        Successor { key: held.key.clone(), value: self.value.clone(), lease: held.lease.id(), token }
    }

    /// Confirms until etcd answers. A lost answer is harmless: confirming again tells the same.
    async fn confirmed(&self, held: &Held, token: Revision, backoff: &mut Backoff) -> Result<Turn, Error> {
        loop {
            match self.confirm(held, token).await {
                Ok(Placed { turn, .. }) => return Ok(turn),
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

    /// Says whether the one before fell instead of releasing: its lease is gone. Asked only where it matters.
    async fn fell(&self, before: &Record) -> bool {
        let Some(lease) = before.lease.filter(|_| !self.options.lock_delay.is_zero()) else {
            return false;
        };
        // Without an answer the careful one is right.
        !matches!(self.session.conn.time_to_live(lease).await, Ok(Some((left, _))) if !left.is_zero())
    }

    /// Hands the guard over and watches over it until it is released or lost.
    async fn hold(self, held: Held, token: Revision, answer: oneshot::Sender<Result<Won, Error>>) {
        let Some(sent) = held.lease.renewed() else {
            let _ = answer.send(Err(Error::LeaseLost));
            self.leave(&held, Some(token), false).await;
            return;
        };
        let tenure = Arc::new(Tenure::new(sent, held.lease.ttl()));
        let source = Arc::new(Source { key: held.key.clone(), _session: Arc::clone(&self.session) });
        let (guard, driver) = lock_guard(self.name.clone(), FencingToken::new(token.get()), tenure, source);
        let (won, mut proclaimed) = match self.want.line {
            Line::Lock => (Won::Lock(guard), None),
            Line::Election => {
                let (leadership, proclaimed) = Leadership::new(guard);
                (Won::Leadership(leadership), Some(proclaimed))
            }
        };
        // A caller that is gone drops the guard right here, which asks for the release.
        drop(answer.send(Ok(won)));
        measured(Timer::LockWait, self.begun.elapsed());
        tracing::info!(token = token.get(), "lock acquired");
        self.watch_over(&held, token, &driver, &mut proclaimed).await;
        match driver.tenure().loss() {
            None | Some(Loss::Released | Loss::SessionClosed) => tracing::info!("lock released"),
            Some(loss) => {
                self.session.counters.count(Counter::LockLosses);
                tracing::warn!(token = token.get(), cause = ?loss, "lock lost");
            }
        }
        let mut leaving = std::pin::pin!(self.give_up(&held, token, &driver));
        if let Ok(outcome) = tokio::time::timeout(PATIENCE, &mut leaving).await {
            driver.report(Ok(outcome));
        } else {
            driver.report(Err(Error::Timeout { op: "release", limit: PATIENCE, cause: None }));
            leaving.await;
        }
    }

    /// Returns once the lock is to be released, or is lost.
    async fn watch_over(
        &self,
        held: &Held,
        token: Revision,
        driver: &GuardDriver,
        proclaimed: &mut Option<mpsc::Receiver<Proclamation>>,
    ) {
        let mut lease = held.lease.state();
        // From before the grant on, so that nothing that happened meanwhile is missed.
        let Ok(mut own) = self.session.hub.follow(&self.session, &KeyRange::key(held.key.clone())) else {
            return;
        };
        loop {
            tokio::select! {
                () = driver.release_wanted() => return,
                // What is lost is given up: a key that a healed session kept alive would block everybody.
                _ = driver.tenure().lost() => return,
                state = lease_changed(&mut lease) => match state {
                    LeaseState::Alive { sent } => driver.tenure().renewed(sent, held.lease.ttl()),
                    LeaseState::Lost => driver.tenure().lose(Loss::LeaseGone),
                    LeaseState::Suspect { .. } => {}
                },
                () = vanished(&mut own, &held.key, token) => driver.tenure().lose(Loss::KeyGone),
                proclamation = next(proclaimed) => self.proclaim(held, token, proclamation).await,
            }
        }
    }

    async fn proclaim(&self, held: &Held, token: Revision, proclamation: Proclamation) {
        let Proclamation { value, reply, .. } = proclamation;
        let place = PlaceValue { mode: LockMode::Exclusive, text: value };
        let value = self.session.lock_layout.encode(self.want.line, &place);
        let put = self.session.conn.put(&held.key, Guard::Created(token), &value, Some(held.lease.id()));
        let outcome = match put.await {
            Ok(Written::Done(revision)) => Ok(revision),
            Ok(Written::Refused(_)) => Err(Error::LeaseLost),
            Err(failure) => Err(self.failed(failure)),
        };
        // A leader that no longer waits for the answer needs none.
        let _ = reply.send(outcome);
    }

    /// Gives a lock up that was held: to the next of this session, if one waits and nothing was lost, else by leaving.
    async fn give_up(&self, held: &Held, token: Revision, driver: &GuardDriver) -> Released {
        let in_order = matches!(driver.tenure().loss(), None | Some(Loss::Released));
        let Some(heir) = self.session.heirs.take(&held.key).filter(|_| in_order) else {
            return self.leave(held, Some(token), false).await;
        };
        let first = (&self.range.start[..], self.first());
        let handed = self.session.conn.hand_over((&held.key, token), &heir.successor, first).await;
        match handed {
            Ok(Some(line)) => {
                if line.first().is_some_and(|first| *first.key == *heir.successor.key) {
                    heir.tell();
                }
                Released::Released
            }
            // The heir gave up, or this place is gone.
            Ok(None) => self.leave(held, Some(token), false).await,
            Err(failure) => self.leave(held, Some(token), failure.is_ambiguous()).await,
        }
    }

    /// Removes the place until etcd has confirmed it, or its lease cannot be alive any more. The key is unique to this
    /// acquisition, so whatever is found there is its own. `removed` says that a removal may have been done before.
    async fn leave(&self, held: &Held, token: Option<Revision>, mut removed: bool) -> Released {
        let begun = Moment::now();
        let mut backoff = BackoffPolicy::default().start();
        loop {
            let may_arrive = held.unsettled.is_some_and(|sent| sent.elapsed() < SETTLED);
            match self.try_leave(held, token).await {
                Ok(Some(Released::AlreadyLost)) if removed => return Released::Released,
                Ok(Some(outcome)) if !may_arrive || token.is_some() => return outcome,
                Ok(_) => {}
                Err(failure) => {
                    removed |= failure.is_ambiguous();
                    tracing::debug!(lock = %self.name, ?failure, "place not removed yet");
                }
            }
            if held.lease.is_lost() || begun.elapsed() > held.lease.ttl() * 2 + SETTLED {
                return Released::AlreadyLost;
            }
            tokio::time::sleep(backoff.next_delay().min(Duration::from_secs(1))).await;
        }
    }

    async fn try_leave(&self, held: &Held, token: Option<Revision>) -> Result<Option<Released>, Failure> {
        let created = match token {
            Some(token) => token,
            None => match self.session.conn.get(&held.key).await? {
                (Some(record), _) => record.created,
                (None, _) => return Ok(Some(Released::AlreadyLost)),
            },
        };
        Ok(match self.session.conn.delete(&held.key, Guard::Created(created)).await? {
            Written::Done(_) => Some(Released::Released),
            Written::Refused(_) if token.is_some() => Some(Released::AlreadyLost),
            Written::Refused(_) => None,
        })
    }
}

/// Waits until the key that `reader` follows is no longer the one created at `created`.
async fn replaced(mut reader: FeedReader<Mirror>, created: Revision) {
    while let Ok(reading) = reader.next().await {
        if reading.value.records().all(|record| record.created != created) {
            return;
        }
    }
    // The session has ended, and this task with it.
    std::future::pending::<()>().await;
}

/// Waits until `key` is known not to be the one created at `token`.
async fn vanished(reader: &mut FeedReader<Mirror>, key: &[u8], token: Revision) {
    while let Ok(reading) = reader.next().await {
        if reading.value.get(key).is_none_or(|record| record.created != token) {
            return;
        }
    }
    std::future::pending::<()>().await;
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
