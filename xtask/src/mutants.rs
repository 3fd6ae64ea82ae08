//! Mutation testing of the code that decides: each mistake that `cargo-mutants` can make in it has to fail a fast test, or there is a
//! reason in `xtask/survivors.txt`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
};

use crate::{Result, etcd, protoc};

/// Path of the reasons.
const SURVIVORS: &str = "xtask/survivors.txt";

/// Seconds that the tests of a mutant may take; one that takes longer has been noticed.
const LIMIT: &str = "120";

/// A package, its files that decide, and the tests that have to notice a mistake in them: packages, and options of `cargo test`.
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
            // What a registration does next, and when it may.
            "core/src/backend/reconcile.rs",
            "core/src/backend/observation.rs",
            "core/src/backend/key_claims.rs",
            "core/src/runtime/backoff.rs",
            // Queue positions, the validity of locks, fences.
            "core/src/lock/mod.rs",
            "core/src/lock/lock_validity.rs",
            "core/src/lock/fence.rs",
            // Ejection.
            "core/src/balancing/ejection.rs",
        ],
        tested_by: &["enlist", "enlist-memory"],
        options: &["--lib", "--tests"],
    },
    Part {
        package: "enlist-etcd",
        files: &[
            // Transitions of watches.
            "backend-etcd/src/watch/replica.rs",
            "backend-etcd/src/watch/proofs.rs",
            "backend-etcd/src/watch/audit.rs",
            "backend-etcd/src/layout/*.rs",
        ],
        tested_by: &["enlist-etcd"],
        options: &["--lib", "--test", "layouts", "--test", "wire", "--test", "fake", "--test", "late_writes"],
    },
    Part {
        package: "enlist-grpc",
        files: &["resolver-grpc/src/retry/policy.rs"],
        tested_by: &["enlist-grpc"],
        options: &["--lib", "--tests"],
    },
];

/// Runs all parts, or those files that were named: `--file FILE`, as often as there are. `--rest` runs the other files of core, which
/// is a measurement: their survivors are printed and need no reason.
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
        return Err("no mutant was tried: is there such a file among those that decide?".into());
    }
    println!("\n{tried} mutants, {} without a reason survived", unexplained.len());
    for known in killed {
        println!("no survivor any more, its reason can go: {known}");
    }
    if unexplained.is_empty() {
        return Ok(());
    }
    Err(format!(
        "these survived the tests; test what they change, or say in {SURVIVORS} why not:\n{}",
        unexplained.join("\n")
    )
    .into())
}

/// The files of core that are in no part.
fn measure_rest() -> Result {
    let part = &PARTS[0];
    let found = mutate("rest", part, &["core/src/**/*.rs"], part.files)?;
    println!("\nthe rest of core: {} mutants, {} survived:", found.tried, found.survivors.len());
    found.survivors.iter().for_each(|survivor| println!("{survivor}"));
    Ok(())
}

/// Outcome for the mutants of some files.
struct Found {
    tried: usize,
    survivors: BTreeSet<String>,
}

fn mutate(name: &str, part: &Part, files: &[&str], but: &[&str]) -> Result<Found> {
    let output = env::current_dir()?.join("target/mutants").join(name);
    fs::create_dir_all(&output)?;
    let mut command = Command::new("cargo-mutants");
    command.envs(protoc()?).args(["mutants", "--no-shuffle", "--timeout", LIMIT, "--package", part.package]);
    command.arg("--output").arg(&output);
    command.args(files.iter().flat_map(|file| ["--file", file])).args(but.iter().flat_map(|file| ["--exclude", file]));
    command.args(["--test-package", &part.tested_by.join(",")]);
    command.arg("--").args(part.options);
    println!("\n==> mutants of {}", files.join(", "));
    // Survivors are no error of the program: 2 is that there are some, 3 that some took too long.
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

/// `file:line:column: what` without the numbers, which change with every edit.
fn without_position(line: &str) -> String {
    match line.splitn(4, ':').collect::<Vec<_>>()[..] {
        [file, _, _, what] => format!("{file}:{what}"),
        _ => line.to_owned(),
    }
}

/// The survivors that are known, each with its reason: a line, and an indented one after it.
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
    fn a_survivor_is_known_wherever_it_has_moved() {
        let line = "core/src/lock/lock_validity.rs:52:9: replace LockValidity::lose with ()";
        assert_eq!(without_position(line), "core/src/lock/lock_validity.rs: replace LockValidity::lose with ()");
    }
}
