//! Instances that a pool calls: their clients, their ejections, and the sets that calls select from.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::options::PoolOptions;
use crate::{
    balancing::{
        balance::{Group, PickArgs, Ready, Selectable},
        candidate_table::PickError,
        ejection::{Ejected, Ejection, EjectionTimes, Ejections},
        picker::Picker,
        policy::PickPolicy,
    },
    discovery::{service_view::ServiceView, snapshot::Snapshot},
    model::{
        escape::escaped,
        instance::Entry,
        name::{InstanceId, ServiceRef},
    },
    runtime::{clock::rounded, sync::MutexExt as _, task::TaskOwner},
};

/// One instance while it is listed with the same endpoints and the same registration.
pub(super) struct Member<T> {
    /// The entry as it was first listed.
    entry: Arc<Entry>,
    client: OnceLock<Arc<T>>,
    /// Failed calls in a row.
    failures: AtomicU32,
    is_ejected: AtomicBool,
    ejections: Mutex<MemberEjections>,
}

/// Ejections of a member.
#[derive(Default)]
struct MemberEjections {
    times: Option<EjectionTimes>,
    /// The current ejection. It ends with the member.
    now: Option<Ejected>,
}

impl<T> Member<T> {
    /// The member for `entry`. It takes over the client of its predecessor if the endpoints are the same.
    fn new(entry: &Arc<Entry>, before: Option<&Self>) -> Self {
        let before = before.filter(|before| before.is_at(entry)).and_then(|before| before.client.get().cloned());
        Self {
            entry: Arc::clone(entry),
            client: before.map(OnceLock::from).unwrap_or_default(),
            failures: AtomicU32::new(0),
            is_ejected: AtomicBool::new(false),
            ejections: Mutex::default(),
        }
    }

    fn is_at(&self, entry: &Entry) -> bool {
        self.entry.instance().endpoints() == entry.instance().endpoints()
    }

    /// Returns `true` if `entry` is the same registration at the same endpoints, with at most in-place changes.
    fn is(&self, entry: &Entry) -> bool {
        self.is_at(entry) && !entry.is_restart_of(&self.entry)
    }

    /// Begins an ejection, if there is none now. Returns its length.
    fn begin_ejection(&self, ejection: &Ejection, all: &Ejections) -> Option<Duration> {
        let mut own = self.ejections.locked();
        if own.now.is_some() {
            return None;
        }
        own.now = Some(all.begin(ejection)?);
        self.is_ejected.store(true, Ordering::Release);
        Some(own.times.get_or_insert_with(|| EjectionTimes::new(ejection)).begin())
    }

    fn end_ejection(&self) {
        let mut own = self.ejections.locked();
        // Failures during the ejection do not count.
        self.failures.store(0, Ordering::Relaxed);
        self.is_ejected.store(false, Ordering::Release);
        own.now = None;
        if let Some(times) = &mut own.times {
            times.end();
        }
    }
}

/// A member with its current entry.
pub(super) struct Listed<T> {
    pub(super) entry: Arc<Entry>,
    member: Arc<Member<T>>,
}

impl<T> Listed<T> {
    pub(super) fn id(&self) -> &InstanceId {
        self.entry.instance().id()
    }

    /// The client, which `make` creates if there is none. No lock is held meanwhile.
    pub(super) fn client<E>(&self, make: impl FnOnce(&Entry) -> Result<T, E>) -> Result<Arc<T>, E> {
        if let Some(client) = self.member.client.get() {
            return Ok(Arc::clone(client));
        }
        let new = Arc::new(make(&self.entry)?);
        // If another call was faster, its client is kept and this one is dropped.
        Ok(Arc::clone(self.member.client.get_or_init(|| new)))
    }
}

impl<T> Selectable for Listed<T> {
    /// Always 0: a pool does not count the calls of its members, because none of its policies needs the number.
    fn in_flight(&self) -> usize {
        0
    }

    fn is_ready(&self) -> bool {
        !self.member.is_ejected.load(Ordering::Acquire)
    }
}

/// A set of members that calls select from.
pub(super) struct PickSet<T> {
    listed: Vec<Arc<Listed<T>>>,
    /// The members that are not ejected.
    ready: Ready<Arc<Listed<T>>>,
    all: OnceLock<Group<Arc<Listed<T>>>>,
}

impl<T> PickSet<T> {
    fn new(listed: Vec<Arc<Listed<T>>>, zone: Option<&str>, key_use: KeyUse) -> Self {
        let is_near = |one: &Listed<T>| zone.is_some() && one.entry.instance().zone() == zone;
        let near = || listed.iter().filter(|one| is_near(one));
        let far = listed.iter().filter(|one| !is_near(one));
        let weight = near().map(|one| u64::from(one.entry.instance().weight())).sum();
        let is_ready = |one: &&Arc<Listed<T>>| one.is_ready();
        let ready = Ready::new(key_use.group(near().filter(is_ready)), key_use.group(far.filter(is_ready)), weight);
        Self { ready, listed, all: OnceLock::new() }
    }

    /// Picks a member that is not ejected and was not `tried`, or else one that is not ejected. If all are ejected,
    /// picks any of them.
    pub(super) fn pick(&self, args: &PickArgs<'_>, tried: impl Fn(&InstanceId) -> bool) -> Option<&Arc<Listed<T>>> {
        let ready = self.ready.pick(args, |one| tried(one.id()));
        ready.or_else(|| self.all.get_or_init(|| KeyUse::Without.group(&self.listed)).pick(args, &|_| true))
    }
}

/// Kind of picks that a set is built for.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyUse {
    /// Picks without a key.
    Without,
    /// Picks by key, which need hash rings.
    ByKey,
}

impl KeyUse {
    fn group<'a, T: 'a>(self, listed: impl IntoIterator<Item = &'a Arc<Listed<T>>>) -> Group<Arc<Listed<T>>> {
        let named = listed.into_iter().map(|one| {
            let instance = one.entry.instance();
            (instance.id().as_str(), instance.weight(), Arc::clone(one))
        });
        match self {
            Self::Without => Group::new(named),
            Self::ByKey => Group::by_key(named),
        }
    }
}

/// All members of a pool.
pub(super) struct Members<T> {
    service: ServiceRef,
    zone: Option<String>,
    ejection: Option<Ejection>,
    ejections: Ejections,
    /// Number of ejections that began or ended. Each makes the sets out of date.
    ejection_changes: AtomicU64,
    state: Mutex<PickSets<T>>,
}

struct PickSets<T> {
    picker: Picker,
    known: HashMap<InstanceId, Arc<Member<T>>>,
    /// Numbers of publications and of changes of ejections when the sets below were built.
    built_after: (u64, u64),
    plain: Option<Arc<PickSet<T>>>,
    by_key: Option<Arc<PickSet<T>>>,
}

impl<T> fmt::Debug for Members<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("zone", &self.zone).field("ejection", &self.ejection).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Members<T> {
    pub(super) fn new(view: &ServiceView, options: PoolOptions) -> Self {
        let PoolOptions { filter, zone, ejection } = options;
        let state = PickSets {
            picker: view.picker_of(PickPolicy::Random, filter),
            known: HashMap::new(),
            built_after: (0, 0),
            plain: None,
            by_key: None,
        };
        let (ejections, ejection_changes) = (Ejections::default(), AtomicU64::new(0));
        let service = view.service().clone();
        Self { service, zone, ejection, ejections, ejection_changes, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, PickSets<T>> {
        self.state.locked()
    }

    /// Returns the current set.
    pub(super) fn set(&self, key_use: KeyUse) -> Result<Arc<PickSet<T>>, PickError> {
        // Outlives the lock: dropping a member may drop its client, whose `Drop` is the user's code.
        let mut gone = Vec::new();
        let mut state = self.state();
        let ejection_changes = self.ejection_changes.load(Ordering::Acquire);
        let PickSets { picker, known, built_after, plain, by_key } = &mut *state;
        picker.candidates()?;
        let now = (picker.count(), ejection_changes);
        let sets = if *built_after == now { (None, None) } else { (plain.take(), by_key.take()) };
        *built_after = now;
        let set_of_kind = match key_use {
            KeyUse::Without => plain,
            KeyUse::ByKey => by_key,
        };
        if let Some(set) = set_of_kind {
            return Ok(Arc::clone(set));
        }
        let candidates = picker.candidates()?.to_vec();
        self.ejections.of(candidates.len());
        let mut list = |entry: Arc<Entry>| {
            let id = entry.instance().id();
            let member = known.get(id).filter(|member| member.is(&entry)).cloned().unwrap_or_else(|| {
                let member = Arc::new(Member::new(&entry, known.get(id).map(|before| &**before)));
                gone.extend(known.insert(id.clone(), Arc::clone(&member)));
                member
            });
            Arc::new(Listed { entry, member })
        };
        let listed = candidates.into_iter().map(&mut list).collect();
        let set = Arc::clone(set_of_kind.insert(Arc::new(PickSet::new(listed, self.zone.as_deref(), key_use))));
        drop(state);
        drop(sets);
        Ok(set)
    }

    /// Drops the clients of instances that are not in `snapshot`, or have other endpoints there.
    pub(super) fn keep_only(&self, snapshot: &Snapshot) {
        let (mut sets, mut gone) = ((None, None), Vec::new());
        {
            let mut state = self.state();
            let PickSets { picker, known, plain, by_key, .. } = &mut *state;
            if !picker.is_current() {
                sets = (plain.take(), by_key.take());
            }
            let is_gone = |id: &InstanceId, member: &mut Arc<Member<T>>| {
                snapshot.get(id).is_none_or(|entry| !member.is_at(entry))
            };
            gone.extend(known.extract_if(is_gone));
        }
        drop((sets, gone));
    }

    /// Number of clients.
    pub(super) fn clients(&self) -> usize {
        self.state().known.values().filter(|member| member.client.get().is_some()).count()
    }

    /// Records a successful call.
    pub(super) fn succeeded(one: &Listed<T>) {
        if one.member.failures.load(Ordering::Relaxed) > 0 {
            one.member.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Records a failed call, and starts an ejection if the failures in a row suffice.
    pub(super) fn failed(self: &Arc<Self>, one: &Listed<T>, tasks: &TaskOwner) {
        let (Some(ejection), member) = (&self.ejection, &one.member) else { return };
        let failures = member.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if !ejection.is_enough(failures) {
            return;
        }
        member.failures.store(0, Ordering::Relaxed);
        let Some(time) = member.begin_ejection(ejection, &self.ejections) else { return };
        tracing::warn!(
            service = %escaped(&self.service),
            instance = %escaped(one.id()),
            time = %rounded(time),
            "instance ejected, it failed several calls in a row"
        );
        self.ejection_changes.fetch_add(1, Ordering::AcqRel);
        let end = EndOfEjection { members: Arc::downgrade(self), member: Arc::downgrade(member) };
        // Without a runtime, or once the pool is gone, the ejection ends at once.
        let _ = tasks.spawn_until_stopped("ejection", async move {
            let _end = end;
            tokio::time::sleep(time).await;
        });
    }
}

/// Ends an ejection once this is dropped.
struct EndOfEjection<T> {
    members: Weak<Members<T>>,
    member: Weak<Member<T>>,
}

impl<T> Drop for EndOfEjection<T> {
    fn drop(&mut self) {
        if let Some(member) = self.member.upgrade() {
            member.end_ejection();
        }
        if let Some(members) = self.members.upgrade() {
            members.ejection_changes.fetch_add(1, Ordering::AcqRel);
        }
    }
}
