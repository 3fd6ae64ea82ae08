//! The task behind a channel: it follows the view, owns one [subchannel](crate::subchannel) per endpoint, and publishes
//! the ones that are ready.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use enlist::{
    Endpoint, Entry, Error, Event, Filter, InstanceId, Moment, PickError, PickPolicy, Picker, ServiceView, TaskOwner,
    ViewChanges,
    balance::{Group, Ready},
    with_causes,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    load_balancing::{
        balance::BalancePolicy,
        idle,
        listing::{Listed, by_endpoint, report_unusable},
        picker_state::{PickerCell, PickerState},
    },
    subchannel::{config::SubchannelConfig, connectivity::InstanceState, subchannel::Subchannel},
};

/// Time for which the idle connection to an instance that is no longer listed is kept. The instance may be registered
/// again at once, as after a lost lease.
const RELISTING_GRACE: Duration = Duration::from_secs(5);

/// Time for which changes are collected before the next picker state, except for the first instance that becomes ready.
/// Calls skip a removed instance at once: they check the states of the subchannels.
const REBUILD_DELAY: Duration = Duration::from_millis(50);

/// Interval of checks of instances that are leaving.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum time for the end of the subchannels, which wait for nothing then.
const SUBCHANNELS_END_TIMEOUT: Duration = Duration::from_secs(5);

/// Rules of a set.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) balance: BalancePolicy,
    pub(crate) filter: Filter,
    pub(crate) zone: Option<String>,
    /// Maximum time for an instance that is no longer listed to finish its calls.
    pub(crate) drain: Duration,
}

/// A subchannel. Dropping the member ends the subchannel's task.
struct Member {
    subchannel: Arc<Subchannel>,
    stop: CancellationToken,
    /// Time at which the instance was no longer listed.
    delisted: Option<Moment>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Subchannels of a picker state that are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    NoneReady,
    SomeReady,
}

/// Zone of an instance, relative to the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    /// The zone that the channel prefers.
    Preferred,
    Other,
}

/// Cause for another picker state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RebuildCause {
    /// The view has changed, so the members have to be reconciled with it.
    View,
    /// A connection was made.
    Connected,
    Other,
}

/// Need for a reconciliation of the members with the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reconciliation {
    Due,
    NotDue,
}

/// Members that are no longer listed, and wait for the end of their calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draining {
    NoMember,
    SomeMember,
}

/// State of the view that the task follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ViewState {
    Open,
    /// There are no further changes. The last known instances stay.
    Closed,
}

/// Task of a channel: keeps one subchannel per endpoint of the view, and publishes the picker state.
pub(crate) struct PoolTask {
    changes: ViewChanges,
    view: ViewState,
    picker: Picker,
    rules: Rules,
    config: Arc<SubchannelConfig>,
    picker_cell: Arc<PickerCell>,
    /// The view had a list once. Calls wait for that, in every state of the view.
    known: bool,
    /// Time at which a picker state was last published early.
    published_early: Option<Moment>,
    members: HashMap<Endpoint, Member>,
    /// Instances without a gRPC endpoint, which were reported.
    unusable: HashSet<InstanceId>,
    /// Ends all subchannels with the task.
    tasks: TaskOwner,
}

impl PoolTask {
    pub(crate) fn new(view: &ServiceView, rules: Rules, config: Arc<SubchannelConfig>) -> Self {
        let picker = view.picker_of(PickPolicy::Random, rules.filter.clone());
        let picker_cell = Arc::new(PickerCell { set: ArcSwap::default(), versions: watch::Sender::new(0) });
        Self {
            changes: view.changes(),
            view: ViewState::Open,
            picker,
            rules,
            config,
            picker_cell,
            known: false,
            published_early: None,
            members: HashMap::new(),
            unusable: HashSet::new(),
            tasks: TaskOwner::new(),
        }
    }

    pub(crate) fn picker_cell(&self) -> Arc<PickerCell> {
        Arc::clone(&self.picker_cell)
    }

    /// Follows the view until `stop`, then ends its subchannels.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (picker_cell, config) = (self.picker_cell(), Arc::clone(&self.config));
        let idle = idle::watch(config.connections.idle_timeout, &picker_cell, &config);
        stop.run_until_cancelled(futures::future::join(self.keep(), idle)).await;
        if let Err(error) = self.tasks.stop(SUBCHANNELS_END_TIMEOUT).await {
            tracing::error!(cause = %with_causes(&error), "subchannels did not end in order");
        }
    }

    async fn keep(&mut self) {
        let mut reconciliation = Reconciliation::Due;
        loop {
            if reconciliation == Reconciliation::Due {
                self.reconcile();
            }
            let draining = self.reap();
            let readiness = self.publish();
            reconciliation = self.collect(readiness, draining).await;
        }
    }

    /// Publishes the present picker state to calls.
    fn publish(&self) -> Readiness {
        let picker_state = self.picker_state();
        let is_ready = picker_state.all.iter().any(|subchannel| subchannel.state() == InstanceState::Ready);
        self.picker_cell.set.store(Arc::new(picker_state));
        // After the publication: if the only instance has moved to another endpoint, calls that read the previous
        // picker state would otherwise be refused.
        self.members.values().filter(|member| member.delisted.is_some()).for_each(|member| member.subchannel.retire());
        self.picker_cell.versions.send_modify(|versions| *versions += 1);
        if is_ready { Readiness::SomeReady } else { Readiness::NoneReady }
    }

    /// Waits for a change, and for more of them until the next picker state is due.
    async fn collect(&mut self, readiness: Readiness, draining: Draining) -> Reconciliation {
        let mut collected = pin!(tokio::time::sleep(REBUILD_DELAY));
        let mut reconciliation = Reconciliation::NotDue;
        let mut is_due = false;
        loop {
            tokio::select! {
                // First, so that continuous changes do not delay the publication.
                biased;
                () = &mut collected, if is_due => return reconciliation,
                cause = self.change(draining) => {
                    is_due = true;
                    if cause == RebuildCause::View {
                        reconciliation = Reconciliation::Due;
                    }
                    // Calls wait for the first connection.
                    let is_first = (cause, readiness) == (RebuildCause::Connected, Readiness::NoneReady);
                    if is_first && self.published_early.is_none_or(|at| at.elapsed() >= REBUILD_DELAY) {
                        self.published_early = Some(Moment::now());
                        return reconciliation;
                    }
                }
            }
        }
    }

    /// Waits for a cause for another picker state.
    async fn change(&mut self, draining: Draining) -> RebuildCause {
        tokio::select! {
            changed = self.changes.next(), if self.view == ViewState::Open => {
                match changed {
                    Ok(change) => self.retire(&change.events),
                    Err(Error::Closed) => self.view = ViewState::Closed,
                    Err(_) => {}
                }
                RebuildCause::View
            }
            () = self.config.connected.notified() => RebuildCause::Connected,
            () = self.config.changed.notified() => RebuildCause::Other,
            () = tokio::time::sleep(DRAIN_CHECK_INTERVAL), if draining == Draining::SomeMember => RebuildCause::Other,
        }
    }

    /// Stops new calls to removed instances at once.
    fn retire(&self, events: &[Event]) {
        for event in events {
            let gone = match event {
                Event::Removed(entry) => entry,
                Event::Updated { old, new } if !new.instance().takes_calls() => old,
                _ => continue,
            };
            let member = self.config.settings.endpoint(gone.instance()).and_then(|endpoint| self.members.get(endpoint));
            if let Some(member) = member.filter(|member| member.subchannel.entry().instance().id() == event.id()) {
                member.subchannel.retire();
            }
        }
    }

    /// Starts and marks subchannels, so that they match the listed instances.
    fn reconcile(&mut self) {
        let listed = match self.picker.candidates() {
            Ok(candidates) => by_endpoint(candidates, &self.config.settings),
            Err(PickError::Empty { .. }) => Listed::default(),
            // Known instances stay. Calls check the age of the view.
            Err(_) => return,
        };
        let Listed { by_endpoint: listed, unusable } = listed;
        report_unusable(&mut self.unusable, unusable);
        self.known = true;
        self.config.ejections.of(listed.len());
        for (endpoint, member) in &mut self.members {
            if member.delisted.is_none() && !listed.contains_key(endpoint) {
                member.delisted = Some(Moment::now());
            }
        }
        for (endpoint, entry) in listed {
            if let Some(member) = self.members.get_mut(&endpoint) {
                member.delisted = None;
                member.subchannel.describe(entry);
            } else if let Ok(member) = self.start(&endpoint, entry) {
                self.members.insert(endpoint, member);
            }
        }
    }

    fn start(&self, endpoint: &Endpoint, entry: Arc<Entry>) -> Result<Member, Error> {
        let subchannel = Arc::new(Subchannel::new(endpoint.clone(), entry, self.config.connections.most));
        let stop = self.tasks.stop_signal().child_token();
        let (member, config, stopped) = (Arc::clone(&subchannel), Arc::clone(&self.config), stop.clone());
        self.tasks.spawn("subchannel", async move {
            stopped.run_until_cancelled(member.keep(&config)).await;
        })?;
        Ok(Member { subchannel, stop, delisted: None })
    }

    /// Removes drained or timed-out subchannels.
    fn reap(&mut self) -> Draining {
        let drain = self.rules.drain;
        let mut draining = Draining::NoMember;
        self.members.retain(|_, member| {
            let Some(delisted) = member.delisted else { return true };
            let (busy, away) = (member.subchannel.in_flight() > 0, delisted.elapsed());
            if away >= drain {
                member.subchannel.cut();
            }
            let stays = away < drain && (busy || away < RELISTING_GRACE && member.subchannel.is_connected());
            if stays {
                draining = Draining::SomeMember;
            }
            stays
        });
        draining
    }

    fn picker_state(&self) -> PickerState {
        let mut all = Vec::with_capacity(self.members.len());
        let mut leaving = Vec::new();
        for member in self.members.values() {
            let list = if member.delisted.is_some() { &mut leaving } else { &mut all };
            list.push(Arc::clone(&member.subchannel));
        }
        let entries: Vec<_> = all.iter().map(|subchannel| subchannel.entry()).collect();
        let zone_of = |entry: &Entry| match self.rules.zone.as_deref() {
            Some(zone) if entry.instance().zone() == Some(zone) => Zone::Preferred,
            _ => Zone::Other,
        };
        let listed = entries
            .iter()
            .filter(|entry| zone_of(entry) == Zone::Preferred)
            .map(|entry| u64::from(entry.instance().weight()))
            .sum();
        let group = |members: Zone| {
            let ready = all
                .iter()
                .zip(&entries)
                .filter(|(subchannel, entry)| subchannel.state() == InstanceState::Ready && zone_of(entry) == members);
            let named = ready.map(|(subchannel, entry)| {
                (entry.instance().id().as_str(), entry.instance().weight(), Arc::clone(subchannel))
            });
            match self.rules.balance {
                BalancePolicy::ConsistentHash(_) => Group::by_key(named),
                _ => Group::new(named),
            }
        };
        PickerState {
            closed: false,
            known: self.known,
            ready: Ready::new(group(Zone::Preferred), group(Zone::Other), listed),
            all,
            leaving,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{
        channel::Channel,
        in_memory::{Servers, address, instance, view},
    };
    use enlist::backend::MutexExt as _;
    use enlist::{BackoffPolicy, Instance, Registry};
    use std::{io, sync::Mutex};

    /// A port of this host that refuses connections.
    fn refusing() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn continuous_changes_publish_every_fifty_milliseconds() {
        let port = refusing();
        let (view, _client) = view(200, |n| format!("127.1.0.{n}:{port}")).await;
        let always = BackoffPolicy::new(Duration::from_millis(1), Duration::from_millis(1)).unwrap();
        let channel = Channel::builder().redial(always).build(&view).unwrap();
        let mut versions = channel.versions();
        versions.changed().await.unwrap();
        let (begun, first) = (Moment::now(), *versions.borrow_and_update());
        while *versions.borrow_and_update() < first + 10 {
            versions.changed().await.unwrap();
        }
        let (took, made) = (begun.elapsed(), *versions.borrow() - first);
        // The first one may have been published at the end of its own 50 ms.
        assert!(took >= REBUILD_DELAY * 9, "{made} versions in {took:?}");
    }

    #[tokio::test]
    async fn ten_thousand_instances_rebuild_every_fifty_milliseconds() {
        const COUNT: u32 = 10_000;
        let (view, client) = view(COUNT, address).await;
        let servers = Servers::default();
        let begun = Moment::now();
        let channel = Channel::builder().connector(servers.connector(Duration::from_millis(1))).build(&view).unwrap();
        let mut versions = channel.versions();
        let is_ready = |count: u32| {
            let ready = channel.instances().iter().filter(|one| one.state == InstanceState::Ready).count();
            u32::try_from(ready).unwrap() == count
        };
        while !is_ready(COUNT) {
            versions.changed().await.unwrap();
        }
        let (took, made) = (begun.elapsed(), *versions.borrow_and_update());
        println!("{COUNT} instances ready after {took:?}: {made} picker states, {} dials at a time", servers.most());
        assert!((2..=64).contains(&servers.most()), "{} dials at a time", servers.most());
        // The first one is published at once, and one more for the first instance that is ready.
        let due = |took: Duration| u64::try_from(took.as_millis() / REBUILD_DELAY.as_millis()).unwrap() + 2;
        assert!(made <= due(took), "{made} picker states in {took:?}");

        let begun = Moment::now();
        for n in 0..1000 {
            client.publish(view.service(), instance(n, &address(n)).with_weight(2)).await.unwrap();
            client.publish(view.service(), instance(COUNT + n, &address(COUNT + n))).await.unwrap();
        }
        while !is_ready(COUNT + 1000) {
            versions.changed().await.unwrap();
        }
        let (took, changes) = (begun.elapsed(), *versions.borrow() - made);
        println!("2000 changes: {changes} picker states in {took:?}");
        assert!(changes <= due(took), "{changes} picker states in {took:?}");
    }

    #[tokio::test]
    async fn a_removed_instance_takes_no_call_before_publication() {
        let port = refusing();
        let (view, client) = view(2, |n| format!("127.1.0.{n}:{port}")).await;
        let rules =
            Rules { balance: BalancePolicy::default(), filter: Filter::new(), zone: None, drain: REBUILD_DELAY };
        let config = Channel::builder().config();
        let mut task = PoolTask::new(&view, rules, config);
        task.reconcile();
        // The first change is the whole snapshot.
        task.change(Draining::NoMember).await;
        client.remove(view.service(), &InstanceId::parse("i0").unwrap()).await.unwrap();
        let state =
            |task: &PoolTask| task.members[&Endpoint::parse(format!("127.1.0.0:{port}")).unwrap()].subchannel.state();
        while state(&task) != InstanceState::Leaving {
            task.change(Draining::NoMember).await;
        }
        assert!(task.members.values().all(|member| member.delisted.is_none()), "the view was looked at as a whole");
    }

    #[tokio::test]
    async fn a_moved_instance_keeps_its_endpoint_until_publication() {
        let port = refusing();
        let endpoint = |n: u32| format!("127.1.0.{n}:{port}");
        let (view, client) = view(1, endpoint).await;
        let rules =
            Rules { balance: BalancePolicy::default(), filter: Filter::new(), zone: None, drain: REBUILD_DELAY };
        let mut task = PoolTask::new(&view, rules, Channel::builder().config());
        task.reconcile();
        let [old, new] = [0, 9].map(|n| Endpoint::parse(endpoint(n)).unwrap());
        let moved = Instance::new(InstanceId::parse("i0").unwrap(), [new.clone()]).unwrap();
        client.publish(view.service(), moved).await.unwrap();
        while !task.members.contains_key(&new) {
            task.change(Draining::NoMember).await;
            task.reconcile();
        }
        assert_ne!(task.members[&old].subchannel.state(), InstanceState::Leaving);
        task.publish();
        assert_eq!(task.members[&old].subchannel.state(), InstanceState::Leaving);
    }

    /// The lines that are logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.locked().clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.locked().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn instances_that_cannot_be_used_are_reported_once() {
        let (view, client) = view(3, |n| format!("redis://127.1.0.{n}:1")).await;
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _default = tracing::subscriber::set_default(subscriber);
        let rules =
            Rules { balance: BalancePolicy::default(), filter: Filter::new(), zone: None, drain: REBUILD_DELAY };
        let mut task = PoolTask::new(&view, rules, Channel::builder().config());
        for _ in 0..3 {
            task.reconcile();
        }
        let reports = || log.text().matches("left out").count();
        assert_eq!(reports(), 1, "{}", log.text());
        assert!(log.text().contains("others=2"), "{}", log.text());
        // A new one is reported.
        let endpoint = Endpoint::parse("redis://127.1.1.1:1").unwrap();
        let late = Instance::new(InstanceId::parse("late").unwrap(), [endpoint]).unwrap();
        client.publish(view.service(), late).await.unwrap();
        while reports() < 2 {
            task.changes.next().await.unwrap();
            task.reconcile();
        }
        assert!(log.text().contains("instance=late") && log.text().contains("others=0"), "{}", log.text());
    }
}
