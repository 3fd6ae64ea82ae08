//! A seed that fails among many is repeated exactly: with the same verdicts, also when its events are logged. It fails
//! because of a deliberate defect.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

const DEFECT: &str = "DeletionsIgnored";

/// Number of seeds of which several fail.
const SEEDS: &str = "6";

/// Returns the output of a command of the simulation, which has to fail.
fn failure(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enlist-simulation"));
    let output = command.args(args).args(["--defect", DEFECT]).output().expect("it was built with this test");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{args:?}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Returns the verdicts in lines.
fn verdicts<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    lines.map(str::trim_start).filter(|line| line.starts_with("broken: ")).collect()
}

/// Returns the verdicts of the failed seeds in the output of many runs.
fn failed(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let (mut failed, mut lines) = (BTreeMap::new(), text.lines().peekable());
    while let Some(line) = lines.next() {
        let Some((seed, _)) = line.strip_prefix("seed ").and_then(|line| line.split_once(" failed; ")) else {
            continue;
        };
        let of_seed = std::iter::from_fn(|| lines.next_if(|line| line.starts_with("  ")));
        failed.insert(seed, verdicts(of_seed));
    }
    failed
}

#[test]
fn a_failing_seed_repeats_its_verdicts() {
    let many = failure(&["many", "--seeds", SEEDS]);
    let failed = failed(&many);
    let different: BTreeSet<_> = failed.values().collect();
    assert!(different.len() > 1, "several fail, each in its own way:\n{many}");
    for (seed, expected) in &failed {
        assert!(!expected.is_empty(), "{seed} has no verdict:\n{many}");
        for logs in [&[][..], &["--log"], &["--trace"]] {
            let one = failure(&[&["one", seed], logs].concat());
            assert_eq!(&verdicts(one.lines()), expected, "seed {seed} {logs:?}");
        }
    }
    // Not only the verdicts: the same events in the same order.
    let seed = failed.keys().next().expect("several fail");
    let log = || failure(&["one", seed, "--log"]);
    let (first, second) = (log(), log());
    let differs = first.lines().zip(second.lines()).find(|(one, other)| one != other);
    assert_eq!((differs, first.lines().count()), (None, second.lines().count()), "seed {seed}");
}
