//! Tests beside Go libraries: builds the programs in `testkit/interop-go`, and runs the tests that drive them.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{FEATURES, HELP, Result, cargo},
    counted::{self, Counts},
    etcd::{self, Etcd},
};

/// Folder of the programs. Each is a module of its own, so that every library has the versions that it asks for.
const SOURCES: &str = "testkit/interop-go";

/// The programs, and the modules of the tests that drive them.
const PROGRAMS: [&str; 4] = ["etcd", "gokit", "gozero", "kratos"];

/// Runs both sides on one etcd, with the programs named, or all of them.
pub(crate) fn run(named: impl Iterator<Item = String>) -> Result {
    let named: Vec<_> = named.collect();
    if let Some(unknown) = named.iter().find(|name| !PROGRAMS.contains(&name.as_str())) {
        return Err(format!("there is no program {unknown}; there are {}\n\n{HELP}", PROGRAMS.join(", ")).into());
    }
    let programs: Vec<_> =
        PROGRAMS.into_iter().filter(|program| named.is_empty() || named.iter().any(|name| name == program)).collect();
    // The tests of the others have that of etcd revoke leases.
    let folder =
        build(&PROGRAMS.into_iter().filter(|name| *name == "etcd" || programs.contains(name)).collect::<Vec<_>>())?;
    let etcd = etcd::find()?;
    println!("etcd for the tests: {etcd}");
    let counts = test(&programs, &folder, &etcd)?;
    if counts.failed > 0 {
        return Err(format!("{} of {} tests failed", counts.failed, counts.passed + counts.failed).into());
    }
    println!("\nboth sides understand each other: {}", programs.join(", "));
    Ok(())
}

/// Builds all programs.
pub(crate) fn build_all() -> Result<PathBuf> {
    build(&PROGRAMS)
}

/// Runs the tests of all programs.
pub(crate) fn test_all(folder: &Path, etcd: &Etcd) -> Result<Counts> {
    test(&PROGRAMS, folder, etcd)
}

/// Builds programs. Returns their folder.
fn build(programs: &[&str]) -> Result<PathBuf> {
    let Some(go) = etcd::go::find() else {
        return Err(
            format!("this needs Go {} or newer and its module proxy, and there is none", etcd::go::OLDEST).into()
        );
    };
    let folder = env::current_dir()?.join("target").join("go-programs");
    std::fs::create_dir_all(&folder)?;
    for program in programs {
        println!("==> building {SOURCES}/{program} with Go");
        let mut build = Command::new(&go);
        build.current_dir(Path::new(SOURCES).join(program)).args(["build", "-buildvcs=false", "-trimpath", "-o"]);
        build.arg(folder.join(program)).arg(".");
        etcd::build::plain(&mut build);
        let status = build.stdout(io::stderr()).status()?;
        if !status.success() {
            return Err(format!("go build of {program}: {status}").into());
        }
    }
    Ok(folder)
}

fn test(programs: &[&str], folder: &Path, etcd: &Etcd) -> Result<Counts> {
    let mut command = cargo()?;
    command.args(["test", "--package", "enlist-examples", "--features", FEATURES, "--test", "interop", "--"]);
    command.arg("--ignored").args(programs.iter().map(|program| format!("{program}::")));
    counted::run(command.env("ENLIST_INTEROP_BIN", folder).envs(etcd.variables()))
}
