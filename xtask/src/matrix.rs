//! The tests that talk to etcd, on each of its release lines that are supported, and upgrades from one line to the
//! next.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::{
    command::{FEATURES, HELP, Result, cargo},
    counted::{self, Counts},
    etcd::{self, Etcd, Override, Version, upgrade},
    interop,
};

/// Version of Debian 12's package, which is not built.
const PACKAGED: &str = "3.4.23";

/// Path of the table of the last run.
const RECORD: &str = "target/matrix.md";

/// Number of cases that run side by side.
const SIDE_BY_SIDE: &str = "8";

/// Extent of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All tests of the backend, of the command line and of interoperation.
    Everything,
    /// The conformance suite.
    Conformance,
    /// The upgrade of a cluster.
    Upgrade,
}

/// One line of the table.
struct Row {
    /// A version, or the versions of an upgrade.
    etcd: String,
    outcome: Result<Counts>,
}

/// Runs the tests on each version that is asked for, or on all, and prints and records the table.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result {
    let (extent, asked) = options(args)?;
    let upgrades = match extent {
        Extent::Everything if asked.is_empty() => upgrade::newest(&upgrade::LINES)?,
        Extent::Upgrade => upgrade::newest(&upgrade::LINES)?,
        Extent::Everything | Extent::Conformance => Vec::new(),
    };
    let versions = if extent == Extent::Upgrade { Vec::new() } else { versions_to_test(asked)? };
    let programs = match extent {
        Extent::Everything => Some(interop::build_all()?),
        Extent::Conformance | Extent::Upgrade => None,
    };
    // All of them first: a version that cannot be had is better known at once.
    let (supplied, releases) = (supply_all(&versions)?, upgrade::supply_all(&upgrades)?);
    let mut rows = Vec::new();
    for (version, etcd) in versions.into_iter().zip(supplied) {
        println!("\n==== etcd {version}");
        let outcome = test(extent, &Etcd::Binary(etcd), programs.as_ref());
        rows.push(Row { etcd: version.to_string(), outcome });
        record(&rows)?;
    }
    if !upgrades.is_empty() {
        let shown = upgrade::shown(&upgrades);
        println!("\n==== etcd {shown}");
        rows.push(Row { etcd: shown, outcome: test_upgrade(&releases) });
        record(&rows)?;
    }
    if let (Some(programs), false) = (&programs, upgrades.is_empty()) {
        let used = interop::FLEET_LINES.len();
        let shown = format!("{}, a fleet in Go and Rust", upgrade::shown(&upgrades[..used]));
        println!("\n==== etcd {shown}");
        rows.push(Row { etcd: shown, outcome: interop::test_fleet(programs, &releases[..used]) });
        record(&rows)?;
    }
    let failed = rows.iter().filter(|row| !row.outcome.as_ref().is_ok_and(|counts| counts.failed == 0)).count();
    if failed > 0 {
        return Err(format!("{failed} of {} rows failed", rows.len()).into());
    }
    println!("recorded in {RECORD}");
    Ok(())
}

/// Reads the extent and the versions that are asked for.
fn options(mut args: impl Iterator<Item = String>) -> Result<(Extent, Vec<Version>)> {
    let (mut extents, mut versions) = (Vec::new(), Vec::new());
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--conformance" => extents.push(Extent::Conformance),
            "--upgrade" => extents.push(Extent::Upgrade),
            "--version" => versions.push(args.next().ok_or("--version needs a value")?.parse()?),
            _ => return Err(format!("{flag} is no option of matrix\n\n{HELP}").into()),
        }
    }
    match extents[..] {
        [] => Ok((Extent::Everything, versions)),
        [Extent::Upgrade] if !versions.is_empty() => Err("--upgrade has versions of its own".into()),
        [extent] => Ok((extent, versions)),
        _ => Err("--conformance and --upgrade exclude each other".into()),
    }
}

/// Returns the versions that are asked for, or all.
fn versions_to_test(asked: Vec<Version>) -> Result<Vec<Version>> {
    if !asked.is_empty() {
        return Ok(asked);
    }
    let mut versions = vec![PACKAGED.parse()?];
    versions.extend(etcd::build::versions()?);
    Ok(versions)
}

fn supply_all(versions: &[Version]) -> Result<Vec<PathBuf>> {
    versions.iter().map(|version| etcd::supply(Some(*version), Override::IfItMatches)).collect()
}

/// Prints and records the table.
fn record(rows: &[Row]) -> Result {
    let table = table(rows);
    println!("\n{table}");
    Ok(fs::write(RECORD, &table)?)
}

/// Upgrades a cluster under traffic.
fn test_upgrade(releases: &[(&'static str, PathBuf)]) -> Result<Counts> {
    let mut command = cargo()?;
    command.args(["test", "--package", "enlist-examples", "--features", FEATURES, "--test", "upgrade", "--"]);
    command.args(["--ignored", "--nocapture"]);
    counted::run(command.envs(releases.iter().map(|(variable, etcd)| (variable, etcd))))
}

fn test(extent: Extent, etcd: &Etcd, programs: Option<&PathBuf>) -> Result<Counts> {
    etcd::need_etcdctl(etcd)?;
    let mut command = cargo()?;
    command.args(["test", "--no-fail-fast", "--package", "enlist-etcd"]);
    match extent {
        Extent::Conformance => command.args(["--test", "conformance"]),
        Extent::Everything | Extent::Upgrade => command.args(["--package", "enlist-cli"]),
    };
    // These variables name another etcd, or the `etcdctl` of another one.
    for variable in ["ENLIST_TEST_ETCD", "ENLIST_TEST_PROVIDER", "ENLIST_ETCDCTL_BIN"] {
        command.env_remove(variable);
    }
    let mut counts = counted::run(command.env("RUST_TEST_THREADS", SIDE_BY_SIDE).envs(etcd.variables()))?;
    if let Some(programs) = programs {
        counts += interop::test_all(programs, etcd)?;
    }
    Ok(counts)
}

fn table(rows: &[Row]) -> String {
    let mut table = "| etcd | passed | failed | minutes |\n|---|---|---|---|\n".to_owned();
    for Row { etcd, outcome } in rows {
        let line = match outcome {
            Ok(Counts { passed, failed, time }) => {
                format!("| {etcd} | {passed} | {failed} | {:.1} |", time.as_secs_f64() / 60.0)
            }
            Err(error) => format!("| {etcd} | | not run: {error} | |"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{line}");
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_table_has_one_line_for_each_row() {
        let counts = Counts { passed: 7, failed: 1, time: Duration::from_secs(90) };
        let row = |etcd: &str, outcome| Row { etcd: etcd.to_owned(), outcome };
        let rows = [row("3.4.23", Ok(counts)), row("3.7.3", Err("no compiler".into()))];
        let table = table(&rows);
        let lines: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(lines, ["| 3.4.23 | 7 | 1 | 1.5 |", "| 3.7.3 | | not run: no compiler | |"]);
    }

    fn read(words: &[&str]) -> Result<(Extent, Vec<Version>)> {
        options(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn versions_and_the_extent_are_read() {
        let versions = vec!["3.7.3".parse().unwrap()];
        assert_eq!(read(&[]).unwrap(), (Extent::Everything, Vec::new()));
        assert_eq!(read(&["--version", "3.7.3"]).unwrap(), (Extent::Everything, versions.clone()));
        assert_eq!(read(&["--conformance", "--version", "3.7.3"]).unwrap(), (Extent::Conformance, versions));
        for wrong in [&["--version"][..], &["--version", "new"], &["3.7.3"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_upgrade_goes_with_no_other_option() {
        assert_eq!(read(&["--upgrade"]).unwrap(), (Extent::Upgrade, Vec::new()));
        for wrong in [&["--upgrade", "--conformance"][..], &["--version", "3.7.3", "--upgrade"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
