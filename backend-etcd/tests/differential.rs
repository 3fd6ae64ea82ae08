//! `FakeEtcd` beside a real etcd: the same random operations have the same responses, watches included. The tests that
//! use the fake rely on this equality. `ENLIST_SEED` repeats the choices of a run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "differential/leases.rs"]
mod leases;
#[path = "differential/queues.rs"]
mod queues;
mod support;
#[path = "differential/watched.rs"]
mod watched;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use enlist::Moment;
use enlist_testkit::{EtcdServer, FakeEtcd, Provider, ServerOptions, eventually, soon};
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, EventType, GetOptions, LeaseGrantOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions,
    proto::{PbKeyValue, PbResponseHeader, PbTxnOpResponse, PbTxnResponse},
};
use futures::future::join_all;
use leases::Leases;
use queues::{SHAPES, Shape};
use watched::{Change, Reader, WatchPlan};

/// Number of operations of one run, and number of runs.
const OPERATIONS: usize = 400;
const RUNS: usize = 3;

/// Operation that is a compaction in any case.
const COMPACTION: usize = 100;

/// Keys of all operations.
const KEYS: [&str; 7] = ["a", "a/1", "a/2", "a0", "b", "b/1", "c"];

/// Sorts after every key.
const END: &str = "\x7f";

/// TTL of leases, in seconds; too long to expire during a run.
const LONG: i64 = 3600;

/// One request, as sent to both sides.
#[derive(Clone, Debug)]
enum Operation {
    Put(String, String, PutOptions),
    Get(String, GetOptions),
    Delete(String, DeleteOptions),
    Txn(Txn),
    Queue(Shape, Txn),
    Grant(i64, i64),
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive(i64),
    /// A lease of this TTL whose id the server chooses, with this key.
    ChosenLease(i64, String),
    Status,
    Compact(i64),
    Watch(WatchPlan),
}

/// Request that a deletion is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Alone,
    InTransaction,
}

/// State on which the choices depend. It is the same on both sides, otherwise the run has failed before.
struct Generator {
    random: fastrand::Rng,
    revision: i64,
    compacted: i64,
    leases: i64,
    watches: usize,
    queues: usize,
    /// All changes of keys.
    changes: Vec<Change>,
    /// Etcd replies to a request for progress after the events before.
    is_ordered: bool,
    /// Etcd checks the operations of a transaction in their order.
    checks_in_order: bool,
}

impl Generator {
    fn new(random: fastrand::Rng, release: [u32; 3]) -> Self {
        Self {
            random,
            revision: 1,
            compacted: 0,
            leases: 0,
            watches: 0,
            queues: 0,
            changes: Vec::new(),
            is_ordered: release >= [3, 5, 8] || (release[1] == 4 && release[2] >= 25),
            checks_in_order: release >= [3, 6, 0],
        }
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.usize(..all.len())]
    }

    fn key(&mut self) -> String {
        self.one_of(&KEYS).to_owned()
    }

    /// Returns a key, and occasionally an empty one, which is invalid.
    fn any_key(&mut self) -> String {
        if self.random.u8(..40) == 0 { String::new() } else { self.key() }
    }

    fn value(&mut self) -> String {
        self.one_of(&["", "one", "two", "three"]).to_owned()
    }

    /// Returns a revision that is valid, compacted or in the future.
    fn any_revision(&mut self) -> i64 {
        let oldest = (self.compacted - 2).max(1);
        self.random.i64(oldest..=self.revision + 2)
    }

    fn lease(&mut self) -> i64 {
        self.random.i64(1..=4)
    }

    fn put_options(&mut self) -> PutOptions {
        let mut options = PutOptions::new();
        if self.random.u8(..3) == 0 {
            options = options.with_lease(self.lease());
        }
        match self.random.u8(..8) {
            0 => options.with_ignore_value(),
            1 => options.with_ignore_lease(),
            2 => options.with_prev_key(),
            _ => options,
        }
    }

    fn put(&mut self) -> (String, String, PutOptions) {
        (self.any_key(), self.value(), self.put_options())
    }

    fn get(&mut self) -> (String, GetOptions) {
        let mut options = GetOptions::new();
        options = match self.random.u8(..6) {
            0 => options.with_prefix(),
            1 => options.with_from_key(),
            2 => options.with_all_keys(),
            3 => options.with_range(self.key()),
            _ => options,
        };
        if self.random.u8(..3) == 0 {
            options = options.with_limit(self.random.i64(0..4));
        }
        if self.random.u8(..4) == 0 {
            options = options.with_revision(self.any_revision());
        }
        if self.random.u8(..3) == 0 {
            let target = self.one_of(&[
                SortTarget::Key,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Version,
                SortTarget::Value,
            ]);
            let order = self.one_of(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
            options = options.with_sort(target, order);
        }
        let bound = self.any_revision();
        options = match self.random.u8(..12) {
            0 => options.with_keys_only(),
            1 => options.with_count_only(),
            2 => options.with_max_create_revision(bound),
            3 => options.with_min_create_revision(bound),
            4 => options.with_max_mod_revision(bound),
            5 => options.with_min_mod_revision(bound),
            6 => options.with_serializable(),
            _ => options,
        };
        (self.any_key(), options)
    }

    /// Returns a deletion. Within a transaction its range has an end: etcd does not detect that an open range overlaps
    /// a put.
    fn delete(&mut self, scope: Scope) -> (String, DeleteOptions) {
        let mut options = DeleteOptions::new();
        options = match self.random.u8(..10) {
            0 => options.with_prefix(),
            1 if scope == Scope::Alone => options.with_from_key(),
            2 => {
                let (one, other) = (self.key(), self.key());
                return (one.clone().min(other.clone()), options.with_range(one.max(other)));
            }
            _ => options,
        };
        if self.random.u8(..3) == 0 {
            options = options.with_prev_key();
        }
        let key = match scope {
            Scope::Alone => self.any_key(),
            Scope::InTransaction => self.key(),
        };
        (key, options)
    }

    fn compare(&mut self) -> Compare {
        let key = self.any_key();
        let order = self.one_of(&[CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual]);
        let revision = self.one_of(&[0, self.revision, self.compacted, self.revision - 3]);
        let compare = match self.random.u8(..5) {
            0 => Compare::version(key, order, self.random.i64(0..3)),
            1 => Compare::create_revision(key, order, revision),
            2 => Compare::mod_revision(key, order, revision),
            3 => Compare::value(key, order, self.value()),
            _ => Compare::lease(key, order, self.random.i64(0..3)),
        };
        if self.random.u8(..10) == 0 { compare.with_prefix() } else { compare }
    }

    fn operations(&mut self) -> Vec<TxnOp> {
        let count = self.random.usize(0..4);
        let one = |this: &mut Self| match this.random.u8(..3) {
            0 => {
                let (key, options) = this.get();
                TxnOp::get(key, Some(options))
            }
            1 => {
                let (key, options) = this.delete(Scope::InTransaction);
                TxnOp::delete(key, Some(options))
            }
            _ => {
                let (key, value, options) = this.put();
                TxnOp::put(key, value, Some(options))
            }
        };
        (0..count).map(|_| one(self)).collect()
    }

    fn txn(&mut self) -> Txn {
        if self.random.u8(..60) == 0 {
            // One operation more than etcd accepts.
            return Txn::new().and_then(vec![TxnOp::get("a", None); 129]);
        }
        let compares: Vec<_> = (0..self.random.usize(0..3)).map(|_| self.compare()).collect();
        Txn::new().when(compares).and_then(self.operations()).or_else(self.operations())
    }

    /// Returns a request about the queue of all keys. Each kind has its turn.
    fn queue(&mut self) -> Operation {
        let shape = SHAPES[self.queues % SHAPES.len()];
        // Each fourth one of a kind is refused, and each second one keeps the lease, which exists.
        let round = self.queues / SHAPES.len();
        let is_current = !round.is_multiple_of(4);
        self.queues += 1;
        let present = |change: &Change| !change.is_deletion;
        let states: Vec<Change> = KEYS.iter().filter_map(|key| self.state(key)).collect();
        let (mut there, mut absent): (Vec<_>, Vec<_>) = states.into_iter().partition(present);
        self.random.shuffle(&mut there);
        self.random.shuffle(&mut absent);
        let mut chosen = if shape == Shape::Create { absent } else { there };
        chosen.resize_with(2, || Change { key: self.key(), ..Change::default() });
        let lease = if round % 2 == 1 { chosen[usize::from(shape == Shape::HandOver)].lease } else { self.lease() };
        Operation::Queue(shape, shape.request([&chosen[0], &chosen[1]], lease, is_current))
    }

    /// Returns the last change of a key.
    fn state(&self, key: &str) -> Option<Change> {
        self.changes.iter().rev().find(|change| change.key == key).cloned()
    }

    /// Returns a watch. Each kind has its turn.
    fn watch(&mut self) -> WatchPlan {
        let turn = self.watches % 8;
        self.watches += 1;
        let (key, end, next) = (self.key(), self.one_of(&[None, Some("\0"), Some(END)]), self.revision + 1);
        let (key, end, start) = match (turn, self.changes.last().cloned()) {
            // Empty, because no key is before it.
            (0, _) => (key, Some("a"), 0),
            (1, _) => (key, end, (self.compacted - 1).max(0)),
            (2, _) => (key, end, self.random.i64(next..=next + 1)),
            (3, _) => (key, None, 0),
            (4, _) => (key, Some(END), 0),
            (5, Some(last)) => (last.key, None, last.revision),
            (6, Some(last)) => (last.key, Some(END), last.revision),
            _ => (key, end, self.any_revision()),
        };
        let filters: &[&[_]] = &[&[], &[], &[WatchFilterType::NoPut], &[WatchFilterType::NoDelete]];
        let filters = if matches!(turn, 5 | 6) { Vec::new() } else { self.one_of(filters).to_vec() };
        let others = KEYS.into_iter().filter(|other| *other != key && self.random.bool());
        let keys = std::iter::once(key.clone()).chain(others.map(str::to_owned).collect::<Vec<_>>()).collect();
        let mut plan = WatchPlan {
            key,
            end,
            start,
            filters,
            previous: self.random.bool(),
            keys,
            now: self.revision,
            compacted: self.compacted,
            is_ordered: self.is_ordered,
            has_past_events: false,
        };
        plan.has_past_events = self.changes.iter().any(|change| plan.reports(change));
        plan
    }

    fn next(&mut self) -> Operation {
        match self.random.u8(..100) {
            0..25 => {
                let (key, value, options) = self.put();
                Operation::Put(key, value, options)
            }
            25..50 => {
                let (key, options) = self.get();
                Operation::Get(key, options)
            }
            50..58 => {
                let (key, options) = self.delete(Scope::Alone);
                Operation::Delete(key, options)
            }
            58..72 => Operation::Txn(self.txn()),
            72..82 => self.queue(),
            82..86 => {
                self.leases += 1;
                // Short leases have no keys, because they may expire meanwhile.
                let short = Operation::Grant(100 + self.leases, self.random.i64(0..=2));
                let too_long = Operation::Grant(self.lease(), 9_000_000_001);
                let long = Operation::Grant(self.lease(), LONG);
                match self.random.u8(..4) {
                    0 => short,
                    1 => too_long,
                    _ => long,
                }
            }
            86..88 => Operation::Revoke(self.lease()),
            88..90 => Operation::KeepAlive(self.lease()),
            90..92 => Operation::TimeToLive(self.lease()),
            92..93 => Operation::ChosenLease(LONG, self.key()),
            93..94 => Operation::Status,
            94..96 => Operation::Compact(self.any_revision()),
            _ => Operation::Watch(self.watch()),
        }
    }
}

/// Removes the cluster, the member and its term, which may differ.
fn plain(header: &mut Option<PbResponseHeader>) {
    if let Some(header) = header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
}

fn plain_txn(answer: &mut PbTxnResponse, request: &str) {
    plain(&mut answer.header);
    for response in &mut answer.responses {
        match &mut response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => {
                plain(&mut range.header);
                without_leases(&mut range.kvs, request);
            }
            Some(PbTxnOpResponse::ResponsePut(put)) => plain(&mut put.header),
            Some(PbTxnOpResponse::ResponseDeleteRange(delete)) => plain(&mut delete.header),
            _ => {}
        }
    }
}

/// Removes the leases of keys that were read without their values: etcd 3.7 answers such a read from its index, which
/// has no leases.
fn without_leases(pairs: &mut [PbKeyValue], request: &str) {
    let values = pairs.iter().any(|pair| !pair.value.is_empty());
    if request.contains("keys_only: true") && !values {
        for pair in pairs {
            pair.lease = 0;
        }
    }
}

fn refusal(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => other.to_string(),
    }
}

/// One of the two servers.
struct Side {
    client: Client,
    leases: Leases,
}

/// Answer of one side, without the parts that may differ.
async fn answer(side: &mut Side, operation: Operation) -> String {
    let Side { client, leases } = side;
    let request = format!("{operation:?}");
    let outcome: Result<String, Error> = match operation {
        Operation::Put(key, value, options) => client.put(key, value, Some(options)).await.map(|mut answer| {
            plain(&mut answer.0.header);
            format!("{:#?}", answer.0)
        }),
        Operation::Get(key, options) => client.get(key, Some(options)).await.map(|mut answer| {
            plain(&mut answer.0.header);
            without_leases(&mut answer.0.kvs, &request);
            format!("{:#?}", answer.0)
        }),
        Operation::Delete(key, options) => client.delete(key, Some(options)).await.map(|mut answer| {
            plain(&mut answer.0.header);
            format!("{:#?}", answer.0)
        }),
        Operation::Txn(txn) | Operation::Queue(_, txn) => client.txn(txn).await.map(|mut answer| {
            plain_txn(&mut answer.0, &request);
            format!("{:#?}", answer.0)
        }),
        Operation::Grant(id, ttl) => {
            client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await.map(|mut answer| {
                plain(&mut answer.0.header);
                format!("{:#?}", answer.0)
            })
        }
        Operation::Revoke(id) => client.lease_revoke(id).await.map(|mut answer| {
            plain(&mut answer.0.header);
            format!("{:#?}", answer.0)
        }),
        Operation::KeepAlive(id) => leases::renewed_twice(client, id).await,
        Operation::TimeToLive(id) => leases.time_to_live(client, id).await,
        Operation::ChosenLease(ttl, key) => leases.of_chosen_id(client, ttl, &key).await,
        Operation::Status => client.status().await.map(|mut answer| {
            plain(&mut answer.0.header);
            // A client uses nothing else of it.
            format!("{:?}, release {}", answer.0.header, answer.0.version)
        }),
        Operation::Compact(revision) => client.compact(revision, None).await.map(|mut answer| {
            plain(&mut answer.0.header);
            format!("{:#?}", answer.0)
        }),
        Operation::Watch(plan) => watched::transcript(client, &plan).await,
    };
    outcome.map_or_else(|error| format!("refused: {}", refusal(&error)), |text| leases::without_chosen_ids(&text))
}

/// Returns the store's revision.
async fn revision(client: &mut Client) -> i64 {
    client.get("a", None).await.unwrap().header().unwrap().revision()
}

/// Kind of an operation and its refusal, to measure the coverage of a run.
fn kind(operation: &Operation, answer: &str) -> String {
    let name = format!("{operation:?}");
    let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
    match (answer.strip_prefix("refused: "), operation) {
        (Some(why), _) => format!("{name}: {why}"),
        (None, Operation::Queue(shape, _)) if shape.is_guarded() && !answer.contains("succeeded: true") => {
            format!("{shape:?}, refused")
        }
        (None, Operation::Queue(shape, _)) => format!("{shape:?}"),
        (None, Operation::Watch(plan)) => format!("{name} {}", plan.kind()),
        (None, _) => name,
    }
}

async fn compare(random: fastrand::Rng, covered: &mut BTreeSet<String>) {
    // Always a new server: revisions start at 1.
    let server = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
    let fake = FakeEtcd::start();
    fake.expire_leases();
    let mut real = Side { client: support::raw(&server).await, leases: Leases::default() };
    let imitation = Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap();
    let mut imitation = Side { client: imitation, leases: Leases::default() };
    let version = real.client.status().await.unwrap().version().to_owned();
    fake.set_version(&version);
    let release = release(&version);
    let mut generator = Generator::new(random, release);
    // Both are also watched during the whole run.
    let everything = || WatchOptions::new().with_range(END);
    let mut of_real = Reader::open(&mut real.client, "a", everything()).await.unwrap();
    let mut of_imitation = Reader::open(&mut imitation.client, "a", everything()).await.unwrap();
    assert_eq!(of_imitation.message().await, of_real.message().await, "creation of a watch");
    let mut trace = Vec::new();
    for number in 0..OPERATIONS {
        let operation =
            if number == COMPACTION { Operation::Compact(generator.revision - 3) } else { generator.next() };
        trace.push(format!("{operation:?}"));
        let last = |trace: &[String]| trace[trace.len().saturating_sub(6)..].join("\n");
        let expected = answer(&mut real, operation.clone()).await;
        let found = answer(&mut imitation, operation.clone()).await;
        if !(generator.checks_in_order && are_of_one_txn(&operation, &found, &expected)) {
            similar(&found, &expected, || format!("the answer to operation {number}:\n{}", last(&trace)));
        }
        imitation.leases.compare(&mut real.leases);
        covered.insert(kind(&operation, &found));
        if let Operation::Compact(compacted) = operation
            && !found.starts_with("refused")
        {
            generator.compacted = compacted;
        }
        let before = std::mem::replace(&mut generator.revision, revision(&mut real.client).await);
        let found = revision(&mut imitation.client).await;
        assert_eq!(found, generator.revision, "after operation {number}: {operation:?}");
        if generator.revision > before {
            let expected = of_real.until(generator.revision).await;
            let found = watched::text(&of_imitation.until(generator.revision).await);
            let what = || format!("the watch of all keys, of operation {number}:\n{}", last(&trace));
            similar(&found, &watched::text(&expected), what);
            generator.changes.extend(watched::changes(&expected));
        }
    }
    let (found, expected) = (of_imitation.progress(0).await, of_real.progress(0).await);
    assert_eq!(found, expected, "progress of the watch of all keys");
}

fn release(version: &str) -> [u32; 3] {
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// Returns `true` if both refusals are of a check that is made before any operation of a transaction. Before 3.6, and
/// in the fake, all puts are checked before the reads. Since 3.7 the lease of a put is checked before its key.
fn are_of_one_txn(operation: &Operation, found: &str, expected: &str) -> bool {
    let is_checked = |answer: &str| {
        ["key not found", "lease not found", "has been compacted", "is a future revision"]
            .iter()
            .any(|refusal| answer.starts_with("refused") && answer.ends_with(refusal))
    };
    matches!(operation, Operation::Txn(_) | Operation::Queue(..)) && is_checked(found) && is_checked(expected)
}

/// Compares line by line: the text of a whole answer is too long to read.
fn similar(found: &str, expected: &str, what: impl Fn() -> String) {
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "the fake (left) differs from etcd (right) in {}", what());
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "number of lines of {}", what());
}

#[tokio::test]
async fn the_fake_answers_as_etcd_does() {
    let mut random = support::seed();
    let mut covered = BTreeSet::new();
    for _ in 0..RUNS {
        compare(random.fork(), &mut covered).await;
    }
    println!("covered:\n{}", covered.iter().cloned().collect::<Vec<_>>().join("\n"));
    // The choices cover every kind of operation and many refusals.
    for kind in [
        "Put",
        "Get",
        "Delete",
        "Txn",
        "Grant",
        "Revoke",
        "KeepAlive",
        "TimeToLive",
        "ChosenLease",
        "Status",
        "Compact",
    ] {
        assert!(covered.contains(kind), "{kind} was not tried: {covered:?}");
    }
    for shape in SHAPES {
        assert!(covered.contains(&format!("{shape:?}")), "{shape:?} was not applied: {covered:?}");
        let refused = !shape.is_guarded() || covered.contains(&format!("{shape:?}, refused"));
        assert!(refused, "{shape:?} was not refused: {covered:?}");
    }
    for kind in [
        "of an empty range",
        "from a compacted revision",
        "from a future revision",
        "of a single key",
        "of a single key with past events",
        "of a range",
        "of a range with past events",
    ] {
        assert!(covered.contains(&format!("Watch {kind}")), "no watch {kind} was tried: {covered:?}");
    }
    for refused in ["required revision has been compacted", "duplicate key", "lease not found", "lease already exists"]
    {
        assert!(covered.iter().any(|kind| kind.contains(refused)), "nothing was refused with {refused}: {covered:?}");
    }
}

/// The remaining time of a lease falls and is restored by a renewal, on both sides at once. Control: a fake whose
/// leases do not expire reports the granted time throughout.
#[tokio::test]
async fn remaining_times_fall_as_in_etcd() {
    const GRANTED: i64 = 30;
    /// Time after which they are compared, in seconds, and their maximum difference.
    const AGE: i64 = 6;
    const TOLERANCE: u64 = 2;
    let server = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
    let (fake, constant) = (FakeEtcd::start(), FakeEtcd::start());
    fake.expire_leases();
    let client =
        async |fake: &FakeEtcd| Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap();
    let sides = [support::raw(&server).await, client(&fake).await, client(&constant).await];
    let remaining = async || {
        eventually("all answer within a second", || async {
            let begun = Moment::now();
            let asked =
                sides.clone().map(|mut side| async move { side.lease_time_to_live(1, None).await.unwrap().ttl() });
            let answers = join_all(asked).await;
            if begun.elapsed() < Duration::from_secs(1) { Ok(answers) } else { Err(answers) }
        })
        .await
    };
    let grant = |mut side: Client| async move {
        side.lease_grant(GRANTED, Some(LeaseGrantOptions::new().with_id(1))).await.unwrap();
    };
    join_all(sides.clone().map(grant)).await;
    for what in ["granted", "renewed"] {
        let aged = eventually("the lease has aged", || async {
            let now = remaining().await;
            if now[0] <= GRANTED - AGE { Ok(now) } else { Err(now) }
        })
        .await;
        assert!(aged[1].abs_diff(aged[0]) <= TOLERANCE, "{what}; etcd, the fake, the control: {aged:?}");
        assert!(aged[2].abs_diff(aged[0]) > TOLERANCE, "{what}; the control: {aged:?}");
        join_all(sides.clone().map(|mut side| async move { side.lease_keep_alive(1).await.unwrap() })).await;
        let renewed = remaining().await;
        assert!(renewed[0] > aged[0], "{what}; etcd renews: {renewed:?}");
        assert!(renewed[1].abs_diff(renewed[0]) <= TOLERANCE, "{what}, then renewed: {renewed:?}");
    }
}

/// As in etcd, where a renewal that comes after the expiry waits for the revocation.
#[tokio::test(start_paused = true)]
async fn an_expired_lease_is_not_renewed() {
    let fake = FakeEtcd::start();
    fake.expire_leases();
    let mut client = Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap();
    // The fake looks for expired leases at each half second.
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.lease_grant(2, Some(LeaseGrantOptions::new().with_id(1))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1600)).await;
    client.lease_keep_alive(1).await.expect("it has not expired");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(fake.lease_ids(), [1], "it has expired, and is not revoked yet");
    client.lease_keep_alive(1).await.expect_err("it has expired");
    assert_eq!(fake.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn writes_wait_while_the_fake_is_frozen() {
    let fake = FakeEtcd::start();
    let client = || Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None);
    let (mut putting, mut deleting, mut compacting) =
        (client().await.unwrap(), client().await.unwrap(), client().await.unwrap());
    putting.put("k", "", None).await.unwrap();
    fake.freeze();
    let mut put = std::pin::pin!(putting.put("k", "", None));
    let mut deletion = std::pin::pin!(deleting.delete("k", None));
    let mut compaction = std::pin::pin!(compacting.compact(1, None));
    tokio::select! {
        early = &mut put => panic!("{early:?}"),
        early = &mut deletion => panic!("{early:?}"),
        early = &mut compaction => panic!("{early:?}"),
        () = tokio::time::sleep(Duration::from_secs(5)) => {}
    }
    assert_eq!(fake.revision(), 2);
    fake.thaw();
    put.await.unwrap();
    deletion.await.unwrap();
    compaction.await.unwrap();
    assert_eq!(fake.revision(), 4);
}

#[tokio::test]
async fn the_fake_refuses_what_it_does_not_imitate() {
    let fake = FakeEtcd::start();
    let mut client = Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap();
    let is_unimplemented = |error: Error| refusal(&error).starts_with("Unimplemented: ");
    for options in [WatchOptions::new().with_fragment(), WatchOptions::new().with_watch_id(7)] {
        let mut watch = client.watch("k", Some(options)).await.unwrap();
        assert!(is_unimplemented(soon("refused", watch.message()).await.unwrap_err()));
    }
    let mut watch = client.watch("k", None).await.unwrap();
    assert!(soon("created", watch.message()).await.unwrap().unwrap().created());
    watch.watch("other", None).await.unwrap();
    assert!(is_unimplemented(soon("refused", watch.message()).await.unwrap_err()));

    let nested = TxnOp::txn(Txn::new().and_then([TxnOp::put("nested", "", None)]));
    let txn = Txn::new().and_then([TxnOp::put("k", "", None), nested]);
    assert!(is_unimplemented(client.txn(txn).await.unwrap_err()));
    assert_eq!((fake.under(b""), fake.revision()), (Vec::new(), 1), "nothing is written");

    assert!(is_unimplemented(client.leases().await.unwrap_err()));
    assert!(is_unimplemented(client.member_list().await.unwrap_err()));
    assert!(is_unimplemented(client.user_list().await.unwrap_err()));
}

/// Etcd adds up to a tenth of the interval at random.
#[tokio::test(start_paused = true)]
async fn a_quiet_watch_of_the_fake_reports_progress() {
    let fake = FakeEtcd::start();
    let mut client = Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap();
    let mut watch = client.watch("k", Some(WatchOptions::new().with_progress_notify())).await.unwrap();
    let mut next = async || {
        let hour = Duration::from_secs(3600);
        tokio::time::timeout(hour, watch.message()).await.expect("within an hour").unwrap().unwrap()
    };
    assert!(next().await.created());
    let begun = tokio::time::Instant::now();
    fake.put("other", "");
    let notice = next().await;
    assert_eq!((notice.watch_id(), notice.events().len(), notice.header().unwrap().revision()), (0, 0, 2));
    assert_eq!(begun.elapsed().as_secs(), 600);
    fake.put("k", "");
    assert_eq!(next().await.events().len(), 1);
    let notice = next().await;
    assert_eq!((notice.watch_id(), notice.events().len(), notice.header().unwrap().revision()), (0, 0, 3));
    assert_eq!(begun.elapsed().as_secs(), 1800, "an event replaces a notice");
}

/// The keys of each lease are deleted at one revision, which no other lease shares.
#[tokio::test]
async fn leases_that_expire_together_end_one_by_one() {
    let server = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
    let fake = FakeEtcd::start();
    fake.expire_leases();
    let imitation = Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap();
    for (side, mut client) in [("etcd", support::raw(&server).await), ("the fake", imitation)] {
        let mut watch = client.watch("k", Some(WatchOptions::new().with_prefix())).await.unwrap();
        for lease in 1..=5 {
            client.lease_grant(2, Some(LeaseGrantOptions::new().with_id(lease))).await.unwrap();
            for key in ["a", "b"] {
                let under = PutOptions::new().with_lease(lease);
                client.put(format!("k{lease}{key}"), "", Some(under)).await.unwrap();
            }
        }
        let mut ended = BTreeMap::<i64, Vec<String>>::new();
        while ended.values().map(Vec::len).sum::<usize>() < 10 {
            let message = soon("the leases expire", watch.message()).await.unwrap().unwrap();
            for event in message.events().iter().filter(|event| event.event_type() == EventType::Delete) {
                let pair = event.kv().unwrap();
                ended.entry(pair.mod_revision()).or_default().push(pair.key_str().unwrap().to_owned());
            }
        }
        let is_one_lease = |keys: &Vec<String>| keys.len() == 2 && keys[0][..2] == keys[1][..2];
        assert!(ended.values().all(is_one_lease), "{side}: {ended:?}");
    }
}
