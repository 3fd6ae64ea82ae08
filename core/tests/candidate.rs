//! Candidates on the memory backend, under a paused clock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{BackoffPolicy, Candidate, Election, Error, FencingToken, Leadership, LockName, LockOptions};
use enlist_memory::{MemoryClient, MemoryStore};

fn name() -> LockName {
    LockName::parse("office").unwrap()
}

fn candidate(client: &MemoryClient) -> Candidate {
    let options = LockOptions::new().ttl(Duration::from_secs(5));
    Candidate::new(Arc::new(client.clone()), name(), "me").options(options)
}

async fn leader(store: &MemoryStore) -> Option<String> {
    store.client().leader(&name()).await.unwrap().map(|leader| leader.value)
}

#[tokio::test(start_paused = true)]
async fn work_runs_only_while_leading() {
    let store = MemoryStore::new();
    let client = store.client();
    let seen = candidate(&client).run(async |leadership| (leadership.is_held(), leader(&store).await)).await.unwrap();
    assert_eq!(seen, (true, Some("me".to_owned())));
    assert_eq!(leader(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_loss_ends_the_run() {
    let store = MemoryStore::new();
    let client = store.client();
    let candidate = candidate(&client);
    let run = async |_: &Leadership| {
        client.cut();
        std::future::pending::<()>().await;
    };
    assert!(matches!(candidate.run(run).await, Err(Error::LeaseLost)));
}

#[tokio::test(start_paused = true)]
async fn a_candidate_campaigns_again_after_a_loss() {
    let store = MemoryStore::new();
    let client = store.client();
    let terms = AtomicUsize::new(0);
    let mut tokens: Vec<FencingToken> = Vec::new();
    let healer = client.clone();
    let delays = BackoffPolicy::new(Duration::from_secs(1), Duration::from_secs(1)).unwrap();
    let candidate = candidate(&client).again_after_loss_with(delays);
    let work = candidate.run(async |leadership| {
        tokens.push(leadership.fencing_token());
        if terms.fetch_add(1, Ordering::SeqCst) < 2 {
            client.cut();
            std::future::pending::<()>().await;
        }
        "done"
    });
    let heal = async {
        loop {
            tokio::time::sleep(Duration::from_secs(20)).await;
            healer.heal();
        }
    };
    let output = tokio::select! {
        output = work => output.unwrap(),
        () = heal => unreachable!("it goes on for ever"),
    };
    assert_eq!(output, "done");
    assert_eq!(tokens.len(), 3);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_ends_a_repeating_candidate() {
    let store = MemoryStore::new();
    let client = store.client();
    let candidate = candidate(&client).again_after_loss();
    let run = async |_: &Leadership| {
        client.close().await.unwrap();
        std::future::pending::<()>().await;
    };
    assert!(matches!(candidate.run(run).await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn it_runs_in_a_task_of_its_own() {
    let store = MemoryStore::new();
    let candidate = candidate(&store.client());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let work = async |leadership: &Leadership| {
            tokio::task::yield_now().await;
            leadership.is_held()
        };
        candidate.run(work).await.unwrap()
    });
    assert!(tasks.join_next().await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_run_resigns() {
    let store = MemoryStore::new();
    let client = store.client();
    let candidate = candidate(&client);
    let forever = candidate.run(async |_| std::future::pending::<()>().await);
    assert!(tokio::time::timeout(Duration::from_secs(1), forever).await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(leader(&store).await, None);
}
