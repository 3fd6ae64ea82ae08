//! The tests that talk to etcd, on each of its release lines that are supported, and upgrades from one line to the
//! next.

use std::path::PathBuf;

use crate::{
    command::{CONFORMANCE, FEATURES, HELP, Result, cargo},
    counted::{self, Counts},
    etcd::{self, Etcd, Override, Version, upgrade},
    interop,
    record::Record,
};

/// Version of Debian 12's package, which is not built.
const PACKAGED: &str = "3.4.23";

/// Path of the table of the last run.
const RECORD: &str = "target/matrix.md";

/// Arguments of cargo for the tests without Go. The feature is that of `enlist agent`, which some tests of the command
/// need.
const WITHOUT_GO: [&str; 8] =
    ["test", "--no-fail-fast", "--package", "enlist-etcd", "--package", "enlist-cli", "--features", "enlist-cli/agent"];

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
    let mut record = Record::new(RECORD, "etcd");
    for (version, etcd) in versions.into_iter().zip(supplied) {
        println!("\n==== etcd {version}");
        record.add(version.to_string(), test(extent, &Etcd::Binary(etcd), programs.as_ref()))?;
    }
    if !upgrades.is_empty() {
        let shown = upgrade::shown(&upgrades);
        println!("\n==== etcd {shown}");
        record.add(shown, test_upgrade(&releases))?;
    }
    if let (Some(programs), false) = (&programs, upgrades.is_empty()) {
        let used = interop::FLEET_LINES.len();
        let shown = format!("{}, a fleet in Go and Rust", upgrade::shown(&upgrades[..used]));
        println!("\n==== etcd {shown}");
        record.add(shown, interop::test_fleet(programs, &releases[..used]))?;
    }
    record.finish()
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

/// Upgrades a cluster under traffic.
fn test_upgrade(releases: &[(&'static str, PathBuf)]) -> Result<Counts> {
    let mut command = cargo()?;
    command.args(["test", "--workspace", "--features", FEATURES, "--test", "upgrade", "--"]);
    command.args(["--ignored", "--nocapture"]);
    counted::run(command.envs(releases.iter().map(|(variable, etcd)| (variable, etcd))))
}

fn test(extent: Extent, etcd: &Etcd, programs: Option<&PathBuf>) -> Result<Counts> {
    etcd::need_etcdctl(etcd)?;
    let mut command = cargo()?;
    command.args(if extent == Extent::Conformance { CONFORMANCE } else { WITHOUT_GO });
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
    fn all_tests_of_the_command_line_are_selected() {
        let manifest = include_str!("../../cli/Cargo.toml");
        let needed = manifest.lines().filter_map(|line| line.strip_prefix("required-features = "));
        let needed: Vec<_> = needed.map(|list| list.trim_matches(['[', ']', '"'])).collect();
        assert!(!needed.is_empty());
        for feature in needed {
            assert!(WITHOUT_GO.contains(&format!("enlist-cli/{feature}").as_str()), "{feature}: {WITHOUT_GO:?}");
        }
    }

    #[test]
    fn the_readme_names_the_versions_of_the_matrix() {
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("\n## Versions\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
        let named: Vec<_> = rows.map(|(first, _)| first).filter(|first| *first != "etcd").collect();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let versions = etcd::build::versions_in(Path::new(folder)).unwrap();
        let shown = |versions: &[Version]| versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" → ");
        let newest: Vec<_> = upgrade::LINES
            .iter()
            .map(|((major, minor), _)| *versions.iter().rfind(|one| one.is_of_line(*major, *minor)).unwrap())
            .collect();
        let mut expected = vec![PACKAGED.to_owned()];
        expected.extend(versions.iter().map(ToString::to_string));
        let fleet = shown(&newest[..interop::FLEET_LINES.len()]);
        expected.extend([shown(&newest), format!("{fleet}, a fleet in Go and Rust")]);
        assert_eq!(named, expected);
    }

    #[test]
    fn the_upgrade_goes_with_no_other_option() {
        assert_eq!(read(&["--upgrade"]).unwrap(), (Extent::Upgrade, Vec::new()));
        for wrong in [&["--upgrade", "--conformance"][..], &["--version", "3.7.3", "--upgrade"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
