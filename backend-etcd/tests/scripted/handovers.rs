//! Hand-overs between sessions: one write, which removes the leader's entry and confirms the next one. With elections,
//! whose entries have values that a hand-over keeps; locks use the same protocol.

use std::{collections::VecDeque, time::Duration};

use enlist::{Election, Leadership, LockOptions};
use enlist_testkit::{BackgroundTask, FakeEtcd, Misbehavior, Requests, eventually, soon};

use crate::support::{lock_name, scripted::client};

/// Last part of the key of another client's entry: its lease, and a suffix.
const ENTRY: &[u8] = b"00000000000000ff-0000000000000000";

/// Waiting candidates, each in a session of its own. The value of each is its number.
struct Candidates {
    fake: FakeEtcd,
    waiting: VecDeque<BackgroundTask<Leadership>>,
}

impl Candidates {
    /// Returns candidates of which the third one leads: it was behind one that waited, and so saw the next one when it
    /// got its turn. `count` wait behind it.
    async fn behind_the_third(count: usize) -> (Self, Leadership) {
        Self::with_options(LockOptions::new(), count).await
    }

    async fn with_options(options: LockOptions, count: usize) -> (Self, Leadership) {
        let mut all = Self { fake: FakeEtcd::start(), waiting: VecDeque::new() };
        for number in 0..3 + count {
            all.enters(number, options.clone());
            all.has_entries(number + 1).await;
        }
        let mut leader = all.next().await;
        for _ in 0..2 {
            soon("resigned", leader.resign()).await.unwrap();
            leader = all.next().await;
        }
        (all, leader)
    }

    fn enters(&mut self, number: usize, options: LockOptions) {
        let etcd = client(&self.fake);
        self.waiting.push_back(BackgroundTask::run(async move {
            etcd.campaign(&lock_name(), &number.to_string(), options).await.unwrap()
        }));
    }

    async fn has_entries(&self, count: usize) {
        eventually("entries in the queue", || async {
            let now = self.fake.under(b"enlist/elections/").len();
            if now == count { Ok(()) } else { Err(now) }
        })
        .await;
    }

    async fn next(&mut self) -> Leadership {
        self.waiting.pop_front().unwrap().done("its turn").await
    }

    /// Returns the number of writes from the resignation of `leader` until the next one leads.
    async fn writes_of_resigning(&mut self, leader: Leadership) -> (Leadership, i64) {
        let before = self.fake.revision();
        soon("resigned", leader.resign()).await.unwrap();
        let next = self.next().await;
        assert!(next.is_held());
        (next, self.fake.revision() - before)
    }
}

#[tokio::test(start_paused = true)]
async fn a_handover_between_sessions_is_one_write() {
    let (mut all, third) = Candidates::behind_the_third(2).await;
    let (fourth, writes) = all.writes_of_resigning(third).await;
    assert_eq!(writes, 1);
    let leader = soon("the leader", client(&all.fake).leader(&lock_name())).await.unwrap().unwrap();
    assert_eq!((&*leader.value, leader.token), ("3", fourth.fencing_token()));
    // It knows the revision of the hand-over, which is the guard of a proclamation.
    all.fake.reset_requests();
    soon("proclaimed", fourth.proclaim("again")).await.unwrap();
    assert_eq!(all.fake.requests().txns, 1);
    let (fifth, writes) = all.writes_of_resigning(fourth).await;
    assert_eq!(writes, 1);
    soon("resigned", fifth.resign()).await.unwrap();
    all.has_entries(0).await;
}

/// Each request follows the one before, so these are the round trips of a resignation.
#[tokio::test(start_paused = true)]
async fn a_resignation_takes_two_requests() {
    let (mut all, mut leader) = Candidates::behind_the_third(1).await;
    // Knows the next one; does not know the one that enters now, and which is directly behind it.
    for (transactions, reads) in [(1, 1), (2, 0)] {
        all.fake.reset_requests();
        (leader, _) = all.writes_of_resigning(leader).await;
        let Requests { txns, ranges, .. } = all.fake.requests();
        assert_eq!((txns, ranges), (transactions, reads));
        all.enters(5, LockOptions::new());
        all.has_entries(2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_gave_up_holds_nothing_up() {
    let (mut all, third) = Candidates::behind_the_third(2).await;
    all.waiting.pop_front().unwrap().abort().await;
    all.has_entries(2).await;
    // The one behind it has the turn only once the leader is gone.
    all.waiting[0].assert_running();
    assert!(third.is_held());
    let (_fifth, writes) = all.writes_of_resigning(third).await;
    assert_eq!(writes, 2, "a removal, and a confirmation");
}

/// A key that is deleted, or whose lease expires, says nothing about the next one.
#[tokio::test(start_paused = true)]
async fn a_turn_without_handover_is_confirmed() {
    let (mut all, third) = Candidates::behind_the_third(1).await;
    let before = all.fake.revision();
    let leader = all.fake.under(b"enlist/elections/").into_iter().find(|(_, value)| shows(value, "2")).unwrap();
    all.fake.delete(&leader.0);
    let fourth = all.next().await;
    assert!(fourth.is_held());
    assert_eq!(all.fake.revision() - before, 2);
    assert_eq!(soon("its end", third.lost()).await, enlist::Loss::KeyGone);
}

fn shows(value: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(value).contains(&format!("\"{text}\""))
}

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_read_fails_confirms_its_turn() {
    let (mut all, third) = Candidates::behind_the_third(1).await;
    all.fake.misbehave(Misbehavior::NoList);
    let (_fourth, writes) = all.writes_of_resigning(third).await;
    assert!(all.fake.has_misbehaved());
    assert_eq!(writes, 2, "the hand-over, and a confirmation");
}

/// Otherwise the next contender would not wait for it after a crash.
#[tokio::test(start_paused = true)]
async fn a_leader_with_a_delay_leaves_its_mark() {
    let (mut all, third) = Candidates::with_options(LockOptions::new().lock_delay(Duration::from_secs(9)), 2).await;
    let mut leader = third;
    for _ in 0..2 {
        assert_eq!(all.fake.under(b"enlist/election-marks/").len(), 1);
        (leader, _) = all.writes_of_resigning(leader).await;
    }
    soon("resigned", leader.resign()).await.unwrap();
    assert_eq!(all.fake.under(b"enlist/"), []);
}

/// After a wipe, another entry can have the revision that a lost one had.
#[tokio::test(start_paused = true)]
async fn a_revision_alone_identifies_no_entry() {
    let (mut all, third) = Candidates::behind_the_third(1).await;
    let entries = all.fake.under(b"enlist/elections/");
    let with = |text| entries.iter().find(|(_, value)| shows(value, text)).cloned().unwrap();
    let ((before, _), (own, value)) = (with("2"), with("3"));
    let created = all.fake.journal().iter().filter(|change| change.key == own).map(|change| change.created).max();
    let another = [&own[..own.len() - ENTRY.len()], ENTRY].concat();
    let last = all.fake.revision();
    all.fake.wipe();
    let writes_until = |revision| {
        while all.fake.revision() < revision {
            all.fake.put("other", "write");
        }
    };
    writes_until(created.unwrap() - 1);
    // It is confirmed by a write.
    for _ in 0..2 {
        all.fake.put_under(another.clone(), value.clone(), 0xff);
    }
    // The watch of the predecessor has not noticed the wipe, and reports that it is gone.
    writes_until(last);
    all.fake.put(before.clone(), "");
    all.fake.delete(&before);
    all.has_entries(2).await;
    all.waiting[0].assert_running();
    assert!(!third.is_held());
    all.fake.delete(&another);
    assert!(all.next().await.is_held(), "it has entered the queue again");
}
