//! Cases on a scripted etcd under a paused clock: what timing decides, and faults that a real etcd cannot be made to
//! show. They are modules of one program, because each program links the whole backend.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

#[path = "../support/mod.rs"]
mod support;

mod closing;
mod contenders;
mod departures;
mod etcd_defects;
mod fake;
mod handovers;
mod late_writes;
mod leases;
mod limits;
mod panicking_layouts;
mod queues;
mod restored;
mod semaphores;
mod updates;
mod withdrawals;
