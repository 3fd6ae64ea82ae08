//! The directory, on the memory backend and a paused clock.

use std::{sync::Arc, time::Duration};

use enlist::{
    Directory, DirectoryOptions, Endpoint, Error, Health, Instance, InstanceId, NoPick, Policy, Presence,
    RegisterOptions, Registration, Registry, ServiceRef, ServiceView,
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

#[tokio::test(start_paused = true)]
async fn the_loss_of_all_is_held_and_a_departure_is_not() {
    let store = MemoryStore::new();
    let client = store.client();
    let options = DirectoryOptions::new().hold(Duration::from_secs(15));
    let mut view = Directory::with_options(Arc::new(store.client()), options).view(&service());
    let _a = register(&client, "a").await;
    let _b = register(&client, "b").await;
    until(&mut view, 2).await;
    // A process that is gone: its lease runs out, and nobody comes back.
    client.crash().await.unwrap();
    let mut held = false;
    let begun = tokio::time::Instant::now();
    while view.snapshot().is_some_and(|snapshot| !snapshot.is_empty()) {
        view.changed().await.unwrap();
        let snapshot = view.snapshot().unwrap();
        held |= snapshot.len() == 2 && snapshot.entries().all(|entry| entry.presence() == Presence::Held);
    }
    assert!(held && begun.elapsed() >= Duration::from_secs(15), "{:?}", begun.elapsed());

    let c = register(&store.client(), "c").await;
    until(&mut view, 1).await;
    c.deregister().await.unwrap();
    let left = tokio::time::Instant::now();
    until(&mut view, 0).await;
    assert!(left.elapsed() < Duration::from_secs(1), "whoever leaves is gone at once");
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_published_at_most_every_fifty_milliseconds_and_its_first_change_at_once() {
    let store = MemoryStore::new();
    let a = register(&store.client(), "a").await;
    let mut view = Directory::new(Arc::new(store.client())).view(&service());
    view.ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    view.changed().await.unwrap();
    let begun = tokio::time::Instant::now();
    let burst = async {
        for weight in 0..200 {
            drop(a.update(move |draft| {
                draft.weight(weight);
            }));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let watching = async {
        let mut published = Vec::new();
        loop {
            view.changed().await.unwrap();
            published.push(begun.elapsed());
            if view.snapshot().unwrap().entries().all(|entry| entry.instance().weight() == 199) {
                return published;
            }
        }
    };
    let ((), published) = tokio::join!(burst, watching);
    assert!(published[0] < Duration::from_millis(5), "{published:?}");
    assert!((15..=25).contains(&published.len()), "{published:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_allowed_is_shown_and_not_picked() {
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let client = store.client();
    let options = DirectoryOptions::new().max_age(Duration::from_secs(30));
    let view = Directory::with_options(Arc::new(client.clone()), options).view(&service());
    view.ready().await.unwrap();
    let mut picker = view.picker(Policy::Random);
    // Nothing changes, and yet it is proven again and again.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(picker.pick().is_ok());
    client.cut();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(picker.pick().is_ok() && view.freshness().unwrap().age() >= Duration::from_secs(19));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(matches!(picker.pick(), Err(NoPick::TooOld { age }) if age >= Duration::from_secs(30)));
    assert_eq!(view.snapshot().unwrap().len(), 1);
    assert!(tokio::time::timeout(Duration::from_secs(60), view.ready()).await.is_err());
    client.heal();
    tokio::time::timeout(LIMIT, view.ready()).await.expect("in time").unwrap();
    assert!(picker.pick().is_ok());
}

#[tokio::test]
async fn a_start_without_the_store_shows_what_lies_on_disk_and_how_old_it_is() {
    let disk = tempfile::tempdir().unwrap();
    let options = DirectoryOptions::new().disk(disk.path());
    let store = MemoryStore::new();
    let _a = register(&store.client(), "a").await;
    let first = Directory::with_options(Arc::new(store.client()), options.clone());
    first.view(&service()).ready().await.unwrap();
    let begun = tokio::time::Instant::now();
    while std::fs::read_dir(disk.path())
        .unwrap()
        .next()
        .is_none_or(|file| file.unwrap().path().extension().unwrap() != "view")
    {
        assert!(begun.elapsed() < LIMIT, "written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.close(LIMIT).await.unwrap();

    let client = store.client();
    client.cut();
    let second = Directory::with_options(Arc::new(client.clone()), options.clone());
    let mut view = second.view(&service());
    let snapshot = tokio::time::timeout(LIMIT, view.ready()).await.expect("in time").unwrap();
    assert_eq!(snapshot.entries().map(|entry| entry.presence()).collect::<Vec<_>>(), [Presence::Held]);
    assert!(!view.freshness().unwrap().is_live());
    assert!(view.picker(Policy::Random).pick().is_ok());
    client.heal();
    while view.snapshot().unwrap().entries().any(|entry| entry.presence() == Presence::Held) {
        tokio::time::timeout(LIMIT, view.changed()).await.expect("in time").unwrap();
    }
    assert!(view.freshness().unwrap().is_live());

    // A damaged file is as if there were none.
    let damaged = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(disk.path()).unwrap() {
        std::fs::write(damaged.path().join(file.unwrap().file_name()), b"garbage").unwrap();
    }
    let client = store.client();
    client.cut();
    let third = Directory::with_options(Arc::new(client), options.disk(damaged.path())).view(&service());
    assert!(tokio::time::timeout(Duration::from_secs(2), third.ready()).await.is_err());
}
