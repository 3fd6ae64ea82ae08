//! Conformance of the etcd backend to the guarantees of the traits, on real etcd.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "support/harness.rs"]
mod harness;

/// The cases on etcd. `CONFORMANCE` in `xtask/src/command.rs` selects them by this name.
mod etcd {
    use super::harness::EtcdHarness;

    enlist_testkit::conformance!(
        #[tokio::test]
        EtcdHarness::native().await
    );
}
