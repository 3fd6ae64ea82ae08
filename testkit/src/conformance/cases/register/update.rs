//! Updates in place and health checks.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{Deregistered, Error, Event, Health};

use super::super::support::*;
use crate::{
    conformance::harness::Harness,
    wait::{eventually, soon},
};

pub async fn an_update_is_stored_in_place(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let before = only(&client, &service, |_| true).await;
    let update = a.update(|update| {
        update.weight(7);
    });
    let revision = soon("stored", update).await.unwrap();
    let after = only(&client, &service, |entry| entry.instance().weight() == 7).await;
    assert_eq!((after.created(), after.modified()), (before.created(), revision));
    assert!(after.modified() > before.modified());
}

pub async fn an_update_keeps_the_lease(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let update = a.update(|update| {
        update.weight(7);
    });
    soon("stored", update).await.unwrap();
    server.crash().await;
    listed(&client, &service, &[]).await;
}

pub async fn an_update_is_made_without_an_await(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    drop(a.update(|update| {
        update.weight(7);
    }));
    assert_eq!(a.instance().weight(), 7);
    only(&server, &service, |entry| entry.instance().weight() == 7).await;
}

pub async fn the_last_of_many_updates_wins(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    for weight in 1..50 {
        drop(a.update(|update| {
            update.weight(weight);
        }));
    }
    let last = a.update(|update| {
        update.weight(50);
    });
    soon("stored", last).await.unwrap();
    assert_eq!(only(&server, &service, |_| true).await.instance().weight(), 50);
}

pub async fn endpoints_are_changed_in_place(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let before = only(&client, &service, |_| true).await;
    let mut watcher = watch(&client, &service).await;
    until(&mut watcher, "the old endpoint", |change| change.snapshot.len() == 1).await;
    let update = a.update(|update| _ = update.endpoints(instance("moved").endpoints().to_vec()));
    let revision = soon("stored", update).await.unwrap();
    let change = until(&mut watcher, "a change", |change| !change.events.is_empty()).await;
    let [Event::Updated { old, new }] = &change.events[..] else {
        panic!("it is one update: {:?}", change.events);
    };
    assert_eq!((endpoints(&change.snapshot), old), (expected(&["moved"]), &before));
    assert_eq!((new.instance().id(), new.created()), (before.instance().id(), before.created()));
    assert_eq!(new.modified(), revision);
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(resolve(&*client, &service).await.is_empty());
}

pub async fn an_update_without_endpoints_changes_nothing(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let before = only(&client, &service, |_| true).await;
    let refused = soon("refused", a.update(|update| _ = update.endpoints([]))).await;
    assert!(matches!(refused, Err(Error::InvalidAddress { .. })), "it is refused: {refused:?}");
    assert_eq!(*a.instance(), instance("a"));
    // A marker: the later update is stored, and is the only change.
    let update = a.update(|update| _ = update.endpoints(instance("moved").endpoints().to_vec()));
    let revision = soon("stored", update).await.unwrap();
    let after = only(&client, &service, |_| true).await;
    assert_eq!((after.created(), after.modified()), (before.created(), revision));
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["moved"]));
}

pub async fn an_update_that_is_too_large_changes_nothing(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let large = a.update(|update| {
        update.metadata("blob", "x".repeat(2 << 20));
    });
    assert!(matches!(large.await, Err(Error::TooLarge { .. })));
    assert!(a.instance().metadata().is_empty());
    let small = a.update(|update| {
        update.metadata("blob", "x");
    });
    soon("stored", small).await.unwrap();
}

pub async fn a_health_check_drives_the_health(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    a.health_check(Duration::from_millis(50), || async { Health::NotServing }).unwrap();
    only(&server, &service, |entry| entry.instance().health() == Health::NotServing).await;
}

pub async fn a_failing_health_check_keeps_calls_away(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let healthy = Arc::new(AtomicBool::new(true));
    let check = || {
        let healthy = Arc::clone(&healthy);
        move || ready(if healthy.load(Ordering::SeqCst) { Health::Serving } else { Health::NotServing })
    };
    let no_calls = || async {
        eventually("it takes no calls", || async {
            let snapshot = client.resolve(&service).await.map_err(|error| format!("{error:?}"))?;
            let takes_calls = snapshot.entries().any(|entry| entry.instance().health() == Health::Serving);
            if takes_calls { Err(format!("{snapshot:?}")) } else { Ok(()) }
        })
        .await;
    };
    let a = register(h, &server, &service, "a").await;
    a.health_check(Duration::from_millis(50), check()).unwrap();
    for _ in 0..3 {
        healthy.store(false, Ordering::SeqCst);
        no_calls().await;
        healthy.store(true, Ordering::SeqCst);
        only(&client, &service, |entry| entry.instance().health() == Health::Serving).await;
    }
    soon("deregistered", a.deregister()).await.unwrap();
    assert!(resolve(&*client, &service).await.is_empty());
    // The instance also leaves while its check fails, and is registered again.
    let a = register(h, &server, &service, "a").await;
    healthy.store(false, Ordering::SeqCst);
    a.health_check(Duration::from_millis(50), check()).unwrap();
    no_calls().await;
    soon("deregistered", a.deregister()).await.unwrap();
    assert!(resolve(&*client, &service).await.is_empty());
    let _a = register(h, &server, &service, "a").await;
    listed(&client, &service, &["a"]).await;
}
