//! Conformance of the memory backend to the guarantees of the traits.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod common;

use common::MemoryHarness;
use enlist_memory::MemoryStore;

enlist_testkit::conformance!(
    #[tokio::test(start_paused = true)]
    MemoryHarness::new(MemoryStore::new())
);
