//! Instances that are withdrawn while their health check fails, in a layout without health, when etcd is late.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use enlist::{
    Deregistered, Endpoint, Health, Instance, InstanceId, Migration, OnDelete, RegisterOptions, Registration,
    RegistrationState, Registry, ServiceRef, Side, Start,
};
use enlist_etcd::{Etcd, EtcdNaming};
use enlist_testkit::{FakeEtcd, Misbehavior, eventually, soon};

use crate::support::{is_registered, scripted::builder};

const SECOND: Duration = Duration::from_secs(1);

struct Checked {
    fake: FakeEtcd,
    etcd: Etcd,
    registration: Registration,
    healthy: Arc<AtomicBool>,
}

impl Checked {
    /// Returns a registration that is checked every second.
    async fn start() -> Self {
        let fake = FakeEtcd::start();
        let builder = builder(&fake);
        let (etcd, service) = (builder.layout(EtcdNaming::default()).build().unwrap(), ServiceRef::parse("s").unwrap());
        let endpoint = Endpoint::new("10.0.0.1", 80).unwrap();
        let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint]).unwrap();
        let options = RegisterOptions::new().on_delete(OnDelete::Respect);
        let registration = soon("registered", etcd.register(&service, instance, options)).await.unwrap();
        let healthy = Arc::new(AtomicBool::new(true));
        let check = {
            let healthy = Arc::clone(&healthy);
            move || ready(if healthy.load(Ordering::SeqCst) { Health::Serving } else { Health::NotServing })
        };
        registration.health_check(SECOND, check).unwrap();
        Self { fake, etcd, registration, healthy }
    }

    /// Sets the result of the checks.
    fn set_health(&self, health: Health) {
        self.healthy.store(health == Health::Serving, Ordering::SeqCst);
    }

    fn is_stored(&self) -> bool {
        !self.fake.under(b"s/").is_empty()
    }

    async fn until(&self, wanted: impl Fn(&RegistrationState) -> bool) {
        let mut states = self.registration.states();
        // The clock is paused: this is longer than any retry.
        let read = async { while !wanted(&states.next().await.unwrap()) {} };
        tokio::time::timeout(600 * SECOND, read).await.expect("the state comes about");
    }
}

fn is_withdrawn(state: &RegistrationState) -> bool {
    matches!(state, RegistrationState::Withdrawn)
}

#[tokio::test(start_paused = true)]
async fn a_change_of_health_is_one_write() {
    let checked = Checked::start().await;
    checked.until(is_registered).await;
    checked.fake.reset_requests();
    for _ in 0..20 {
        checked.set_health(Health::NotServing);
        checked.until(is_withdrawn).await;
        assert!(!checked.is_stored());
        checked.set_health(Health::Serving);
        checked.until(is_registered).await;
        assert!(checked.is_stored());
    }
    let requests = checked.fake.requests();
    assert_eq!((requests.txns, requests.grants), (40, 0), "{requests:?}");
    // The probe of a quiet session, and a look at the key that is created first.
    assert!(requests.ranges <= 30, "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_late_removal_leaves_a_shown_instance_alone() {
    let checked = Checked::start().await;
    checked.until(is_registered).await;
    checked.fake.misbehave(Misbehavior::LateTxn(30 * SECOND));
    checked.set_health(Health::NotServing);
    checked.until(|state| matches!(state, RegistrationState::Suspect { .. })).await;
    checked.set_health(Health::Serving);
    checked.until(is_registered).await;
    tokio::time::sleep(120 * SECOND).await;
    assert!(matches!(checked.fake.late_writes()[..], [Ok(_)]), "{:?}", checked.fake.late_writes());
    assert!(checked.is_stored() && is_registered(&checked.registration.state()), "{:?}", checked.registration.state());
}

#[tokio::test(start_paused = true)]
async fn a_late_creation_shows_no_failing_instance() {
    let checked = Checked::start().await;
    checked.set_health(Health::NotServing);
    checked.until(is_withdrawn).await;
    checked.fake.misbehave(Misbehavior::LateTxn(30 * SECOND));
    checked.set_health(Health::Serving);
    checked.until(|state| matches!(state, RegistrationState::Reregistering { .. })).await;
    checked.set_health(Health::NotServing);
    checked.until(is_withdrawn).await;
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!(checked.fake.late_writes().len(), 1, "it was done, or refused, by now");
    assert!(!checked.is_stored() && is_withdrawn(&checked.registration.state()), "{:?}", checked.registration.state());
    checked.set_health(Health::Serving);
    checked.until(is_registered).await;
    assert!(checked.is_stored());
}

#[tokio::test(start_paused = true)]
async fn each_migration_side_reports_failing_checks() {
    let fake = FakeEtcd::start();
    let client = || builder(&fake);
    let native = Side::new(Arc::new(client().build().unwrap()));
    let naming = Side::new(Arc::new(client().layout(EtcdNaming::default()).build().unwrap()));
    let both = Migration::new(native).and(naming);
    let endpoint = Endpoint::new("10.0.0.1", 80).unwrap();
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [endpoint]).unwrap();
    let service = ServiceRef::parse("s").unwrap();
    let registration = soon("registered", both.register(&service, instance, RegisterOptions::new())).await.unwrap();
    let healthy = Arc::new(AtomicBool::new(true));
    let check = {
        let healthy = Arc::clone(&healthy);
        move || ready(if healthy.load(Ordering::SeqCst) { Health::Serving } else { Health::NotServing })
    };
    registration.health_check(SECOND, check).unwrap();
    // The native side stores the health; the other side removes the key.
    let stored = || {
        let native = fake.under(b"enlist/services/").pop().map(|(_, value)| String::from_utf8(value).unwrap());
        (native.map(|value| value.contains("not_serving")), fake.under(b"s/").len())
    };
    for expected in [(Some(false), 1), (Some(true), 0), (Some(false), 1), (Some(true), 0)] {
        healthy.store(expected.1 == 1, Ordering::SeqCst);
        eventually("both say it", || async {
            let state = (stored(), is_withdrawn(&registration.state()));
            if state == (expected, expected.1 == 0) { Ok(()) } else { Err(state) }
        })
        .await;
    }
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
    assert_eq!(stored(), (None, 0));
}

/// The withdrawal waits behind the writes of others, of which etcd makes two transactions in four seconds.
#[tokio::test(start_paused = true)]
async fn a_departure_does_not_wait_for_a_withdrawal() {
    let checked = Checked::start().await;
    checked.until(is_registered).await;
    for _ in 0..40 {
        checked.fake.misbehave(Misbehavior::LateTxn(4 * SECOND));
    }
    let mut others = Vec::new();
    for number in 0..1600 {
        let id = InstanceId::parse(format!("i{number}")).unwrap();
        let instance = Instance::new(id, [Endpoint::new("10.0.0.2", 80 + number).unwrap()]).unwrap();
        let options = RegisterOptions::new().start(Start::Background);
        others.push(checked.etcd.register(&ServiceRef::parse("s").unwrap(), instance, options).await.unwrap());
    }
    checked.set_health(Health::NotServing);
    // The next check fails, and the withdrawal waits.
    tokio::time::sleep(SECOND + SECOND / 2).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(checked.registration.deregister().await.unwrap(), Deregistered::LeftBehind);
    assert!(asked.elapsed() < 8 * SECOND, "{:?}", asked.elapsed());
}
