//! The task behind a channel: it follows the view, owns one [subchannel](crate::subchannel) per endpoint, and tells calls which
//! of them are ready.

use std::{
    collections::{HashMap, HashSet},
    mem,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use enlist::{
    Endpoint, Entry, Error, Event, Filter, InstanceId, Moment, PickError, Picker, Policy, ServiceView, TaskOwner,
    ViewChanges,
    balance::{Group, Ready},
    with_causes,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    load_balancing::{
        balance::Balance,
        idle,
        listing::{Listed, by_endpoint, report_unusable, takes_calls},
        picker_state::{PickerState, Shared},
    },
    subchannel::{config::SubchannelConfig, connectivity::InstanceState, subchannel::Subchannel},
};

/// Time for which the idle connection to an instance that is no longer listed is kept: it may be registered anew at once, as after a
/// lost lease.
const LINGER: Duration = Duration::from_secs(5);

/// Time for which changes are collected before there is another picture, unless it is the first instance to become ready. Who goes is
/// passed over at once: calls look at the subchannels themselves.
const COLLECT: Duration = Duration::from_millis(50);

/// Interval at which instances that left are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Maximum time until subchannels have ended; they wait for nothing then.
const STOP: Duration = Duration::from_secs(5);

/// Rules of a set.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) balance: Balance,
    pub(crate) filter: Filter,
    pub(crate) zone: Option<String>,
    /// Maximum time for an instance that left to finish its calls.
    pub(crate) drain: Duration,
}

/// A subchannel and its task, which ends with this.
struct Kept {
    subchannel: Arc<Subchannel>,
    stop: CancellationToken,
    /// Since when it is no longer listed.
    left: Option<Moment>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The task.
pub(crate) struct PoolTask {
    changes: ViewChanges,
    picker: Picker,
    rules: Rules,
    config: Arc<SubchannelConfig>,
    shared: Arc<Shared>,
    known: bool,
    /// The view has changed since it was looked at.
    stale: bool,
    /// There are instances that left.
    leaving: bool,
    /// Time at which a picture was last made before its time.
    hurried: Option<Moment>,
    kept: HashMap<Endpoint, Kept>,
    /// Instances without an endpoint that gRPC is spoken with, which was reported.
    unusable: HashSet<InstanceId>,
    /// Ends all subchannels with the keeper.
    tasks: TaskOwner,
}

impl PoolTask {
    pub(crate) fn new(view: &ServiceView, rules: Rules, config: Arc<SubchannelConfig>) -> Self {
        let picker = view.picker_of(Policy::Random, rules.filter.clone());
        let shared = Arc::new(Shared { set: ArcSwap::default(), pictures: watch::Sender::new(0) });
        Self {
            changes: view.changes(),
            picker,
            rules,
            config,
            shared,
            known: false,
            stale: true,
            leaving: false,
            hurried: None,
            kept: HashMap::new(),
            unusable: HashSet::new(),
            tasks: TaskOwner::new(),
        }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Follows the view until told to stop, and ends its subchannels.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (shared, config) = (self.shared(), Arc::clone(&self.config));
        let idle = idle::watch(config.connections.idle_timeout, &shared, &config);
        stop.run_until_cancelled(futures::future::join(self.keep(), idle)).await;
        if let Err(error) = self.tasks.stop(STOP).await {
            tracing::error!(cause = %with_causes(&error), "subchannels did not end in order");
        }
    }

    async fn keep(&mut self) {
        let mut open = true;
        loop {
            if mem::take(&mut self.stale) {
                self.reconcile();
            }
            self.reap();
            let nobody_is_ready = self.show();
            self.collect(&mut open, nobody_is_ready).await;
        }
    }

    /// Shows calls the present picture. Returns `true` if nobody in it is ready.
    fn show(&self) -> bool {
        let picture = self.picture();
        let nobody_is_ready = !picture.all.iter().any(|subchannel| subchannel.state() == InstanceState::Ready);
        self.shared.set.store(Arc::new(picture));
        // Not before: where the only instance has moved to another endpoint, a call that looks at the picture before this one would be
        // refused.
        self.kept.values().filter(|kept| kept.left.is_some()).for_each(|kept| kept.subchannel.retire());
        self.shared.pictures.send_modify(|pictures| *pictures += 1);
        nobody_is_ready
    }

    /// Waits for a reason for another picture, and for more of them.
    async fn collect(&mut self, open: &mut bool, nobody_is_ready: bool) {
        let mut collected = pin!(tokio::time::sleep(COLLECT));
        let mut is_due = false;
        loop {
            tokio::select! {
                // First, so that changes without end do not put it off.
                biased;
                () = &mut collected, if is_due => return,
                connected = self.change(open) => {
                    is_due = true;
                    // Calls wait for the first one.
                    if connected && nobody_is_ready && self.hurried.is_none_or(|at| at.elapsed() >= COLLECT) {
                        self.hurried = Some(Moment::now());
                        return;
                    }
                }
            }
        }
    }

    /// Waits for a reason for another picture. Returns `true` if a connection was made.
    async fn change(&mut self, open: &mut bool) -> bool {
        tokio::select! {
            changed = self.changes.next(), if *open => {
                self.stale = true;
                match changed {
                    Ok(change) => self.retire(&change.events),
                    Err(error) => *open = !matches!(error, Error::Closed),
                }
            }
            () = self.config.connected.notified() => return true,
            () = self.config.changed.notified() => {}
            () = tokio::time::sleep(LOOK), if self.leaving => {}
        }
        false
    }

    /// Lets those that go take no more calls, at once.
    fn retire(&self, events: &[Event]) {
        for event in events {
            let gone = match event {
                Event::Removed(entry) => entry,
                Event::Updated { old, new } if !takes_calls(new.instance()) => old,
                _ => continue,
            };
            let kept = self.config.settings.endpoint(gone.instance()).and_then(|endpoint| self.kept.get(endpoint));
            if let Some(kept) = kept.filter(|kept| kept.subchannel.entry().instance().id() == event.id()) {
                kept.subchannel.retire();
            }
        }
    }

    /// Makes the subchannels those of the instances that are listed.
    fn reconcile(&mut self) {
        let listed = match self.picker.candidates() {
            Ok(candidates) => by_endpoint(candidates, &self.config.settings),
            Err(PickError::Empty { .. }) => Listed::default(),
            // Whoever is known stays known; calls find out how old that is.
            Err(_) => return,
        };
        let Listed { by_endpoint: listed, unusable } = listed;
        report_unusable(&mut self.unusable, unusable);
        self.known = true;
        self.config.ejections.of(listed.len());
        for (endpoint, kept) in &mut self.kept {
            if kept.left.is_none() && !listed.contains_key(endpoint) {
                kept.left = Some(Moment::now());
            }
        }
        for (endpoint, entry) in listed {
            if let Some(kept) = self.kept.get_mut(&endpoint) {
                kept.left = None;
                kept.subchannel.describe(entry);
            } else if let Ok(kept) = self.start(&endpoint, entry) {
                self.kept.insert(endpoint, kept);
            }
        }
    }

    fn start(&self, endpoint: &Endpoint, entry: Arc<Entry>) -> Result<Kept, Error> {
        let subchannel = Arc::new(Subchannel::new(endpoint.clone(), entry, self.config.connections.most));
        let stop = self.tasks.stop_signal().child_token();
        let (kept, config, stopped) = (Arc::clone(&subchannel), Arc::clone(&self.config), stop.clone());
        self.tasks.spawn("subchannel", async move {
            stopped.run_until_cancelled(kept.keep(&config)).await;
        })?;
        Ok(Kept { subchannel, stop, left: None })
    }

    /// Lets go of those who left and have finished their calls, or took too long to.
    fn reap(&mut self) {
        let drain = self.rules.drain;
        self.leaving = false;
        self.kept.retain(|_, kept| {
            let Some(left) = kept.left else { return true };
            let (busy, away) = (kept.subchannel.in_flight() > 0, left.elapsed());
            if away >= drain {
                kept.subchannel.cut();
            }
            let stays = away < drain && (busy || away < LINGER && kept.subchannel.is_connected());
            self.leaving |= stays;
            stays
        });
    }

    fn picture(&self) -> PickerState {
        let mut all = Vec::with_capacity(self.kept.len());
        let mut leaving = Vec::new();
        for kept in self.kept.values() {
            let list = if kept.left.is_some() { &mut leaving } else { &mut all };
            list.push(Arc::clone(&kept.subchannel));
        }
        let entries: Vec<_> = all.iter().map(|subchannel| subchannel.entry()).collect();
        let is_near =
            |entry: &Entry| self.rules.zone.as_deref().is_some_and(|zone| entry.instance().zone() == Some(zone));
        let listed =
            entries.iter().filter(|entry| is_near(entry)).map(|entry| u64::from(entry.instance().weight())).sum();
        let group = |near: bool| {
            let ready = all
                .iter()
                .zip(&entries)
                .filter(|(subchannel, entry)| subchannel.state() == InstanceState::Ready && is_near(entry) == near);
            let named = ready.map(|(subchannel, entry)| {
                (entry.instance().id().as_str(), entry.instance().weight(), Arc::clone(subchannel))
            });
            match self.rules.balance {
                Balance::ConsistentHash(_) => Group::by_key(named),
                _ => Group::new(named),
            }
        };
        PickerState {
            closed: false,
            known: self.known,
            ready: Ready::new(group(true), group(false), listed),
            all,
            leaving,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::channel::Channel;
    use enlist::{BackoffPolicy, Directory, Instance, Registry, ServiceRef};
    use std::{
        io,
        sync::{Mutex, PoisonError},
    };

    /// A view of `count` instances with an endpoint each, and the client that published them.
    async fn view(count: u32, endpoint: impl Fn(u32) -> String) -> (ServiceView, enlist_memory::MemoryClient) {
        let client = enlist_memory::MemoryStore::new().client();
        let service = ServiceRef::parse("echo").unwrap();
        for n in 0..count {
            let endpoint = Endpoint::parse(endpoint(n)).unwrap();
            let instance = Instance::new(InstanceId::parse(format!("i{n}")).unwrap(), [endpoint]).unwrap();
            client.publish(&service, instance).await.unwrap();
        }
        let view = Directory::new(Arc::new(client.clone())).view(&service);
        view.ready().await.unwrap();
        (view, client)
    }

    /// A port of this host that refuses connections.
    fn refusing() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn changes_without_end_make_one_picture_in_fifty_milliseconds() {
        let port = refusing();
        let (view, _client) = view(200, |n| format!("127.1.0.{n}:{port}")).await;
        let always = BackoffPolicy::new(Duration::from_millis(1), Duration::from_millis(1)).unwrap();
        let channel = Channel::builder().redial(always).build(&view).unwrap();
        let mut pictures = channel.pictures();
        pictures.changed().await.unwrap();
        let (begun, first) = (Moment::now(), *pictures.borrow_and_update());
        while *pictures.borrow_and_update() < first + 10 {
            pictures.changed().await.unwrap();
        }
        let (took, made) = (begun.elapsed(), *pictures.borrow() - first);
        // The first may have been made at the end of its own fifty milliseconds.
        assert!(took >= COLLECT * 9, "{made} pictures in {took:?}");
    }

    #[tokio::test]
    async fn who_is_removed_takes_no_call_before_the_next_picture() {
        let port = refusing();
        let (view, client) = view(2, |n| format!("127.1.0.{n}:{port}")).await;
        let rules = Rules { balance: Balance::default(), filter: Filter::new(), zone: None, drain: COLLECT };
        let config = Channel::builder().config();
        let mut keeper = PoolTask::new(&view, rules, config);
        keeper.reconcile();
        let mut open = true;
        // The first change is the whole snapshot.
        keeper.change(&mut open).await;
        client.remove(view.service(), &InstanceId::parse("i0").unwrap()).await.unwrap();
        let state =
            |keeper: &PoolTask| keeper.kept[&Endpoint::parse(format!("127.1.0.0:{port}")).unwrap()].subchannel.state();
        while state(&keeper) != InstanceState::Leaving {
            keeper.change(&mut open).await;
        }
        assert!(keeper.kept.values().all(|kept| kept.left.is_none()), "the view was looked at as a whole");
    }

    #[tokio::test]
    async fn who_moves_takes_calls_at_the_old_endpoint_until_there_is_a_picture_with_the_new_one() {
        let port = refusing();
        let endpoint = |n: u32| format!("127.1.0.{n}:{port}");
        let (view, client) = view(1, endpoint).await;
        let rules = Rules { balance: Balance::default(), filter: Filter::new(), zone: None, drain: COLLECT };
        let mut keeper = PoolTask::new(&view, rules, Channel::builder().config());
        keeper.reconcile();
        let [old, new] = [0, 9].map(|n| Endpoint::parse(endpoint(n)).unwrap());
        let moved = Instance::new(InstanceId::parse("i0").unwrap(), [new.clone()]).unwrap();
        client.publish(view.service(), moved).await.unwrap();
        let mut open = true;
        while !keeper.kept.contains_key(&new) {
            keeper.change(&mut open).await;
            keeper.reconcile();
        }
        assert_ne!(keeper.kept[&old].subchannel.state(), InstanceState::Leaving);
        keeper.show();
        assert_eq!(keeper.kept[&old].subchannel.state(), InstanceState::Leaving);
    }

    /// The lines that are logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
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
        let rules = Rules { balance: Balance::default(), filter: Filter::new(), zone: None, drain: COLLECT };
        let mut keeper = PoolTask::new(&view, rules, Channel::builder().config());
        for _ in 0..3 {
            keeper.reconcile();
        }
        let reports = || log.text().matches("left out").count();
        assert_eq!(reports(), 1, "{}", log.text());
        assert!(log.text().contains("others=2"), "{}", log.text());
        // One that comes is.
        let endpoint = Endpoint::parse("redis://127.1.1.1:1").unwrap();
        let late = Instance::new(InstanceId::parse("late").unwrap(), [endpoint]).unwrap();
        client.publish(view.service(), late).await.unwrap();
        while reports() < 2 {
            keeper.changes.next().await.unwrap();
            keeper.reconcile();
        }
        assert!(log.text().contains("instance=late") && log.text().contains("others=0"), "{}", log.text());
    }
}
