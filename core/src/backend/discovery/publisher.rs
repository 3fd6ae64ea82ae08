//! Conflating broadcast, the shared part of every watch: slow readers see only the latest value.
//!
//! A writer publishes the latest value. A reader wakes, takes the latest value and compares it with the one that *it*
//! saw last. A slow reader therefore loses intermediate states but no net change, needs no queue, and delays no other
//! reader. Both backends and both kinds of watch (services, leaders) use this type; [`ServiceWatcher`] adds the
//! difference.

use std::{any::Any, collections::VecDeque, fmt, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    discovery::{
        freshness::{Freshness, Proof},
        resolver::{Change, Watcher},
        snapshot::Snapshot,
    },
    error::Error,
    runtime::clock::Moment,
};

/// Number of former values whose last proofs are known.
const MAX_FORMER: usize = 16;

/// Dependency of a reader, kept alive as long as the reader is.
pub type OwnerHandle = Arc<dyn Any + Send + Sync>;

#[derive(Clone, Debug)]
struct State<T> {
    value: Option<T>,
    freshness: Freshness,
    /// Error that will not pass by itself, while nothing is known yet.
    refused: Option<Error>,
    closed: bool,
    former: FormerProofs,
}

/// Last proofs of the values that were replaced.
#[derive(Clone, Debug, Default)]
struct FormerProofs {
    /// Number of replaced values.
    count: u64,
    /// Those of the latest ones, oldest first.
    latest: VecDeque<Moment>,
}

impl FormerProofs {
    fn replaced(&mut self, proven: Moment) {
        self.count += 1;
        if self.latest.len() == MAX_FORMER {
            self.latest.pop_front();
        }
        self.latest.push_back(proven);
    }

    /// Returns the last proof of the value after which there have been `count` in total, if it was replaced since, and
    /// is among the latest ones.
    fn of(&self, count: u64) -> Option<Moment> {
        let behind = usize::try_from(self.count - count).ok()?;
        self.latest.get(self.latest.len().checked_sub(behind)?).copied()
    }
}

/// Writing side of a conflating broadcast.
#[derive(Debug)]
pub struct Publisher<T> {
    state: watch::Sender<State<T>>,
    proof: Proof,
}

impl<T: Clone + PartialEq> Default for Publisher<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + PartialEq> Publisher<T> {
    /// A publisher without a value.
    pub fn new() -> Self {
        Self::proven_by(Proof::new(Moment::now()))
    }

    /// A publisher without a value. Its values have the age of `proof`, which belongs to the publisher that they are
    /// derived from ([`Subscriber::proof`]).
    pub fn proven_by(proof: Proof) -> Self {
        let freshness = Freshness::Live { proof: proof.clone() };
        let former = FormerProofs::default();
        Self {
            state: watch::Sender::new(State { value: None, freshness, refused: None, closed: false, former }),
            proof,
        }
    }

    /// Publishes `value`, which was right at `proven`. Wakes the readers if it differs from the last one, or if the
    /// state was stale.
    pub fn publish(&self, value: T, proven: Moment) {
        let before = self.proof.moment();
        self.proof.renew(proven);
        self.set(value, Freshness::Live { proof: self.proof.clone() }, before);
    }

    /// Publishes `value`, which is newer than the last one without being proven: an event contains the change, not the
    /// time at which it was sent. Wakes the readers as [`publish`](Self::publish) does.
    pub fn advance(&self, value: T) {
        self.set(value, Freshness::Live { proof: self.proof.clone() }, self.proof.moment());
    }

    /// Publishes `value`, which was right at `proven`, though changes do not arrive at present.
    pub fn publish_stale(&self, value: T, proven: Moment, cause: Error) {
        self.set(value, Freshness::Stale { proven, cause }, self.proof.moment());
    }

    /// Publishes `value`. `before`: the last proof of the value that it replaces.
    fn set(&self, value: T, freshness: Freshness, before: Moment) {
        self.state.send_if_modified(|state| {
            let differs = state.value.as_ref() != Some(&value);
            let wake = differs || state.freshness.is_live() != freshness.is_live() || state.refused.is_some();
            let mut former = std::mem::take(&mut state.former);
            if differs {
                former.replaced(before);
            }
            *state = State { value: Some(value), freshness, refused: None, closed: false, former };
            wake
        });
    }

    /// Records that the last value was still right at `proven`. Wakes the readers only if the state was stale.
    pub fn prove(&self, proven: Moment) {
        self.proof.renew(proven);
        self.live();
    }

    /// Records that changes arrive again, though nothing has been proven yet. Wakes the readers if the state was stale.
    pub fn live(&self) {
        self.state.send_if_modified(|state| {
            let wake = !state.freshness.is_live();
            state.freshness = Freshness::Live { proof: self.proof.clone() };
            wake
        });
    }

    /// Records that changes no longer arrive. The value stays.
    pub fn stale(&self, cause: Error) {
        self.state.send_if_modified(|state| {
            let wake = state.freshness.is_live();
            state.freshness = Freshness::Stale { proven: state.freshness.proven(), cause };
            wake
        });
    }

    /// Records an error that will not pass by itself. Readers without a value receive it as an error, the others as
    /// staleness.
    pub fn refuse(&self, cause: Error) {
        self.state.send_modify(|state| {
            state.freshness = Freshness::Stale { proven: state.freshness.proven(), cause: cause.clone() };
            state.refused = Some(cause);
        });
    }

    /// Ends the broadcast: each reader takes the value it has not seen, then gets [`Error::Closed`].
    pub fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
    }

    /// The value published last.
    pub fn latest(&self) -> Option<T> {
        self.state.borrow().value.clone()
    }

    /// A reader that has seen nothing yet and keeps `source` alive.
    pub fn reader(&self, source: OwnerHandle) -> Subscriber<T> {
        let mut state = self.state.subscribe();
        state.mark_changed();
        let last = (0, self.proof.moment());
        Subscriber { state, seen: None, live: true, last, proof: self.proof.clone(), _source: source }
    }

    /// Waits until there is no reader left.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn unread(&self) {
        self.state.closed().await;
    }

    /// Returns `true` if there is a reader.
    pub fn is_read(&self) -> bool {
        self.state.receiver_count() > 0
    }
}

/// Reading side of a conflating broadcast.
pub struct Subscriber<T> {
    state: watch::Receiver<State<T>>,
    seen: Option<T>,
    live: bool,
    /// Number of values that the one seen last had replaced, and its proof then.
    last: (u64, Moment),
    proof: Proof,
    _source: OwnerHandle,
}

impl<T: fmt::Debug> fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// Update for a reader: the latest value, the value that it saw before (if any), and the freshness.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Update<T> {
    /// The latest value.
    pub value: T,
    /// Value that this reader saw before.
    pub before: Option<T>,
    /// Last known proof of that value: later proofs are about later values.
    pub proven_before: Moment,
    /// Freshness of the value.
    pub freshness: Freshness,
}

impl<T> Subscriber<T> {
    /// Source of the age of the values while the state is live.
    pub fn proof(&self) -> Proof {
        self.proof.clone()
    }
}

impl<T: Clone + PartialEq> Subscriber<T> {
    /// Waits for a value, or a freshness, that this reader has not seen.
    ///
    /// # Errors
    ///
    /// An error that will not pass by itself, if nothing is known yet. [`Error::Closed`] after the end.
    ///
    /// # Cancel safety
    ///
    /// A value that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Update<T>, Error> {
        loop {
            if self.state.changed().await.is_err() {
                return Err(Error::Closed);
            }
            let state = self.state.borrow_and_update().clone();
            match state.value {
                Some(value) if self.seen.as_ref() != Some(&value) || self.live != state.freshness.is_live() => {
                    if state.closed {
                        // The next call must return the end.
                        self.state.mark_changed();
                    }
                    self.live = state.freshness.is_live();
                    let before = self.seen.replace(value.clone());
                    let (count, proven) = self.last;
                    let proven_before = state.former.of(count).unwrap_or(proven);
                    self.last = (state.former.count, state.freshness.proven());
                    return Ok(Update { value, before, proven_before, freshness: state.freshness });
                }
                _ if state.closed => {
                    self.state.mark_changed();
                    return Err(Error::Closed);
                }
                Some(_) => {}
                None => {
                    if let Some(cause) = state.refused {
                        return Err(cause);
                    }
                }
            }
        }
    }
}

/// A [`Watcher`] over a broadcast of snapshots. Both backends return it from `watch`.
#[derive(Debug)]
pub struct ServiceWatcher {
    reader: Subscriber<Snapshot>,
}

impl ServiceWatcher {
    /// A watcher that reads from `reader`.
    pub fn new(reader: Subscriber<Snapshot>) -> Self {
        Self { reader }
    }
}

#[async_trait]
impl Watcher for ServiceWatcher {
    async fn next(&mut self) -> Result<Change, Error> {
        let Update { value, before, freshness, .. } = self.reader.next().await?;
        let events = match &before {
            None => value.as_added(),
            Some(before) => value.diff(before),
        };
        Ok(Change { snapshot: value, events, freshness })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn keep() -> OwnerHandle {
        Arc::new(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_latest_value_and_what_it_saw_itself() {
        let publisher = Publisher::new();
        let mut reader = publisher.reader(keep());
        publisher.publish(1, Moment::now());
        assert_eq!(reader.next().await.unwrap().value, 1);
        for value in 2..=5 {
            publisher.publish(value, Moment::now());
        }
        let update = reader.next().await.unwrap();
        assert_eq!((update.before, update.value), (Some(1), 5));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_changes_freshness_and_not_the_value() {
        let publisher = Publisher::new();
        let mut reader = publisher.reader(keep());
        publisher.publish(1, Moment::now());
        reader.next().await.unwrap();
        publisher.stale(Error::LeaseLost);
        let update = reader.next().await.unwrap();
        assert!(!update.freshness.is_live());
        assert_eq!(update.value, 1);
        publisher.prove(Moment::now());
        assert!(reader.next().await.unwrap().freshness.is_live());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_newer_is_not_proven_by_that_and_what_is_derived_ages_alike() {
        let publisher = Publisher::new();
        let mut reader = publisher.reader(keep());
        publisher.publish(1, Moment::now());
        tokio::time::advance(Duration::from_secs(7)).await;
        publisher.advance(2);
        let update = reader.next().await.unwrap();
        assert_eq!((update.value, update.freshness.age().as_secs()), (2, 7));
        let derived = Publisher::proven_by(reader.proof());
        let mut second = derived.reader(keep());
        derived.publish("two", update.freshness.proven());
        let derived = second.next().await.unwrap();
        assert_eq!(derived.freshness.age().as_secs(), 7);
        // No reader wakes, and both have the proof.
        publisher.prove(Moment::now());
        assert_eq!((update.freshness.age().as_secs(), derived.freshness.age().as_secs()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_learns_the_last_proof_of_the_value_it_saw() {
        let publisher = Publisher::new();
        let mut reader = publisher.reader(keep());
        publisher.publish(0, Moment::now());
        let mut proven = reader.next().await.unwrap().freshness.proven();
        for missed in [0, 1, MAX_FORMER - 1] {
            tokio::time::advance(Duration::from_secs(1)).await;
            let last = Moment::now();
            publisher.prove(last);
            for value in 1..=missed + 1 {
                tokio::time::advance(Duration::from_secs(1)).await;
                publisher.publish(value + missed * 100, Moment::now());
            }
            let update = reader.next().await.unwrap();
            assert!(
                update.proven_before.since(last).is_zero() && last.since(update.proven_before).is_zero(),
                "{missed}"
            );
            proven = update.freshness.proven();
        }
        // The proof of so many values before is not known: the one at the time of reading is.
        tokio::time::advance(Duration::from_secs(1)).await;
        publisher.prove(Moment::now());
        (0..=MAX_FORMER).for_each(|value| publisher.advance(value + 9000));
        let update = reader.next().await.unwrap();
        assert!(update.proven_before.since(proven).is_zero() && proven.since(update.proven_before).is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_net_zero_change_wakes_no_reader() {
        let publisher = Publisher::new();
        let mut reader = publisher.reader(keep());
        publisher.publish(1, Moment::now());
        reader.next().await.unwrap();
        publisher.publish(2, Moment::now());
        publisher.publish(1, Moment::now());
        publisher.publish(1, Moment::now());
        let (next, ()) = tokio::join!(reader.next(), async {
            tokio::task::yield_now().await;
            publisher.publish(3, Moment::now());
        });
        assert_eq!(next.unwrap().value, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_for_good_is_an_error_only_while_nothing_is_known() {
        let publisher = Publisher::new();
        let mut early = publisher.reader(keep());
        publisher.refuse(Error::Unsupported { what: "this".into() });
        assert!(matches!(early.next().await, Err(Error::Unsupported { .. })));
        publisher.publish(1, Moment::now());
        assert_eq!(early.next().await.unwrap().value, 1);
        publisher.refuse(Error::Unsupported { what: "this".into() });
        assert!(!early.next().await.unwrap().freshness.is_live());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_comes_after_the_last_value_and_stays() {
        let publisher = Publisher::new();
        let mut reader = publisher.reader(keep());
        publisher.publish(1, Moment::now());
        publisher.close();
        assert_eq!(reader.next().await.unwrap().value, 1);
        for _ in 0..2 {
            assert!(matches!(reader.next().await, Err(Error::Closed)));
        }
        drop(publisher);
        assert!(matches!(reader.next().await, Err(Error::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_keeps_its_source_alive() {
        let source = keep();
        let publisher = Publisher::<u8>::new();
        let reader = publisher.reader(Arc::clone(&source));
        assert_eq!(Arc::strong_count(&source), 2);
        drop(reader);
        publisher.unread().await;
        assert_eq!(Arc::strong_count(&source), 1);
    }
}
