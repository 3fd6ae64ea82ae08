//! The project's own commands. `cargo xtask` lists them.
//!
//! They get what a bare machine lacks: a `protoc` from a crate, and an etcd from where one can be had.

mod build_cost;
mod clients;
mod command;
mod counted;
mod etcd;
mod interop;
mod matrix;
mod mutants;
mod record;
mod rules;
mod soak;

use std::{
    env,
    process::{Command, ExitCode, Stdio},
};

use self::{
    command::{CONFORMANCE, FEATURES, HELP, Result, cargo, protoc, run},
    counted::Counts,
    etcd::{Etcd, Override, Version},
};

/// Number of cases that run side by side: they mostly wait, so more than there are cores; each has an etcd of its own.
const SIDE_BY_SIDE: &str = "8";

/// Number of seeds of the daily simulation.
const SEEDS: &str = "2000";

/// The examples, with their arguments.
const EXAMPLES: &[&[&str]] = &[
    &["quickstart"],
    &["register_and_serve"],
    &["watch_view"],
    &["lock_job"],
    &["fencing"],
    &["leader"],
    &["unit_test"],
    &["greeter_server"],
    &["greeter_client"],
    &["pool_retry"],
    &["live_config"],
    &["locator"],
    &["rolling_restart"],
    &["rolling_restart", "--kill"],
];

fn main() -> ExitCode {
    let command = env::args().nth(1).unwrap_or_default();
    let outcome = match command.as_str() {
        "test" => test(),
        "etcd" => print_etcd(env::args().skip(2)),
        "matrix" => matrix::run(env::args().skip(2)),
        "clients" => clients::test(env::args().skip(2)),
        "interop" => interop::run(env::args().skip(2)),
        "nemesis" => nemesis(env::args().skip(2)),
        "simulate" => simulate(env::args().skip(2)),
        "mutants" => mutants::run(env::args().skip(2)),
        "soak" => soak::run(env::args().nth(2).as_deref().unwrap_or("600")),
        "bench" => bench(env::args().skip(2)),
        "env" => print_env(),
        "rules" => rules::check_or_bless(env::args().skip(2)),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_env() -> Result {
    for (name, value) in protoc()? {
        println!("export {name}='{value}'");
    }
    Ok(())
}

/// Supplies an etcd and prints the paths, one a line.
fn print_etcd(mut args: impl Iterator<Item = String>) -> Result {
    let wanted: Option<Version> = match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => None,
        (Some("--version"), Some(version), None) => Some(version.parse()?),
        _ => return Err(format!("etcd takes --version and nothing else\n\n{HELP}").into()),
    };
    let etcd = etcd::supply(wanted, Override::Always)?;
    let found = Version::of(&etcd);
    let etcdctl = etcd::need_etcdctl(&Etcd::Binary(etcd.clone()))?;
    println!("{}\n{}", etcd.display(), etcdctl.display());
    if let (Some(wanted), true) = (wanted, wanted != found) {
        eprintln!("ENLIST_ETCD_BIN is used, although it is not of version {wanted}");
    }
    Ok(())
}

/// Runs random faults, or judges the record of a former run.
fn nemesis(mut args: impl Iterator<Item = String>) -> Result {
    let (mut seed, mut minutes, mut members) = (None, 10.0, Members::One);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--seed" => seed = Some(value.parse::<u64>()?),
            "--minutes" => minutes = value.parse::<f64>()?,
            "--members" => {
                members = match value.as_str() {
                    "1" => Members::One,
                    "3" => Members::Three,
                    _ => return Err("--members is 1 or 3".into()),
                }
            }
            "--replay" => {
                let judge = ["run", "--quiet", "--package", "enlist-testkit", "--bin", "judge", "--", &value];
                return run(cargo()?.args(judge));
            }
            _ => return Err(format!("{flag} is no option of nemesis\n\n{HELP}").into()),
        }
    }
    counted::passed(random_faults(&format!("{:.0}", minutes * 60.0), seed, members)?)
}

/// Target of random faults.
#[derive(Clone, Copy)]
enum Members {
    One,
    Three,
}

fn random_faults(seconds: &str, seed: Option<u64>, members: Members) -> Result<Counts> {
    let mut command = cargo()?;
    command.args(["test", "--package", "enlist-etcd", "--test", "nemesis", "--", "--nocapture"]);
    if let Members::Three = members {
        command.arg("--ignored");
    }
    command.env("ENLIST_SOAK_SECS", seconds).envs(seed.map(|seed| ("ENLIST_SEED", seed.to_string())));
    counted::run(command.envs(etcd::find()?.variables()))
}

/// Executes simulated runs.
fn simulate(args: impl Iterator<Item = String>) -> Result {
    let args: Vec<_> = args.collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    if has("--teeth") && !has("--defect") && (has("--log") || has("--trace")) {
        return Err("--teeth has no events to show; name a --defect".into());
    }
    run(&mut simulation_command(args.into_iter())?)
}

/// Returns the command for simulated runs. They are built with a profile of their own, so that thousands take a minute.
fn simulation_command(args: impl Iterator<Item = String>) -> Result<Command> {
    let mut command = cargo()?;
    command.args(["run", "--quiet", "--profile", "simulation", "--package", "enlist-simulation"]);
    command.args(simulation_args(args));
    Ok(command)
}

/// Returns the features of the simulation, and its own arguments. Deliberate defects need a feature.
fn simulation_args(args: impl Iterator<Item = String>) -> Vec<String> {
    let (teeth, mut options): (Vec<_>, Vec<_>) = args.partition(|flag| flag == "--teeth");
    let has = |wanted: &[&str]| options.iter().any(|flag| wanted.contains(&flag.as_str()));
    let with_defects = !teeth.is_empty() || has(&["--defect"]);
    let kind = match () {
        () if has(&["--log", "--trace"]) => "one",
        () if teeth.is_empty() => "many",
        () => "teeth",
    };
    if kind == "many" && !has(&["--seeds"]) {
        options.extend(["--seeds".to_owned(), SEEDS.to_owned()]);
    }
    let features: &[&str] = if with_defects { &["--features", "defects"] } else { &[] };
    features.iter().chain(&["--", kind]).map(|&arg| arg.to_owned()).chain(options).collect()
}

fn simulate_many(seeds: &str) -> Result {
    simulate(["--seeds".to_owned(), seeds.to_owned()].into_iter())
}

/// Runs the benchmarks in a release build. Only their own lines go to the standard output.
fn bench(arguments: impl Iterator<Item = String>) -> Result {
    let arguments: Vec<_> = arguments.collect();
    if arguments == ["build"] {
        return build_cost::measure();
    }
    if arguments.first().is_some_and(|first| first == "plots") {
        let draw = ["run", "--quiet", "--package", "enlist-bench", "--bin", "bench", "--"];
        return run(cargo()?.args(draw).args(arguments));
    }
    let beside_peers = arguments.first().is_some_and(|first| first == "peers");
    let programs = if beside_peers { Some(interop::build_measured()?) } else { None };
    let etcd = etcd::find()?;
    // It starts others of its programs, which have to be there.
    let build = cargo()?.args(["build", "--release", "--package", "enlist-bench", "--bins"]).status()?;
    if !build.success() {
        return Err("the measurements were not built".into());
    }
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let names_none = arguments.iter().skip(1).all(|argument| argument.starts_with("--"));
    if beside_peers && (names_none || named("xds") || named("events")) {
        // The agent is measured as it is installed.
        let agent = ["build", "--profile", "dist", "--package", "enlist-bench", "--bin", "agent"];
        if !cargo()?.args(agent).status()?.success() {
            return Err("the agent was not built".into());
        }
    }
    let run = ["run", "--quiet", "--release", "--package", "enlist-bench", "--bin", "bench", "--"];
    let mut measure = cargo()?;
    measure.args(run).args(arguments).envs(etcd.variables());
    measure.envs(programs.map(|folder| ("ENLIST_PEERS_BIN", folder)));
    let measured = measure.status()?;
    if measured.success() { Ok(()) } else { Err(format!("not all targets were met: {measured}").into()) }
}

fn test() -> Result {
    let etcd = etcd::find()?;
    etcd::need_etcdctl(&etcd)?;
    println!("etcd for the tests: {etcd}");
    let everything = ["test", "--workspace", "--features", FEATURES];
    run(cargo()?.args(everything).env("RUST_TEST_THREADS", SIDE_BY_SIDE).envs(etcd.variables()))?;
    let features = format!("{FEATURES},enlist-cli/agent");
    let agent = ["test", "--workspace", "--features", &features, "--bin", "enlist"];
    let agent = agent.into_iter().chain(["--test", "agent", "--test", "hostile_values", "--test", "text"]);
    run(cargo()?.args(agent).envs(etcd.variables()))?;
    // The table of the deliberate defects, and the repetition of seeds that fail with one.
    let features = format!("{FEATURES},enlist-simulation/defects");
    let teeth = ["test", "--workspace", "--features", &features, "--bin", "enlist-simulation"];
    let teeth = teeth.into_iter().chain(["--test", "failing_seeds"]);
    counted::passed(counted::run(cargo()?.args(teeth))?)?;
    simulate_many(SEEDS)?;
    // Only the build of the simulation has a backend without TLS.
    let without_tls = ["test", "--profile", "simulation", "--package", "enlist-simulation", "--test", "without_tls"];
    let refusals = ["--", "--ignored", "without_a_feature"];
    counted::passed(counted::run(cargo()?.args(without_tls).args(refusals))?)?;
    let left_out = containers(&etcd)?;
    // The tests of the whole workspace have built them, apart from one that is a test itself.
    run(cargo()?.args(["build", "--workspace", "--features", FEATURES, "--examples"]))?;
    let folder = env::current_exe()?.with_file_name("examples");
    for example in EXAMPLES {
        let (name, args) = example.split_first().ok_or("an example has a name")?;
        run(Command::new(folder.join(name)).args(args))?;
    }
    println!("\nevery test and every example passed");
    if let Some(left_out) = left_out {
        println!("{left_out}");
    }
    Ok(())
}

/// Runs the conformance suite in containers. Returns a line with the number of tests that were left out and the reason,
/// where it cannot.
fn containers(etcd: &Etcd) -> Result<Option<String>> {
    let mut command = cargo()?;
    command.args(CONFORMANCE).envs(etcd.variables());
    let engine = if etcd.is_process() { etcd::docker_engine() } else { Err("the etcd is given".to_owned()) };
    if let Err(reason) = engine {
        let list = command.arg("--list").stderr(Stdio::null()).output()?;
        let count = String::from_utf8_lossy(&list.stdout).lines().filter(|line| line.ends_with(": test")).count();
        if count == 0 {
            return Err("no test is one of the conformance suite on etcd".into());
        }
        return Ok(Some(format!("{count} container tests were left out: {reason}")));
    }
    command.env("RUST_TEST_THREADS", SIDE_BY_SIDE).env("ENLIST_TEST_PROVIDER", "container");
    counted::passed(counted::run(&mut command)?)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_is_built_for_its_log() {
        let of = |args: &str| simulation_args(args.split_whitespace().map(str::to_owned)).join(" ");
        assert_eq!(of(""), "-- many --seeds 2000");
        assert_eq!(of("--seeds 5 --seed 7"), "-- many --seeds 5 --seed 7");
        assert_eq!(of("--seed 7 --log"), "-- one --seed 7 --log");
        assert_eq!(of("--teeth --seeds 5"), "--features defects -- teeth --seeds 5");
        let log = "--features defects -- one --seed 7 --defect HolderDeaf --log";
        assert_eq!(of("--seed 7 --defect HolderDeaf --log"), log);
        assert_eq!(of("--teeth --seed 7 --defect HolderDeaf --log"), log);
        let many = "--features defects -- many --defect HolderDeaf --seeds 2000";
        assert_eq!(of("--defect HolderDeaf"), many);
    }
}
