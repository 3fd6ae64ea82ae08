//! The project's own commands. `cargo xtask` lists them.
//!
//! They get what a bare machine lacks: a `protoc` from a crate, and an etcd from where one can be had.

mod counted;
mod etcd;
mod interop;
mod matrix;
mod mutants;
mod rules;

use std::{
    env,
    error::Error,
    process::{Command, ExitCode, Stdio},
};

use etcd::{Etcd, Override, Version};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const HELP: &str = "\
cargo xtask <command>

  test    get protoc and an etcd, then run every test and every example
  etcd    [--version V] supply `etcd` and `etcdctl` of that version, and print the paths: the etcd of ENLIST_ETCD_BIN, a
          build with Go, the one on the PATH, or Debian's package. Without a version: the newest 3.6, if it can be built
  matrix  [--version V]… [--conformance]
          run the tests of the backend, of the command line and of interop on each supported release line of etcd, or on
          these versions; --conformance runs the conformance suite only
  interop [etcd|gokit|gozero|kratos …]
          build programs on Go libraries, all or those named, and run both sides together
  nemesis [--seed N] [--minutes M] [--members 1|3] [--replay FILE]
          random faults against registrations, watchers and locks (default: 10 minutes, another seed each time, a single etcd;
          members of a cluster are also wiped and added again), or judge the saved record of a failed run again
  simulate [--seed N] [--seeds M] [--log] [--trace] [--teeth]
          simulated runs of M seeds from N on (default: 2000 from 1); --log and --trace show what happens in the one of N; --teeth
          looks for the deliberate defects instead, each in up to M runs (default: 10000)
  mutants [--file FILE …] [--rest]
          mistakes of `cargo-mutants` in the code that decides: each has to fail a test, or have a reason in xtask/survivors.txt;
          --rest measures the rest of core
  soak    [SECONDS] random faults for that long (default 600), 100,000 simulated runs and the deliberate defects, five minutes of
          `enlist lock` with frozen holders, then the fault tests twenty times in a row
  bench   [SCENARIO …] [--json] measure beside what people use today; `bench/README.md` explains it, `bench --help` lists it
  env     print the exports for a plain shell: eval \"$(cargo xtask env)\"
  rules   [--bless]
          check that no crate depends on what it must not know, that each one builds alone, and that at most 4 % of the
          documentation comments open with an interrogative; check lengths, names, and the listings of the public API;
          print the cycles of imports between files; --bless writes the listings
";

fn main() -> ExitCode {
    let command = env::args().nth(1).unwrap_or_default();
    let outcome = match command.as_str() {
        "test" => test(),
        "etcd" => print_etcd(env::args().skip(2)),
        "matrix" => matrix::run(env::args().skip(2)),
        "interop" => interop::run(env::args().skip(2)),
        "nemesis" => nemesis(env::args().skip(2)),
        "simulate" => simulate(env::args().skip(2)),
        "mutants" => mutants::run(env::args().skip(2)),
        "soak" => soak(env::args().nth(2).as_deref().unwrap_or("600")),
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

/// The variables that let etcd-client build: the given ones, else a `protoc` from a crate.
fn protoc() -> Result<Vec<(&'static str, String)>> {
    if env::var_os("PROTOC").is_some() {
        return Ok(Vec::new());
    }
    let path = protoc_bin_vendored::protoc_bin_path()?;
    let include = protoc_bin_vendored::include_path()?;
    Ok(vec![("PROTOC", path.display().to_string()), ("PROTOC_INCLUDE", include.display().to_string())])
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

/// The cargo that runs this, with what building needs.
fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.envs(protoc()?);
    Ok(command)
}

/// Runs a command and shows it first.
fn run(command: &mut Command) -> Result {
    let shown: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    println!("\n==> {} {}", command.get_program().to_string_lossy(), shown.join(" "));
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed: {status}", shown.join(" ")).into()) }
}

/// Number of cases that run side by side: they mostly wait, so more than there are cores; each has an etcd of its own.
const SIDE_BY_SIDE: &str = "8";

/// The programs whose tests inject faults.
const FAULTS: [&str; 14] = [
    "membership",
    "changed_security",
    "storage",
    "host",
    "faults",
    "fake",
    "contenders",
    "cluster",
    "views",
    "registrations",
    "nemesis",
    "locks",
    "replies",
    "late_writes",
];

/// A long run of random faults, or what a former one recorded.
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
    random_faults(&format!("{:.0}", minutes * 60.0), seed, members)
}

/// Target of random faults.
#[derive(Clone, Copy)]
enum Members {
    One,
    Three,
}

fn random_faults(seconds: &str, seed: Option<u64>, members: Members) -> Result {
    let mut command = cargo()?;
    command.args(["test", "--package", "enlist-etcd", "--test", "nemesis", "--", "--nocapture"]);
    if let Members::Three = members {
        command.arg("--ignored");
    }
    command.env("ENLIST_SOAK_SECS", seconds).envs(seed.map(|seed| ("ENLIST_SEED", seed.to_string())));
    run(command.envs(etcd::find()?.variables()))
}

/// Seeds of the simulation for every day, and for a soak.
const SEEDS: &str = "2000";
const SOAK_SEEDS: &str = "100000";

/// Simulated runs. They are built with a profile of their own, which makes thousands of them a matter of a minute.
fn simulate(args: impl Iterator<Item = String>) -> Result {
    let (teeth, mut options): (Vec<_>, Vec<_>) = args.partition(|flag| flag == "--teeth");
    let shows = options.iter().any(|flag| flag == "--log" || flag == "--trace");
    let mut command = cargo()?;
    command.args(["run", "--quiet", "--profile", "simulation", "--package", "enlist-simulation"]);
    if !teeth.is_empty() {
        command.args(["--features", "defects"]);
    }
    if !options.iter().any(|flag| flag == "--seeds") && teeth.is_empty() && !shows {
        options.extend(["--seeds".to_owned(), SEEDS.to_owned()]);
    }
    let kind = if !teeth.is_empty() {
        "teeth"
    } else if shows {
        "one"
    } else {
        "many"
    };
    run(command.args(["--", kind]).args(options))
}

fn simulate_many(seeds: &str) -> Result {
    simulate(["--seeds".to_owned(), seeds.to_owned()].into_iter())
}

/// Runs the tests that take too long for every day.
fn soak(seconds: &str) -> Result {
    let etcd = etcd::find()?;
    etcd::need_etcdctl(&etcd)?;
    random_faults(seconds, None, Members::One)?;
    simulate_many(SOAK_SEEDS)?;
    simulate(std::iter::once("--teeth".to_owned()))?;
    let locks = ["test", "--package", "enlist-cli", "--test", "soak", "--", "--nocapture"];
    run(cargo()?.args(locks).env("ENLIST_SOAK_SECS", "300").envs(etcd.variables()))?;
    for round in 1..=20 {
        println!("\n==> round {round} of 20");
        let mut command = cargo()?;
        command.args(["test", "--package", "enlist-etcd"]);
        for program in FAULTS {
            command.args(["--test", program]);
        }
        run(command.env("RUST_TEST_THREADS", SIDE_BY_SIDE).envs(etcd.variables()))?;
    }
    println!("\nthe soak passed");
    Ok(())
}

/// The measurements, as they are for a program that is shipped. Nothing but their own lines goes to the standard
/// output.
fn bench(arguments: impl Iterator<Item = String>) -> Result {
    let etcd = etcd::find()?;
    // It starts others of its programs, which have to be there.
    let build = cargo()?.args(["build", "--release", "--package", "enlist-bench", "--bins"]).status()?;
    if !build.success() {
        return Err("the measurements were not built".into());
    }
    let run = ["run", "--quiet", "--release", "--package", "enlist-bench", "--bin", "bench", "--"];
    let measured = cargo()?.args(run).args(arguments).envs(etcd.variables()).status()?;
    if measured.success() { Ok(()) } else { Err(format!("not all targets were met: {measured}").into()) }
}

/// Features that are tested beside the default ones.
const FEATURES: &str = "enlist-examples/etcd,enlist/metrics,enlist-grpc/tls-ring";

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
    &["locator"],
    &["rolling_restart"],
    &["rolling_restart", "--kill"],
];

fn test() -> Result {
    let etcd = etcd::find()?;
    etcd::need_etcdctl(&etcd)?;
    println!("etcd for the tests: {etcd}");
    let everything = ["test", "--workspace", "--features", FEATURES];
    run(cargo()?.args(everything).env("RUST_TEST_THREADS", SIDE_BY_SIDE).envs(etcd.variables()))?;
    simulate_many(SEEDS)?;
    let left_out = containers(&etcd)?;
    for example in EXAMPLES {
        let (name, args) = example.split_first().ok_or("an example has a name")?;
        let example = ["run", "--quiet", "--package", "enlist-examples", "--example", name, "--"];
        run(cargo()?.args(example).args(args))?;
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
    command.args(["test", "--package", "enlist-etcd", "--test", "conformance"]).envs(etcd.variables());
    let engine = if etcd.is_process() { etcd::docker_engine() } else { Err("the etcd is given".to_owned()) };
    if let Err(reason) = engine {
        let list = command.args(["--quiet", "--", "--list"]).stderr(Stdio::null()).output()?;
        let count = String::from_utf8_lossy(&list.stdout).lines().filter(|line| line.ends_with(": test")).count();
        return Ok(Some(format!("{count} container tests were left out: {reason}")));
    }
    run(command.env("RUST_TEST_THREADS", SIDE_BY_SIDE).env("ENLIST_TEST_PROVIDER", "container"))?;
    Ok(None)
}
