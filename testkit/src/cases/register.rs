//! Registering, updating and leaving while the store is well.

use std::{
    future::ready,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    BackoffPolicy, Deregistered, Endpoint, Error, Event, Health, Instance, LeaseChoice, Moment, OnConflict, Owner,
    RegisterOptions, Registration, RegistrationState, ServiceName, ServiceRef, Snapshot, Start,
};

use super::support::*;
use crate::{
    background_task::BackgroundTask,
    harness::{Client, Harness},
    wait::{begun, eventually, soon},
};

pub async fn a_registered_instance_is_found(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    // At once, not eventually: `register` returns after the store has it.
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]));
}

pub async fn everything_an_instance_says_is_carried(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let places = ["grpc://10.0.0.1:80", "http://[2001:db8::1]:8080", "unix:///run/x.sock", "tcp://host.example:9"];
    let instance = Instance::new(id("a"), places.map(|place| Endpoint::parse(place).unwrap()))
        .unwrap()
        .with_weight(7)
        .with_version("1.2.3")
        .with_zone("eu-1a")
        .with_health(Health::NotServing)
        .with_metadata("quoted \"key\"", "<&>\u{2028}\n\\ value 🚀")
        .with_metadata("empty", "");
    let _a = server.register(&service, instance.clone(), options(h)).await.unwrap();
    let snapshot = resolve(&*client, &service).await;
    assert_eq!(*snapshot.get(&id("a")).unwrap().instance(), instance);
}

pub async fn two_instances_of_one_service_are_both_found(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &one, &service, "a").await;
    let _b = register(h, &two, &service, "b").await;
    assert_eq!(endpoints(&resolve(&*one, &service).await), expected(&["a", "b"]));
}

pub async fn a_deregistered_instance_is_gone_at_once(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(resolve(&*client, &service).await.is_empty());
}

pub async fn a_dropped_registration_is_withdrawn(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    // Long enough that the lease cannot be what removes it within the limit.
    let a = server.register(&service, instance("a"), RegisterOptions::new().ttl(Duration::from_secs(300))).await;
    drop(a.unwrap());
    listed(&server, &service, &[]).await;
}

pub async fn dropping_the_register_future_withdraws_it(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300));
    for polls in 0..20 {
        let mut registering = Box::pin(server.register(&service, instance("a"), long.clone()));
        let mut done = false;
        for _ in 0..polls {
            // Ends for both: the future at its next await, and the yield after it.
            tokio::select! {
                biased;
                registered = &mut registering => {
                    // One that was dropped before is waited for, and never a conflict.
                    drop(registered.unwrap());
                    done = true;
                    break;
                }
                () = tokio::task::yield_now() => {}
            }
        }
        drop(registering);
        if done {
            break;
        }
    }
    listed(&server, &service, &[]).await;
    // A marker: nothing that was still under way brings it back after this one.
    let _b = register(h, &server, &service, "b").await;
    listed(&server, &service, &["b"]).await;
}

pub async fn an_abandoned_instance_lives_until_its_lease_runs_out(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = server.register(&service, instance("a"), own(h)).await.unwrap();
    a.abandon();
    assert_eq!(endpoints(&resolve(&*server, &service).await), expected(&["a"]));
    listed(&server, &service, &[]).await;
}

pub async fn a_crashed_process_loses_its_instances(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    server.crash().await;
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]));
    listed(&client, &service, &[]).await;
}

pub async fn a_renewed_lease_outlives_its_ttl(h: &impl Harness) {
    let (server, dying, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    // The second one is the clock: it was registered later, and is gone when its TTL is over.
    let _b = register(h, &dying, &service, "b").await;
    let created = resolve(&*server, &service).await.entries().map(|entry| entry.created()).min();
    dying.crash().await;
    let left = listed(&server, &service, &["a"]).await;
    assert_eq!(left.entries().map(|entry| entry.created()).min(), created);
}

pub async fn an_update_is_stored_in_place(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let before = only(&client, &service, |_| true).await;
    let update = a.update(|draft| {
        draft.weight(7);
    });
    let revision = soon("stored", update).await.unwrap();
    let after = only(&client, &service, |entry| entry.instance().weight() == 7).await;
    assert_eq!((after.created(), after.modified()), (before.created(), revision));
    assert!(after.modified() > before.modified());
}

pub async fn an_update_keeps_the_lease(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let update = a.update(|draft| {
        draft.weight(7);
    });
    soon("stored", update).await.unwrap();
    server.crash().await;
    listed(&client, &service, &[]).await;
}

pub async fn an_update_is_made_even_if_nobody_waits_for_it(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    drop(a.update(|draft| {
        draft.weight(7);
    }));
    assert_eq!(a.instance().weight(), 7);
    only(&server, &service, |entry| entry.instance().weight() == 7).await;
}

pub async fn the_last_of_many_updates_wins(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    for weight in 1..50 {
        drop(a.update(|draft| {
            draft.weight(weight);
        }));
    }
    let last = a.update(|draft| {
        draft.weight(50);
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
    let update = a.update(|draft| _ = draft.endpoints(instance("moved").endpoints().to_vec()));
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
    let refused = soon("refused", a.update(|draft| _ = draft.endpoints([]))).await;
    assert!(matches!(refused, Err(Error::InvalidAddress { .. })), "it is refused: {refused:?}");
    assert_eq!(*a.instance(), instance("a"));
    // A marker: what was wanted later is stored, and is the only change.
    let update = a.update(|draft| _ = draft.endpoints(instance("moved").endpoints().to_vec()));
    let revision = soon("stored", update).await.unwrap();
    let after = only(&client, &service, |_| true).await;
    assert_eq!((after.created(), after.modified()), (before.created(), revision));
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["moved"]));
}

pub async fn an_update_that_is_too_large_changes_nothing(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = register(h, &server, &service, "a").await;
    let large = a.update(|draft| {
        draft.metadata("blob", "x".repeat(2 << 20));
    });
    assert!(matches!(large.await, Err(Error::TooLarge { .. })));
    assert!(a.instance().metadata().is_empty());
    let small = a.update(|draft| {
        draft.metadata("blob", "x");
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
    // Also one that leaves while its check fails, and is made anew.
    let a = register(h, &server, &service, "a").await;
    healthy.store(false, Ordering::SeqCst);
    a.health_check(Duration::from_millis(50), check()).unwrap();
    no_calls().await;
    soon("deregistered", a.deregister()).await.unwrap();
    assert!(resolve(&*client, &service).await.is_empty());
    let _a = register(h, &server, &service, "a").await;
    listed(&client, &service, &["a"]).await;
}

pub async fn a_live_id_is_refused_to_another_process(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = one.register(&service, instance("a"), options(h).owner("one")).await.unwrap();
    let before = only(&one, &service, |_| true).await;
    let refused = soon("refused", two.register(&service, instance("a"), options(h).owner("two"))).await;
    match refused {
        Err(Error::AlreadyRegistered { id: contested, owner, revision, .. }) => {
            assert_eq!((contested, owner, revision), (id("a"), Owner::Other, Some(before.modified())));
        }
        other => panic!("expected AlreadyRegistered: {other:?}"),
    }
    assert_eq!(only(&one, &service, |_| true).await, before);
}

pub async fn a_live_id_is_refused_within_the_process(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let before = only(&server, &service, |_| true).await;
    let refused = soon("refused", server.register(&service, instance("a"), options(h))).await;
    let Err(Error::AlreadyRegistered { revision, .. }) = refused else {
        panic!("the id is taken: {refused:?}");
    };
    assert_eq!(revision, Some(before.modified()));
    assert_eq!(only(&server, &service, |_| true).await, before);
}

pub async fn after_a_take_over_a_refusal_names_the_revision_of_the_other(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let first = one.register(&service, instance("a"), options(h)).await.unwrap();
    let own = only(&one, &service, |_| true).await.created();
    let long = Start::Wait(Duration::from_secs(60));
    let takes = options(h).on_conflict(OnConflict::TakeOver).start(long);
    let _second = soon("taken over", two.register(&service, instance("a").with_weight(2), takes)).await.unwrap();
    superseded(&first).await;
    soon("deregistered", first.deregister()).await.unwrap();
    let theirs = only(&two, &service, |entry| entry.instance().weight() == 2).await;
    let refused = soon("refused", one.register(&service, instance("a"), options(h).start(long))).await;
    match refused {
        Err(Error::AlreadyRegistered { revision, .. }) => {
            assert_eq!(revision, Some(theirs.modified()), "not {own}, at which the caller created the key");
        }
        other => panic!("expected AlreadyRegistered: {other:?}"),
    }
}

pub async fn a_leftover_is_taken_over(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = options(h).ttl(h.ttl() * 3);
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    one.crash().await;
    let start = long.start(Start::Wait(Duration::from_secs(60)));
    let _b = soon("taken over", two.register(&service, instance("a"), start)).await.unwrap();
    // The old lease ends now, and must not take the new registration with it.
    only(&two, &service, |_| true).await;
    let _clock = two.register(&service, instance("clock"), own(h)).await.unwrap();
    two.register(&service, instance("clock2"), own(h).ttl(h.ttl() * 3)).await.unwrap().abandon();
    listed(&two, &service, &["a", "clock"]).await;
}

pub async fn an_observation_outlives_the_call_that_began_it(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = options(h).ttl(h.ttl() * 3);
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    let before = only(&two, &service, |_| true).await;
    one.crash().await;
    let short = long.start(Start::Wait(h.ttl() / 4));
    let mut lefts = Vec::new();
    let _b = loop {
        match soon("an answer", two.register(&service, instance("a"), short.clone())).await {
            Ok(registration) => break registration,
            Err(Error::Timeout { cause: Some(cause), .. }) => match cause.downcast_ref() {
                Some(Error::Observing { left, .. }) => lefts.push(*left),
                _ => panic!("the time that an observation still takes is the cause: {cause:?}"),
            },
            Err(error) => panic!("an observation is under way: {error:?}"),
        }
    };
    let falls = lefts.is_sorted_by(|one, next| one > next);
    assert!(lefts.len() >= 2 && falls, "each call goes on where the last one ended: {lefts:?} are left");
    // Taken over, and not created after the lease had ended.
    assert_eq!(only(&two, &service, |_| true).await.created(), before.created());
}

pub async fn deregistering_at_once_removes_what_a_dead_predecessor_left(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300)).owner("me");
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    one.crash().await;
    let b = two.register(&service, instance("a"), long.start(Start::Background)).await.unwrap();
    assert_eq!(soon("deregistered", b.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(resolve(&*two, &service).await.is_empty());
    // What is not its own stays.
    let _c = register(h, &two, &service, "c").await;
    let stranger = options(h).owner("another").start(Start::Background);
    let d = two.register(&service, instance("c"), stranger).await.unwrap();
    let _ = soon("deregistered", d.deregister()).await;
    assert_eq!(endpoints(&resolve(&*two, &service).await), expected(&["c"]));
}

pub async fn dropping_at_once_leaves_what_a_predecessor_has(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mine = options(h).owner("me");
    let a = one.register(&service, instance("a"), mine.clone()).await.unwrap();
    for _ in 0..5 {
        drop(begun(two.register(&service, instance("a"), mine.clone().start(Start::Background))).await);
        // Whether or not it got so far as to take the key over.
        only(&one, &service, |_| true).await;
    }
    eventually("it is registered", || async {
        match a.state() {
            RegistrationState::Registered { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

pub async fn an_equal_owner_takes_over_at_once(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300)).owner("me");
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    one.crash().await;
    let begun = Moment::now();
    let _b = two.register(&service, instance("a"), long).await.unwrap();
    // A third of the TTL is what an observation would take.
    assert_within("taken over without an observation", begun, Duration::from_secs(50));
    assert_eq!(resolve(&*two, &service).await.len(), 1);
}

pub async fn waiting_for_an_id_ends_when_it_is_free(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &one, &service, "a").await;
    let first = only(&one, &service, |_| true).await;
    let waits = options(h).on_conflict(OnConflict::Wait).start(Start::Wait(Duration::from_secs(60)));
    let mut waiting = {
        let service = service.clone();
        BackgroundTask::run(async move { two.register(&service, instance("a"), waits).await })
    };
    soon("deregistered", a.deregister()).await.unwrap();
    let _b = waiting.done("registered after waiting").await.unwrap();
    assert!(only(&one, &service, |_| true).await.created() > first.created());
}

pub async fn taking_over_replaces_a_live_instance(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = register(h, &one, &service, "a").await;
    let takes = options(h).on_conflict(OnConflict::TakeOver);
    let _b = two.register(&service, instance("a").with_weight(7), takes).await.unwrap();
    superseded(&a).await;
    // It does not fight, whatever it is asked to do.
    drop(a.update(|draft| {
        draft.weight(1);
    }));
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert_eq!(only(&two, &service, |_| true).await.instance().weight(), 7);
}

pub async fn registrations_with_one_owner_do_not_fight(h: &impl Harness) {
    newest_stands(h, options(h).owner("me")).await;
}

pub async fn registrations_that_take_over_do_not_fight(h: &impl Harness) {
    newest_stands(h, options(h).on_conflict(OnConflict::TakeOver)).await;
}

/// Registers one id in two processes, both with the right to replace it.
async fn newest_stands(h: &impl Harness, entitled: RegisterOptions) {
    let (one, two, client) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let a = one.register(&service, instance("a").with_weight(1), entitled.clone()).await.unwrap();
    let b = two.register(&service, instance("a").with_weight(2), entitled).await.unwrap();
    superseded(&a).await;
    let writes = writes(h, &client, &service).await;
    assert!(writes <= 5, "they do not fight: {writes} writes");
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
    assert!(matches!(b.state(), RegistrationState::Registered { .. }), "the newer one is registered: {:?}", b.state());
    let update = a.update(|draft| {
        draft.weight(3);
    });
    assert!(matches!(soon("refused", update).await, Err(Error::NotOwner { .. })));
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
    assert_eq!(soon("deregistered", b.deregister()).await.unwrap(), Deregistered::Removed);
    let free = Moment::now();
    only(&client, &service, |entry| entry.instance().weight() == 3).await;
    assert!(free.elapsed() < Duration::from_secs(2), "back after {:?}", free.elapsed());
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn of_two_with_one_owner_the_newer_stands_after_a_wipe(h: &impl Harness) {
    let (one, two, client) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let mine = options(h).owner("me");
    let a = one.register(&service, instance("a").with_weight(1), mine.clone()).await.unwrap();
    let b = two.register(&service, instance("a").with_weight(2), mine).await.unwrap();
    superseded(&a).await;
    h.wipe().await;
    only(&client, &service, |entry| entry.instance().weight() == 2).await;
    superseded(&a).await;
    let writes = writes(h, &client, &service).await;
    assert!(writes <= 5, "they do not fight: {writes} writes");
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
    assert!(matches!(b.state(), RegistrationState::Registered { .. }), "the newer one is registered: {:?}", b.state());
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
}

pub async fn registrations_of_one_process_do_not_fight(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mine = options(h).owner("me");
    let a = server.register(&service, instance("a").with_weight(1), mine.clone()).await.unwrap();
    let b = server.register(&service, instance("a").with_weight(2), mine).await.unwrap();
    superseded(&a).await;
    let writes = writes(h, &client, &service).await;
    assert!(writes <= 5, "they do not fight: {writes} writes");
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
    assert_eq!(soon("deregistered", b.deregister()).await.unwrap(), Deregistered::Removed);
    only(&client, &service, |entry| entry.instance().weight() == 1).await;
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn a_registration_that_keeps_failing_gives_way_within_its_process(h: &impl Harness) {
    let (stranger, server, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _theirs = register(h, &stranger, &service, "a").await;
    let refused = server.register(&service, instance("a"), options(h).start(Start::Background)).await.unwrap();
    eventually("it is refused", || async {
        match refused.state() {
            RegistrationState::Refused { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let takes = options(h).on_conflict(OnConflict::TakeOver).start(Start::Wait(Duration::from_secs(60)));
    let taking = server.register(&service, instance("a").with_weight(7), takes);
    let _ours = soon("taken over", taking).await.unwrap();
    assert_eq!(only(&server, &service, |_| true).await.instance().weight(), 7);
}

pub async fn a_successor_that_is_withdrawn_at_once_gives_the_id_back(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mine = options(h).owner("me");
    let a = server.register(&service, instance("a").with_weight(1), mine.clone()).await.unwrap();
    for weight in 2..12 {
        let background = mine.clone().start(Start::Background);
        drop(server.register(&service, instance("a").with_weight(weight), background).await.unwrap());
    }
    only(&client, &service, |entry| entry.instance().weight() == 1).await;
    eventually("it is registered again", || async {
        match a.state() {
            RegistrationState::Registered { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(resolve(&*client, &service).await.is_empty());
}

pub async fn two_processes_with_one_given_lease_do_not_overwrite_each_other(h: &impl Harness) {
    let (keeper, one, two) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let _lease = register(h, &keeper, &service, "keeper").await;
    let given = options(h).lease(LeaseChoice::Given(h.lease_of(&service, &id("keeper")).await.unwrap()));
    let a = one.register(&service, instance("a").with_weight(1), given.clone()).await.unwrap();
    let waits = given.start(Start::Wait(Duration::from_secs(60)));
    let refused = soon("refused", two.register(&service, instance("a").with_weight(2), waits)).await;
    assert!(matches!(refused, Err(Error::AlreadyRegistered { .. })), "{refused:?}");
    let weight = |snapshot: &Snapshot| snapshot.get(&id("a")).map(|entry| entry.instance().weight());
    assert_eq!(weight(&resolve(&*two, &service).await), Some(1));
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
    assert_eq!(endpoints(&resolve(&*two, &service).await), expected(&["keeper"]));
}

async fn superseded(registration: &Registration) {
    eventually("it is superseded", || async {
        match registration.state() {
            RegistrationState::Superseded { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Counts the changes of a service for two TTLs.
async fn writes(h: &impl Harness, client: &Client, service: &ServiceRef) -> usize {
    let clock = ServiceRef::new(h.namespace(), ServiceName::parse("clock").unwrap());
    let clocked = client.register(&clock, instance("clock"), own(h).ttl(h.ttl() * 2)).await.unwrap();
    let (mut watcher, mut ticking) = (watch(client, service).await, watch(client, &clock).await);
    next(&mut watcher).await;
    clocked.abandon();
    let mut ended = pin!(until(&mut ticking, "the clock has run out", |change| change.snapshot.is_empty()));
    let mut writes = 0;
    loop {
        tokio::select! {
            change = watcher.next() => writes += change.unwrap().events.len(),
            _ = &mut ended => return writes,
        }
    }
}

pub async fn deregistering_leaves_a_successor_alone(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let a = one.register(&service, instance("a"), options(h).owner("me")).await.unwrap();
    one.cut().await;
    let _b = two.register(&service, instance("a").with_weight(7), options(h).owner("me")).await.unwrap();
    let leaving = BackgroundTask::run(a.deregister());
    one.heal().await;
    let mut leaving = leaving;
    let outcome = leaving.done("deregistered").await.unwrap();
    assert_ne!(outcome, Deregistered::Removed);
    assert_eq!(only(&two, &service, |_| true).await.instance().weight(), 7);
}

pub async fn a_new_registration_right_after_a_drop_stays(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    for weight in 1..10 {
        drop(register(h, &server, &service, "a").await);
        let b = server.register(&service, instance("a").with_weight(weight), options(h)).await.unwrap();
        assert_eq!(only(&server, &service, |_| true).await.instance().weight(), weight);
        // A later change of another service: what the drop still did came before it.
        let other = ServiceRef::new(h.namespace(), ServiceName::parse("marker").unwrap());
        soon("marked", register(h, &server, &other, "m").await.deregister()).await.unwrap();
        assert_eq!(only(&server, &service, |_| true).await.instance().weight(), weight);
        soon("deregistered", b.deregister()).await.unwrap();
    }
}

pub async fn a_background_start_returns_before_the_store_answers(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let started = server.register(&service, instance("a"), options(h).start(Start::Background));
    let a = begun(started).await.expect("returns at once").unwrap();
    assert!(matches!(a.state(), RegistrationState::Registering { .. }));
    server.heal().await;
    listed(&client, &service, &["a"]).await;
}

pub async fn failing_fast_returns_the_first_error(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    server.cut().await;
    let failed = soon("failed", server.register(&service, instance("a"), options(h).start(Start::FailFast))).await;
    assert!(is_outage(&failed.unwrap_err()));
}

pub async fn waiting_for_the_start_ends_at_its_deadline(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let start = Start::Wait(Duration::from_millis(300));
    let failed = soon("failed", server.register(&service, instance("a"), options(h).start(start))).await;
    assert!(matches!(failed, Err(Error::Timeout { op: "register", .. })), "the deadline ends the wait: {failed:?}");
    server.heal().await;
    // It was withdrawn: a later registration of the same client is the only one.
    let _b = register(h, &server, &service, "b").await;
    listed(&client, &service, &["b"]).await;
}

pub async fn registering_again_after_a_timeout_succeeds(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let start = Start::Wait(Duration::from_millis(300));
    let failed = soon("failed", server.register(&service, instance("a"), options(h).start(start))).await;
    assert!(matches!(failed, Err(Error::Timeout { op: "register", .. })), "{failed:?}");
    // While the store is still away it fails in the same way.
    let failed = soon("failed", server.register(&service, instance("a"), options(h).start(start))).await;
    assert!(matches!(failed, Err(Error::Timeout { op: "register", .. })), "{failed:?}");
    registers_once_healed(h, &server, &client, &service).await;
}

pub async fn registering_again_after_giving_up_succeeds(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let once = options(h).max_attempts(1);
    assert!(is_outage(&soon("given up", server.register(&service, instance("a"), once)).await.unwrap_err()));
    registers_once_healed(h, &server, &client, &service).await;
}

/// Registers over a connection that is cut, and mends that meanwhile.
async fn registers_once_healed(h: &impl Harness, server: &Client, client: &Client, service: &ServiceRef) {
    let waits = options(h).start(Start::Wait(Duration::from_secs(60)));
    let mut again = {
        let (server, service) = (server.clone(), service.clone());
        BackgroundTask::run(async move { server.register(&service, instance("a"), waits).await })
    };
    server.heal().await;
    let _a = again.done("registered").await.unwrap();
    listed(client, service, &["a"]).await;
}

pub async fn attempts_are_limited_if_asked(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let twice = options(h).start(Start::Background).max_attempts(2);
    let a = server.register(&service, instance("a"), twice).await.unwrap();
    eventually("it gives up", || async {
        match a.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert!(is_outage(&soon("the reason", a.deregister()).await.unwrap_err()));
    server.heal().await;
    // A later registration of the same client is the only one.
    let _b = register(h, &server, &service, "b").await;
    listed(&client, &service, &["b"]).await;
}

pub async fn zero_attempts_are_no_limit(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let backoff = BackoffPolicy::fixed(Duration::from_millis(50)).unwrap();
    let endless = options(h).start(Start::Background).max_attempts(0).backoff(backoff);
    let a = server.register(&service, instance("a"), endless).await.unwrap();
    eventually("an attempt has failed", || async {
        match a.state() {
            RegistrationState::Registering { last: Some(_) } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    server.heal().await;
    listed(&client, &service, &["a"]).await;
}

pub async fn registrations_of_one_process_share_a_lease(h: &impl Harness) {
    let (server, other, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    let _b = register(h, &server, &service, "b").await;
    let _c = register(h, &other, &service, "c").await;
    let a = h.lease_of(&service, &id("a")).await;
    let b = h.lease_of(&service, &id("b")).await;
    let c = h.lease_of(&service, &id("c")).await;
    let shared = a.is_some() && a == b && a != c;
    assert!(shared, "one lease for both of a process, and another for the other process: {a:?}, {b:?} and {c:?}");
}

pub async fn an_instance_on_its_own_lease_dies_alone(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = server.register(&service, instance("a"), own(h)).await.unwrap();
    let _b = server.register(&service, instance("b"), own(h)).await.unwrap();
    let created = resolve(&*server, &service).await.get(&id("b")).unwrap().created();
    a.abandon();
    let left = listed(&server, &service, &["b"]).await;
    assert_eq!(left.get(&id("b")).unwrap().created(), created);
}

pub async fn a_given_lease_is_used_and_not_revoked(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let lease = server.grant_lease(h.ttl()).await.unwrap();
    let _a = server.register(&service, instance("a"), options(h).lease(&lease)).await.unwrap();
    let b = server.register(&service, instance("b"), options(h).lease(&lease)).await.unwrap();
    assert_eq!(h.lease_of(&service, &id("b")).await, Some(lease.id()));
    soon("deregistered", b.deregister()).await.unwrap();
    assert_eq!(endpoints(&resolve(&*server, &service).await), expected(&["a"]));
}

pub async fn a_close_removes_what_is_on_a_given_lease(h: &impl Harness) {
    let (keeper, leaving, client) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let _a = register(h, &keeper, &service, "a").await;
    let lease = h.lease_of(&service, &id("a")).await.unwrap();
    let given = || options(h).lease(LeaseChoice::Given(lease));
    let mut kept = Vec::new();
    for name in ["b", "c"] {
        kept.push(leaving.register(&service, instance(name), given()).await.unwrap());
    }
    let mut watcher = watch(&client, &service).await;
    until(&mut watcher, "all", |change| change.snapshot.len() == 3).await;
    soon("closed", leaving.close()).await;
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]), "only its own ones are removed");
    let left = until(&mut watcher, "two left", |change| change.snapshot.len() == 1).await;
    assert!(left.snapshot.departed(&id("b")) && left.snapshot.departed(&id("c")), "they have left in order");
    for registration in kept {
        assert!(matches!(registration.state(), RegistrationState::Ended), "{:?}", registration.state());
        assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
    }
}

pub async fn a_registration_outlives_the_backend_object(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    drop(server);
    // The second one is the clock, as above.
    let dying = h.client().await;
    let _b = register(h, &dying, &service, "b").await;
    dying.crash().await;
    listed(&client, &service, &["a"]).await;
}

pub async fn deregistering_without_an_answer_goes_on_until_confirmed(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300));
    let a = server.register(&service, instance("a"), long).await.unwrap();
    server.cut().await;
    assert_eq!(soon("given up waiting", a.deregister()).await.unwrap(), Deregistered::LeftBehind);
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]));
    server.heal().await;
    listed(&client, &service, &[]).await;
}

pub async fn an_instance_that_is_too_large_once_written_is_refused(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    // Less than the limit, and more once it is JSON: two bytes for each, or six.
    for text in ["\"".repeat(800_000), "\u{1}".repeat(300_000)] {
        let large = instance("large").with_metadata("blob", &text);
        let refused = soon("refused", server.register(&service, large.clone(), options(h))).await.err();
        assert!(matches!(refused, Some(Error::TooLarge { .. })), "it is refused as too large: {refused:?}");
        let refused = soon("refused", server.publish(&service, large)).await;
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "so is a fixed one: {refused:?}");
        let a = register(h, &server, &service, "a").await;
        let refused = soon("refused", a.update(|draft| _ = draft.metadata("blob", &text))).await;
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "so is an update: {refused:?}");
        assert!(a.instance().metadata().is_empty(), "nothing has changed");
        assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
    }
}

pub async fn impossible_input_is_refused_before_anything_is_sent(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    server.cut().await;
    let zero = server.register(&service, instance("a"), options(h).ttl(Duration::ZERO)).await;
    assert!(matches!(zero, Err(Error::InvalidConfig { field: "ttl", .. })), "the TTL is refused by name: {zero:?}");
    for interval in [Duration::from_millis(499), h.ttl() / 2] {
        let refused = server.register(&service, instance("a"), options(h).renewal_interval(interval)).await;
        let by_name = matches!(refused, Err(Error::InvalidConfig { field: "renewal_interval", .. }));
        assert!(by_name, "an interval of {interval:?} is refused by name: {refused:?}");
    }
    let large = instance("a").with_metadata("blob", "x".repeat(2 << 20));
    let refused = server.register(&service, large.clone(), options(h)).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "it is refused as too large: {refused:?}");
    assert!(matches!(server.publish(&service, large).await, Err(Error::TooLarge { .. })));
}

pub async fn a_closed_client_refuses_everything(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    soon("closed", server.close()).await;
    let closed =
        |error: Option<Error>| assert!(matches!(error, Some(Error::Closed)), "a closed client says so: {error:?}");
    closed(soon("registering", server.register(&service, instance("a"), options(h))).await.err());
    closed(soon("publishing", server.publish(&service, instance("a"))).await.err());
    closed(soon("removing", server.remove(&service, &id("a"))).await.err());
    closed(soon("evicting", server.evict(&service, &id("a"), None)).await.err());
    closed(soon("granting", server.grant_lease(h.ttl())).await.err());
    closed(soon("resolving", server.resolve(&service)).await.err());
    closed(server.watch(&service).await.err());
    closed(soon("listing", server.services(&h.namespace())).await.err());
}

pub async fn odd_names_are_carried_unchanged(h: &impl Harness) {
    let server = h.client().await;
    for name in ["a/b", "..", "%2F", "two words", "größe 🚀", &"n".repeat(255)] {
        let service = service(h, name);
        let odd = Instance::new(id(name), [Endpoint::parse("h:1").unwrap()]).unwrap();
        let _a = server.register(&service, odd.clone(), options(h)).await.unwrap();
        assert_eq!(*only(&server, &service, |_| true).await.instance(), odd);
    }
}

pub async fn services_whose_names_begin_alike_do_not_see_each_other(h: &impl Harness) {
    let server = h.client().await;
    let names = ["svc", "svc2", "sv", "svc/x", "svc0"];
    let mut kept = Vec::new();
    for name in names {
        match server.register(&service(h, name), instance(name), options(h)).await {
            Ok(registration) => kept.push((name, registration)),
            // A layout may refuse a name that it cannot carry.
            Err(Error::InvalidName { .. }) => {}
            Err(error) => panic!("{name} is neither registered nor refused by name: {error:?}"),
        }
    }
    assert!(kept.len() >= 4);
    for (name, _) in &kept {
        assert_eq!(endpoints(&resolve(&*server, &service(h, name)).await), expected(&[name]));
        let mut watcher = watch(&server, &service(h, name)).await;
        assert_eq!(endpoints(&next(&mut watcher).await.snapshot), expected(&[name]));
    }
}

pub async fn namespaces_do_not_see_each_other(h: &impl Harness) {
    let server = h.client().await;
    let one = service(h, "svc");
    let other = format!("{}/x", h.namespace());
    let two = ServiceRef::new(enlist::Namespace::parse(other).unwrap(), one.name().clone());
    let _a = register(h, &server, &one, "a").await;
    let _b = register(h, &server, &two, "b").await;
    assert_eq!(endpoints(&resolve(&*server, &one).await), expected(&["a"]));
    assert_eq!(endpoints(&resolve(&*server, &two).await), expected(&["b"]));
}

pub async fn a_departure_is_told_from_a_death(h: &impl Harness) {
    let (leaving, dying, client) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let a = register(h, &leaving, &service, "a").await;
    let _b = register(h, &dying, &service, "b").await;
    let mut watcher = watch(&client, &service).await;
    until(&mut watcher, "both", |change| change.snapshot.len() == 2).await;
    soon("deregistered", a.deregister()).await.unwrap();
    let left = until(&mut watcher, "one left", |change| change.snapshot.len() == 1).await;
    assert!(left.snapshot.departed(&id("a")), "whoever deregistered has left");
    dying.crash().await;
    let died = until(&mut watcher, "one died", |change| change.snapshot.is_empty()).await;
    assert!(!died.snapshot.departed(&id("b")), "whoever lost its lease has not");
    let again = h.client().await;
    let _a = register(h, &again, &service, "a").await;
    let back = until(&mut watcher, "one is back", |change| !change.snapshot.is_empty()).await;
    assert!(!back.snapshot.departed(&id("a")));
}
