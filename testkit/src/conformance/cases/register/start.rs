//! Starts while the store does not answer, and limits of attempts.

use std::time::Duration;

use enlist::{BackoffPolicy, Error, RegistrationState, ServiceRef, Start};

use super::super::support::*;
use crate::{
    background_task::BackgroundTask,
    conformance::harness::{Client, Harness},
    wait::{begun, eventually, soon},
};

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
    // The registration was withdrawn: a later registration of the same client is the only one.
    let _b = register(h, &server, &service, "b").await;
    listed(&client, &service, &["b"]).await;
}

pub async fn registering_again_after_a_timeout_succeeds(h: &impl Harness) {
    let (server, client, service) = (h.client().await, h.client().await, service(h, "svc"));
    server.cut().await;
    let start = Start::Wait(Duration::from_millis(300));
    let failed = soon("failed", server.register(&service, instance("a"), options(h).start(start))).await;
    assert!(matches!(failed, Err(Error::Timeout { op: "register", .. })), "{failed:?}");
    // During the outage it fails in the same way.
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

/// Registers over a cut connection, which is restored meanwhile.
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

pub async fn attempts_are_limited_on_request(h: &impl Harness) {
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
