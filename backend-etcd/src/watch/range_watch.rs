//! The watches of a session: one for each range, however many read it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use enlist::{
    Epoch, Error, Revision, TaskOwner,
    backend::{Publisher, Subscriber},
};
use tracing::Instrument;

use crate::{
    session::Session,
    watch::{
        record::{KeyRange, Record},
        replica::Replica,
        watch_task::WatchTask,
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
#[derive(Debug, Default)]
pub(crate) struct Hub {
    running: Mutex<HashMap<KeyRange, Weak<RangeWatch>>>,
    /// Those that somebody keeps for a while.
    lingering: Arc<Mutex<HashSet<KeyRange>>>,
}

impl Hub {
    /// A reader of `range`, which keeps its pipeline and `session` alive, and has its age kept down.
    pub(crate) fn view(&self, session: &Arc<Session>, range: &KeyRange) -> Result<Subscriber<Replica>, Error> {
        let pipeline = self.running(session, range)?;
        let probed = session.probes.hold(session, range)?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, probed, Arc::clone(session)))))
    }

    /// The same for one who does not ask for the age.
    pub(crate) fn follow(&self, session: &Arc<Session>, range: &KeyRange) -> Result<Subscriber<Replica>, Error> {
        let pipeline = self.running(session, range)?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, Arc::clone(session)))))
    }

    fn running(&self, session: &Arc<Session>, range: &KeyRange) -> Result<Arc<RangeWatch>, Error> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pipeline| pipeline.strong_count() > 0);
        if let Some(pipeline) = running.get(range).and_then(Weak::upgrade) {
            return Ok(pipeline);
        }
        let pipeline = Arc::new(start(session, range.clone(), None)?);
        running.insert(range.clone(), Arc::downgrade(&pipeline));
        Ok(pipeline)
    }

    /// Keeps the pipeline of `range`, if there is one, for a while after its last reader. It does not keep the session.
    pub(crate) fn linger(&self, tasks: &TaskOwner, range: &KeyRange) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pipeline) = running.get(range).and_then(Weak::upgrade) else {
            return;
        };
        drop(running);
        let lingering = Arc::clone(&self.lingering);
        if !lingering.lock().unwrap_or_else(PoisonError::into_inner).insert(range.clone()) {
            return;
        }
        let (range, stop) = (range.clone(), tasks.stop_signal());
        // After the end of the session nothing lingers.
        let _ = tasks.spawn("linger", async move {
            stop.run_until_cancelled(tokio::time::sleep(LINGER)).await;
            lingering.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
            drop(pipeline);
        });
    }

    /// A reader of one key that begins with what is known of it, without a list. Not shared.
    pub(crate) fn follow_key(
        session: &Arc<Session>,
        key: &[u8],
        known: Option<Record>,
        revision: Revision,
        begin: Begin,
    ) -> Result<Subscriber<Replica>, Error> {
        let range = KeyRange::key(key);
        let mut mirror = Replica::new(revision, Epoch::default());
        mirror.relist(known.into_iter().collect(), revision, Epoch::default());
        let pipeline = start(session, range, Some((mirror, begin)))?;
        let feed = Arc::clone(&pipeline.feed);
        Ok(feed.reader(Arc::new((pipeline, Arc::clone(session)))))
    }
}

/// Begin of the watch of a key of which something is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// After what is known. Where others wrote meanwhile, etcd serves it within 100 ms, as each watch that begins in the past.
    Known,
    /// Now, which is served at once. What happened in between is read once it is open.
    Now,
}

fn start(session: &Arc<Session>, range: KeyRange, known: Option<(Replica, Begin)>) -> Result<RangeWatch, Error> {
    session.check_open()?;
    let feed = Arc::new(Publisher::new());
    let tasks = TaskOwner::on(session.runtime());
    let (stop, closed) = (tasks.stop_signal(), session.tasks.stop_signal());
    let span = tracing::info_span!("watch", range = %range.describe());
    let worker = WatchTask::new(session, range, Arc::clone(&feed), known);
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
