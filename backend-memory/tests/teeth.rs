//! Sensitivity of the conformance suite: each deliberate defect of this backend fails at least one case.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "support/harness.rs"]
mod harness;

use std::{
    panic::{self, AssertUnwindSafe},
    time::Duration,
};

use enlist_memory::{DeliberateDefect, MemoryStore};
use enlist_testkit::cases::{Case, all};
use harness::MemoryHarness;

/// Failure of a case.
#[derive(Debug)]
struct Failure {
    case: &'static str,
    /// Its message; `None` if the case spun.
    message: Option<String>,
}

/// Runs one case.
fn run(case: &Case<MemoryHarness>, defect: DeliberateDefect) -> Option<Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let harness = MemoryHarness::new(MemoryStore::with_defect(defect));
    let run = async {
        tokio::select! {
            () = (case.run)(&harness) => None,
            // A defect can make a loop spin, and then the paused clock never moves.
            () = real_time(Duration::from_secs(2)) => Some(Failure { case: case.name, message: None }),
        }
    };
    panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Some(Failure { case: case.name, message })
    })
}

/// Returns `true` if a message has words beside values, such as `1.5s` or `LeaseLost`.
fn has_words(message: &str) -> bool {
    let words = message.split(|c: char| !c.is_alphanumeric() && c != '.').filter(|word| word.len() > 1);
    words.filter(|word| word.chars().all(|c| c.is_ascii_lowercase())).count() >= 2
}

/// Waits on the real clock, beside a runtime whose clock is paused.
async fn real_time(limit: Duration) {
    let (done, over) = tokio::sync::oneshot::channel::<()>();
    let (cancel, cancelled) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        // Ends at the limit, or when the other side is dropped.
        let _ = cancelled.recv_timeout(limit);
        drop(done);
    });
    let _ = over.await;
    drop(cancel);
}

#[test]
fn every_defect_fails_a_case() {
    // Hundreds of failures are expected here; their messages would hide the result.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let results: Vec<(DeliberateDefect, Vec<Failure>)> = DeliberateDefect::ALL
        .into_iter()
        .map(|defect| (defect, all().iter().filter_map(|case| run(case, defect)).collect()))
        .collect();
    panic::set_hook(hook);
    for (defect, failed) in &results {
        println!("{defect:?} fails {} cases, for instance {:?}", failed.len(), failed.first().map(|one| one.case));
    }
    let failures = results.iter().flat_map(|(_, failed)| failed);
    let silent: Vec<_> = failures.filter(|one| !one.message.as_deref().is_none_or(has_words)).collect();
    assert!(silent.is_empty(), "these do not say what was awaited: {silent:#?}");
    let unnoticed: Vec<_> = results.iter().filter(|(_, failed)| failed.is_empty()).map(|(defect, _)| defect).collect();
    assert!(unnoticed.is_empty(), "no case notices {unnoticed:?}");
    assert!(results.len() >= 10);
}
