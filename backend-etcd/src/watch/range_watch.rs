//! Range watches of a session: one per range, shared by all its readers.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use enlist::{
    Counters, Epoch, Error, Revision, TaskOwner,
    backend::{MutexExt as _, Publisher, Subscriber},
};
use tracing::Instrument;

use crate::{
    client::store_client::StoreClient,
    session::{leases::Leases, lifecycle::Lifecycle},
    watch::{
        context::{WatchContext, WatchSettings},
        partial_list::{PartialList, PartialListReader},
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::{Begin, WatchTask},
    },
};

/// Time for which a range watch continues after its last reader, if another reader is likely.
const LINGER: Duration = Duration::from_secs(5);

/// A running range watch. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct RangeWatch {
    publisher: Arc<Publisher<Replica>>,
    partial: Arc<PartialList>,
    _tasks: TaskOwner,
}

/// Range watches of a session: one per range, shared by all its readers.
#[derive(Debug)]
pub(crate) struct RangeWatches {
    context: WatchContext,
    running: Mutex<HashMap<KeyRange, Weak<RangeWatch>>>,
    /// Ranges watched for a limited time without readers.
    lingering: Arc<Mutex<HashSet<KeyRange>>>,
}

impl RangeWatches {
    pub(crate) fn new(
        client: &Arc<StoreClient>,
        leases: &Arc<Leases>,
        counters: &Arc<Counters>,
        settings: WatchSettings,
    ) -> Self {
        let context = WatchContext::new(client, leases, counters, settings);
        Self { context, running: Mutex::default(), lingering: Arc::default() }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        self.context.lifecycle()
    }

    /// Returns a reader of `range` that keeps its range watch and the session alive. Probes keep its age low.
    pub(crate) fn view(self: &Arc<Self>, range: &KeyRange) -> Result<Subscriber<Replica>, Error> {
        Ok(self.view_by_pages(range)?.0)
    }

    /// Returns a reader as [`view`](Self::view) does, and one of the pages of the first list.
    pub(crate) fn view_by_pages(
        self: &Arc<Self>,
        range: &KeyRange,
    ) -> Result<(Subscriber<Replica>, PartialListReader), Error> {
        let watch = self.running(range)?;
        let probed = self.context.probes.hold(range)?;
        let (publisher, pages) = (Arc::clone(&watch.publisher), watch.partial.reader());
        Ok((publisher.reader(Arc::new((watch, probed, Arc::clone(self)))), pages))
    }

    /// Returns a reader of `range` without probes, for callers that do not need the age.
    pub(crate) fn follow(self: &Arc<Self>, range: &KeyRange) -> Result<Subscriber<Replica>, Error> {
        let watch = self.running(range)?;
        let publisher = Arc::clone(&watch.publisher);
        Ok(publisher.reader(Arc::new((watch, Arc::clone(self)))))
    }

    fn running(&self, range: &KeyRange) -> Result<Arc<RangeWatch>, Error> {
        let mut running = self.running.locked();
        running.retain(|_, watch| watch.strong_count() > 0);
        if let Some(watch) = running.get(range).and_then(Weak::upgrade) {
            return Ok(watch);
        }
        let watch = Arc::new(start(&self.context, range.clone(), None)?);
        running.insert(range.clone(), Arc::downgrade(&watch));
        Ok(watch)
    }

    /// Keeps the range watch of `range`, if there is one, for a limited time after its last reader. Does not keep the
    /// session.
    pub(crate) fn linger(&self, range: &KeyRange) {
        let tasks = &self.context.lifecycle().tasks;
        let running = self.running.locked();
        let Some(watch) = running.get(range).and_then(Weak::upgrade) else {
            return;
        };
        drop(running);
        let lingering = Arc::clone(&self.lingering);
        if !lingering.locked().insert(range.clone()) {
            return;
        }
        let (range, stop) = (range.clone(), tasks.stop_signal());
        // A session that has ended rejects the task, and no range watch lingers.
        let _ = tasks.spawn("linger", async move {
            stop.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            lingering.locked().remove(&range);
            drop(watch);
        });
    }

    /// Returns an unshared reader of one key. It begins with the `known` state at `revision`, without a list.
    pub(crate) fn follow_key(
        self: &Arc<Self>,
        key: &[u8],
        known: Option<Record>,
        revision: Revision,
        begin: Begin,
    ) -> Result<Subscriber<Replica>, Error> {
        let range = KeyRange::key(key);
        let mut replica = Replica::new(revision, Epoch::default());
        replica.relist(known.into_iter().collect(), revision, Epoch::default());
        let watch = start(&self.context, range, Some((replica, begin)))?;
        let publisher = Arc::clone(&watch.publisher);
        Ok(publisher.reader(Arc::new((watch, Arc::clone(self)))))
    }
}

fn start(context: &WatchContext, range: KeyRange, known: Option<(Replica, Begin)>) -> Result<RangeWatch, Error> {
    let lifecycle = context.lifecycle();
    lifecycle.check_open()?;
    let (publisher, partial) = (Arc::new(Publisher::new()), Arc::<PartialList>::default());
    let tasks = TaskOwner::on(lifecycle.runtime());
    let (stop, closed) = (tasks.stop_signal(), lifecycle.tasks.stop_signal());
    let span = tracing::info_span!("watch", range = %range.describe());
    // Boxed: each layer around a future may hold its arguments twice.
    let task = Box::new(WatchTask::new(context, range, Arc::clone(&publisher), Arc::clone(&partial), known));
    let at_close = Arc::clone(&publisher);
    let run = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.cancelled() => at_close.close(),
            () = task.run() => {}
        }
    };
    tasks.spawn("watch", run.instrument(span))?;
    Ok(RangeWatch { publisher, partial, _tasks: tasks })
}
