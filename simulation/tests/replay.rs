//! A seed decides a run: its events, their order and their times.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
};

/// Returns the log of a run.
fn log(seed: u64, how: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enlist-simulation"));
    let output = command.args(["one", &seed.to_string(), how]).output().expect("it was built with this test");
    let log = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "seed {seed} failed:\n{}", tail(&log));
    log
}

/// Returns the last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Fails with the first line that differs, because a log may have a hundred thousand lines.
fn assert_same(one: &str, other: &str) {
    for (number, (one, other)) in one.lines().zip(other.lines()).enumerate() {
        assert_eq!(one, other, "line {number}");
    }
    assert_eq!(one.lines().count(), other.lines().count());
}

#[test]
fn a_seed_repeats_the_events_in_order() {
    for seed in 1..=10 {
        let first = log(seed, "--log");
        assert!(first.lines().count() > 20, "something happened:\n{first}");
        assert_same(&first, &log(seed, "--log"));
    }
}

/// Compares all log lines of all libraries, including the frames of HTTP/2.
#[test]
fn a_seed_repeats_every_step() {
    for seed in [1, 2] {
        let first = log(seed, "--trace");
        assert!(first.contains("h2::codec"), "the trace is one:\n{}", tail(&first));
        assert_same(&first, &log(seed, "--trace"));
    }
}

#[test]
fn different_seeds_are_different_runs() {
    assert_ne!(log(1, "--log"), log(2, "--log"));
}

/// A run that waits uses no processor time. It waits here because its log, which is not read, exceeds a pipe. `timeout`
/// ends by the signal that ended the run, or with 124 if it had to end it.
#[test]
fn a_blocked_run_is_killed() {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_enlist-simulation"), "one", "1", "--trace", "--limit", "1"]);
    let mut run = command.stdout(Stdio::piped()).spawn().expect("coreutils are installed");
    let status = run.wait().expect("it is a child");
    assert_eq!(status.signal(), Some(libc::SIGALRM), "{status}");
}
