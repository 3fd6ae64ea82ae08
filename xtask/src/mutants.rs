//! Mutation testing of the code that makes decisions: each mutant of `cargo-mutants` has to fail a fast test, or has a
//! reason in `xtask/survivors.txt`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
};

use crate::{
    command::{Result, protoc},
    etcd,
};

/// Path of the list of survivors with reasons.
const SURVIVORS: &str = "xtask/survivors.txt";

/// Maximum duration of the tests of a mutant in seconds. A mutant that takes longer counts as noticed.
const LIMIT: &str = "120";

/// Files of a package that make decisions, and the tests that have to notice their mutants: packages, and options of
/// `cargo test`.
struct Part {
    package: &'static str,
    files: &'static [&'static str],
    tested_by: &'static [&'static str],
    options: &'static [&'static str],
}

const PARTS: &[Part] = &[
    Part {
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
            // Queue positions, the validity of locks, fences.
            "core/src/backend/lock/contender/state.rs",
            "core/src/backend/lock/guard_driver.rs",
            "core/src/backend/lock/queue_position.rs",
            "core/src/backend/lock/permit_position.rs",
            "core/src/lock/guard.rs",
            "core/src/lock/options.rs",
            "core/src/backend/lock/lock_validity.rs",
            "core/src/lock/fence.rs",
            // Views after a mass loss.
            "core/src/discovery/mass_loss.rs",
            // Retries and ejection of a pool.
            "core/src/balancing/ejection.rs",
            "core/src/balancing/pool/retry.rs",
            "core/src/balancing/pool/members.rs",
        ],
        tested_by: &["enlist", "enlist-memory"],
        options: &["--lib", "--tests"],
    },
    Part {
        package: "enlist-etcd",
        files: &[
            // Transitions of watches.
            "backend-etcd/src/watch/watch_task/state.rs",
            "backend-etcd/src/watch/watch_task/low_read.rs",
            "backend-etcd/src/watch/replica.rs",
            "backend-etcd/src/watch/proofs.rs",
            "backend-etcd/src/watch/audit.rs",
            "backend-etcd/src/watch/key_monitors.rs",
            // Own keys, queue positions, the class of an error.
            "backend-etcd/src/registration/registration_task/own_writes.rs",
            "backend-etcd/src/lock/contender/position.rs",
            "backend-etcd/src/error/answers.rs",
            "backend-etcd/src/layout/**/*.rs",
        ],
        tested_by: &["enlist-etcd"],
        options: &["--lib", "--test", "layouts", "--test", "wire", "--test", "fake", "--test", "late_writes"],
    },
    Part {
        package: "enlist-grpc",
        files: &[
            // Retries.
            "resolver-grpc/src/retry/policy.rs",
            "resolver-grpc/src/retry/failure.rs",
            "resolver-grpc/src/retry/status.rs",
            "resolver-grpc/src/retry/deadline.rs",
            // Ejection.
            "resolver-grpc/src/subchannel/liveness/ejection.rs",
            "resolver-grpc/src/subchannel/connectivity.rs",
        ],
        tested_by: &["enlist-grpc"],
        options: &["--lib", "--tests"],
    },
];

/// Runs all parts, or the files given by `--file FILE`, which may be repeated. `--rest` runs the other files of core as
/// a measurement: it prints survivors, which need no reason.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result {
    let (mut named, mut rest) = (BTreeSet::new(), false);
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--file" => drop(named.insert(args.next().ok_or("--file needs a value")?)),
            "--rest" => rest = true,
            other => return Err(format!("{other} is no option of mutants").into()),
        }
    }
    if etcd::on_path("cargo-mutants").is_none() {
        return Err("`cargo-mutants` is missing. Install it: `cargo install cargo-mutants --locked`".into());
    }
    if rest {
        return measure_rest();
    }
    let reasons = reasons(&fs::read_to_string(SURVIVORS)?)?;
    let (mut tried, mut unexplained, mut killed) = (0, Vec::new(), Vec::new());
    for (number, part) in PARTS.iter().enumerate() {
        let files: Vec<_> =
            part.files.iter().copied().filter(|file| named.is_empty() || named.contains(*file)).collect();
        if files.is_empty() {
            continue;
        }
        let found = mutate(&number.to_string(), part, &files, &[])?;
        tried += found.tried;
        unexplained.extend(found.survivors.iter().filter(|survivor| !reasons.contains_key(*survivor)).cloned());
        let of_part = reasons.keys().filter(|known| files.iter().any(|file| known.starts_with(&format!("{file}:"))));
        killed.extend(of_part.filter(|known| !found.survivors.contains(*known)).cloned());
    }
    if tried == 0 {
        return Err("no mutant was tried: the files are not in the list of files that make decisions".into());
    }
    println!("\n{tried} mutants, {} without a reason survived", unexplained.len());
    for known in killed {
        println!("no longer a survivor, its reason can be removed: {known}");
    }
    if unexplained.is_empty() {
        return Ok(());
    }
    Err(format!(
        "these mutants survived the tests; add a test, or a reason in {SURVIVORS}:\n{}",
        unexplained.join("\n")
    )
    .into())
}

/// Measures the files of core that are in no part.
fn measure_rest() -> Result {
    let part = &PARTS[0];
    let found = mutate("rest", part, &["core/src/**/*.rs"], part.files)?;
    println!("\nthe rest of core: {} mutants, {} survived:", found.tried, found.survivors.len());
    found.survivors.iter().for_each(|survivor| println!("{survivor}"));
    Ok(())
}

/// Outcome of the mutants of some files.
struct Found {
    tried: usize,
    survivors: BTreeSet<String>,
}

fn mutate(name: &str, part: &Part, files: &[&str], excluded: &[&str]) -> Result<Found> {
    let output = env::current_dir()?.join("target/mutants").join(name);
    fs::create_dir_all(&output)?;
    let mut command = Command::new("cargo-mutants");
    command.envs(protoc()?).args(["mutants", "--no-shuffle", "--timeout", LIMIT, "--package", part.package]);
    command.arg("--output").arg(&output);
    command.args(files.iter().flat_map(|file| ["--file", file]));
    command.args(excluded.iter().flat_map(|file| ["--exclude", file]));
    command.args(["--test-package", &part.tested_by.join(",")]);
    command.arg("--").args(part.options);
    println!("\n==> mutants of {}", files.join(", "));
    // Survivors are no failure: status 2 means that there are some, 3 that some timed out.
    let status = command.status()?;
    if !matches!(status.code(), Some(0 | 2 | 3)) {
        return Err(format!("cargo-mutants failed: {status}").into());
    }
    let directory = output.join("mutants.out");
    let lines = |file: &str| -> Result<Vec<String>> {
        let path = directory.join(file);
        let text = if Path::new(&path).exists() { fs::read_to_string(path)? } else { String::new() };
        Ok(text.lines().map(without_position).collect())
    };
    let survivors: BTreeSet<_> = lines("missed.txt")?.into_iter().collect();
    let tried = lines("caught.txt")?.len() + lines("timeout.txt")?.len() + lines("missed.txt")?.len();
    Ok(Found { tried, survivors })
}

/// Returns `file:line:column: text` without the numbers, which change with every edit.
fn without_position(line: &str) -> String {
    match line.splitn(4, ':').collect::<Vec<_>>()[..] {
        [file, _, _, text] => format!("{file}:{text}"),
        _ => line.to_owned(),
    }
}

/// Parses the known survivors: one line each, followed by an indented reason.
fn reasons(text: &str) -> Result<BTreeMap<String, String>> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut reasons = BTreeMap::new();
    while let Some(survivor) = lines.next() {
        let reason = lines.next().filter(|reason| reason.starts_with(' '));
        let reason = reason.ok_or(format!("{SURVIVORS}: there is no reason for {survivor}"))?;
        reasons.insert(survivor.to_owned(), reason.trim().to_owned());
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_survivor_has_a_reason() {
        let known = reasons(include_str!("../survivors.txt")).expect("each has one");
        assert!(known.values().all(|reason| reason.len() > 10), "{known:?}");
        assert!(reasons("core/src/a.rs: replace a with b\ncore/src/b.rs: replace b with c").is_err());
    }

    #[test]
    fn every_listed_file_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in PARTS.iter().flat_map(|part| part.files) {
            let path = file.strip_suffix("**/*.rs").unwrap_or(file);
            assert!(root.join(path).exists(), "{file}");
        }
    }

    #[test]
    fn a_survivor_is_known_at_any_line() {
        let line = "core/src/lock/fence.rs:52:9: replace Fence::admit with ()";
        assert_eq!(without_position(line), "core/src/lock/fence.rs: replace Fence::admit with ()");
    }
}
