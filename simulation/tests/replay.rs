//! A run is decided by its number: what happens in it, in which order and when.

use std::process::Command;

/// All that happens in a run, as text.
fn log(seed: u64, how: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enlist-simulation"));
    let output = command.args(["one", &seed.to_string(), how]).output().expect("it was built with this test");
    let log = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "seed {seed} failed:\n{}", tail(&log));
    log
}

/// The last lines.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Fails with the first line that differs: a log may have a hundred thousand.
fn assert_same(one: &str, other: &str) {
    for (number, (one, other)) in one.lines().zip(other.lines()).enumerate() {
        assert_eq!(one, other, "line {number}");
    }
    assert_eq!(one.lines().count(), other.lines().count());
}

#[test]
fn a_seed_repeats_the_same_events_in_the_same_order() {
    for seed in 1..=10 {
        let first = log(seed, "--log");
        assert!(first.lines().count() > 20, "something happened:\n{first}");
        assert_same(&first, &log(seed, "--log"));
    }
}

/// Every step of every library that logs, down to the frames of HTTP/2.
#[test]
fn a_seed_repeats_every_step() {
    for seed in [1, 2] {
        let first = log(seed, "--trace");
        assert!(first.contains("h2::codec"), "the trace is one:\n{}", tail(&first));
        assert_same(&first, &log(seed, "--trace"));
    }
}

#[test]
fn another_seed_is_another_run() {
    assert_ne!(log(1, "--log"), log(2, "--log"));
}
