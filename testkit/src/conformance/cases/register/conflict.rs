//! Several registrations of one id, by one process or by several.

use std::{pin::pin, sync::Arc, time::Duration};

use enlist::{
    Change, Deregistered, Error, LeaseChoice, Moment, OnConflict, Owner, RegisterOptions, Registration,
    RegistrationState, ServiceName, ServiceRef, Snapshot, Start,
};

use super::super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::{begun, eventually, soon},
};

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

pub async fn a_take_over_shows_in_later_refusals(h: &impl Harness) {
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

pub async fn a_take_over_counts_as_a_restart(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let first = one.register(&service, instance("a"), options(h).owner("me")).await.unwrap();
    let mut watcher = watch(&one, &service).await;
    let before = next(&mut watcher).await.snapshot;
    let mut entry = async |weight: u32| {
        let is_written =
            |change: &Change| change.snapshot.entries().next().is_some_and(|entry| entry.instance().weight() == weight);
        let change = until(&mut watcher, "written", is_written).await;
        Arc::clone(change.snapshot.entries().next().unwrap())
    };
    soon("updated", first.update(|update| _ = update.weight(2))).await.unwrap();
    let updated = entry(2).await;
    assert!(!updated.is_restart_of(before.get(&id("a")).unwrap()), "{updated:?}");
    let _second = two.register(&service, instance("a").with_weight(3), options(h).owner("me")).await.unwrap();
    let successor = entry(3).await;
    assert!(successor.is_restart_of(&updated), "{updated:?} {successor:?}");
    assert_eq!(successor.created(), updated.created(), "the key is taken over");
}

pub async fn a_leftover_is_taken_over(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = options(h).ttl(h.ttl() * 3);
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    one.crash().await;
    let start = long.start(Start::Wait(Duration::from_secs(60)));
    let _b = soon("taken over", two.register(&service, instance("a"), start)).await.unwrap();
    // The old lease ends now, and must not remove the new registration.
    only(&two, &service, |_| true).await;
    let _clock = two.register(&service, instance("clock"), own(h)).await.unwrap();
    two.register(&service, instance("clock2"), own(h).ttl(h.ttl() * 3)).await.unwrap().abandon();
    listed(&two, &service, &["a", "clock"]).await;
}

pub async fn an_observation_outlives_the_call_that_began_it(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    // An observation takes a third of the TTL and a few seconds. It has to go on beyond the short calls, and to end
    // well before the lease does.
    let long = options(h).ttl(h.ttl() * 8);
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    let before = only(&two, &service, |_| true).await;
    one.crash().await;
    let short = long.clone().start(Start::Wait(h.ttl() / 2));
    let mut lefts = Vec::new();
    while lefts.len() < 3 {
        match soon("an answer", two.register(&service, instance("a"), short.clone())).await {
            Err(Error::Timeout { cause: Some(cause), .. }) => match cause.downcast_ref() {
                Some(Error::Observing { left, .. }) => lefts.push(*left),
                _ => panic!("the time that an observation still takes is the cause: {cause:?}"),
            },
            // On a busy machine, a call may end before the first answer.
            Err(Error::Timeout { cause: None, .. }) => {}
            other => panic!("an observation is under way: {other:?}"),
        }
    }
    // A call that ends while it takes over would remove the key, so the last one has time.
    let (last, begun) = (long.start(Start::Wait(Duration::from_secs(60))), Moment::now());
    let _b = soon("taken over", two.register(&service, instance("a"), last)).await.unwrap();
    assert!(begun.elapsed() < lefts[0], "it does not begin anew: {:?} after {lefts:?} were left", begun.elapsed());
    // The second call lies between the first answer and the third one.
    assert!(lefts[0] > lefts[2] + h.ttl() / 2, "each call goes on where the last one ended: {lefts:?} are left");
    // The key is taken over, not created after the lease has ended.
    assert_eq!(only(&two, &service, |_| true).await.created(), before.created());
}

pub async fn deregistering_at_once_removes_a_leftover_key(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300)).owner("me");
    let _a = one.register(&service, instance("a"), long.clone()).await.unwrap();
    one.crash().await;
    let b = two.register(&service, instance("a"), long.start(Start::Background)).await.unwrap();
    assert_eq!(soon("deregistered", b.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(resolve(&*two, &service).await.is_empty());
    // A key of another registration stays.
    let _c = register(h, &two, &service, "c").await;
    let stranger = options(h).owner("another").start(Start::Background);
    let d = two.register(&service, instance("c"), stranger).await.unwrap();
    let _ = soon("deregistered", d.deregister()).await;
    assert_eq!(endpoints(&resolve(&*two, &service).await), expected(&["c"]));
}

pub async fn a_registration_dropped_at_once_leaves_its_predecessor(h: &impl Harness) {
    let (one, two, service) = (h.client().await, h.client().await, service(h, "svc"));
    let mine = options(h).owner("me");
    let a = one.register(&service, instance("a"), mine.clone()).await.unwrap();
    for _ in 0..5 {
        drop(begun(two.register(&service, instance("a"), mine.clone().start(Start::Background))).await);
        // The dropped registration may or may not have taken the key over.
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
    // An observation would take a third of the TTL.
    assert_within("taken over without an observation", begun, Duration::from_secs(50));
    assert_eq!(resolve(&*two, &service).await.len(), 1);
}

pub async fn waiting_for_an_id_ends_when_free(h: &impl Harness) {
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
    // The superseded registration does not overwrite the key, for any later call.
    drop(a.update(|update| {
        update.weight(1);
    }));
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::AlreadyGone);
    assert_eq!(only(&two, &service, |_| true).await.instance().weight(), 7);
}

pub async fn registrations_with_one_owner_settle(h: &impl Harness) {
    newest_stands(h, options(h).owner("me")).await;
}

pub async fn registrations_that_take_over_settle(h: &impl Harness) {
    newest_stands(h, options(h).on_conflict(OnConflict::TakeOver)).await;
}

/// Registers one id in two processes, both with the right to replace it.
async fn newest_stands(h: &impl Harness, entitled: RegisterOptions) {
    let (one, two, client) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let a = one.register(&service, instance("a").with_weight(1), entitled.clone()).await.unwrap();
    let begun = Moment::now();
    let b = two.register(&service, instance("a").with_weight(2), entitled).await.unwrap();
    superseded(&a).await;
    let writes = writes(h, &client, &service).await;
    assert!(writes <= 5, "they do not fight: {writes} writes");
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
    assert!(matches!(b.state(), RegistrationState::Registered { .. }), "the newer one is registered: {:?}", b.state());
    let update = a.update(|update| {
        update.weight(3);
    });
    assert!(matches!(soon("refused", update).await, Err(Error::NotOwner { .. })));
    assert_eq!(only(&client, &service, |_| true).await.instance().weight(), 2);
    let free = Moment::now();
    assert_eq!(soon("deregistered", b.deregister()).await.unwrap(), Deregistered::Removed);
    only(&client, &service, |entry| entry.instance().weight() == 3).await;
    // At the end of the other one: the next attempt would be made ten seconds after it was superseded. On a busy
    // machine that much may have passed, but not since the key was free.
    let (since_free, since_begun) = (free.elapsed(), begun.elapsed());
    let is_prompt = since_free < Duration::from_secs(2) || since_begun < Duration::from_secs(10);
    assert!(is_prompt, "back {since_free:?} after the other ended, and {since_begun:?} after it began");
    assert_eq!(soon("deregistered", a.deregister()).await.unwrap(), Deregistered::Removed);
}

pub async fn the_newer_of_one_owner_survives_wipes(h: &impl Harness) {
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

pub async fn registrations_of_one_process_settle(h: &impl Harness) {
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

pub async fn a_failing_registration_gives_way_within_its_process(h: &impl Harness) {
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

pub async fn a_withdrawn_successor_gives_the_id_back(h: &impl Harness) {
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

pub async fn processes_on_one_given_lease_settle(h: &impl Harness) {
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
        // A later change of another service: pending writes of the drop are applied before it.
        let other = ServiceRef::new(h.namespace(), ServiceName::parse("marker").unwrap());
        soon("marked", register(h, &server, &other, "m").await.deregister()).await.unwrap();
        assert_eq!(only(&server, &service, |_| true).await.instance().weight(), weight);
        soon("deregistered", b.deregister()).await.unwrap();
    }
}
