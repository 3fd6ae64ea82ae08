//! Delay and number of attempts, as set by the options. The conformance suite cannot measure them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::Duration;

use enlist::{
    BackoffPolicy, Endpoint, Error, Instance, InstanceId, RegisterOptions, Registration, RegistrationState, Registry,
    Resolver, ServiceRef, Start,
};
use enlist_memory::{DeliberateDefect, MemoryClient, MemoryStore};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

async fn register(client: &MemoryClient, options: RegisterOptions) -> Registration {
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
    client.register(&service(), instance, options.start(Start::Background)).await.unwrap()
}

/// Returns the equivalent of `retry.NewRetryConfig()` of kitex' registry: 5 attempts, 10 s apart, and a check of the
/// own key every 30 s.
fn kitex() -> RegisterOptions {
    let retry_delay = BackoffPolicy::fixed(10 * SECOND).unwrap();
    RegisterOptions::new().max_attempts(5).audit(Some(30 * SECOND)).backoff(retry_delay)
}

async fn until(registration: &Registration, wanted: impl Fn(&RegistrationState) -> bool) {
    let mut states = registration.states();
    while !wanted(&states.next().await.unwrap()) {}
}

#[tokio::test(start_paused = true)]
async fn attempts_at_a_fixed_delay_are_limited() {
    let client = MemoryStore::new().client();
    client.cut();
    let a = register(&client, kitex()).await;
    // Failures before a success do not count.
    tokio::time::sleep(35 * SECOND).await;
    client.heal();
    until(&a, |state| matches!(state, RegistrationState::Registered { .. })).await;
    client.cut();
    let begun = Instant::now();
    drop(a.update(|update| _ = update.weight(7)));
    until(&a, |state| matches!(state, RegistrationState::Ended)).await;
    // The first attempt is made at once, four more follow.
    assert_eq!(begun.elapsed(), 40 * SECOND);
    assert!(matches!(a.deregister().await, Err(Error::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn unlimited_attempts_continue_at_the_fixed_delay() {
    let client = MemoryStore::new().client();
    client.cut();
    let a = register(&client, kitex().max_attempts(0)).await;
    tokio::time::sleep(24 * 3600 * SECOND).await;
    assert!(matches!(a.state(), RegistrationState::Registering { last: Some(_) }), "{:?}", a.state());
    client.heal();
    until(&a, |state| matches!(state, RegistrationState::Registered { .. })).await;
}

/// The defect is a registration that does not notice a deletion by itself.
#[tokio::test(start_paused = true)]
async fn an_audit_is_the_observe_delay() {
    let store = MemoryStore::with_defect(DeliberateDefect::NeverReregisters);
    let client = store.client();
    let a = register(&client, kitex()).await;
    until(&a, |state| matches!(state, RegistrationState::Registered { .. })).await;
    for _ in 0..10 {
        assert!(store.delete(&service(), &InstanceId::parse("a").unwrap()));
        let deleted = Instant::now();
        while client.resolve(&service()).await.unwrap().is_empty() {
            tokio::time::sleep(SECOND).await;
        }
        assert!((15 * SECOND..=46 * SECOND).contains(&deleted.elapsed()), "{:?}", deleted.elapsed());
    }
}
