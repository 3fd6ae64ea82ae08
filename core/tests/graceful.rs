//! Order of the steps of a shutdown, on the memory backend and a paused clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{sync::Arc, time::Duration};

use enlist::{Deregistered, Error, Graceful, Health, Moment, RegistrationState, Resolver};
use enlist_memory::{MemoryClient, MemoryStore};
use support::{register, service};

async fn health(client: &MemoryClient) -> Option<Health> {
    let snapshot = client.resolve(&service()).await.expect("resolved");
    snapshot.entries().next().map(|entry| entry.instance().health())
}

#[tokio::test(start_paused = true)]
async fn draining_precedes_the_server_stop() {
    let store = MemoryStore::new();
    let (server, client) = (store.client(), store.client());
    let registration = register(&server, "a").await;
    let observer = client.clone();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let report = Graceful::new()
        .propagation(Duration::from_secs(2))
        .run(registration, tokio::time::sleep(Duration::from_secs(1)), |finish, _| async move {
            let mut last = None;
            while !finish.is_cancelled() {
                let now = health(&observer).await;
                if now != last {
                    record.lock().unwrap().push(now);
                    last = now;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let last = health(&observer).await;
            record.lock().unwrap().push(last);
            "finished"
        })
        .await;
    assert_eq!((report.served, report.drained), (Some("finished"), true));
    assert_eq!(report.deregistered.unwrap(), Deregistered::Removed);
    assert_eq!(*seen.lock().unwrap(), [Some(Health::Serving), Some(Health::Draining), None]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_registration_undoes_it() {
    let store = MemoryStore::new();
    let (server, client) = (store.client(), store.client());
    let late = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(register(&server, "a").await)
    };
    let begin = Moment::now();
    let answers = |_, _| async { panic!("it was stopped before") };
    let report =
        Graceful::new().register_and_run(late, tokio::time::sleep(Duration::from_secs(1)), answers).await.unwrap();
    assert_eq!((report.served, report.drained), (None::<()>, false));
    assert_eq!(report.deregistered.unwrap(), Deregistered::Removed);
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    assert_eq!(health(&client).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_endless_registration_ends_at_the_stop_deadline() {
    let (never, begin) = (std::future::pending(), Moment::now());
    let graceful = Graceful::new().deadline(Duration::from_secs(5));
    let late = graceful.register_and_run(never, async {}, |_, _| async {}).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { .. }), "{late}");
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_health_check_does_not_undo_draining() {
    let store = MemoryStore::new();
    let registration = register(&store.client(), "a").await;
    registration.health_check(Duration::from_millis(50), || async { Health::Serving }).unwrap();
    let mut watcher = store.client().watch(&service()).await.unwrap();
    let seen = async {
        let mut seen = Vec::new();
        loop {
            let snapshot = watcher.next().await.unwrap().snapshot;
            let Some(entry) = snapshot.entries().next() else { return seen };
            seen.push(entry.instance().health());
        }
    };
    let graceful = Graceful::new().propagation(Duration::from_secs(2));
    let stop = tokio::time::sleep(Duration::from_secs(1));
    let run = graceful.run(registration, stop, |finish, _| async move { finish.cancelled().await });
    let (report, seen) = tokio::join!(run, seen);
    assert!(report.drained);
    assert_eq!(seen, [Health::Serving, Health::Draining]);
}

#[tokio::test(start_paused = true)]
async fn a_serving_or_draining_server_updates_its_instance() {
    let store = MemoryStore::new();
    let registration = register(&store.client(), "a").await;
    let observer = store.client();
    let graceful = Graceful::new().propagation(Duration::from_secs(2));
    let stop = tokio::time::sleep(Duration::from_secs(10));
    let report = graceful.run(registration, stop, |finish, instance| async move {
        let entry =
            || async { observer.resolve(&service()).await.unwrap().entries().next().map(|entry| (**entry).clone()) };
        let changed = instance.update(|update| _ = update.weight(7)).await.unwrap();
        assert!(matches!(instance.state(), RegistrationState::Registered { revision } if revision == changed));
        assert_eq!(entry().await.unwrap().instance().weight(), 7);
        while instance.instance().health() != Health::Draining {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        instance.update(|update| _ = update.metadata("left", "3 jobs")).await.unwrap();
        let draining = entry().await.unwrap();
        assert_eq!((draining.instance().weight(), draining.instance().health()), (7, Health::Draining));
        assert_eq!(draining.instance().metadata()["left"], "3 jobs");
        finish.cancelled().await;
        assert!(matches!(instance.state(), RegistrationState::Ended));
        assert!(matches!(instance.update(|update| _ = update.weight(1)).await, Err(Error::Closed)));
        assert!(entry().await.is_none());
        "finished"
    });
    let report = report.await;
    assert_eq!((report.served, report.drained), (Some("finished"), true));
    assert_eq!(report.deregistered.unwrap(), Deregistered::Removed);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_server_is_dropped_at_the_deadline() {
    let store = MemoryStore::new();
    let registration = register(&store.client(), "a").await;
    let begun = Moment::now();
    let graceful = Graceful::new().propagation(Duration::from_secs(1)).deadline(Duration::from_secs(5));
    let report = graceful.run(registration, async {}, |_, _| std::future::pending::<()>()).await;
    assert!(report.served.is_none() && report.drained);
    assert!(begun.elapsed() < Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_without_the_store_reports_leftovers() {
    let store = MemoryStore::new();
    let server = store.client();
    let registration = register(&server, "a").await;
    server.cut();
    let graceful = Graceful::new().propagation(Duration::from_secs(1)).deadline(Duration::from_secs(10));
    let report = graceful.run(registration, async {}, |finish, _| async move { finish.cancelled().await }).await;
    assert!(report.served.is_some() && !report.drained);
    assert_eq!(report.deregistered.unwrap(), Deregistered::LeftBehind);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_by_itself_is_deregistered() {
    let store = MemoryStore::new();
    let registration = register(&store.client(), "a").await;
    let report = Graceful::new().run(registration, std::future::pending(), |_, _| async { "crashed" }).await;
    assert_eq!((report.served, report.drained), (Some("crashed"), false));
    assert_eq!(health(&store.client()).await, None);
}
