//! The conformance suite has teeth: each deliberate defect of this backend fails at least one case.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod common;

use std::{
    panic::{self, AssertUnwindSafe},
    time::Duration,
};

use common::MemoryHarness;
use enlist_memory::{Defect, MemoryStore};
use enlist_testkit::cases::{Case, all};

/// Runs one case and says whether it failed.
fn fails(case: &Case<MemoryHarness>, defect: Defect) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let harness = MemoryHarness::new(MemoryStore::with_defect(defect));
    let run = async {
        tokio::select! {
            () = (case.run)(&harness) => false,
            // A defect can make a loop spin, and then the paused clock never moves.
            () = real_time(Duration::from_secs(2)) => true,
        }
    };
    panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))).unwrap_or(true)
}

/// Waits on the real clock, beside a runtime whose clock is paused.
async fn real_time(limit: Duration) {
    let (done, over) = tokio::sync::oneshot::channel::<()>();
    let (cancel, cancelled) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        // Ends at the limit, or when the other side is gone.
        let _ = cancelled.recv_timeout(limit);
        drop(done);
    });
    let _ = over.await;
    drop(cancel);
}

#[test]
fn every_defect_fails_a_case() {
    // Hundreds of failures are expected here; their messages would bury the result.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let results: Vec<(Defect, Vec<&str>)> = Defect::ALL
        .into_iter()
        .map(|defect| {
            let cases = all::<MemoryHarness>();
            (defect, cases.iter().filter(|case| fails(case, defect)).map(|case| case.name).collect())
        })
        .collect();
    panic::set_hook(hook);
    for (defect, failed) in &results {
        println!("{defect:?} fails {} cases, for instance {:?}", failed.len(), failed.first());
    }
    let unnoticed: Vec<_> = results.iter().filter(|(_, failed)| failed.is_empty()).map(|(defect, _)| defect).collect();
    assert!(unnoticed.is_empty(), "no case notices {unnoticed:?}");
    assert!(results.len() >= 10);
}
