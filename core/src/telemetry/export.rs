//! Samples for the recorder of the `metrics` facade, and the thread that passes them on.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Sample for the recorder.
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "read where the feature `metrics` is on"))]
pub(crate) enum Sample {
    Count(&'static str, u64),
    Time(&'static str, Duration),
    View(String, usize, Duration),
}

#[cfg(not(feature = "metrics"))]
pub(crate) fn export(_: impl FnOnce() -> Sample) {}

/// Number of samples that were dropped because the recorder did not keep up. Always 0 without the feature `metrics`.
pub fn dropped_samples() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

#[cfg(feature = "metrics")]
pub(crate) use exporter::export;

#[cfg(feature = "metrics")]
mod exporter {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            LazyLock,
            atomic::Ordering,
            mpsc::{SyncSender, sync_channel},
        },
    };

    use crate::telemetry::export::{DROPPED, Sample};

    /// Number of samples that may wait for the recorder.
    const QUEUE: usize = 4096;

    /// The queue to the thread that calls the recorder; `None` if there is no thread. It lives as long as the process,
    /// as the recorder does.
    static EXPORTER: LazyLock<Option<SyncSender<Sample>>> = LazyLock::new(|| {
        let (queue, samples) = sync_channel::<Sample>(QUEUE);
        let run = move || {
            for sample in samples {
                if catch_unwind(AssertUnwindSafe(|| record(sample))).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new().name("enlist-metrics".to_owned()).spawn(run).ok().map(|_| queue)
    });

    pub(crate) fn export(sample: impl FnOnce() -> Sample) {
        let sent = EXPORTER.as_ref().is_some_and(|queue| queue.try_send(sample()).is_ok());
        if !sent {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn record(sample: Sample) {
        match sample {
            Sample::Count(name, several) => metrics::counter!(name).increment(several),
            Sample::Time(name, time) => metrics::histogram!(name).record(time),
            Sample::View(service, instances, age) => {
                // A view never has close to 2^52 instances, up to which this is exact.
                #[expect(clippy::cast_precision_loss, reason = "exact up to 2^52")]
                metrics::gauge!("enlist_view_instances", "service" => service.clone()).set(instances as f64);
                metrics::gauge!("enlist_view_age_seconds", "service" => service).set(age.as_secs_f64());
            }
        }
    }
}
