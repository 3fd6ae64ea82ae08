//! Locks over a slow link, a fault that the conformance suite does not require of every backend.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::time::Duration;

use enlist::{Election, Error, Lock, LockName, LockOptions};
use enlist_memory::MemoryStore;
use enlist_testkit::{eventually, soon};
use tokio::{task::JoinSet, time::Instant};

const DELAY: Duration = Duration::from_secs(1);

fn name() -> LockName {
    LockName::parse("l").unwrap()
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_lease_blocks_no_other_caller() {
    let store = MemoryStore::new();
    let client = store.client();
    client.delay(DELAY);
    client.cut();
    let begun = Instant::now();
    let mut trying = JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        trying.spawn(async move { client.try_acquire(&name(), LockOptions::new()).await });
    }
    while let Some(tried) = trying.join_next().await {
        assert!(tried.unwrap().is_err());
        assert!(begun.elapsed() <= 2 * DELAY, "{:?}", begun.elapsed());
    }
    client.heal();
    for _ in 0..100 {
        let client = client.clone();
        trying.spawn(async move { client.try_acquire(&name(), LockOptions::new()).await });
    }
    let all = soon("all have tried", trying.join_all()).await;
    assert_eq!(all.into_iter().filter(|tried| matches!(tried, Ok(Some(_)))).count(), 1);
    assert_eq!(store.leases().len(), 1, "one for all");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_during_an_outage_names_its_cause() {
    let client = MemoryStore::new().client();
    let late = async || {
        let late = client.acquire(&name(), LockOptions::new().deadline(10 * DELAY)).await;
        let Err(Error::Timeout { op: "acquire", cause, .. }) = late else { panic!("a timeout: {late:?}") };
        cause.map(|cause| cause.to_string())
    };
    client.cut();
    assert_eq!(late().await.as_deref(), Some("store unavailable"));
    client.heal();
    let _holder = client.acquire(&name(), LockOptions::new()).await.unwrap();
    assert_eq!(late().await, None, "it is in the queue, and waits for its turn");
}

#[tokio::test(start_paused = true)]
async fn a_release_in_an_outage_names_its_cause() {
    let client = MemoryStore::new().client();
    let guard = client.acquire(&name(), LockOptions::new()).await.unwrap();
    client.cut();
    let late = guard.release().await.unwrap_err();
    let Error::Timeout { op: "release", cause: Some(cause), .. } = &late else { panic!("with a cause: {late:?}") };
    assert_eq!(cause.to_string(), "store unavailable");
}

#[tokio::test(start_paused = true)]
async fn renewals_count_while_a_proclamation_is_under_way() {
    let client = MemoryStore::new().client();
    let options = LockOptions::new().ttl(Duration::from_secs(3));
    let leadership = soon("elected", client.campaign(&name(), "first", options)).await.unwrap();
    client.delay(10 * DELAY);
    let proclaiming = async {
        let proclaimed = leadership.proclaim("second").await;
        (proclaimed, leadership.is_held())
    };
    let mending = async {
        // The proclamation is in progress, and later requests are fast again.
        tokio::time::sleep(Duration::from_millis(1)).await;
        client.delay(Duration::ZERO);
    };
    let ((proclaimed, held), ()) = soon("proclaimed", async { tokio::join!(proclaiming, mending) }).await;
    assert!(proclaimed.is_ok() && held, "{proclaimed:?} {:?}", leadership.lost().await);
}

/// The lease and the entry take a second each; the link is cut while the position is read.
#[tokio::test(start_paused = true)]
async fn an_attempt_fails_when_its_link_is_cut() {
    let store = MemoryStore::new();
    let client = store.client();
    client.delay(DELAY);
    let cutting = async {
        tokio::time::sleep(DELAY * 5 / 2).await;
        client.cut();
    };
    let name = name();
    let trying = client.try_acquire(&name, LockOptions::new());
    let (tried, ()) = soon("tried", async { tokio::join!(trying, cutting) }).await;
    assert!(matches!(tried, Err(Error::Unavailable(_))), "{tried:?}");
    client.heal();
    eventually("no entry is left", || async {
        let left = store.queue_length(&name);
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_an_outage_names_its_cause() {
    let store = MemoryStore::new();
    let (first, second) = (store.client(), store.client());
    let name = name();
    let holder = first.acquire(&name, LockOptions::new()).await.unwrap();
    let waiting = second.acquire(&name, LockOptions::new().deadline(10 * DELAY));
    let releasing = async {
        eventually("two are in the queue", || async {
            let now = store.queue_length(&name);
            if now == 2 { Ok(()) } else { Err(now) }
        })
        .await;
        second.cut();
        holder.release().await.unwrap();
    };
    let (late, ()) = tokio::join!(waiting, releasing);
    let Err(Error::Timeout { op: "acquire", cause: Some(cause), .. }) = late else { panic!("with a cause: {late:?}") };
    assert_eq!(cause.to_string(), "store unavailable");
}
