//! Changes of an instance that etcd refuses: the instance stays published unchanged and is still maintained.

use std::time::Duration;

use enlist::{Deregistered, Error, LeaseChoice, LeaseId, RegisterOptions, Registration, RegistrationState};
use enlist_etcd::Etcd;
use enlist_testkit::{FakeEtcd, eventually, soon};
use tokio::time::Instant;

use crate::support::{
    is_registered,
    scripted::{client, register},
};

const KEY: &[u8] = b"enlist/services/default/svc/a";

/// Maximum delay, with its jitter, before another attempt at a change that failed for a permanent reason.
const MAX_PERMANENT_ERROR_DELAY: Duration = Duration::from_millis(12_500);

fn options() -> RegisterOptions {
    // No audit: only the tested event causes a read of the key.
    RegisterOptions::new().audit(None)
}

/// Registers `a`, and waits long enough for its key to be watched.
async fn registered(etcd: &Etcd, options: RegisterOptions) -> Registration {
    let registration = register(etcd, "a", options).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    registration
}

/// The weight that is stored.
fn stored(fake: &FakeEtcd) -> Option<u64> {
    let (_, value) = fake.under(KEY).pop()?;
    serde_json::from_slice::<serde_json::Value>(&value).unwrap()["weight"].as_u64()
}

async fn state(registration: &Registration, what: &str, fits: impl Fn(&RegistrationState) -> bool) {
    eventually(what, || async {
        let state = registration.state();
        if fits(&state) { Ok(()) } else { Err(state) }
    })
    .await;
}

fn is_doubted(state: &RegistrationState) -> bool {
    matches!(state, RegistrationState::Suspect { cause: Error::PermissionDenied { .. } })
}

#[tokio::test(start_paused = true)]
async fn a_refused_update_keeps_the_instance_published() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let registration = registered(&etcd, options().max_attempts(2)).await;
    let mut states = registration.states();
    fake.deny_access();
    let refused = soon("reported", registration.update(|update| _ = update.weight(7))).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    assert!(is_doubted(&registration.state()), "{:?}", registration.state());
    // The change is retried at a slow pace and is not dropped.
    let asked = fake.requests().denied;
    tokio::time::sleep(MAX_PERMANENT_ERROR_DELAY * 8).await;
    let asked = fake.requests().denied - asked;
    assert!((8..=20).contains(&asked), "{asked} attempts in {:?}", MAX_PERMANENT_ERROR_DELAY * 8);
    assert_eq!(stored(&fake), Some(100));
    // A later change is refused as well, and both are stored once the cause is fixed.
    let refused = soon("reported", registration.update(|update| _ = update.version("2"))).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    fake.permit_access();
    state(&registration, "stored", is_registered).await;
    assert_eq!(stored(&fake), Some(7));
    while let Some(Ok(state)) = futures::FutureExt::now_or_never(states.next()) {
        assert!(is_doubted(&state) || is_registered(&state), "{state:?}");
    }
    soon("stored", registration.update(|update| _ = update.weight(8))).await.unwrap();
    assert_eq!(stored(&fake), Some(8));
}

#[tokio::test(start_paused = true)]
async fn a_refused_update_keeps_the_key_watched() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let registration = registered(&etcd, options()).await;
    for weight in 7..12 {
        fake.deny_access();
        drop(registration.update(move |update| _ = update.weight(weight)));
        state(&registration, "refused", |state| !is_registered(state)).await;
        fake.permit_access();
        fake.delete(KEY);
        let deleted = Instant::now();
        eventually("it is back", || async { stored(&fake).ok_or("absent") }).await;
        assert!(deleted.elapsed() < Duration::from_secs(3), "{:?}", deleted.elapsed());
        assert_eq!(stored(&fake), Some(u64::from(weight)));
        state(&registration, "registered", is_registered).await;
    }
}

/// A key that another client changed cannot be read during the refusal.
#[tokio::test(start_paused = true)]
async fn an_unreadable_key_is_retried_slowly() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let registration = registered(&etcd, options()).await;
    fake.deny_access();
    drop(registration.update(|update| _ = update.weight(7)));
    state(&registration, "refused", |state| !is_registered(state)).await;
    let (_, value) = fake.under(KEY).pop().unwrap();
    let asked = fake.requests().denied;
    fake.put(KEY, value);
    tokio::time::sleep(MAX_PERMANENT_ERROR_DELAY * 4).await;
    let asked = fake.requests().denied - asked;
    assert!((3..=15).contains(&asked), "{asked} attempts in {:?}", MAX_PERMANENT_ERROR_DELAY * 4);
    fake.permit_access();
    // Without the lease the key no longer belongs to the registration.
    let superseded = |state: &RegistrationState| matches!(state, RegistrationState::Superseded { .. });
    state(&registration, "superseded", superseded).await;
}

/// The response to an update is lost, although it was applied; after that every write is refused.
#[tokio::test(start_paused = true)]
async fn an_unnoticed_update_is_not_retried_at_once() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let registration = registered(&etcd, options()).await;
    fake.misbehave(enlist_testkit::Misbehavior::LateTxn(Duration::from_secs(6)));
    drop(registration.update(|update| _ = update.weight(7)));
    eventually("done", || async { if stored(&fake) == Some(7) { Ok(()) } else { Err(stored(&fake)) } }).await;
    fake.deny_access();
    drop(registration.update(|update| _ = update.weight(8)));
    let asked = fake.requests().denied;
    tokio::time::sleep(MAX_PERMANENT_ERROR_DELAY * 4).await;
    let asked = fake.requests().denied - asked;
    assert!((3..=15).contains(&asked), "{asked} attempts in {:?}", MAX_PERMANENT_ERROR_DELAY * 4);
    fake.permit_access();
    state(&registration, "stored", is_registered).await;
    assert_eq!(stored(&fake), Some(8));
}

/// A given lease is never replaced, and the keys under it are deleted with it.
#[tokio::test(start_paused = true)]
async fn a_lost_given_lease_leaves_the_instance_unpublished() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let keeper = registered(&etcd, options()).await;
    let given = LeaseId::new(fake.lease_ids()[0]);
    assert_eq!(soon("deregistered", keeper.deregister()).await.unwrap(), Deregistered::Removed);
    let registration = registered(&etcd, options().lease(LeaseChoice::Given(given))).await;
    fake.revoke_all();
    let lost =
        |state: &RegistrationState| matches!(state, RegistrationState::Reregistering { cause: Error::LeaseLost });
    state(&registration, "lost", lost).await;
    drop(registration.update(|update| _ = update.weight(7)));
    tokio::time::sleep(MAX_PERMANENT_ERROR_DELAY).await;
    assert!(lost(&registration.state()), "{:?}", registration.state());
}
