//! Parts that several commands share: running programs, and texts about usage.

use std::{env, error::Error, process::Command};

/// Features that are tested beside the default ones. Commands name the whole workspace with them, also for a single
/// test program: the selected packages decide on the features of every dependency, and others would be built again.
pub(crate) const FEATURES: &str =
    "enlist-examples/etcd,enlist/metrics,enlist-config/tracing,enlist-grpc/tls-ring,enlist-agent/tls";

/// Arguments of cargo for the conformance suite on etcd. The name of its module leaves out that of the memory backend.
pub(crate) const CONFORMANCE: [&str; 8] =
    ["test", "--workspace", "--features", FEATURES, "--test", "conformance", "--", "etcd::"];

/// Text of `cargo xtask` without a command.
pub(crate) const HELP: &str = "\
cargo xtask <command>

  test    get protoc and an etcd, then run every test and every example
  etcd    [--version V] supply `etcd` and `etcdctl` of that version, and print the paths: the etcd of ENLIST_ETCD_BIN, a
          build with Go, the one on the PATH, or Debian's package. Without a version: the newest 3.6, if it can be built
  matrix  [--version V]… [--conformance], or --upgrade
          run the tests of the backend, of the command line and of interop on each supported release line of etcd, then
          upgrade a cluster from 3.5 to 3.6 and 3.7 under traffic, and the etcd of a fleet in Go and Rust from 3.5 to
          3.6; with versions, test on these and upgrade nothing; --conformance runs the conformance suite only,
          --upgrade the upgrade of the cluster only; writes target/matrix.md
  interop [dubbo|etcd|gokit|gomicro|gozero|kitex|kratos|viper|fleet …]
          build programs on Go libraries, all or those named, and run both sides together; fleet restarts each of six
          servers in both languages, and upgrades their etcd from 3.5 to 3.6, under calls; writes target/interop.md
  clients [python|envoy|go|tonic-xds|java|console|http|prometheus|browser|layouts|etcd …]
          run clients of the agent in other languages, all or those named, with their real libraries, which are
          installed below the build folder; layouts runs the one in Go with servers that kitex, go-zero and kratos
          register; etcd runs the scenarios of the clients named over etcd instead of the memory backend, also with
          servers that the libraries of go-zero and kitex register; http checks the interface against its OpenAPI
          document; python, envoy and http need python3 with its module venv, go, layouts and etcd Go, java Maven,
          console Node, prometheus and browser Debian's packages
  nemesis [--seed N] [--minutes M] [--members 1|3] [--replay FILE]
          random faults against registrations, watchers and locks (default: 10 minutes, another seed each time, a single
          etcd; members of a cluster are also wiped and added again), or judge the saved record of a failed run again
  simulate [--seed N] [--seeds M] [--log] [--trace] [--teeth] [--defect NAME]
          simulated runs of M seeds from N on (default: 2000 from 1), with a table of what they covered; --log and
          --trace show the events of seed N; --teeth looks for the deliberate defects instead, each in up to M runs
          (default: 10000), by the invariants that are about it, and runs the same seeds without a defect; --defect
          switches one on, and limits --teeth to it
  mutants [--part core|pool|etcd|layouts|other-layouts|grpc …] [--file FILE …] [--rest] [--resume]
          mutants of `cargo-mutants` in the code that makes decisions, in all of it, or in the parts or files named:
          each has to fail a test, or have a reason in xtask/survivors.txt; --rest measures the rest of core; --resume
          leaves out those that a former run noticed
  soak    [SECONDS] random faults for that long (default 600) on one etcd and on three members, 100,000 simulated runs
          and the deliberate defects, five minutes of `enlist lock` with frozen holders, a minute of gRPC calls to a
          server with few streams, then the fault tests ten times in a row; writes target/soak.md
  bench   [SCENARIO …] [--json]
          measure beside other clients; `bench/README.md` explains the scenarios, `bench --help` lists them
  bench build
          build small programs from empty folders: crates, processor time and size (fifteen minutes)
  bench peers [SCENARIO …] [--quick] [--json]
          build programs on Go libraries, and measure beside them, each in a process of its own; --quick shows within
          three minutes that everything works, and judges nothing
  bench plots FILE…
          draw the output of `bench peers --json`, a file for each run, in bench/plots
  env     print the exports for a plain shell: eval \"$(cargo xtask env)\"
  rules   [--bless]
          check that no crate depends on what it must not know, that each one builds alone, `enlist-etcd` also without
          TLS, and the examples without protoc, all without a warning of clippy, and that at most 4 % of the
          documentation comments open with an interrogative; check lengths, names, and the listings of the public API;
          print the cycles of imports between files; --bless writes the listings
";

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Returns the variables that let etcd-client build: none if `PROTOC` is set, else those of a `protoc` from a crate.
pub(crate) fn protoc() -> Result<Vec<(&'static str, String)>> {
    if env::var_os("PROTOC").is_some() {
        return Ok(Vec::new());
    }
    let path = protoc_bin_vendored::protoc_bin_path()?;
    let include = protoc_bin_vendored::include_path()?;
    Ok(vec![("PROTOC", path.display().to_string()), ("PROTOC_INCLUDE", include.display().to_string())])
}

/// Returns the cargo that runs this program, with the variables that a build needs.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.envs(protoc()?);
    Ok(command)
}

/// Prints a command and runs it.
pub(crate) fn run(command: &mut Command) -> Result {
    let shown: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    println!("\n==> {} {}", command.get_program().to_string_lossy(), shown.join(" "));
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed: {status}", shown.join(" ")).into()) }
}
