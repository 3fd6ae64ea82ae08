//! The `metrics` feature: the values that reach a recorder. A slow or faulty recorder only costs samples.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use enlist::{
    Counter, Counters, Directory, Endpoint, Instance, InstanceId, RegisterOptions, Registry, ServiceRef,
    backend::{Timer, count, count_several, measured},
    telemetry::dropped_samples,
};
use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// Recorder that keeps the last value of each metric, blocks on request, and panics at one name.
#[derive(Clone, Default)]
struct Recorded(Arc<Inner>);

#[derive(Default)]
struct Inner {
    values: Mutex<BTreeMap<String, f64>>,
    blocked: Mutex<bool>,
    freed: Condvar,
}

impl Recorded {
    fn get(&self, name: &str) -> f64 {
        self.0.values.lock().unwrap().get(name).copied().unwrap_or(0.0)
    }

    fn block(&self) {
        *self.0.blocked.lock().unwrap() = true;
    }

    fn unblock(&self) {
        *self.0.blocked.lock().unwrap() = false;
        self.0.freed.notify_all();
    }

    fn change(&self, name: &str, change: impl FnOnce(f64) -> f64) {
        drop(self.0.freed.wait_while(self.0.blocked.lock().unwrap(), |blocked| *blocked).unwrap());
        assert!(!name.contains("lock_losses"), "broken on purpose");
        let mut values = self.0.values.lock().unwrap();
        let value = values.entry(name.to_owned()).or_default();
        *value = change(*value);
    }
}

struct One(Recorded, String);

impl CounterFn for One {
    fn increment(&self, value: u64) {
        self.0.change(&self.1, |old| old + f64::from(u32::try_from(value).unwrap()));
    }
    fn absolute(&self, _: u64) {}
}

impl GaugeFn for One {
    fn increment(&self, _: f64) {}
    fn decrement(&self, _: f64) {}
    fn set(&self, value: f64) {
        self.0.change(&self.1, |_| value);
    }
}

impl HistogramFn for One {
    fn record(&self, value: f64) {
        self.0.change(&self.1, |_| value);
    }
}

fn name(key: &Key) -> String {
    let labels = key.labels().map(|label| format!("{}={}", label.key(), label.value()));
    std::iter::once(key.name().to_owned()).chain(labels).collect::<Vec<_>>().join(" ")
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
        metrics::Counter::from_arc(Arc::new(One(self.clone(), name(key))))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::from_arc(Arc::new(One(self.clone(), name(key))))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(Arc::new(One(self.clone(), name(key))))
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A single test, because a process has one recorder.
#[tokio::test]
async fn a_panicking_recorder_costs_samples_only() {
    let recorded = Recorded::default();
    metrics::set_global_recorder(recorded.clone()).ok().unwrap();
    let counters = Counters::default();
    count_several(&counters, Counter::WatchEvents, 3);
    count(&counters, Counter::WatchEvents);
    measured(Timer::Renewal, Duration::from_millis(250));
    until("counted", || (recorded.get("enlist_watch_events_total") - 4.0).abs() < 0.1).await;
    until("measured", || (recorded.get("enlist_lease_renewal_seconds") - 0.25).abs() < 0.01).await;

    let store = enlist_memory::MemoryStore::new();
    let service = ServiceRef::parse("greeter").unwrap();
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let _registration = store.client().register(&service, instance, RegisterOptions::new()).await.unwrap();
    let view = Directory::new(Arc::new(store.client())).view(&service);
    view.ready().await.unwrap();
    until("a view", || (recorded.get("enlist_view_instances service=default/greeter") - 1.0).abs() < 0.1).await;
    assert!(recorded.get("enlist_view_age_seconds service=default/greeter") < 5.0);

    // The recorder panics.
    count(&counters, Counter::LockLosses);
    count(&counters, Counter::Renewals);
    until("the next sample", || recorded.get("enlist_lease_renewals_total") > 0.0).await;
    assert_eq!(dropped_samples(), 1);

    // The recorder blocks: counting continues, and samples beyond the buffer are dropped and counted.
    recorded.block();
    let before = dropped_samples();
    for _ in 0..10_000 {
        count(&counters, Counter::Audits);
    }
    let dropped = dropped_samples() - before;
    assert!((5_000..10_000).contains(&dropped), "{dropped}");
    assert_eq!(counters.get(Counter::Audits), 10_000);
    recorded.unblock();
    let kept = f64::from(u32::try_from(10_000 - dropped).unwrap());
    until("what was kept arrives", || (recorded.get("enlist_audits_total") - kept).abs() < 0.1).await;
}
