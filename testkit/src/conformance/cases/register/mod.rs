//! Registrations and their leases while no other registration uses the same id.

mod conflict;
mod start;
mod update;

use std::time::Duration;

use enlist::{
    Deregistered, Endpoint, Error, Health, Instance, LeaseChoice, Moment, RegisterOptions, RegistrationState,
    ServiceRef,
};

pub use self::{conflict::*, start::*, update::*};
use super::support::*;
use crate::{
    conformance::harness::Harness,
    wait::{LIMIT, soon},
};

pub async fn a_registered_instance_is_found(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let _a = register(h, &server, &service, "a").await;
    // At once, not eventually: `register` returns after the store has it.
    assert_eq!(endpoints(&resolve(&*client, &service).await), expected(&["a"]));
}

pub async fn an_instance_is_carried_completely(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    let urls = ["grpc://10.0.0.1:80", "http://[2001:db8::1]:8080", "unix:///run/x.sock", "tcp://host.example:9"];
    let instance = Instance::new(id("a"), urls.map(|url| Endpoint::parse(url).unwrap()))
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
    // With a long TTL, expiry cannot be the cause of the removal within the limit.
    let a = server.register(&service, instance("a"), RegisterOptions::new().ttl(Duration::from_secs(300))).await;
    drop(a.unwrap());
    listed(&server, &service, &[]).await;
}

pub async fn dropping_the_register_future_withdraws_it(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let long = RegisterOptions::new().ttl(Duration::from_secs(300));
    let (mut polls, mut done) = (0, false);
    // More and more polls, until a call completes. They move no paused clock on; a moment counts real time as well.
    let begun = Moment::now();
    while !done {
        assert!(begun.elapsed() < LIMIT, "no call has completed after {polls} polls");
        let mut registering = Box::pin(server.register(&service, instance("a"), long.clone()));
        for _ in 0..polls {
            // Ends for both: the future at its next await, and the yield after it.
            tokio::select! {
                biased;
                registered = &mut registering => {
                    // A new call waits for the dropped one, and is never a conflict.
                    drop(registered.unwrap());
                    done = true;
                    break;
                }
                () = tokio::task::yield_now() => {}
            }
        }
        drop(registering);
        polls += 1 + polls / 4;
    }
    listed(&server, &service, &[]).await;
    // A marker: pending requests are applied before it, and none restores the instance.
    let _b = register(h, &server, &service, "b").await;
    listed(&server, &service, &["b"]).await;
}

pub async fn an_abandoned_instance_lives_until_its_lease_expires(h: &impl Harness) {
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
    // The second one is the clock: it was registered later, and is gone when its TTL has passed.
    let _b = register(h, &dying, &service, "b").await;
    let created = resolve(&*server, &service).await.entries().map(|entry| entry.created()).min();
    dying.crash().await;
    let left = listed(&server, &service, &["a"]).await;
    assert_eq!(left.entries().map(|entry| entry.created()).min(), created);
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

pub async fn an_instance_on_its_own_lease_ends_alone(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let a = server.register(&service, instance("a"), own(h)).await.unwrap();
    let _b = server.register(&service, instance("b"), own(h)).await.unwrap();
    let created = resolve(&*server, &service).await.get(&id("b")).unwrap().created();
    a.abandon();
    let left = listed(&server, &service, &["b"]).await;
    assert_eq!(left.get(&id("b")).unwrap().created(), created);
}

pub async fn a_given_lease_is_not_revoked(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    let lease = server.grant_lease(h.ttl()).await.unwrap();
    let _a = server.register(&service, instance("a"), options(h).lease(&lease)).await.unwrap();
    let b = server.register(&service, instance("b"), options(h).lease(&lease)).await.unwrap();
    assert_eq!(h.lease_of(&service, &id("b")).await, Some(lease.id()));
    soon("deregistered", b.deregister()).await.unwrap();
    assert_eq!(endpoints(&resolve(&*server, &service).await), expected(&["a"]));
}

pub async fn a_close_removes_instances_on_given_leases(h: &impl Harness) {
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

pub async fn an_instance_too_large_once_encoded_is_refused(h: &impl Harness) {
    let (server, service) = (h.client().await, service(h, "svc"));
    // Below the limit as text, above it as JSON: two bytes per character, or six.
    for text in ["\"".repeat(800_000), "\u{1}".repeat(300_000)] {
        let large = instance("large").with_metadata("blob", &text);
        let refused = soon("refused", server.register(&service, large.clone(), options(h))).await.err();
        assert!(matches!(refused, Some(Error::TooLarge { .. })), "it is refused as too large: {refused:?}");
        let refused = soon("refused", server.publish(&service, large)).await;
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "so is a fixed one: {refused:?}");
        let a = register(h, &server, &service, "a").await;
        let refused = soon("refused", a.update(|update| _ = update.metadata("blob", &text))).await;
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

pub async fn services_with_a_common_prefix_are_separate(h: &impl Harness) {
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

pub async fn a_departure_differs_from_a_death(h: &impl Harness) {
    let (leaving, dying, client) = (h.client().await, h.client().await, h.client().await);
    let service = service(h, "svc");
    let a = register(h, &leaving, &service, "a").await;
    let _b = register(h, &dying, &service, "b").await;
    let mut watcher = watch(&client, &service).await;
    until(&mut watcher, "both", |change| change.snapshot.len() == 2).await;
    soon("deregistered", a.deregister()).await.unwrap();
    let left = until(&mut watcher, "one left", |change| change.snapshot.len() == 1).await;
    assert!(left.snapshot.departed(&id("a")), "the deregistered instance departed");
    dying.crash().await;
    let died = until(&mut watcher, "one died", |change| change.snapshot.is_empty()).await;
    assert!(!died.snapshot.departed(&id("b")), "the instance without a lease did not depart");
    let again = h.client().await;
    let _a = register(h, &again, &service, "a").await;
    let back = until(&mut watcher, "one is back", |change| !change.snapshot.is_empty()).await;
    assert!(!back.snapshot.departed(&id("a")));
}
