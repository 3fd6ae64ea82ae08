//! Values that are no instances, and keys that are no paths of configuration. Each is counted, and the logs of a
//! session are limited.
//!
//! One writer can store such values at any rate, and every watcher of the service skips each of them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enlist::{
    Counter, Counters, Moment, Namespace, ServiceRef,
    backend::{MutexExt as _, count},
    escape::escaped,
};

use crate::watch::record::Record;

/// Maximum number of warnings in each [`WINDOW`], of all services and watchers together.
const WARNINGS: u32 = 10;

/// Time for which warnings are counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// Malformed values of a session.
#[derive(Debug, Default)]
pub(crate) struct MalformedValues {
    counters: Arc<Counters>,
    window: Mutex<Option<Window>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Moment,
    warnings: u32,
    /// Values that were not logged since the last warning.
    silent: u64,
}

impl MalformedValues {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, window: Mutex::default() }
    }

    /// Counts a value of a service that is skipped, and logs it unless many were logged lately.
    pub(crate) fn report(&self, service: &ServiceRef, record: &Record, reason: &str) {
        if let Some(unlogged) = self.count() {
            let key = record.key.escape_ascii();
            tracing::warn!(service = %escaped(service), %key, reason, unlogged, "malformed value skipped");
        }
    }

    /// As [`report`](Self::report), for a key of configuration.
    pub(crate) fn report_config(&self, namespace: &Namespace, record: &Record, reason: &str) {
        if let Some(unlogged) = self.count() {
            let key = record.key.escape_ascii();
            tracing::warn!(namespace = %escaped(namespace), %key, reason, unlogged, "malformed configuration skipped");
        }
    }

    /// Counts a value. If it is to be logged, returns the number of unlogged values before it.
    fn count(&self) -> Option<u64> {
        count(&self.counters, Counter::MalformedValues);
        let mut window = self.window.locked();
        let (next, admitted) = admit(*window, Moment::now());
        *window = Some(next);
        admitted
    }
}

/// Returns the window after one more value, and if that is to be logged, the number of unlogged values before it.
fn admit(window: Option<Window>, now: Moment) -> (Window, Option<u64>) {
    let fresh = |silent| Window { begun: now, warnings: 0, silent };
    let mut window = match window {
        None => fresh(0),
        Some(window) if now.since(window.begun) >= WINDOW => fresh(window.silent),
        Some(window) => window,
    };
    if window.warnings < WARNINGS {
        window.warnings += 1;
        let unlogged = std::mem::take(&mut window.silent);
        (window, Some(unlogged))
    } else {
        window.silent += 1;
        (window, None)
    }
}
