//! What is logged. One test, in a program of its own: whether an event is of interest is decided once per process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::sync::{Arc, Mutex};

use enlist::{
    Endpoint, Instance, InstanceId, Lock, LockName, LockOptions, RegisterOptions, RegistrationState, Registry,
    ServiceRef,
};
use enlist_etcd::{Etcd, SessionRuntime};
use enlist_testkit::{FakeEtcd, soon};

/// What was logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn logs_have_constant_messages_and_name_their_subject_in_fields() {
    let logged = Logged::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_ansi(false)
        .with_writer(Mutex::new(logged.clone()))
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let fake = FakeEtcd::start();
    let etcd = Etcd::from_channel(fake.channel()).runtime(SessionRuntime::Caller).build().unwrap();
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
    let logged = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let has = |parts: &[&str]| logged.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    for expected in [
        &["INFO", "instance registered", "service=default/svc", "instance=i0", "revision="][..],
        &["WARN", "instance lost, registering again", "instance=i0", "cause="],
        &["WARN", "lease lost", "lease="],
        &["INFO", "registration ended", "instance=i0"],
        &["INFO", "lock{lock=", "lock acquired", "token="],
        &["INFO", "lock{lock=", "lock released"],
    ] {
        assert!(has(expected), "{expected:?} in\n{logged}");
    }
}
