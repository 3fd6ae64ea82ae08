//! Tests beside Go libraries: builds the programs in `testkit/interop-go`, and runs the tests that drive them.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{FEATURES, HELP, Result, cargo, run as run_command},
    counted::{self, ByModule, Counts},
    etcd::{self, Etcd, upgrade},
    record::Record,
};

/// Folder of the programs. Each is a module of its own, so that every library has the versions that it asks for.
const SOURCES: &str = "testkit/interop-go";

/// The programs, and the modules of the tests that drive them.
const PROGRAMS: [&str; 8] = ["dubbo", "etcd", "gokit", "gomicro", "gozero", "kitex", "kratos", "viper"];

/// Path of the table of the last run.
const RECORD: &str = "target/interop.md";

/// The module of the test that runs several programs together, while etcd is upgraded.
const FLEET: &str = "fleet";

/// Modules with a program that is measured beside `enlist`, in their folder `bench`.
const MEASURED: [&str; 6] = ["etcd", "gokit", "gozero", "kitex", "kratos", "xds"];

/// Number of tests that run side by side, each with its own etcd. They wait for leases most of the time.
const SIDE_BY_SIDE: &str = "6";

/// Programs of the fleet.
const MEMBERS: [&str; 3] = ["gokit", "gozero", "kratos"];

/// Release lines before and after the upgrade of the fleet's etcd.
pub(crate) const FLEET_LINES: [upgrade::Line; 2] = [upgrade::LINES[0], upgrade::LINES[1]];

/// Runs both sides on one etcd, with the programs named, or all of them and the fleet.
pub(crate) fn run(named: impl Iterator<Item = String>) -> Result {
    let named: Vec<_> = named.collect();
    if let Some(unknown) = named.iter().find(|name| *name != FLEET && !PROGRAMS.contains(&name.as_str())) {
        let known = PROGRAMS.join(", ");
        return Err(format!("there is no program {unknown}; there are {known} and {FLEET}\n\n{HELP}").into());
    }
    let all = PROGRAMS.into_iter().chain([FLEET]);
    let wanted: Vec<_> = all.filter(|one| named.is_empty() || named.iter().any(|name| name == one)).collect();
    let folder = build(&needed(&wanted))?;
    let mut record = Record::new(RECORD, "program");
    let programs: Vec<_> = wanted.iter().copied().filter(|one| *one != FLEET).collect();
    if !programs.is_empty() {
        let etcd = etcd::find()?;
        println!("etcd for the tests: {etcd}");
        let mut modules = ByModule::new();
        let all = test(&programs, &folder, &etcd, &mut modules);
        for program in &programs {
            record.add(*program, of_program(program, &modules))?;
        }
        record.add(format!("these, on {etcd}"), all)?;
    }
    if wanted.contains(&FLEET) {
        let releases = upgrade::newest(&FLEET_LINES)?;
        let supplied = upgrade::supply_all(&releases)?;
        record.add(format!("{FLEET}, on {}", upgrade::shown(&releases)), test_fleet(&folder, &supplied))?;
    }
    record.finish()?;
    println!("\nboth sides understand each other: {}", wanted.join(", "));
    Ok(())
}

/// Returns the numbers of the tests of one program.
///
/// # Errors
///
/// If none ran.
fn of_program(program: &str, modules: &ByModule) -> Result<Counts> {
    modules.get(program).copied().ok_or_else(|| format!("no test of {program} ran").into())
}

/// Returns the programs to build. The tests of each of them have that of etcd revoke leases.
fn needed(wanted: &[&str]) -> Vec<&'static str> {
    let revokes = wanted.iter().any(|one| *one != FLEET);
    let members = if wanted.contains(&FLEET) { &MEMBERS[..] } else { &[] };
    let is_needed = |program: &&'static str| {
        wanted.contains(program) || members.contains(program) || (*program == "etcd" && revokes)
    };
    PROGRAMS.into_iter().filter(is_needed).collect()
}

/// Runs the fleet on these releases of etcd.
pub(crate) fn test_fleet(folder: &Path, releases: &[(&'static str, PathBuf)]) -> Result<Counts> {
    // Its members in Rust are processes of this example.
    let server = ["build", "--workspace", "--features", FEATURES, "--example", "greeter_server"];
    run_command(cargo()?.args(server))?;
    let mut command = test_command()?;
    command.arg(format!("{FLEET}::")).arg("--nocapture").env("ENLIST_INTEROP_BIN", folder);
    counted::run(command.envs(releases.iter().map(|(variable, etcd)| (variable, etcd))))
}

/// Builds all programs.
pub(crate) fn build_all() -> Result<PathBuf> {
    build(&PROGRAMS)
}

/// Runs the tests of all programs.
pub(crate) fn test_all(folder: &Path, etcd: &Etcd) -> Result<Counts> {
    let mut modules = ByModule::new();
    let counts = test(&PROGRAMS, folder, etcd, &mut modules)?;
    PROGRAMS.iter().try_for_each(|program| of_program(program, &modules).map(drop))?;
    Ok(counts)
}

/// Builds programs. Returns their folder.
pub(crate) fn build(programs: &[&str]) -> Result<PathBuf> {
    let parts: Vec<_> = programs.iter().map(|program| (*program, ".", (*program).to_owned())).collect();
    build_parts(&parts)
}

/// Builds the programs that are measured. Returns their folder.
pub(crate) fn build_measured() -> Result<PathBuf> {
    let part = |module| (module, "./bench", format!("bench-{module}"));
    build_parts(&MEASURED.map(part))
}

/// Builds programs, each given by its module, its folder there, and its name. Returns their folder.
fn build_parts(programs: &[(&str, &str, String)]) -> Result<PathBuf> {
    let Some(go) = etcd::go::find() else {
        return Err(
            format!("this needs Go {} or newer and its module proxy, and there is none", etcd::go::OLDEST).into()
        );
    };
    let folder = env::current_dir()?.join("target").join("go-programs");
    std::fs::create_dir_all(&folder)?;
    for (module, source, program) in programs {
        eprintln!("==> building {program} in {SOURCES}/{module} with Go");
        let mut build = Command::new(&go);
        build.current_dir(Path::new(SOURCES).join(module)).args(["build", "-buildvcs=false", "-trimpath", "-o"]);
        build.arg(folder.join(program)).arg(source);
        etcd::build::plain(&mut build);
        let status = build.stdout(io::stderr()).status()?;
        if !status.success() {
            return Err(format!("go build of {program}: {status}").into());
        }
    }
    Ok(folder)
}

fn test_command() -> Result<Command> {
    let mut command = cargo()?;
    command.args(["test", "--workspace", "--features", FEATURES, "--test", "interop", "--"]);
    command.arg("--ignored");
    Ok(command)
}

fn test(programs: &[&str], folder: &Path, etcd: &Etcd, modules: &mut ByModule) -> Result<Counts> {
    let mut command = test_command()?;
    command.args(programs.iter().map(|program| format!("{program}::")));
    command.env("ENLIST_INTEROP_BIN", folder).env("RUST_TEST_THREADS", SIDE_BY_SIDE);
    counted::run_by_module(command.envs(etcd.variables()), modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_test_fails() {
        let modules = ByModule::from([("kitex".to_owned(), Counts { passed: 3, ..Counts::default() })]);
        assert_eq!(of_program("kitex", &modules).unwrap().passed, 3);
        assert!(of_program("kratos", &modules).is_err());
    }

    #[test]
    fn the_programs_of_the_fleet_and_of_revocations_are_built() {
        assert_eq!(needed(&["fleet"]), MEMBERS);
        assert_eq!(needed(&["kitex"]), ["etcd", "kitex"]);
        assert_eq!(needed(&["kitex", "fleet"]), ["etcd", "gokit", "gozero", "kitex", "kratos"]);
    }
}
