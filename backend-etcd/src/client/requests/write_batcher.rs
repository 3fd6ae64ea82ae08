//! Guarded writes with group commit: writes that arrive while others are in flight are sent to etcd in one transaction.
//!
//! A single write is sent at once, without a delay. The writes that arrive meanwhile form the next transaction, up to
//! etcd's limits. Either all of its guards hold, or nothing is applied and etcd returns the guarded keys. The refused
//! writes receive the refusal, and the others are sent again. Nested transactions are not used: some releases of etcd
//! do not check permissions in them.

use std::{
    collections::{HashSet, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{Error, TaskOwner};
use etcd_client::{Txn, TxnOp, TxnResponse, proto::PbTxnOpResponse};
use foldhash::fast::RandomState;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    client::{
        connection::request_channel::{Clients, RequestChannel},
        requests::{
            guarded_write::{Batching, Outcome, QueueEffect, Write},
            response::header_revision,
        },
    },
    deliberate_defects::DeliberateDefect,
    error::{Failure, text_cause},
    watch::record::Record,
};

/// Maximum number of operations, and of guards, in a transaction: etcd's default limit, which its operator can change.
const MAX_OPS: usize = 128;

/// Maximum bytes of keys and values in a transaction. etcd refuses requests above 1.5 MiB.
const MAX_BYTES: usize = 512 << 10;

/// Maximum number of waiting writes. Further callers wait until there is room.
const MAX_WAITING: usize = 16384;

/// Maximum delay of a deferrable write while batching.
const BATCH_DELAY: Duration = Duration::from_millis(1);

/// Maximum number of concurrent transactions when the writes of a refused batch are sent one by one.
const ALONE: usize = 16;

/// A write whose caller waits for its outcome.
#[derive(Debug)]
struct QueuedWrite {
    write: Write,
    /// Time of the request.
    since: Instant,
    answer: oneshot::Sender<Result<Outcome, Failure>>,
    /// Set by the first of two events: the write is sent, or its caller gives up. Only for callers that distinguish
    /// them.
    decided: Option<Arc<AtomicBool>>,
}

impl QueuedWrite {
    /// Claims the write for sending. Returns `false` if its caller has given up.
    fn depart(&self) -> bool {
        !self.answer.is_closed() && self.decided.as_ref().is_none_or(|decided| !decided.swap(true, Ordering::AcqRel))
    }
}

/// Combines concurrent guarded writes into one transaction.
#[derive(Debug)]
pub(crate) struct WriteBatcher {
    queue: mpsc::Sender<QueuedWrite>,
}

impl WriteBatcher {
    /// Starts a batcher with at most `under_way` concurrent transactions. Its task ends with the session, or once the
    /// batcher is dropped and all writes are answered.
    pub(crate) fn start(tasks: &TaskOwner, channel: &Arc<RequestChannel>, under_way: usize) -> Self {
        let (queue, asked) = mpsc::channel(MAX_WAITING);
        // After the end of the session nothing is sent, and callers receive an error.
        let _ = tasks.spawn_until_stopped("writes", run(asked, Arc::clone(channel), under_way));
        Self { queue }
    }

    /// Sends a write, alone or with others.
    pub(crate) async fn send(&self, write: Write) -> Result<Outcome, Failure> {
        self.ask(write, None).await
    }

    /// As [`send`](Self::send), until `given_up` completes. Then returns [`Failure::NeverSent`] if the write was not
    /// sent, else [`Failure::Lost`].
    pub(crate) async fn send_unless(
        &self,
        write: Write,
        given_up: impl Future<Output = ()>,
    ) -> Result<Outcome, Failure> {
        let decided = Arc::new(AtomicBool::new(false));
        tokio::select! {
            // A known outcome takes precedence.
            biased;
            outcome = self.ask(write, Some(Arc::clone(&decided))) => outcome,
            () = given_up => Err(if decided.swap(true, Ordering::AcqRel) {
                Failure::Lost(text_cause("given up before the answer came"))
            } else {
                Failure::NeverSent(text_cause("given up before it was sent"))
            }),
        }
    }

    /// As [`send`](Self::send), but fails with [`Failure::NeverSent`] if the write is not sent within `limit`.
    pub(crate) async fn send_within(&self, write: Write, limit: Duration) -> Result<Outcome, Failure> {
        let decided = Arc::new(AtomicBool::new(false));
        let mut outcome = pin!(self.ask(write, Some(Arc::clone(&decided))));
        if let Ok(outcome) = timeout(limit, &mut outcome).await {
            return outcome;
        }
        if decided.swap(true, Ordering::AcqRel) {
            // It is sent, so the deadline of its transaction applies.
            outcome.await
        } else {
            Err(Failure::NeverSent(text_cause("not sent in time, behind other writes")))
        }
    }

    async fn ask(&self, write: Write, decided: Option<Arc<AtomicBool>>) -> Result<Outcome, Failure> {
        let (answer, outcome) = oneshot::channel();
        let closed = || Failure::Final(Error::Closed);
        self.queue.send(QueuedWrite { write, since: Instant::now(), answer, decided }).await.map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }
}

async fn run(mut queue: mpsc::Receiver<QueuedWrite>, channel: Arc<RequestChannel>, most: usize) {
    let mut waiting: VecDeque<QueuedWrite> = VecDeque::new();
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while open || !waiting.is_empty() || !under_way.is_empty() {
        tokio::select! {
            asked = queue.recv(), if open && waiting.len() < MAX_WAITING => match asked {
                Some(asked) => waiting.push_back(asked),
                None => open = false,
            },
            Some(()) = under_way.next() => {}
            () = batch_is_due(&waiting), if under_way.len() < most && !waiting.is_empty() => {}
        }
        // Lets other tasks add their writes.
        tokio::task::yield_now().await;
        while let Some(asked) = (waiting.len() < MAX_WAITING).then(|| queue.try_recv().ok()).flatten() {
            waiting.push_back(asked);
        }
        while under_way.len() < most && is_due(&waiting) {
            // Immediate writes first.
            if waiting.iter().any(|asked| asked.write.batching == Batching::Deferrable) {
                waiting.make_contiguous().sort_by_key(|asked| asked.write.batching);
            }
            under_way.push(settle(&channel, take(&mut waiting)));
        }
    }
}

/// Returns `true` if at least one of these writes is not to be deferred any longer.
fn is_due(waiting: &VecDeque<QueuedWrite>) -> bool {
    waiting.iter().any(|asked| asked.write.batching == Batching::Immediate || asked.since.elapsed() >= BATCH_DELAY)
}

/// Waits until the batching delay of the first write has passed.
async fn batch_is_due(waiting: &VecDeque<QueuedWrite>) {
    if let Some(first) = waiting.front() {
        tokio::time::sleep_until(first.since + BATCH_DELAY).await;
    }
}

/// Takes the next writes that fit into one transaction, in order. A write that does not fit delays later writes to the
/// same keys or queue. Writes without a waiting caller are dropped unsent.
fn take(waiting: &mut VecDeque<QueuedWrite>) -> Vec<QueuedWrite> {
    let (mut batch, mut later) = (Vec::with_capacity(waiting.len().min(MAX_OPS)), VecDeque::new());
    let (mut ops, mut guards, mut size) = (0, 0, 0);
    let mut keys: HashSet<Arc<[u8]>, RandomState> = HashSet::default();
    let mut queues: HashSet<Vec<u8>> = HashSet::new();
    while ops < MAX_OPS && guards < MAX_OPS {
        let Some(asked) = waiting.pop_front() else { break };
        if asked.answer.is_closed() {
            continue;
        }
        let Write { guards: guarded, ops: own, size: bytes, effect, batching: _ } = &asked.write;
        let room = ops + own.len() <= MAX_OPS && guards + guarded.len() <= MAX_OPS && size + bytes <= MAX_BYTES;
        let mut free = match effect {
            QueueEffect::Apart => true,
            QueueEffect::Enters(queue) | QueueEffect::Leaves(queue) => !queues.contains(queue),
        };
        for (key, _) in guarded {
            free &= keys.insert(Arc::clone(key));
        }
        if let QueueEffect::Enters(queue) = effect {
            queues.insert(queue.clone());
        }
        if batch.is_empty() || (room && free) {
            if asked.depart() {
                (ops, guards, size) = (ops + own.len(), guards + guarded.len(), size + bytes);
                batch.push(asked);
            }
        } else {
            if let QueueEffect::Leaves(queue) = effect {
                queues.insert(queue.clone());
            }
            later.push_back(asked);
        }
    }
    // Moves these few to the front, because thousands may be behind them.
    while let Some(asked) = later.pop_back() {
        waiting.push_front(asked);
    }
    batch
}

/// Sends a batch until each of its writes is answered.
fn settle(channel: &Arc<RequestChannel>, mut batch: Vec<QueuedWrite>) -> BoxFuture<'static, ()> {
    let channel = Arc::clone(channel);
    async move {
        loop {
            // A repeated write is not sent either once its caller has given up.
            batch.retain(|asked| !asked.answer.is_closed());
            if batch.is_empty() {
                return;
            }
            batch = match attempt(&channel, &batch).await {
                Ok(outcomes) => answer(batch, outcomes),
                // One of them is refused. Sending each write alone shows which.
                Err(failure) if batch.len() > 1 && is_refusal(&failure) => {
                    let alone = batch.into_iter().map(|asked| settle(&channel, vec![asked]));
                    return stream::iter(alone).buffer_unordered(ALONE).collect().await;
                }
                Err(failure) => {
                    for asked in batch {
                        // The caller may be gone.
                        let _ = asked.answer.send(Err(failure.clone()));
                    }
                    return;
                }
            };
        }
    }
    .boxed()
}

/// Returns `true` if etcd has answered, with a refusal that may concern one of several writes only.
fn is_refusal(failure: &Failure) -> bool {
    !failure.is_ambiguous()
        && !matches!(failure, Failure::NeverSent(_) | Failure::StaleAuthToken(_) | Failure::Unfit(_))
}

/// Answers each write with its outcome. Returns the writes that were not applied because of another one.
fn answer(batch: Vec<QueuedWrite>, outcomes: Vec<Outcome>) -> Vec<QueuedWrite> {
    let is_innocent = |(asked, outcome): (&QueuedWrite, &Outcome)| match outcome {
        Outcome::Done { .. } => false,
        Outcome::Refused(found) => {
            asked.write.guards.iter().zip(found).all(|((_, guard), key)| guard.holds(key.as_ref()))
        }
    };
    let innocent: Vec<bool> = batch.iter().zip(&outcomes).map(is_innocent).collect();
    // At least one write counts as refused; otherwise the same batch would be repeated without end.
    let blamed = innocent.contains(&false);
    let mut again = Vec::new();
    for ((asked, outcome), innocent) in batch.into_iter().zip(outcomes).zip(innocent) {
        if innocent && blamed {
            again.push(asked);
        } else {
            let _ = asked.answer.send(Ok(outcome));
        }
    }
    again
}

/// Sends a batch in one transaction: all of it is applied, or each write receives the state of its keys.
async fn attempt(channel: &RequestChannel, batch: &[QueuedWrite]) -> Result<Vec<Outcome>, Failure> {
    let writes = || batch.iter().map(|asked| &asked.write);
    let guards = || writes().flat_map(|write| &write.guards);
    let txn = || {
        Txn::new()
            .when(guards().filter_map(|(key, guard)| guard.compare(key)).collect::<Vec<_>>())
            .and_then(writes().flat_map(|write| write.ops.iter().cloned()).collect::<Vec<_>>())
            .or_else(guards().map(|(key, _)| TxnOp::get(&key[..], None)).collect::<Vec<_>>())
    };
    let send = |mut clients: Clients| {
        let txn = txn();
        async move { clients.kv.txn(txn).await }
    };
    let response = channel.call("transaction", send).await?;
    let (revision, succeeded) = (header_revision(response.header()), response.succeeded());
    if !succeeded && DeliberateDefect::RefusalsIgnored.is_on() {
        return Ok(writes().map(|_| Outcome::Done { revision, reads: Vec::new() }).collect());
    }
    let expected: usize = if succeeded { writes().map(|write| write.ops.len()).sum() } else { guards().count() };
    let mut responses = reads(response);
    if responses.len() != expected {
        return Err(Failure::Lost(text_cause("the answer to a transaction is not complete")));
    }
    let outcome = |write: &Write| {
        if succeeded {
            let reads = responses.by_ref().take(write.ops.len()).flatten().collect();
            Outcome::Done { revision, reads }
        } else {
            let found = responses.by_ref().take(write.guards.len()).map(|read| read?.into_iter().next());
            Outcome::Refused(found.collect())
        }
    };
    Ok(writes().map(outcome).collect())
}

/// Records that each operation read; `None` for one that wrote.
fn reads(response: TxnResponse) -> impl ExactSizeIterator<Item = Option<Vec<Record>>> {
    response.0.responses.into_iter().map(|operation| match operation.response {
        Some(PbTxnOpResponse::ResponseRange(found)) => Some(found.kvs.into_iter().map(Record::from).collect()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::requests::guarded_write::Guard;
    use enlist::{LeaseId, Revision};

    type Answer = oneshot::Receiver<Result<Outcome, Failure>>;

    fn asked(keys: &[&str], effect: QueueEffect, size: usize) -> (QueuedWrite, Answer) {
        let guards = keys.iter().map(|key| (key.as_bytes().into(), Guard::Absent)).collect();
        let ops = keys.iter().map(|key| TxnOp::put(*key, "", None)).collect();
        let (answer, outcome) = oneshot::channel();
        let write = Write { guards, ops, size, effect, batching: Batching::Immediate };
        (QueuedWrite { write, since: Instant::now(), answer, decided: None }, outcome)
    }

    fn keys(batch: &[QueuedWrite]) -> Vec<String> {
        let key = |asked: &QueuedWrite| String::from_utf8_lossy(&asked.write.guards[0].0).into_owned();
        batch.iter().map(key).collect()
    }

    fn waiting(all: Vec<(QueuedWrite, Answer)>) -> (VecDeque<QueuedWrite>, Vec<Answer>) {
        all.into_iter().unzip()
    }

    #[test]
    fn values_that_are_written_are_not_shown() {
        let (mut asked, _answer) = asked(&["k"], QueueEffect::Apart, 7);
        asked.write.ops = vec![TxnOp::put("k", "s3cret", None)];
        let shown = format!("{asked:?}");
        let bytes = format!("{:?}", b"s3cret");
        assert!(!shown.contains("s3cret") && !shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }

    #[test]
    fn what_touches_the_same_key_keeps_its_order_and_waits_for_the_next_transaction() {
        let apart = |keys: &[&str]| asked(keys, QueueEffect::Apart, 1);
        let (mut all, _answers) = waiting(vec![apart(&["a"]), apart(&["a", "b"]), apart(&["b"]), apart(&["c"])]);
        assert_eq!(keys(&take(&mut all)), ["a", "c"]);
        assert_eq!(keys(&take(&mut all)), ["a"]);
        assert_eq!(keys(&take(&mut all)), ["b"]);
        assert!(take(&mut all).is_empty());
    }

    #[test]
    fn a_queue_gets_one_entry_per_transaction_after_earlier_removals() {
        let queue = || b"queue".to_vec();
        let all = vec![
            asked(&["leaves"], QueueEffect::Leaves(queue()), 1),
            asked(&["enters"], QueueEffect::Enters(queue()), 1),
            asked(&["second"], QueueEffect::Enters(queue()), 1),
            asked(&["leaves later"], QueueEffect::Leaves(queue()), 1),
            asked(&["elsewhere"], QueueEffect::Enters(b"other".to_vec()), 1),
        ];
        let (mut all, _answers) = waiting(all);
        assert_eq!(keys(&take(&mut all)), ["leaves", "enters", "elsewhere"]);
        assert_eq!(keys(&take(&mut all)), ["second"]);
        assert_eq!(keys(&take(&mut all)), ["leaves later"]);
    }

    #[test]
    fn a_bounded_transaction_omits_cancelled_writes() {
        let name = |number: usize| format!("k{number}");
        let all = (0..200).map(|number| asked(&[&name(number)], QueueEffect::Apart, 1)).collect();
        let (mut all, mut answers) = waiting(all);
        drop(answers.remove(0));
        let first = take(&mut all);
        assert_eq!((first.len(), keys(&first)[0].as_str()), (MAX_OPS, "k1"));
        assert_eq!(take(&mut all).len(), 200 - 1 - MAX_OPS);
        let large = |key: &str| asked(&[key], QueueEffect::Apart, MAX_BYTES);
        let (mut all, _answers) = waiting(vec![large("a"), large("b")]);
        assert_eq!(take(&mut all).len(), 1);
    }

    #[test]
    fn a_write_is_sent_or_given_up_and_never_both() {
        let both = || {
            let (mut asked, answer) = asked(&["a"], QueueEffect::Apart, 1);
            let decided = Arc::clone(asked.decided.insert(Arc::default()));
            (asked, answer, decided)
        };
        let (asked, _answer, decided) = both();
        assert_eq!(take(&mut VecDeque::from([asked])).len(), 1);
        assert!(decided.swap(true, Ordering::AcqRel), "a caller that gives up now knows that it was sent");
        let (asked, _answer, decided) = both();
        assert!(!decided.swap(true, Ordering::AcqRel), "a caller that gives up first knows that it is not");
        assert!(take(&mut VecDeque::from([asked])).is_empty());
    }

    #[test]
    fn whom_another_kept_from_being_written_goes_again() {
        let record = Record {
            key: b"a"[..].into(),
            value: [][..].into(),
            created: Revision::new(3),
            modified: Revision::new(4),
            lease: Some(LeaseId::new(5)),
        };
        let holds = |guard: Guard| (guard.holds(Some(&record)), guard.holds(None));
        assert_eq!(holds(Guard::Any), (true, true));
        assert_eq!(holds(Guard::Absent), (false, true));
        assert_eq!(holds(Guard::Modified(Revision::new(4))), (true, false));
        assert_eq!(holds(Guard::Created(Revision::new(4))), (false, false));
        assert_eq!(holds(Guard::Created(Revision::new(3))), (true, false));
        assert_eq!([4, 5].map(|lease| holds(Guard::Under(LeaseId::new(lease)))), [(false, false), (true, false)]);

        let (batch, mut answers) =
            waiting(vec![asked(&["a"], QueueEffect::Apart, 1), asked(&["b"], QueueEffect::Apart, 1)]);
        let outcomes = vec![Outcome::Refused(vec![Some(record)]), Outcome::Refused(vec![None])];
        assert_eq!(keys(&answer(batch.into(), outcomes)), ["b"]);
        assert!(matches!(answers[0].try_recv(), Ok(Ok(Outcome::Refused(_)))));
        assert!(answers[1].try_recv().is_err());
    }
}
