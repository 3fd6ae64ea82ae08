//! Parts of the code whose mutants are tried, and the tests that have to notice them.

use glob::{MatchOptions, Pattern};

/// Files of a package that make decisions, and the tests that have to notice their mutants. Only mutants that survive
/// the first tests, which run fast, meet all tests.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) files: &'static [&'static str],
    /// Options of `cargo test` for the first tests, which are those of the package itself.
    pub(super) first: &'static [&'static str],
    /// Packages with the other tests, and options of `cargo test` for them.
    pub(super) tested_by: &'static [&'static str],
    pub(super) options: &'static [&'static str],
}

pub(super) const PARTS: &[Part] = &[
    Part {
        name: "core",
        package: "enlist",
        files: &[
            // Steps of a registration, and observations of a leftover.
            "core/src/backend/registration/reconcile.rs",
            "core/src/backend/registration/observation.rs",
            "core/src/backend/registration/key_claims.rs",
            // Delays and repetitions; transitions of a lease.
            "core/src/runtime/backoff.rs",
            "core/src/backend/retries.rs",
            "core/src/backend/session/renewal.rs",
            "core/src/backend/session/lease_terms.rs",
            "core/src/backend/session/lease_pool.rs",
            // Queue positions, the validity of locks, fences.
            "core/src/backend/lock/contender/state.rs",
            "core/src/backend/lock/guard_driver.rs",
            "core/src/backend/lock/queue_position.rs",
            "core/src/backend/lock/permit_position.rs",
            "core/src/lock/guard.rs",
            "core/src/lock/options.rs",
            "core/src/backend/lock/lock_validity.rs",
            "core/src/lock/fence.rs",
            // The mark of a job that ran.
            "core/src/lock/job_record.rs",
            // The outcome of a conditional write of the configuration.
            "core/src/backend/config.rs",
            // Errors after which a call may be repeated.
            "core/src/error.rs",
            // Views after a mass loss.
            "core/src/discovery/mass_loss.rs",
            // Ejection of an instance.
            "core/src/balancing/ejection.rs",
        ],
        first: &["--lib"],
        tested_by: &["enlist", "enlist-memory"],
        options: &["--lib", "--tests"],
    },
    Part {
        name: "pool",
        package: "enlist",
        files: &[
            "core/src/balancing/pool/retry.rs",
            "core/src/balancing/pool/call.rs",
            "core/src/balancing/pool/members.rs",
        ],
        first: &["--test", "pool"],
        tested_by: &["enlist"],
        options: &["--lib", "--tests"],
    },
    Part {
        name: "etcd",
        package: "enlist-etcd",
        files: &[
            // Transitions of watches.
            "backend-etcd/src/watch/watch_task/state.rs",
            "backend-etcd/src/watch/watch_task/messages.rs",
            "backend-etcd/src/watch/watch_task/live_watch.rs",
            "backend-etcd/src/watch/watch_task/low_read.rs",
            "backend-etcd/src/watch/record.rs",
            "backend-etcd/src/watch/replica.rs",
            "backend-etcd/src/watch/proofs.rs",
            "backend-etcd/src/watch/audit.rs",
            "backend-etcd/src/watch/key_monitors.rs",
            // Own keys, their loss, queue positions.
            "backend-etcd/src/registration/registration_task/own_writes.rs",
            "backend-etcd/src/registration/registration_task/eviction.rs",
            "backend-etcd/src/registration/registration_task/wake_reason.rs",
            "backend-etcd/src/lock/contender/position.rs",
            "backend-etcd/src/lock/contender/lock_delay.rs",
            "backend-etcd/src/lock/local_queue.rs",
            "backend-etcd/src/lock/key_suffixes.rs",
            // Departures of instances, renewals of a lease, restores of the store.
            "backend-etcd/src/discovery/watcher/departure.rs",
            "backend-etcd/src/session/renewal.rs",
            "backend-etcd/src/session/lease_task.rs",
            "backend-etcd/src/client/store_revision.rs",
            // Repetitions of a request, the next member.
            "backend-etcd/src/client/connection/repetitions.rs",
            "backend-etcd/src/client/connection/pinned.rs",
            "backend-etcd/src/client/connection/member_sync.rs",
            "backend-etcd/src/client/connection/recovery.rs",
            // Pages of a list, limits, guarded writes and those that share a transaction.
            "backend-etcd/src/client/requests/page_size.rs",
            "backend-etcd/src/client/requests/limits.rs",
            "backend-etcd/src/client/requests/guarded_write.rs",
            "backend-etcd/src/client/requests/write_batcher.rs",
            // Changes of the configuration.
            "backend-etcd/src/config/first_change.rs",
            "backend-etcd/src/config/transaction.rs",
            // The class of an error.
            "backend-etcd/src/error/mod.rs",
            "backend-etcd/src/error/answers.rs",
            "backend-etcd/src/error/texts.rs",
        ],
        first: &["--lib"],
        tested_by: &["enlist-etcd"],
        options: &["--lib", "--test", "scripted", "--test", "replies"],
    },
    Part {
        name: "layouts",
        package: "enlist-etcd",
        files: &[
            "backend-etcd/src/layout/guarded.rs",
            "backend-etcd/src/layout/mod.rs",
            "backend-etcd/src/layout/native.rs",
            "backend-etcd/src/layout/native/**/*.rs",
        ],
        ..LAYOUTS
    },
    // All but those of the part before. Together they take longer than a job may.
    Part { name: "other-layouts", files: &["backend-etcd/src/layout/**/*.rs"], ..LAYOUTS },
    Part {
        name: "grpc",
        package: "enlist-grpc",
        files: &[
            // Retries.
            "resolver-grpc/src/retry/policy.rs",
            "resolver-grpc/src/retry/failure.rs",
            "resolver-grpc/src/retry/status.rs",
            "resolver-grpc/src/retry/deadline.rs",
            "resolver-grpc/src/retry/replay.rs",
            // Ejection.
            "resolver-grpc/src/subchannel/liveness/ejection.rs",
            "resolver-grpc/src/subchannel/connectivity.rs",
        ],
        first: &["--lib"],
        tested_by: &["enlist-grpc"],
        options: &["--lib", "--tests"],
    },
];

/// Package and tests of the parts with layouts.
const LAYOUTS: Part = Part {
    name: "",
    package: "enlist-etcd",
    files: &[],
    first: &["--lib", "--test", "wire"],
    tested_by: &["enlist-etcd"],
    options: &["--lib", "--test", "layouts", "--test", "wire"],
};

/// Files whose mutants are tried, as patterns.
pub(super) struct Sources<'a> {
    pub(super) files: Vec<&'a str>,
    pub(super) excluded: Vec<&'a str>,
}

impl Sources<'_> {
    /// Returns `true` if a file is one of them.
    pub(super) fn contain(&self, file: &str) -> bool {
        // As in `cargo-mutants`.
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let matches = |patterns: &[&str]| {
            patterns.iter().any(|known| Pattern::new(known).is_ok_and(|known| known.matches_with(file, options)))
        };
        matches(&self.files) && !matches(&self.excluded)
    }
}
