//! The example that changes its log level, a rate limit and a flag, as `enlist config set` writes them, on an etcd that
//! is killed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use enlist_config::Percentage;
use enlist_testkit::{EtcdServer, Provider, ServerOptions};

use self::support::Program;

/// The line of the example in this situation.
fn line(debug: &str, per_second: u32, percent: f64, situation: &str) -> String {
    let percentage = Percentage::new(percent).unwrap();
    let users = (0..1000).filter(|user| percentage.includes("new-checkout", &format!("user-{user}"))).count();
    format!("debug {debug}, {per_second} calls per second, new checkout for {users} of 1000 users; {situation}")
}

fn settings(log: &str, per_second: u32, percent: f64) -> String {
    format!("log = '{log}'\nrate.per_second = {per_second}\nflags.new-checkout.percentage = {percent}")
}

/// Returns the program `enlist`. Tests of the workspace have built it; for this test alone it is built here, if it is
/// absent.
fn enlist() -> PathBuf {
    let test = env::current_exe().unwrap();
    // The test is in `deps`.
    let folder = test.ancestors().nth(2).unwrap();
    let program = folder.join("enlist");
    if !program.is_file() {
        build(folder);
    }
    assert!(program.is_file(), "there is no {}", program.display());
    program
}

/// Builds `enlist` into the folder of a profile.
fn build(folder: &Path) {
    let profile = match folder.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        profile => profile,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "enlist-cli", "--bin", "enlist", "--profile", profile, "--target-dir"]);
    assert!(cargo.arg(folder.parent().unwrap()).status().unwrap().success(), "`enlist` cannot be built");
}

/// Runs `enlist config set app/settings.toml` with a value and further options.
fn set(program: &Path, server: &EtcdServer, value: &str, options: &[&str]) -> Output {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ENLIST_")) {
        command.env_remove(name);
    }
    command.env("ENLIST_ENDPOINTS", server.url()).args(["config", "set", "app/settings.toml", value]).args(options);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Returns the revision of a value that was written.
fn revision(set: &Output) -> u64 {
    assert!(set.status.success(), "{set:?}");
    let line = std::str::from_utf8(&set.stdout).unwrap();
    let revision = line.strip_prefix("set app/settings.toml at revision ").unwrap().split(',').next();
    revision.unwrap().parse().unwrap()
}

/// Waits for a line of the example. Every line until then has to show one of the permitted values, so that nothing in
/// between is missed.
async fn until(program: &mut Program, expected: &str, permitted: &[&str]) {
    loop {
        let line = program.says().await.unwrap();
        if line == expected {
            return;
        }
        assert!(permitted.iter().any(|start| line.starts_with(start)), "{line}\nexpected {expected}");
    }
}

#[tokio::test]
async fn a_program_keeps_its_settings_through_faults() {
    let enlist = enlist();
    let mut server = EtcdServer::start_with(Provider::own(), ServerOptions::new()).await;
    let mut program = Program::start("live_config", &server, &["--etcd", &server.address().to_string(), "--stay"]);
    until(&mut program, &line("off", 10, 0.0, "live"), &["running", &line("off", 10, 0.0, "")]).await;

    revision(&set(&enlist, &server, &settings("warn,live_config=debug", 100, 30.0), &[]));
    let kept = line("on", 100, 30.0, "");
    // The three parts are changed one after the other.
    until(&mut program, &format!("{kept}live"), &["debug"]).await;

    // The command line refuses a value that does not parse, unless its user insists.
    let refused = set(&enlist, &server, "rate = hunter2", &[]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let broken = revision(&set(&enlist, &server, "rate = hunter2", &["--no-check"]));
    let rejected = format!("rejected app/settings.toml at revision {broken}: it is not TOML, see line 1, column 8");
    until(&mut program, &format!("{kept}live, {rejected}"), &[&kept]).await;

    server.kill().await;
    until(&mut program, &format!("{kept}store away, {rejected}"), &[&kept]).await;
    server.restart().await;
    until(&mut program, &format!("{kept}live, {rejected}"), &[&kept]).await;

    revision(&set(&enlist, &server, &settings("error", 7, 100.0), &[]));
    until(&mut program, &line("off", 7, 100.0, "live"), &["debug"]).await;
    // The program runs until it is killed.
    program.terminate();
    assert!(!program.ends().await.success());
}
