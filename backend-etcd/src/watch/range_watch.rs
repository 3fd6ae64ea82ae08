//! The watches of a session: one for each range, however many read it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use enlist::backend::MutexExt as _;
use enlist::{
    Counters, Epoch, Error, Revision, TaskOwner,
    backend::{Publisher, Subscriber},
};
use tracing::Instrument;

use crate::{
    client::connection::Connection,
    session::{leases::Leases, lifecycle::Lifecycle},
    watch::{
        context::{WatchContext, WatchSettings},
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::{Begin, WatchTask},
    },
};

/// Time for which a pipeline goes on after the last reader, where somebody is likely to read it again.
const LINGER: Duration = Duration::from_secs(5);

/// A running pipeline. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct RangeWatch {
    feed: Arc<Publisher<Replica>>,
    _tasks: TaskOwner,
}

/// The pipelines of a session: one per range, however many readers.
#[derive(Debug)]
pub(crate) struct Hub {
    context: WatchContext,
    running: Mutex<HashMap<KeyRange, Weak<RangeWatch>>>,
    /// Those that somebody keeps for a while.
    lingering: Arc<Mutex<HashSet<KeyRange>>>,
}

impl Hub {
    pub(crate) fn new(
        conn: &Arc<Connection>,
        leases: &Arc<Leases>,
        counters: &Arc<Counters>,
        settings: WatchSettings,
    ) -> Self {
        let context = WatchContext::new(conn, leases, counters, settings);
        Self { context, running: Mutex::default(), lingering: Arc::default() }
    }

    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        self.context.lifecycle()
    }

    /// A reader of `range`, which keeps its pipeline and the session alive, and has its age kept down.
    pub(crate) fn view(self: &Arc<Self>, range: &KeyRange) -> Result<Subscriber<Replica>, Error> {
        let pipeline = self.running(range)?;
        let probed = self.context.probes.hold(range)?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, probed, Arc::clone(self)))))
    }

    /// The same for one who does not ask for the age.
    pub(crate) fn follow(self: &Arc<Self>, range: &KeyRange) -> Result<Subscriber<Replica>, Error> {
        let pipeline = self.running(range)?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, Arc::clone(self)))))
    }

    fn running(&self, range: &KeyRange) -> Result<Arc<RangeWatch>, Error> {
        let mut running = self.running.locked();
        running.retain(|_, pipeline| pipeline.strong_count() > 0);
        if let Some(pipeline) = running.get(range).and_then(Weak::upgrade) {
            return Ok(pipeline);
        }
        let pipeline = Arc::new(start(&self.context, range.clone(), None)?);
        running.insert(range.clone(), Arc::downgrade(&pipeline));
        Ok(pipeline)
    }

    /// Keeps the pipeline of `range`, if there is one, for a while after its last reader. It does not keep the session.
    pub(crate) fn linger(&self, range: &KeyRange) {
        let tasks = &self.context.lifecycle().tasks;
        let running = self.running.locked();
        let Some(pipeline) = running.get(range).and_then(Weak::upgrade) else {
            return;
        };
        drop(running);
        let lingering = Arc::clone(&self.lingering);
        if !lingering.locked().insert(range.clone()) {
            return;
        }
        let (range, stop) = (range.clone(), tasks.stop_signal());
        // After the end of the session nothing lingers.
        let _ = tasks.spawn("linger", async move {
            stop.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            lingering.locked().remove(&range);
            drop(pipeline);
        });
    }

    /// A reader of one key that begins with what is known of it, without a list. Not shared.
    pub(crate) fn follow_key(
        self: &Arc<Self>,
        key: &[u8],
        known: Option<Record>,
        revision: Revision,
        begin: Begin,
    ) -> Result<Subscriber<Replica>, Error> {
        let range = KeyRange::key(key);
        let mut mirror = Replica::new(revision, Epoch::default());
        mirror.relist(known.into_iter().collect(), revision, Epoch::default());
        let pipeline = start(&self.context, range, Some((mirror, begin)))?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, Arc::clone(self)))))
    }
}

fn start(context: &WatchContext, range: KeyRange, known: Option<(Replica, Begin)>) -> Result<RangeWatch, Error> {
    let lifecycle = context.lifecycle();
    lifecycle.check_open()?;
    let feed = Arc::new(Publisher::new());
    let tasks = TaskOwner::on(lifecycle.runtime());
    let (stop, closed) = (tasks.stop_signal(), lifecycle.tasks.stop_signal());
    let span = tracing::info_span!("watch", range = %range.describe());
    let worker = WatchTask::new(context, range, Arc::clone(&feed), known);
    let published = Arc::clone(&feed);
    let run = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.cancelled() => published.close(),
            () = worker.run() => {}
        }
    };
    tasks.spawn("watch", run.instrument(span))?;
    Ok(RangeWatch { feed, _tasks: tasks })
}
