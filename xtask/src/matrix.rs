//! The tests that talk to etcd, on each of its release lines that are supported.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::{
    command::{HELP, Result, cargo},
    counted::{self, Counts},
    etcd::{self, Etcd, Override, Version},
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
}

/// One line of the table.
struct Row {
    version: Version,
    outcome: Result<Counts>,
}

/// Runs the tests on each version that is asked for, or on all, and prints and records the table.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result {
    let (extent, versions) = options(args)?;
    let programs = match extent {
        Extent::Everything => Some(interop::build_all()?),
        Extent::Conformance => None,
    };
    // All of them first: a version that cannot be had is better known at once.
    let supplied = versions.iter().map(|version| etcd::supply(Some(*version), Override::IfItMatches));
    let supplied = supplied.collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for (version, etcd) in versions.into_iter().zip(supplied) {
        println!("\n==== etcd {version}");
        rows.push(Row { version, outcome: test(extent, &Etcd::Binary(etcd), programs.as_ref()) });
        let table = table(&rows);
        println!("\n{table}");
        fs::write(RECORD, &table)?;
    }
    let failed = rows.iter().filter(|row| !row.outcome.as_ref().is_ok_and(|counts| counts.failed == 0)).count();
    if failed > 0 {
        return Err(format!("{failed} of {} versions failed", rows.len()).into());
    }
    println!("recorded in {RECORD}");
    Ok(())
}

fn options(mut args: impl Iterator<Item = String>) -> Result<(Extent, Vec<Version>)> {
    let (mut extent, mut versions) = (Extent::Everything, Vec::new());
    while let Some(flag) = args.next() {
        match flag.as_str() {
            "--conformance" => extent = Extent::Conformance,
            "--version" => versions.push(args.next().ok_or("--version needs a value")?.parse()?),
            _ => return Err(format!("{flag} is no option of matrix\n\n{HELP}").into()),
        }
    }
    if versions.is_empty() {
        versions.push(PACKAGED.parse()?);
        versions.extend(etcd::build::versions()?);
    }
    Ok((extent, versions))
}

fn test(extent: Extent, etcd: &Etcd, programs: Option<&PathBuf>) -> Result<Counts> {
    etcd::need_etcdctl(etcd)?;
    let mut command = cargo()?;
    command.args(["test", "--no-fail-fast", "--package", "enlist-etcd"]);
    match extent {
        Extent::Everything => command.args(["--package", "enlist-cli"]),
        Extent::Conformance => command.args(["--test", "conformance"]),
    };
    // What names another etcd, or an `etcdctl` of another one, is for other commands.
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
    for Row { version, outcome } in rows {
        let line = match outcome {
            Ok(Counts { passed, failed, time }) => {
                format!("| {version} | {passed} | {failed} | {:.1} |", time.as_secs_f64() / 60.0)
            }
            Err(error) => format!("| {version} | | not run: {error} | |"),
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
    fn the_table_has_one_line_for_each_version() {
        let counts = Counts { passed: 7, failed: 1, time: Duration::from_secs(90) };
        let row = |version: &str, outcome| Row { version: version.parse().unwrap(), outcome };
        let rows = [row("3.4.23", Ok(counts)), row("3.7.3", Err("no compiler".into()))];
        let table = table(&rows);
        let lines: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(lines, ["| 3.4.23 | 7 | 1 | 1.5 |", "| 3.7.3 | | not run: no compiler | |"]);
    }

    #[test]
    fn versions_and_the_extent_are_read() {
        let (extent, versions) =
            options(["--conformance", "--version", "3.7.3"].map(str::to_owned).into_iter()).unwrap();
        assert_eq!((extent, versions), (Extent::Conformance, vec!["3.7.3".parse().unwrap()]));
        for wrong in [&["--version"][..], &["--version", "new"], &["3.7.3"]] {
            assert!(options(wrong.iter().map(|word| (*word).to_owned())).is_err(), "{wrong:?}");
        }
    }
}
