//! The tests that take too long for every day, with a record.

use crate::{
    Members, SIDE_BY_SIDE,
    command::{Result, cargo},
    counted::{self, Counts},
    etcd::{self, Etcd},
    random_faults,
    record::Record,
    simulation_command,
};

/// Path of the table of the last run.
const RECORD: &str = "target/soak.md";

/// Number of seeds of the simulation.
const SEEDS: &str = "100000";

/// Duration of the test of locks, in seconds.
const LOCKS: &str = "300";

/// Duration of the load on a server with few streams, in seconds.
const SATURATION: &str = "60";

/// Number of times that the fault tests run.
const ROUNDS: usize = 10;

/// The programs whose tests inject faults: those that `docs/faults.md` names, or a module of which it names.
const FAULTS: &[&str] = &[
    "changed_security",
    "cluster",
    "conformance",
    "differential",
    "failover",
    "faults",
    "host",
    "locks",
    "membership",
    "nemesis",
    "registrations",
    "releases",
    "replies",
    "scripted",
    "security",
    "storage",
    "views",
    "warnings",
];

/// Runs all parts. One that fails does not end the others.
pub(crate) fn run(seconds: &str) -> Result {
    let etcd = etcd::find()?;
    etcd::need_etcdctl(&etcd)?;
    let mut record = Record::new(RECORD, "part");
    record.add(format!("random faults for {seconds} s, {etcd}"), random_faults(seconds, None, Members::One))?;
    let cluster = format!("random faults on three members, which change as well, for {seconds} s, {etcd}");
    record.add(cluster, random_faults(seconds, None, Members::Three))?;
    record.add(format!("{SEEDS} simulated runs"), simulate(&["--seeds", SEEDS]))?;
    record.add("deliberate defects, each found by a simulated run", simulate(&["--teeth"]))?;
    record.add(format!("locks of commands for {LOCKS} s, {etcd}"), locks(&etcd))?;
    record.add(format!("a server with few streams under load for {SATURATION} s"), saturation())?;
    record.add(format!("fault tests, {ROUNDS} times, {etcd}"), rounds(&etcd))?;
    record.finish()?;
    println!("\nthe soak passed");
    Ok(())
}

/// Executes simulated runs, which count as one test.
fn simulate(options: &[&str]) -> Result<Counts> {
    counted::time(&mut simulation_command(options.iter().map(|&option| option.to_owned()))?)
}

fn locks(etcd: &Etcd) -> Result<Counts> {
    let mut command = cargo()?;
    command.args(["test", "--package", "enlist-cli", "--test", "soak", "--", "--nocapture"]);
    counted::run(command.env("ENLIST_SOAK_SECS", LOCKS).envs(etcd.variables()))
}

fn saturation() -> Result<Counts> {
    let mut command = cargo()?;
    command.args(["test", "--package", "enlist-grpc", "--test", "connections", "--"]);
    command.args(["--exact", "an_instance_with_few_streams_fails_no_call", "--nocapture"]);
    counted::run(command.env("ENLIST_SATURATION_SECONDS", SATURATION))
}

/// Runs the fault tests again and again, until a round fails.
fn rounds(etcd: &Etcd) -> Result<Counts> {
    let mut counts = Counts::default();
    for round in 1..=ROUNDS {
        println!("\n==> round {round} of {ROUNDS}");
        let mut command = cargo()?;
        command.args(["test", "--package", "enlist-etcd"]);
        for program in FAULTS {
            command.args(["--test", program]);
        }
        counts += counted::run(command.env("RUST_TEST_THREADS", SIDE_BY_SIDE).envs(etcd.variables()))?;
        if counts.failed > 0 {
            break;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    #[test]
    fn all_programs_that_the_faults_page_names_are_run() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = std::fs::read_to_string(root.join("docs/faults.md")).expect("the page");
        let quoted = page.split('`').skip(1).step_by(2);
        let first_names = quoted.map(|quoted| quoted.split("::").next().unwrap_or(quoted));
        let is_there = |path: String| root.join("backend-etcd/tests").join(path).exists();
        let program = |name| match () {
            () if is_there(format!("{name}.rs")) => Some(name),
            () => is_there(format!("scripted/{name}.rs")).then_some("scripted"),
        };
        let programs: BTreeSet<_> = first_names.filter_map(program).collect();
        assert_eq!(programs, FAULTS.iter().copied().collect());
    }
}
