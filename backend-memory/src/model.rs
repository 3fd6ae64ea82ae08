//! A small reference model of the store, and a state-machine test that compares the two over random histories.
//!
//! The model stores the obvious state: the holder of each key, the end of each lease, and all events. It has no
//! indexes, no compaction of structures and no shared clocks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use enlist::{
    Endpoint, FencingToken, Instance, InstanceId, LeaseId, LockMode, LockName, Revision, ServiceRef,
    backend::{QueueEntry, QueuePosition, queue_position},
};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::time::Instant;

use crate::store::{Group, Key, KeyChange, Kind, Record, Refusal, Store, Value};

#[derive(Clone, Debug)]
enum Step {
    Grant {
        ttl: u64,
    },
    KeepAlive {
        lease: usize,
    },
    Revoke {
        lease: usize,
    },
    /// Creates an instance key, or replaces it under the right guard. `lease` selects one of all granted leases.
    Put {
        key: u8,
        lease: Option<usize>,
        weight: u32,
    },
    /// Writes under a guard that cannot hold.
    PutStale {
        key: u8,
    },
    Delete {
        key: u8,
    },
    /// Joins the queue of the lock.
    Join {
        lease: usize,
        shared: bool,
    },
    /// Leaves the queue.
    Leave {
        entry: usize,
    },
    Advance {
        seconds: u64,
    },
    Compact,
    Wipe,
}

#[derive(Clone, Debug, PartialEq)]
struct ModelKey {
    lease: Option<LeaseId>,
    created: u64,
    modified: u64,
    /// Weight of an instance, or mode of a queue entry.
    content: u32,
}

/// Reference model. Times are seconds since the start.
#[derive(Clone, Debug)]
struct Model {
    now: u64,
    revision: u64,
    granted: Vec<LeaseId>,
    /// TTL and end of each lease.
    leases: BTreeMap<LeaseId, (u64, u64)>,
    instances: BTreeMap<u8, ModelKey>,
    /// Queue entries by the numbers in their keys.
    entries: BTreeMap<u64, ModelKey>,
    joined: u64,
    compacted: u64,
}

impl Model {
    fn expire(&mut self) {
        let due: Vec<_> = self.leases.iter().filter(|(_, (_, end))| *end <= self.now).map(|(id, _)| *id).collect();
        for id in due {
            self.end(id);
        }
    }

    fn end(&mut self, id: LeaseId) {
        if self.leases.remove(&id).is_none() {
            return;
        }
        let before = self.instances.len() + self.entries.len();
        self.instances.retain(|_, key| key.lease != Some(id));
        self.entries.retain(|_, key| key.lease != Some(id));
        if self.instances.len() + self.entries.len() < before {
            self.revision += 1;
        }
    }

    fn lease(&self, pick: usize) -> Option<LeaseId> {
        (!self.granted.is_empty()).then(|| self.granted[pick % self.granted.len()])
    }
}

struct Reference;

impl ReferenceStateMachine for Reference {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model {
            now: 0,
            revision: 1,
            granted: Vec::new(),
            leases: BTreeMap::new(),
            instances: BTreeMap::new(),
            entries: BTreeMap::new(),
            joined: 0,
            compacted: 0,
        })
        .boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let any = || any::<usize>();
        prop_oneof![
            3 => (1u64..10).prop_map(|ttl| Step::Grant { ttl }),
            2 => any().prop_map(|lease| Step::KeepAlive { lease }),
            1 => any().prop_map(|lease| Step::Revoke { lease }),
            6 => (0u8..6, proptest::option::of(any()), 0u32..4)
                .prop_map(|(key, lease, weight)| Step::Put { key, lease, weight }),
            1 => (0u8..6).prop_map(|key| Step::PutStale { key }),
            2 => (0u8..6).prop_map(|key| Step::Delete { key }),
            4 => (any(), proptest::bool::ANY).prop_map(|(lease, shared)| Step::Join { lease, shared }),
            2 => any().prop_map(|entry| Step::Leave { entry }),
            3 => (0u64..6).prop_map(|seconds| Step::Advance { seconds }),
            1 => Just(Step::Compact),
            1 => Just(Step::Wipe),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        match step {
            Step::Grant { ttl } => {
                let id = LeaseId::new(i64::try_from(model.granted.len()).unwrap() + 1);
                model.granted.push(id);
                model.leases.insert(id, (*ttl, model.now + ttl));
            }
            Step::KeepAlive { lease } => {
                let now = model.now;
                if let Some(lease) = model.lease(*lease).and_then(|id| model.leases.get_mut(&id)) {
                    lease.1 = now + lease.0;
                }
            }
            Step::Revoke { lease } => {
                if let Some(id) = model.lease(*lease) {
                    model.end(id);
                }
            }
            Step::Put { key, lease, weight } => {
                let lease = lease.and_then(|pick| model.lease(pick));
                if lease.is_none_or(|id| model.leases.contains_key(&id)) {
                    model.revision += 1;
                    let created = model.instances.get(key).map_or(model.revision, |old| old.created);
                    let new = ModelKey { lease, created, modified: model.revision, content: *weight };
                    model.instances.insert(*key, new);
                }
            }
            Step::PutStale { .. } => {}
            Step::Delete { key } => {
                if model.instances.remove(key).is_some() {
                    model.revision += 1;
                }
            }
            Step::Join { lease, shared } => {
                if let Some(id) = model.lease(*lease).filter(|id| model.leases.contains_key(id)) {
                    model.revision += 1;
                    let at = model.revision;
                    let entry = ModelKey { lease: Some(id), created: at, modified: at, content: u32::from(*shared) };
                    model.entries.insert(model.joined, entry);
                }
                model.joined += 1;
            }
            Step::Leave { entry } => {
                let number = *entry as u64 % model.joined.max(1);
                if model.entries.remove(&number).is_some() {
                    model.revision += 1;
                }
            }
            Step::Advance { seconds } => {
                model.now += seconds;
                model.expire();
            }
            Step::Compact => model.compacted = model.revision,
            Step::Wipe => {
                let (granted, now, joined) = (std::mem::take(&mut model.granted), model.now, model.joined);
                model.leases.clear();
                model.instances.clear();
                model.entries.clear();
                model = Model { granted, now, joined, revision: 1, compacted: 0, ..model };
            }
        }
        model
    }
}

/// Store under test, and a follower that rebuilds its content from changes alone.
struct Subject {
    store: Store,
    start: Instant,
    now: u64,
    granted: Vec<LeaseId>,
    joined: u64,
    follower: BTreeMap<Key, Record>,
    seen: Revision,
    incarnation: u64,
    last_token: FencingToken,
}

fn service() -> ServiceRef {
    ServiceRef::parse("s").unwrap()
}

fn key(number: u8) -> Key {
    Key::instance(&service(), &InstanceId::parse(format!("i{number}")).unwrap())
}

fn queue() -> Group {
    Group::queue(Kind::Lock, &LockName::parse("l").unwrap())
}

fn entry_key(number: u64) -> Key {
    Key { group: queue(), member: format!("{number:08}").into() }
}

fn instance(weight: u32) -> Value {
    let id = InstanceId::parse("i").unwrap();
    let instance = Instance::new(id, [Endpoint::parse("h:1").unwrap()]).unwrap().with_weight(weight);
    Value::Instance { instance: Arc::new(instance), owner: None, term: 0 }
}

impl Subject {
    fn time(&self) -> Instant {
        self.start + Duration::from_secs(self.now)
    }

    fn lease(&self, pick: usize) -> Option<LeaseId> {
        (!self.granted.is_empty()).then(|| self.granted[pick % self.granted.len()])
    }

    fn put(&mut self, number: u8, lease: Option<LeaseId>, weight: u32) {
        let key = key(number);
        let guard = self.store.get(&key).map(|record| record.modified);
        let alive = lease.is_none_or(|id| self.store.leases().any(|alive| alive == id));
        let outcome = self.store.put(&key, guard, instance(weight), lease);
        assert_eq!(outcome.is_ok(), alive, "a write under a lease that has ended is refused: {outcome:?}");
    }

    fn stand(&mut self, lease: Option<LeaseId>, mode: LockMode) {
        let value = Value::QueueEntry { mode, text: String::new() };
        let joined = lease.map(|lease| self.store.put(&entry_key(self.joined), None, value, Some(lease)));
        if let Some(Ok(revision)) = joined {
            let token = FencingToken::new(revision.get());
            assert!(token > self.last_token, "tokens strictly increase");
            self.last_token = token;
        }
        self.joined += 1;
    }

    /// Applies the changes since the last call, or starts over if they were compacted. Then the follower must equal the
    /// store.
    fn follow(&mut self) {
        let same_store = self.store.incarnation() == self.incarnation;
        let changes = same_store.then(|| self.store.changes_after(self.seen)).flatten();
        match changes {
            Some(changes) => {
                let mut last = self.seen;
                for KeyChange { revision, key, record, departure: _ } in changes {
                    assert!(*revision >= last, "revisions never decrease");
                    last = *revision;
                    match record {
                        Some(record) => self.follower.insert(key.clone(), record.clone()),
                        None => self.follower.remove(key),
                    };
                }
            }
            None => self.follower = self.content(),
        }
        (self.seen, self.incarnation) = (self.store.revision(), self.store.incarnation());
        assert_eq!(self.follower, self.content(), "what was known plus the changes is what the store holds");
    }

    fn content(&self) -> BTreeMap<Key, Record> {
        let group = Group::service(&service());
        let queue = queue();
        let all = self.store.range(&group).chain(self.store.range(&queue));
        all.map(|(key, record)| (key.clone(), record.clone())).collect()
    }
}

struct StoreTest;

impl StateMachineTest for StoreTest {
    type SystemUnderTest = Subject;
    type Reference = Reference;

    fn init_test(_: &Model) -> Subject {
        Subject {
            store: Store::default(),
            start: Instant::now(),
            now: 0,
            granted: Vec::new(),
            joined: 0,
            follower: BTreeMap::new(),
            seen: Revision::default(),
            incarnation: 0,
            last_token: FencingToken::default(),
        }
    }

    fn apply(mut subject: Subject, _: &Model, step: Step) -> Subject {
        let now = subject.time();
        match step {
            Step::Grant { ttl } => {
                let id = subject.store.grant(Duration::from_secs(ttl), now);
                subject.granted.push(id);
            }
            Step::KeepAlive { lease } => {
                if let Some(id) = subject.lease(lease) {
                    subject.store.keep_alive(id, now);
                }
            }
            Step::Revoke { lease } => {
                if let Some(id) = subject.lease(lease) {
                    subject.store.revoke(id);
                }
            }
            Step::Put { key, lease, weight } => {
                let lease = lease.and_then(|pick| subject.lease(pick));
                subject.put(key, lease, weight);
            }
            Step::PutStale { key: number } => {
                let before = subject.store.get(&key(number)).cloned();
                let never = Some(Revision::new(u64::MAX));
                let outcome = subject.store.put(&key(number), never, instance(9), None);
                assert_eq!(outcome, Err(Refusal::Guard(before)));
            }
            Step::Delete { key: number } => {
                let _ = subject.store.delete(&key(number), |_| true);
            }
            Step::Join { lease, shared } => {
                let lease = subject.lease(lease);
                subject.stand(lease, if shared { LockMode::Shared } else { LockMode::Exclusive });
            }
            Step::Leave { entry: number } => {
                let _ = subject.store.delete(&entry_key(number as u64 % subject.joined.max(1)), |_| true);
            }
            Step::Advance { seconds } => {
                subject.now += seconds;
                let now = subject.time();
                subject.store.expire(now);
            }
            Step::Compact => {
                let revision = subject.store.revision();
                subject.store.compact(revision);
            }
            Step::Wipe => {
                subject.store.wipe();
                // Tokens start over with the store, so a wipe is a loss.
                subject.last_token = FencingToken::default();
            }
        }
        // Not after every step, so that the follower has to cross compactions and wipes.
        if subject.store.revision().get().is_multiple_of(3) {
            subject.follow();
        }
        subject
    }

    fn check_invariants(subject: &Subject, model: &Model) {
        assert_eq!(subject.store.revision().get(), model.revision);
        assert_eq!(subject.store.leases().collect::<Vec<_>>(), model.leases.keys().copied().collect::<Vec<_>>());
        for number in 0..6 {
            let real = subject.store.get(&key(number)).map(|record| {
                let Value::Instance { instance, .. } = &record.value else { panic!("an instance") };
                ModelKey {
                    lease: record.lease,
                    created: record.created.get(),
                    modified: record.modified.get(),
                    content: instance.weight(),
                }
            });
            assert_eq!(real, model.instances.get(&number).cloned());
        }
        let seen = Revision::new(model.compacted.saturating_sub(1));
        if model.compacted > 0 {
            assert!(subject.store.changes_after(seen).is_none(), "compacted history is refused");
        }
        check_queue(subject, model);
    }
}

/// The queue equals the model's, and a holder excludes holders of the other mode.
fn check_queue(subject: &Subject, model: &Model) {
    let queue = queue();
    let entries: Vec<QueueEntry> = subject
        .store
        .range(&queue)
        .filter_map(|(_, record)| match record.value {
            Value::QueueEntry { mode, .. } => Some(QueueEntry { token: FencingToken::new(record.created.get()), mode }),
            _ => None,
        })
        .collect();
    let mut tokens: Vec<_> = entries.iter().map(|entry| entry.token.get()).collect();
    tokens.sort_unstable();
    let mut expected: Vec<_> = model.entries.values().map(|entry| entry.created).collect();
    expected.sort_unstable();
    assert_eq!(tokens, expected);
    let holds = |entry: &&QueueEntry| queue_position(entries.iter().copied(), entry.token) == QueuePosition::Holder;
    let holders: Vec<_> = entries.iter().filter(holds).collect();
    assert_eq!(holders.is_empty(), entries.is_empty(), "a queue has a holder");
    let alone = holders.len() <= 1;
    assert!(alone || holders.iter().all(|entry| entry.mode == LockMode::Shared), "an exclusive holder is alone");
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_as_the_model(sequential 1..80 => StoreTest);
}
