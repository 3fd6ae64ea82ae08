//! The directory, on the memory backend and a paused clock.

use std::{sync::Arc, time::Duration};

use enlist::{
    Directory, DirectoryOptions, Endpoint, Error, Health, Instance, InstanceId, NoPick, Policy, RegisterOptions,
    Registration, Registry, ServiceRef, ServiceView,
};
use enlist_memory::{MemoryClient, MemoryStore};

const LIMIT: Duration = Duration::from_secs(5);

fn service() -> ServiceRef {
    ServiceRef::parse("svc").expect("a valid name")
}

async fn register(client: &MemoryClient, id: &str) -> Registration {
    let endpoint = Endpoint::parse("10.0.0.1:80").expect("a valid address");
    let instance = Instance::new(InstanceId::parse(id).expect("a valid id"), [endpoint]).expect("one endpoint");
    client.register(&service(), instance, RegisterOptions::new()).await.expect("registered")
}

async fn until(view: &mut ServiceView, count: usize) {
    while view.snapshot().is_none_or(|snapshot| snapshot.len() != count) {
        tokio::time::timeout(LIMIT, view.changed()).await.expect("in time").expect("open");
    }
}

#[tokio::test(start_paused = true)]
async fn a_view_lives_on_without_the_directory_it_came_from() {
    let store = MemoryStore::new();
    let mut view = Directory::new(Arc::new(store.client())).view(&service());
    assert!(view.ready().await.unwrap().is_empty());
    let _a = register(&store.client(), "a").await;
    until(&mut view, 1).await;
}

#[tokio::test(start_paused = true)]
async fn unknown_is_not_empty() {
    let store = MemoryStore::new();
    let client = store.client();
    client.cut();
    let mut view = Directory::new(Arc::new(client.clone())).view(&service());
    let mut picker = view.picker(Policy::Random);
    assert_eq!(picker.pick().unwrap_err(), NoPick::Unknown);
    assert!(view.snapshot().is_none() && view.freshness().is_none());
    client.heal();
    until(&mut view, 0).await;
    assert_eq!(picker.pick().unwrap_err(), NoPick::Empty { listed: 0 });
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_drains_is_no_longer_picked() {
    let store = MemoryStore::new();
    let a = register(&store.client(), "a").await;
    let mut view = Directory::new(Arc::new(store.client())).view(&service());
    view.ready().await.unwrap();
    let mut picker = view.picker(Policy::Weighted);
    assert!(picker.pick().is_ok());
    a.update(|draft| {
        draft.health(Health::Draining);
    })
    .await
    .unwrap();
    view.changed().await.unwrap();
    while picker.pick().is_ok() {
        tokio::time::timeout(LIMIT, view.changed()).await.expect("in time").expect("open");
    }
    assert_eq!(picker.pick().unwrap_err(), NoPick::Empty { listed: 1 });
}

#[tokio::test(start_paused = true)]
async fn an_unused_watch_ends_after_the_idle_time_and_the_next_view_starts_anew() {
    let store = MemoryStore::new();
    let client = store.client();
    let idle = Duration::from_secs(60);
    let directory = Directory::with_options(Arc::new(client.clone()), DirectoryOptions::new().idle(idle));
    let view = directory.view(&service());
    view.ready().await.unwrap();
    drop(view);
    // Within the idle time the picture is still there, although the link is cut.
    client.cut();
    tokio::time::sleep(idle / 2).await;
    assert!(directory.view(&service()).snapshot().is_some());
    tokio::time::sleep(idle * 2).await;
    let anew = directory.view(&service());
    assert!(anew.snapshot().is_none(), "the watch had ended");
}

#[tokio::test(start_paused = true)]
async fn a_closed_directory_says_so_and_keeps_the_last_picture() {
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let directory = Directory::new(Arc::new(store.client()));
    let mut view = directory.view(&service());
    view.ready().await.unwrap();
    directory.close(LIMIT).await.unwrap();
    while view.changed().await.is_ok() {}
    assert_eq!(view.snapshot().map(|snapshot| snapshot.len()), Some(1));
    let late = directory.view(&ServiceRef::parse("other").unwrap());
    assert!(matches!(late.ready().await, Err(Error::Closed)));
}
