//! Semaphores on a scripted etcd under a paused clock: the requests per grant, late and lost writes, and values that
//! cannot be read.

use std::time::Duration;

use enlist::{Error, LockName, PermitGuard, Semaphore, SemaphoreOptions};
use enlist_etcd::{Etcd, EtcdConcurrency, SessionRuntime};
use enlist_testkit::{BackgroundTask, FakeEtcd, LateWrite, Misbehavior, Requests, eventually, soon};

use crate::support::scripted::{builder, client};

const QUEUE: &[u8] = b"enlist/semaphores/default/s/";
const NUMBER: &str = "enlist/semaphore-permits/default/s";

/// Delay of a transaction, beyond the deadline of its caller.
const LATE: Duration = Duration::from_secs(20);

/// Time in which everything settles that does not wait for an event.
const SETTLED: Duration = Duration::from_secs(2);

fn name() -> LockName {
    LockName::parse("s").unwrap()
}

fn want(permits: u32) -> SemaphoreOptions {
    SemaphoreOptions::new().permits(permits)
}

async fn acquire(etcd: &Etcd) -> PermitGuard {
    soon("granted", etcd.acquire_permits(&name(), want(1))).await.unwrap()
}

type Contender = BackgroundTask<Result<PermitGuard, Error>>;

/// Starts a contender and waits until the queue has `count` entries.
async fn contend(fake: &FakeEtcd, etcd: &Etcd, count: usize) -> Contender {
    let etcd = etcd.clone();
    let contender = BackgroundTask::run(async move { etcd.acquire_permits(&name(), want(1)).await });
    eventually(&format!("{count} are in the queue"), || async {
        let now = fake.under(QUEUE).len();
        if now == count { Ok(()) } else { Err(now) }
    })
    .await;
    contender
}

fn number(fake: &FakeEtcd, permits: u32) {
    fake.put(NUMBER, format!(r#"{{"v":1,"permits":{permits}}}"#));
}

fn granted(fake: &FakeEtcd) -> usize {
    let is_granted = |(_, value): &(Vec<u8>, Vec<u8>)| String::from_utf8_lossy(value).contains(r#""granted":true"#);
    fake.under(QUEUE).iter().filter(|entry| is_granted(entry)).count()
}

#[tokio::test(start_paused = true)]
async fn free_permits_take_two_transactions() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    number(&fake, 2);
    soon("released", acquire(&etcd).await.release()).await.unwrap();
    fake.reset_requests();
    let guard = acquire(&etcd).await;
    let Requests { txns, ranges, .. } = fake.requests();
    assert_eq!((txns, ranges), (2, 0), "to enter the queue, to take the permits");
    soon("released", guard.release()).await.unwrap();
    assert_eq!(fake.under(QUEUE), []);
}

/// Three permits, and contenders in ten processes: one that enters the queue waits behind one of another process.
async fn requests_per_grant(contenders: usize) -> (usize, usize, usize) {
    let fake = FakeEtcd::start();
    // With connections of their own: the server accepts 200 streams on each.
    let process = |_| Etcd::from_channel(fake.link().channel()).runtime(SessionRuntime::Caller).build().unwrap();
    let processes: Vec<Etcd> = (0..10).map(process).collect();
    let holder = client(&fake);
    number(&fake, 3);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(acquire(&holder).await);
    }
    let mut waiting = Vec::new();
    for number in 0..contenders {
        waiting.push(contend(&fake, &processes[number % 10], number + 4).await);
    }
    tokio::time::sleep(SETTLED).await;
    let mut most = (0, 0, 0);
    for contender in waiting.iter_mut().take(5) {
        fake.reset_requests();
        soon("released", held.remove(0).release()).await.unwrap();
        held.push(contender.done("its permit").await.unwrap());
        tokio::time::sleep(SETTLED).await;
        let Requests { txns, ranges, watches, .. } = fake.requests();
        most = (most.0.max(txns), most.1.max(ranges), most.2.max(watches));
    }
    waiting.iter_mut().skip(5).for_each(BackgroundTask::assert_running);
    most
}

/// The work per grant is at most a constant plus the number of permits, however many contenders wait.
#[tokio::test(start_paused = true)]
async fn work_per_grant_is_constant() {
    let (few, many) = (requests_per_grant(10).await, requests_per_grant(200).await);
    println!("{few:?} transactions, reads and watches with 10 contenders, {many:?} with 200");
    // Transactions: the release, the grant, and two reads of the next first contender. It watches the holders and the
    // number, and each watch is followed by a read.
    for (txns, ranges, watches) in [few, many] {
        assert!(txns <= 4 + 4 && ranges <= 4 && watches <= 4 + 1, "{txns}, {ranges}, {watches}");
    }
    assert_eq!(few, many);
}

#[tokio::test(start_paused = true)]
async fn contenders_of_one_session_need_no_watches() {
    let fake = FakeEtcd::start();
    let (holder, etcd) = (client(&fake), client(&fake));
    number(&fake, 1);
    let guard = acquire(&holder).await;
    let mut waiting = Vec::new();
    for number in 0..50 {
        waiting.push(contend(&fake, &etcd, number + 2).await);
    }
    tokio::time::sleep(SETTLED).await;
    let watches = fake.requests().watches;
    assert!(watches <= 4, "own keys of two sessions, the holder, the number: {watches}");
    soon("released", guard.release()).await.unwrap();
    for mut contender in waiting {
        let guard = contender.done("its permit").await.unwrap();
        soon("released", guard.release()).await.unwrap();
    }
}

/// The grant arrives after the number of permits was lowered.
#[tokio::test(start_paused = true)]
async fn a_late_grant_after_a_change_is_refused() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    number(&fake, 0);
    let mut contender = contend(&fake, &etcd, 1).await;
    tokio::time::sleep(SETTLED).await;
    fake.misbehave(Misbehavior::LateTxn(LATE));
    number(&fake, 1);
    eventually("the grant is sent", || async { if fake.has_misbehaved() { Ok(()) } else { Err(()) } }).await;
    number(&fake, 0);
    tokio::time::sleep(2 * LATE).await;
    assert!(matches!(fake.late_writes()[..], [Ok(LateWrite::Refused)]), "{:?}", fake.late_writes());
    contender.assert_running();
    assert_eq!(granted(&fake), 0);
    number(&fake, 1);
    assert!(contender.done("its permit").await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_grant_without_an_answer_counts() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    number(&fake, 0);
    let mut contender = contend(&fake, &etcd, 1).await;
    tokio::time::sleep(SETTLED).await;
    // The answer is lost, and the number is lowered before the grant is sent again.
    fake.misbehave(Misbehavior::LateTxn(Duration::ZERO));
    number(&fake, 1);
    eventually("it is granted", || async { if granted(&fake) == 1 { Ok(()) } else { Err(()) } }).await;
    number(&fake, 0);
    let guard = contender.done("its permit").await.unwrap();
    assert!(guard.is_held());
    soon("released", guard.release()).await.unwrap();
    assert_eq!(fake.under(QUEUE), []);
}

#[tokio::test(start_paused = true)]
async fn a_grant_without_a_caller_leaves_nothing() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    number(&fake, 0);
    let contender = contend(&fake, &etcd, 1).await;
    tokio::time::sleep(SETTLED).await;
    fake.misbehave(Misbehavior::LateTxn(LATE));
    number(&fake, 1);
    eventually("the grant is sent", || async { if fake.has_misbehaved() { Ok(()) } else { Err(()) } }).await;
    contender.abort().await;
    tokio::time::sleep(2 * LATE).await;
    assert_eq!(fake.under(QUEUE), [], "a late grant creates no entry");
    assert!(acquire(&etcd).await.is_held());
}

#[tokio::test(start_paused = true)]
async fn permits_are_granted_again_after_a_wipe() {
    let fake = FakeEtcd::start();
    let (one, two) = (client(&fake), client(&fake));
    let wanted = || want(1).permits_if_unset(1);
    let guard = soon("granted", one.acquire_permits(&name(), wanted())).await.unwrap();
    let mut waiting = BackgroundTask::run(async move { two.acquire_permits(&name(), wanted()).await });
    eventually("two are in the queue", || async {
        let now = fake.under(QUEUE).len();
        if now == 2 { Ok(()) } else { Err(now) }
    })
    .await;
    tokio::time::sleep(SETTLED).await;
    fake.wipe();
    assert!(waiting.done("its permit").await.unwrap().is_held());
    soon("the loss", guard.lost()).await;
}

#[tokio::test(start_paused = true)]
async fn deleted_numbers_admit_nothing_until_stored_again() {
    let fake = FakeEtcd::start();
    let (one, two) = (client(&fake), client(&fake));
    number(&fake, 1);
    let guard = acquire(&one).await;
    fake.delete(NUMBER.as_bytes());
    let mut contender = contend(&fake, &two, 2).await;
    soon("released", guard.release()).await.unwrap();
    tokio::time::sleep(SETTLED).await;
    contender.assert_running();
    assert_eq!(one.permits(&name()).await.unwrap(), None);
    one.set_permits(&name(), 1).await.unwrap();
    assert!(contender.done("its permit").await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn unreadable_numbers_admit_nothing() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    for value in ["", "garbage", "[1,5]", r#"{"v":1,"permits":"5"}"#] {
        fake.put(NUMBER, value);
        let refused = etcd.try_acquire_permits(&name(), want(1).permits_if_unset(5)).await.unwrap();
        assert!(refused.is_none(), "{value}");
        assert_eq!(etcd.permits(&name()).await.unwrap(), None, "{value}");
    }
    etcd.set_permits(&name(), 1).await.unwrap();
    assert!(acquire(&etcd).await.is_held());
}

#[tokio::test(start_paused = true)]
async fn newer_numbers_are_never_overwritten() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    let newer = r#"{"v":2,"permits":1,"burst":3}"#;
    fake.put(NUMBER, newer);
    let refused = etcd.set_permits(&name(), 5).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(fake.under(NUMBER.as_bytes())[0].1, newer.as_bytes());
    let _guard = acquire(&etcd).await;
    assert!(etcd.try_acquire_permits(&name(), want(1)).await.unwrap().is_none());
    fake.put(NUMBER, r#"{"v":1,"permits":1,"note":"x"}"#);
    etcd.set_permits(&name(), 5).await.unwrap();
    assert_eq!(fake.under(NUMBER.as_bytes())[0].1, br#"{"v":1,"permits":5,"note":"x"}"#);
}

/// An entry that cannot be read may hold permits: no later entry is granted, until it is gone. Other keys do not count.
#[tokio::test(start_paused = true)]
async fn an_unreadable_entry_is_not_overtaken() {
    let fake = FakeEtcd::start();
    let etcd = client(&fake);
    number(&fake, 5);
    let entry = [QUEUE, b"00000000000000ff-0000000000000000"].concat();
    fake.put(&entry[..], "garbage");
    fake.put([QUEUE, b"foreign"].concat(), "garbage");
    let mut contender = contend(&fake, &etcd, 3).await;
    assert!(etcd.try_acquire_permits(&name(), want(1)).await.unwrap().is_none());
    contender.assert_running();
    fake.delete(&entry);
    assert!(contender.done("its permit").await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn a_layout_without_semaphores_refuses_them() {
    let fake = FakeEtcd::start();
    let builder = builder(&fake);
    let etcd = builder.lock_layout(EtcdConcurrency).build().unwrap();
    let refused = |error: Option<Error>| assert!(matches!(error, Some(Error::Unsupported { .. })), "{error:?}");
    refused(etcd.acquire_permits(&name(), want(1)).await.err());
    refused(etcd.try_acquire_permits(&name(), want(1)).await.err());
    refused(etcd.permits(&name()).await.err());
    refused(etcd.set_permits(&name(), 1).await.err());
}
