//! The logged events. A single test in a separate program, because the interest in an event is decided once per
//! process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use enlist::{
    Endpoint, Instance, InstanceId, Lock, LockName, LockOptions, RegisterOptions, RegistrationState, Registry,
    ServiceRef,
};
use enlist_testkit::{FakeEtcd, soon};
use support::{logged::Logged, scripted::client};
use tracing_subscriber::filter::LevelFilter;

#[tokio::test(start_paused = true)]
async fn logs_have_constant_messages_with_fields() {
    let (logged, _logging) = Logged::from(LevelFilter::INFO);
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let service = ServiceRef::parse("svc").unwrap();
    let instance = Instance::new(InstanceId::parse("i0").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let registering = etcd.register(&service, instance, RegisterOptions::new());
    let registration = soon("registered", registering).await.unwrap();
    let guard = soon("acquired", etcd.acquire(&LockName::parse("job").unwrap(), LockOptions::new())).await.unwrap();
    soon("released", guard.release()).await.unwrap();
    fake.revoke_all();
    let mut states = registration.states();
    while !matches!(states.next().await, Ok(RegistrationState::Reregistering { .. })) {}
    while !matches!(states.next().await, Ok(RegistrationState::Registered { .. })) {}
    registration.deregister().await.unwrap();
    let logged = logged.lines("");
    let has = |parts: &[&str]| logged.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    for expected in [
        &["INFO", "instance registered", "service=default/svc", "instance=i0", "revision="][..],
        &["WARN", "instance lost, registering again", "instance=i0", "cause="],
        &["WARN", "lease lost", "lease="],
        &["INFO", "registration ended", "instance=i0"],
        &["INFO", "lock{lock=", "lock acquired", "token="],
        &["INFO", "lock{lock=", "lock released"],
    ] {
        assert!(has(expected), "{expected:?} in\n{logged:#?}");
    }
}
