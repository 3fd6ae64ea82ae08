//! Known defects of etcd, each as a switch of the scripted etcd under a paused clock: views, registrations and locks
//! survive them. A raw client shows in each case that the switch has an effect. `docs/faults.md` lists the releases.

use std::time::Duration;

use enlist::{
    Counter, Deregistered, Error, Freshness, LeaseChoice, LeaseId, Lock, LockGuard, LockOptions, OnConflict, OnDelete,
    RegisterOptions, RegistrationState, Resolver, Snapshot, Watcher,
};
use enlist_etcd::{Etcd, EtcdNaming, SessionRuntime};
use enlist_testkit::{BackgroundTask, EtcdDefect, FakeEtcd, Link, Misbehavior, eventually, soon};
use etcd_client::{GetOptions, PutOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::time::Instant;

use crate::support::{
    PREFIX, lock_name,
    scripted::{acquire, contend, put, register, shown, stored, watched},
    service,
};

const LOCKS: &[u8] = b"enlist/locks/";
const AUDIT: Duration = Duration::from_secs(60);

/// Maximum time until a registration whose key is lost is back.
const BACK: Duration = Duration::from_secs(2);

/// Maximum time until a holder notices that its key is gone.
const NOTICED: Duration = Duration::from_secs(1);

/// Maximum time after a disturbance until a watch reports again.
const RECOVERED: Duration = Duration::from_secs(15);

fn client(link: &Link) -> Etcd {
    let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller);
    builder.audit(Some(AUDIT)).build().unwrap()
}

fn delete(fake: &FakeEtcd, id: &str) {
    fake.delete(format!("{PREFIX}{id}").as_bytes());
}

/// A raw client, as a control.
async fn raw(fake: &FakeEtcd) -> etcd_client::Client {
    etcd_client::Client::from_channel(etcd_client::Channel::Tonic(fake.channel()), None).await.unwrap()
}

/// Opens a raw watch of everything from `revision` on, and reads its first message.
async fn raw_watch(fake: &FakeEtcd, revision: i64) -> WatchStream {
    let options = WatchOptions::new().with_start_revision(revision).with_all_keys();
    let mut watch = raw(fake).await.watch_client().watch("", Some(options)).await.unwrap();
    assert!(next(&mut watch).await.created());
    watch
}

async fn next(watch: &mut WatchStream) -> WatchResponse {
    soon("a message", watch.message()).await.unwrap().unwrap()
}

/// Returns the revisions of the events of a message.
fn revisions(message: &WatchResponse) -> Vec<i64> {
    message.events().iter().map(|event| event.kv().unwrap().mod_revision()).collect()
}

/// A view of `a` and `b`.
struct View {
    fake: FakeEtcd,
    link: Link,
    etcd: Etcd,
    watcher: Box<dyn Watcher>,
    seen: Snapshot,
    freshness: Freshness,
}

impl View {
    /// Starts a view whose watch is open. The fake has the defect `first` from the beginning.
    async fn start(first: Option<EtcdDefect>) -> Self {
        let fake = FakeEtcd::start();
        for id in ["a", "b"] {
            put(&fake, id, 1);
        }
        if let Some(defect) = first {
            fake.set_defect(defect);
        }
        let link = fake.link();
        let etcd = client(&link);
        let mut watcher = etcd.watch(&service()).await.unwrap();
        let first = soon("a list", watcher.next()).await.unwrap();
        let view = Self { fake, link, etcd, watcher, seen: first.snapshot, freshness: first.freshness };
        watched(&view.fake, 1).await;
        view
    }

    /// Follows the view for `time`. Its revision never decreases.
    async fn follow(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(change) = tokio::time::timeout_at(end, self.watcher.next()).await {
            let change = change.unwrap();
            let next = &change.snapshot;
            assert_eq!(next.epoch(), self.seen.epoch(), "the store did not go back");
            assert!(next.revision() >= self.seen.revision(), "{} after {}", next.revision(), self.seen.revision());
            for (id, weight) in shown(&self.seen) {
                // Weights only increase in these tests.
                assert!(shown(next).get(&id).is_none_or(|next| *next >= weight), "{id} went back");
            }
            (self.seen, self.freshness) = (change.snapshot, change.freshness);
        }
    }

    fn assert_current(&self) {
        assert_eq!(shown(&self.seen), stored(&self.fake));
    }

    fn count(&self, counter: Counter) -> u64 {
        self.etcd.counters().get(counter)
    }
}

fn respecting() -> RegisterOptions {
    RegisterOptions::new().on_delete(OnDelete::Respect)
}

/// Returns the absences of an instance from the store so far, including a current one.
fn absences(fake: &FakeEtcd, id: &str) -> Vec<Duration> {
    let key = format!("{PREFIX}{id}").into_bytes();
    let (mut gone, mut absences) = (None, Vec::new());
    for change in fake.journal().into_iter().filter(|change| change.key == key) {
        match (change.value, gone) {
            (None, _) => gone = Some(change.at),
            (Some(_), Some(since)) => {
                absences.push(change.at - since);
                gone = None;
            }
            (Some(_), None) => {}
        }
    }
    absences.extend(gone.map(|since| since.elapsed()));
    absences
}

/// Waits for `count` absences of an instance, and checks that each was short.
async fn comes_back(fake: &FakeEtcd, id: &str, times: usize) {
    eventually("it is back", || async {
        let absences = absences(fake, id);
        if absences.len() >= times && stored(fake).contains_key(id) { Ok(()) } else { Err(absences) }
    })
    .await;
    let absences = absences(fake, id);
    assert!(absences.iter().all(|absence| *absence <= BACK), "{absences:?}");
}

/// Waits until the queue has `count` entries.
async fn queued(fake: &FakeEtcd, count: usize) {
    eventually("the queue is as long", || async {
        let entries = fake.under(LOCKS).len();
        if entries == count { Ok(()) } else { Err(entries) }
    })
    .await;
}

/// Waits until the holder has noticed, in time, that its key was deleted, and then for the next holder.
async fn passes_on(fake: &FakeEtcd, holder: &LockGuard, mut next: BackgroundTask<LockGuard>) -> LockGuard {
    soon("the loss", holder.lost()).await;
    let token = i64::try_from(holder.fencing_token().get()).unwrap();
    let journal = fake.journal();
    let created = journal.iter().find(|change| change.created == token && change.key.starts_with(LOCKS)).unwrap();
    let deleted =
        journal.iter().find(|change| change.key == created.key && change.revision > token && change.value.is_none());
    let noticed = deleted.unwrap().at.elapsed();
    assert!(noticed <= NOTICED && !holder.is_held(), "noticed after {noticed:?}");
    let next = next.done("its turn").await;
    assert!(next.is_held() && next.fencing_token() > holder.fencing_token());
    next
}

#[tokio::test(start_paused = true)]
async fn early_progress_is_no_point_to_resume_from() {
    let mut view = View::start(Some(EtcdDefect::EarlyProgress)).await;
    let mut control = raw_watch(&view.fake, 0).await;
    let before = view.freshness.proven();
    let begun = Instant::now();
    put(&view.fake, "a", 2);
    put(&view.fake, "c", 1);
    control.request_progress().await.unwrap();
    let progress = next(&mut control).await;
    assert_eq!(progress.header().unwrap().revision(), view.fake.revision());
    assert!(progress.events().is_empty(), "its events are still to come");
    assert_eq!(revisions(&next(&mut control).await).len(), 1);

    // By now the view has requested progress as well.
    assert!(view.count(Counter::WatchChecks) > 0 && begun.elapsed() < Duration::from_secs(9));
    assert!(view.freshness.proven().since(before) < begun.elapsed());
    view.follow(Duration::from_secs(2)).await;
    view.assert_current();

    // The same if the connection breaks between the progress and its events.
    let checks = view.count(Counter::WatchChecks);
    delete(&view.fake, "b");
    put(&view.fake, "a", 3);
    while view.count(Counter::WatchChecks) == checks {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    view.link.cut();
    view.follow(Duration::from_secs(20)).await;
    view.assert_current();
    assert!(view.count(Counter::WatchResumes) > 0);
    assert_eq!((view.count(Counter::WatchRelists), view.count(Counter::AuditRepairs)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_age_counts_no_early_progress() {
    let mut view = View::start(Some(EtcdDefect::EarlyProgress)).await;
    view.follow(Duration::from_secs(20)).await;
    let before = Instant::now();
    put(&view.fake, "a", 2);
    // Another request for progress was answered, and the event has not arrived.
    view.follow(Duration::from_millis(7500)).await;
    assert_eq!(shown(&view.seen)["a"], 1);
    assert!(view.freshness.age() + Duration::from_millis(1) >= before.elapsed(), "{:?}", view.freshness.age());
}

#[tokio::test(start_paused = true)]
async fn a_view_survives_a_forgotten_deletion() {
    let mut view = View::start(None).await;
    view.fake.set_defect(EtcdDefect::ForgottenDeletion);
    view.link.refuse_connections();
    view.link.cut();
    delete(&view.fake, "a");
    view.fake.compact();
    let mut control = raw_watch(&view.fake, view.fake.revision()).await;
    view.link.accept_connections();
    view.follow(AUDIT / 6).await;
    view.assert_current();
    assert_eq!((view.count(Counter::WatchRelists), view.count(Counter::AuditRepairs)), (1, 0));
    put(&view.fake, "b", 2);
    let message = next(&mut control).await;
    assert_eq!(revisions(&message), [view.fake.revision()], "a raw watch never hears of the deletion");
}

/// The deletion follows the registration immediately, before its key is watched.
#[tokio::test(start_paused = true)]
async fn a_registration_survives_a_forgotten_deletion() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::ForgottenDeletion);
    let _registration = register(&client(&fake.link()), "i", RegisterOptions::new().audit(None)).await;
    delete(&fake, "i");
    fake.compact();
    comes_back(&fake, "i", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_deletion_is_respected() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::ForgottenDeletion);
    let registration = register(&client(&fake.link()), "i", respecting()).await;
    delete(&fake, "i");
    fake.compact();
    eventually("it has ended", || async {
        match registration.state() {
            RegistrationState::Ended => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert!(stored(&fake).is_empty());
}

/// The deletion follows the acquisition immediately, before its key is watched.
#[tokio::test(start_paused = true)]
async fn a_holder_notices_a_forgotten_deletion() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::ForgottenDeletion);
    let (one, two) = (client(&fake.link()), client(&fake.link()));
    let holder = acquire(&one).await;
    let (key, _) = fake.under(LOCKS).remove(0);
    fake.delete(&key);
    fake.compact();
    drop(passes_on(&fake, &holder, contend(&two)).await);
}

#[tokio::test(start_paused = true)]
async fn instances_outlive_revocations_by_a_former_leader() {
    let mut view = View::start(None).await;
    view.fake.set_defect(EtcdDefect::FormerLeaderRevokes);
    let mut control = raw(&view.fake).await;
    let lease = control.lease_grant(15, None).await.unwrap().id();
    control.put("control", "", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let (mut keeper, mut renewals) = control.lease_keep_alive(lease).await.unwrap();
    let etcd = client(&view.fake.link());
    let _repaired = register(&etcd, "i", RegisterOptions::new()).await;
    let _respecting = register(&etcd, "j", respecting()).await;
    view.follow(Duration::from_secs(2)).await;
    assert!(view.fake.under(b"control").is_empty(), "its lease is gone");
    keeper.keep_alive().await.unwrap();
    assert_eq!(soon("a renewal", renewals.message()).await.unwrap().unwrap().ttl(), 15, "and acknowledged");

    for id in ["i", "j"] {
        comes_back(&view.fake, id, 3).await;
    }
    view.fake.mend();
    view.follow(Duration::from_secs(20)).await;
    view.assert_current();
    assert_eq!(view.seen.len(), 4);
    assert_eq!(view.count(Counter::AuditRepairs), 0);
}

#[tokio::test(start_paused = true)]
async fn locks_revoked_by_a_former_leader_pass_on() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::FormerLeaderRevokes);
    let (one, two) = (client(&fake.link()), client(&fake.link()));
    let mut holder = acquire(&one).await;
    for (client, others) in [(&two, &one), (&one, &two), (&two, &one)] {
        holder = passes_on(&fake, &holder, contend(client)).await;
        assert!(others.counters().get(Counter::Renewals) > 0, "its last renewal was acknowledged");
    }
    fake.mend();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(holder.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_view_ignores_events_below_its_start() {
    let mut view = View::start(None).await;
    view.fake.set_defect(EtcdDefect::OldEvents);
    put(&view.fake, "c", 1);
    for weight in 2..6 {
        put(&view.fake, "a", weight);
    }
    delete(&view.fake, "c");
    view.follow(Duration::from_secs(1)).await;
    view.assert_current();
    let known = view.seen.revision();
    view.link.cut();
    // No older state is shown again.
    view.follow(Duration::from_secs(10)).await;
    assert_eq!(view.seen.revision(), known);
    assert!(view.count(Counter::WatchRepeats) > 0 && view.count(Counter::WatchResumes) > 0);
    put(&view.fake, "a", 6);
    view.follow(Duration::from_secs(10)).await;
    view.assert_current();
    assert_eq!((view.count(Counter::WatchRelists), view.count(Counter::AuditRepairs)), (0, 0));

    let start = view.fake.revision() + 1;
    put(&view.fake, "a", 7);
    put(&view.fake, "a", 8);
    view.fake.set_defect(EtcdDefect::OldEvents);
    put(&view.fake, "b", 2);
    let mut control = raw_watch(&view.fake, start + 3).await;
    let notice = next(&mut control).await;
    assert!(notice.events().is_empty() && notice.header().unwrap().revision() < start + 2, "{notice:?}");
    assert_eq!(revisions(&next(&mut control).await), [start + 2], "below its start");
}

/// The old events are those of a former registration with the same key.
#[tokio::test(start_paused = true)]
async fn a_registration_ignores_events_below_its_watch() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::OldEvents);
    let etcd = client(&fake.link());
    let former = register(&etcd, "i", RegisterOptions::new()).await;
    former.deregister().await.unwrap();
    let registration = register(&etcd, "i", respecting()).await;
    let before = fake.revision();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(matches!(registration.state(), RegistrationState::Registered { .. }), "{:?}", registration.state());
    assert_eq!((fake.revision(), etcd.counters().get(Counter::Reregistrations)), (before, 0));
    assert!(etcd.counters().get(Counter::WatchRepeats) > 0, "there were old events");
}

/// The old events are those of a former entry with the same key.
#[tokio::test(start_paused = true)]
async fn a_holder_ignores_events_below_its_watch() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::OldEvents);
    let (one, two) = (client(&fake.link()), client(&fake.link()));
    acquire(&one).await.release().await.unwrap();
    let holder = acquire(&one).await;
    let mut next = contend(&two);
    queued(&fake, 2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    next.assert_running();
    assert!(holder.is_held());
    holder.release().await.unwrap();
    assert!(next.done("its turn").await.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_view_never_follows_a_stale_read() {
    let mut view = View::start(None).await;
    view.fake.set_defect(EtcdDefect::StaleReads);
    let paused = view.fake.revision();
    put(&view.fake, "a", 2);
    delete(&view.fake, "b");
    put(&view.fake, "c", 1);
    let read = raw(&view.fake).await.get(format!("{PREFIX}a"), None).await.unwrap();
    assert_eq!((read.header().unwrap().revision(), read.kvs()[0].mod_revision()), (paused, paused - 1));

    // Audits and probes read an old state, also after an interruption.
    view.follow(AUDIT * 2).await;
    view.assert_current();
    view.link.cut();
    put(&view.fake, "a", 3);
    view.follow(AUDIT * 2).await;
    view.assert_current();
    view.fake.mend();
    put(&view.fake, "a", 4);
    view.follow(AUDIT * 2).await;
    view.assert_current();
    assert_eq!((view.count(Counter::StoreWentBack), view.count(Counter::AuditRepairs)), (0, 0));
    assert!(view.freshness.is_live() && view.freshness.age() <= Duration::from_secs(10), "{:?}", view.freshness);
}

/// The watch falls silent after it has reported events. The first probe since is answered with the state before them.
#[tokio::test(start_paused = true)]
async fn a_stale_probe_proves_no_freshness() {
    let mut view = View::start(None).await;
    view.fake.set_defect(EtcdDefect::StaleReads);
    put(&view.fake, "a", 2);
    view.follow(Duration::from_millis(100)).await;
    view.assert_current();
    view.fake.misbehave(Misbehavior::Silence);
    put(&view.fake, "a", 3);
    let missed = Instant::now();
    while shown(&view.seen)["a"] == 2 {
        let (age, at_least) = (view.freshness.age(), missed.elapsed());
        assert!(age >= at_least && age < Duration::from_secs(60), "{age:?}, {at_least:?} after the change");
        view.follow(Duration::from_millis(100)).await;
    }
    assert!(view.fake.has_misbehaved() && missed.elapsed() > Duration::from_secs(5), "{:?}", missed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_view_catches_up_after_a_stale_list() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    put(&fake, "b", 1);
    fake.set_defect(EtcdDefect::StaleReads);
    put(&fake, "a", 2);
    delete(&fake, "b");
    let etcd = client(&fake.link());
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let mut seen = soon("a list", watcher.next()).await.unwrap().snapshot;
    while shown(&seen) != stored(&fake) {
        seen = soon("the changes since", watcher.next()).await.unwrap().snapshot;
    }
    assert_eq!(etcd.counters().get(Counter::AuditRepairs), 0);
}

/// A list of a revision that is compacted permits no watch, so another list follows, which may be as old.
#[tokio::test(start_paused = true)]
async fn stale_lists_of_compacted_revisions_are_spaced_out() {
    let fake = FakeEtcd::start();
    put(&fake, "a", 1);
    fake.set_defect(EtcdDefect::StaleReads);
    put(&fake, "a", 2);
    fake.compact();
    let etcd = client(&fake.link());
    let mut watcher = etcd.watch(&service()).await.unwrap();
    let mut seen = soon("a list", watcher.next()).await.unwrap().snapshot;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(fake.requests().ranges <= 20, "{:?}", fake.requests());
    fake.mend();
    while shown(&seen) != stored(&fake) {
        seen = soon("the present state", watcher.next()).await.unwrap().snapshot;
    }
}

/// The watch of a holder's entry has to begin at a list. No watch may begin at one that is older than the compaction.
#[tokio::test(start_paused = true)]
async fn a_holder_notices_a_deletion_after_stale_lists() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::StaleReads);
    let etcd = client(&fake.link());
    let holder = acquire(&etcd).await;
    fake.compact();
    fake.delete(&fake.under(LOCKS).remove(0).0);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(holder.is_held(), "nothing can report it");
    fake.mend();
    let mended = Instant::now();
    soon("noticed", holder.lost()).await;
    assert!(mended.elapsed() <= RECOVERED + NOTICED, "after {:?}", mended.elapsed());
}

/// Each comparison finds no key, as before the registration.
#[tokio::test(start_paused = true)]
async fn a_registration_outlives_stale_reads() {
    for options in [RegisterOptions::new(), respecting()] {
        let fake = FakeEtcd::start();
        fake.set_defect(EtcdDefect::StaleReads);
        let etcd = client(&fake.link());
        let registration = register(&etcd, "i", options.audit(Some(Duration::from_secs(1)))).await;
        let before = fake.revision();
        let reads = fake.requests().ranges;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(fake.requests().ranges > reads + 10, "it is compared");
        fake.mend();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(matches!(registration.state(), RegistrationState::Registered { .. }), "{:?}", registration.state());
        assert_eq!((stored(&fake).len(), absences(&fake, "i").len(), fake.revision()), (1, 0, before));
    }
}

/// Each read shows no key, as before the registration.
#[tokio::test(start_paused = true)]
async fn a_deregistration_removes_despite_stale_reads() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::StaleReads);
    let registration = register(&client(&fake.link()), "i", RegisterOptions::new()).await;
    assert_eq!(soon("removed", registration.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(stored(&fake).is_empty());
}

/// Each comparison finds the value before the last update. With a given lease it may be another registration's.
#[tokio::test(start_paused = true)]
async fn a_stale_former_value_is_no_successor() {
    let fake = FakeEtcd::start();
    let lease = LeaseId::new(raw(&fake).await.lease_grant(600, None).await.unwrap().id());
    let options = RegisterOptions::new().lease(LeaseChoice::Given(lease)).audit(Some(Duration::from_secs(1)));
    let etcd = client(&fake.link());
    let registration = register(&etcd, "i", options).await;
    fake.set_defect(EtcdDefect::StaleReads);
    soon("updated", registration.update(|update| _ = update.weight(7))).await.unwrap();
    let (before, reads) = (fake.revision(), fake.requests().ranges);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(fake.requests().ranges > reads + 10, "it is compared");
    assert!(matches!(registration.state(), RegistrationState::Registered { .. }), "{:?}", registration.state());
    assert_eq!((stored(&fake)["i"], fake.revision()), (7, before));
    assert_eq!(soon("removed", registration.deregister()).await.unwrap(), Deregistered::Removed);
    assert!(stored(&fake).is_empty());
}

/// Each comparison finds the value that the registration took over, in a layout without terms.
#[tokio::test(start_paused = true)]
async fn a_stale_predecessor_is_no_successor() {
    let fake = FakeEtcd::start();
    let layout = |link: &Link| {
        let builder = Etcd::from_channel(link.channel()).runtime(SessionRuntime::Caller);
        builder.layout(EtcdNaming::default()).build().unwrap()
    };
    let (one, two) = (layout(&fake.link()), layout(&fake.link()));
    let predecessor = register(&one, "i", RegisterOptions::new()).await;
    fake.set_defect(EtcdDefect::StaleReads);
    let options = RegisterOptions::new().on_conflict(OnConflict::TakeOver).audit(Some(Duration::from_secs(1)));
    let registration = register(&two, "i", options).await;
    eventually("it gave way", || async {
        match predecessor.state() {
            RegistrationState::Superseded { .. } => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let (before, reads) = (fake.revision(), fake.requests().ranges);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(fake.requests().ranges > reads + 10, "it is compared");
    assert!(matches!(registration.state(), RegistrationState::Registered { .. }), "{:?}", registration.state());
    assert_eq!(fake.revision(), before);
    assert_eq!(soon("removed", registration.deregister()).await.unwrap(), Deregistered::Removed);
}

/// A read of an old state, before the current holder's acquisition, shows a free lock.
#[tokio::test(start_paused = true)]
async fn a_stale_read_makes_no_second_holder() {
    for shared in [false, true] {
        let fake = FakeEtcd::start();
        fake.set_defect(EtcdDefect::StaleReads);
        let (one, two) = (client(&fake.link()), client(&fake.link()));
        let holder = acquire(&one).await;
        let mut next = {
            let options = if shared { LockOptions::new().shared() } else { LockOptions::new() };
            BackgroundTask::run(async move { two.acquire(&lock_name(), options).await.unwrap() })
        };
        queued(&fake, 2).await;
        assert_eq!(
            raw(&fake).await.get(LOCKS, Some(GetOptions::new().with_prefix())).await.unwrap().count(),
            0,
            "a stale read"
        );
        tokio::time::sleep(Duration::from_secs(60)).await;
        next.assert_running();
        assert!(holder.is_held());
        holder.release().await.unwrap();
        fake.mend();
        assert!(next.done("its turn").await.is_held());
    }
}

/// The position of a shared entry is read, and that read fails.
#[tokio::test(start_paused = true)]
async fn a_failed_attempt_leaves_no_queue_entry() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::StaleReads);
    let [one, two, three] = [(), (), ()].map(|()| client(&fake.link()));
    let holder = acquire(&one).await;
    let attempt = soon("an answer", two.try_acquire(&lock_name(), LockOptions::new().shared())).await;
    assert!(matches!(attempt, Err(Error::Unavailable(_))), "{attempt:?}");
    queued(&fake, 1).await;
    fake.mend();
    let mut next = contend(&three);
    holder.release().await.unwrap();
    assert!(next.done("its turn").await.is_held());
}

#[tokio::test(start_paused = true)]
async fn an_acknowledged_renewal_hides_no_lost_instance() {
    let mut view = View::start(None).await;
    view.fake.set_defect(EtcdDefect::RevokedLeaseRenewed);
    let mut control = raw(&view.fake).await;
    let lease = control.lease_grant(15, None).await.unwrap().id();
    let etcd = client(&view.fake.link());
    let _repaired = register(&etcd, "i", RegisterOptions::new()).await;
    let _respecting = register(&etcd, "j", respecting()).await;
    for times in 1..4 {
        view.follow(Duration::from_secs(10)).await;
        view.fake.revoke_all();
        for id in ["i", "j"] {
            comes_back(&view.fake, id, times).await;
        }
    }
    let (_, mut renewals) = control.lease_keep_alive(lease).await.unwrap();
    assert_eq!(soon("a renewal", renewals.message()).await.unwrap().map(|renewed| renewed.ttl()), None);
    view.follow(Duration::from_secs(10)).await;
    view.assert_current();
    assert_eq!((view.seen.len(), view.count(Counter::AuditRepairs)), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn an_acknowledged_renewal_hides_no_lost_lock() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::RevokedLeaseRenewed);
    let (one, two) = (client(&fake.link()), client(&fake.link()));
    let mut holder = acquire(&one).await;
    for client in [&two, &one, &two] {
        tokio::time::sleep(Duration::from_secs(10)).await;
        fake.revoke_all();
        holder = passes_on(&fake, &holder, contend(client)).await;
    }
}

/// The holder and the next contender lose their entries at the same time, and another contender joins.
#[tokio::test(start_paused = true)]
async fn a_contender_without_an_entry_takes_no_turn() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::RevokedLeaseRenewed);
    let [one, two, three] = [(), (), ()].map(|()| client(&fake.link()));
    let holder = acquire(&one).await;
    let mut next = contend(&two);
    queued(&fake, 2).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    fake.revoke_all();
    let mut other = contend(&three);
    let (guard, mut waiting) = tokio::select! {
        guard = next.done("its turn") => (guard, other),
        guard = other.done("its turn") => (guard, next),
    };
    queued(&fake, 2).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    waiting.assert_running();
    assert!(guard.is_held() && !holder.is_held());
    guard.release().await.unwrap();
    assert!(waiting.done("its turn").await.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_after_an_expiry_conceals_nothing() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::RevokedLeaseRenewed);
    fake.expire_leases();
    let mut control = raw(&fake).await;
    let lease = control.lease_grant(2, None).await.unwrap().id();
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Its holder has to know of the expiry by itself, although the renewal is acknowledged.
    let _renewed = control.lease_keep_alive(lease).await.unwrap();
    assert_eq!(fake.concealed_revocations(), []);
}

/// Returns the leases whose revocation was concealed.
fn concealed(fake: &FakeEtcd) -> Vec<i64> {
    fake.concealed_revocations().iter().map(|revocation| revocation.lease).collect()
}

#[tokio::test(start_paused = true)]
async fn a_revocation_before_a_renewal_is_concealed() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::RevokedLeaseRenewed);
    let mut control = raw(&fake).await;
    let lease = control.lease_grant(15, None).await.unwrap().id();
    control.lease_revoke(lease).await.unwrap();
    assert!(concealed(&fake).is_empty());
    let _renewed = control.lease_keep_alive(lease).await.unwrap();
    assert_eq!(concealed(&fake), [lease]);
    fake.mend();
    assert_eq!(concealed(&fake), [lease], "what was concealed stays known");
}

#[tokio::test(start_paused = true)]
async fn a_revocation_by_the_former_leader_is_concealed() {
    let fake = FakeEtcd::start();
    fake.set_defect(EtcdDefect::FormerLeaderRevokes);
    let mut control = raw(&fake).await;
    let [own, renewed] =
        [control.lease_grant(15, None).await.unwrap().id(), control.lease_grant(15, None).await.unwrap().id()];
    control.lease_revoke(own).await.unwrap();
    let _renewed = control.lease_keep_alive(renewed).await.unwrap();
    eventually("the former leader revokes it", || async {
        let concealed = concealed(&fake);
        if concealed == [renewed] { Ok(()) } else { Err(concealed) }
    })
    .await;
}
