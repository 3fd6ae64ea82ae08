//! Conformance of the etcd backend to the guarantees of the traits, on real etcd.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "support/harness.rs"]
mod harness;

/// Its name selects these tests where those of other backends are built beside them.
mod etcd {
    use super::harness::EtcdHarness;

    enlist_testkit::conformance!(
        #[tokio::test]
        EtcdHarness::native().await
    );
}
