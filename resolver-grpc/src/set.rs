//! The task behind a channel: it follows the view, owns one [subchannel](crate::subchannel) per endpoint, and tells calls which
//! of them are ready.

use std::{collections::HashMap, mem, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use enlist::{
    Endpoint, Entry, Error, Filter, Moment, NoPick, Picker, Policy, ServiceView, TaskOwner, ViewChanges,
    balance::{Group, Ready},
    error::with_causes,
    escape::escaped,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    balance::Balance,
    settings::SettingsFor,
    subchannel::{InstanceState, Subchannel, Terms},
};

/// How long the idle connection to an instance that is no longer listed is kept: it may be registered anew at once, as after a
/// lost lease.
const LINGER: Duration = Duration::from_secs(5);

/// How often instances that left are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long subchannels may take to end; they wait for nothing then.
const STOP: Duration = Duration::from_secs(5);

/// What calls see of the set.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) set: ArcSwap<Picture>,
    /// Counts the pictures.
    pub(crate) pictures: watch::Sender<u64>,
}

impl Shared {
    /// Lets nobody take calls any more.
    pub(crate) fn close(&self) {
        self.set.store(Arc::new(Picture { known: true, closed: true, ..Picture::default() }));
        self.pictures.send_modify(|pictures| *pictures += 1);
    }
}

/// The set at one moment.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    pub(crate) closed: bool,
    /// The view has said who there is.
    pub(crate) known: bool,
    pub(crate) ready: Ready<Arc<Subchannel>>,
    /// Everybody who is listed and passes the filter, ready or not.
    pub(crate) all: Vec<Arc<Subchannel>>,
    /// Who is no longer listed and finishes its calls.
    pub(crate) leaving: Vec<Arc<Subchannel>>,
}

/// What a set goes by.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) balance: Balance,
    pub(crate) filter: Filter,
    pub(crate) zone: Option<String>,
    /// How long an instance that left may take to finish its calls.
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
pub(crate) struct Keeper {
    changes: ViewChanges,
    picker: Picker,
    rules: Rules,
    terms: Arc<Terms>,
    shared: Arc<Shared>,
    known: bool,
    kept: HashMap<Endpoint, Kept>,
    /// Ends all subchannels with the keeper.
    tasks: TaskOwner,
}

impl Keeper {
    pub(crate) fn new(view: &ServiceView, rules: Rules, terms: Arc<Terms>) -> Self {
        let picker = view.picker_of(Policy::Random, rules.filter.clone());
        let shared = Arc::new(Shared { set: ArcSwap::default(), pictures: watch::Sender::new(0) });
        let (known, kept, tasks) = (false, HashMap::new(), TaskOwner::new());
        Self { changes: view.changes(), picker, rules, terms, shared, known, kept, tasks }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Follows the view until told to stop, and ends its subchannels.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
        if let Err(error) = self.tasks.stop(STOP).await {
            tracing::error!(cause = %with_causes(&error), "subchannels did not end in order");
        }
    }

    async fn keep(&mut self) {
        let mut open = true;
        self.reconcile();
        loop {
            self.bury();
            self.shared.set.store(Arc::new(self.picture()));
            self.shared.pictures.send_modify(|pictures| *pictures += 1);
            let leaving = self.kept.values().any(|kept| kept.left.is_some());
            tokio::select! {
                changed = self.changes.next(), if open => {
                    open = !matches!(changed, Err(Error::Closed));
                    self.reconcile();
                }
                () = self.terms.changed.notified() => {}
                () = tokio::time::sleep(LOOK), if leaving => {}
            }
        }
    }

    /// Makes the subchannels those of the instances that are listed.
    fn reconcile(&mut self) {
        let listed = match self.picker.candidates() {
            Ok(candidates) => by_endpoint(candidates, &self.terms.settings),
            Err(NoPick::Empty { .. }) => HashMap::new(),
            // Whoever is known stays known; calls find out how old that is.
            Err(_) => return,
        };
        self.known = true;
        self.terms.ejections.of(listed.len());
        for (endpoint, kept) in &mut self.kept {
            if kept.left.is_none() && !listed.contains_key(endpoint) {
                kept.left = Some(Moment::now());
                kept.subchannel.retire();
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
        let subchannel = Arc::new(Subchannel::new(endpoint.clone(), entry, self.terms.connections.most));
        let stop = self.tasks.stop_signal().child_token();
        let (kept, terms, stopped) = (Arc::clone(&subchannel), Arc::clone(&self.terms), stop.clone());
        self.tasks.spawn("subchannel", async move {
            stopped.run_until_cancelled(kept.keep(&terms)).await;
        })?;
        Ok(Kept { subchannel, stop, left: None })
    }

    /// Lets go of those who left and have finished their calls, or took too long to.
    fn bury(&mut self) {
        let drain = self.rules.drain;
        self.kept.retain(|_, kept| {
            let Some(left) = kept.left else { return true };
            let (busy, away) = (kept.subchannel.in_flight() > 0, left.elapsed());
            if away >= drain {
                kept.subchannel.cut();
            }
            away < drain && (busy || away < LINGER && kept.subchannel.is_connected())
        });
    }

    fn picture(&self) -> Picture {
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
        Picture { closed: false, known: self.known, ready: Ready::new(group(true), group(false), listed), all, leaving }
    }
}

/// Who is to be connected to, by endpoint. Where several instances name one endpoint, which happens when one is registered anew
/// under another id, the latest counts.
fn by_endpoint(candidates: &[Arc<Entry>], settings: &SettingsFor) -> HashMap<Endpoint, Arc<Entry>> {
    let mut listed: HashMap<Endpoint, Arc<Entry>> = HashMap::with_capacity(candidates.len());
    for entry in candidates {
        let Some(endpoint) = settings.endpoint(entry.instance()) else {
            tracing::warn!(instance = %escaped(entry.instance().id()), "no endpoint that gRPC is spoken with, left out");
            continue;
        };
        let known = listed.entry(endpoint.clone()).or_insert_with(|| Arc::clone(entry));
        if known.created() < entry.created() {
            drop(mem::replace(known, Arc::clone(entry)));
        }
    }
    listed
}
