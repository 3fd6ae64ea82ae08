//! Conformance of the memory backend to the guarantees of the traits.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "support/harness.rs"]
mod harness;

use enlist_memory::MemoryStore;
use harness::MemoryHarness;

enlist_testkit::conformance!(
    #[tokio::test(start_paused = true)]
    MemoryHarness::new(MemoryStore::new())
);
