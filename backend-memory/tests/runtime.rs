//! Handles that outlive their runtime, and calls from outside one.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use enlist::{
    Endpoint, Error, Instance, InstanceId, Lock, LockName, LockOptions, RegisterOptions, Registration,
    RegistrationState, Registry, Resolver, ServiceRef,
};
use enlist_memory::MemoryStore;

fn service() -> ServiceRef {
    ServiceRef::parse("svc").unwrap()
}

fn instance() -> Instance {
    Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
}

#[test]
fn handles_can_be_dropped_without_a_runtime() {
    let store = MemoryStore::new();
    let client = store.client();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (registration, guard) = runtime.block_on(async {
        let registration = client.register(&service(), instance(), RegisterOptions::new()).await.unwrap();
        let guard = client.acquire(&LockName::parse("l").unwrap(), LockOptions::new()).await.unwrap();
        (registration, guard)
    });
    drop(runtime);
    assert!(!guard.is_held(), "nobody renews it any more");
    assert_eq!(registration.instance().id().as_str(), "a");
    drop((registration, guard));
}

/// As documented for the crate.
#[tokio::test(start_paused = true)]
async fn reports_of_tasks_lag_after_an_advance() {
    let is_registered =
        |registration: &Registration| matches!(registration.state(), RegistrationState::Registered { .. });
    let store = MemoryStore::new();
    for jumps in [true, false] {
        let client = store.client();
        let registration = client.register(&service(), instance(), RegisterOptions::new()).await.unwrap();
        client.cut();
        if jumps {
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert!(is_registered(&registration));
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        assert!(!is_registered(&registration));
        client.heal();
        registration.deregister().await.unwrap();
    }
}

#[test]
fn calls_from_outside_a_runtime_are_refused() {
    let client = MemoryStore::new().client();
    let mut context = Context::from_waker(Waker::noop());
    let service = service();
    let mut resolving = client.resolve(&service);
    assert!(matches!(resolving.as_mut().poll(&mut context), Poll::Ready(Err(Error::Closed))));
    let mut registering = client.register(&service, instance(), RegisterOptions::new());
    assert!(matches!(registering.as_mut().poll(&mut context), Poll::Ready(Err(Error::Closed))));
}
