//! Measures `enlist` next to its references. See `bench/README.md`.

use std::{path::Path, process::ExitCode};

use enlist_bench::{
    measure::Result,
    peers::{self, Plan},
    plots,
    report::{Format, Report},
    scenarios::{self, ALL, ONLY_WHEN_NAMED},
    world::{World, sync_time},
};
use tokio::runtime::Runtime;

/// Folder of the plots, from that of the workspace.
const PLOTS: &str = "bench/plots";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == "peers" => beside_peers(rest),
        Some((first, runs)) if first == "plots" && !runs.is_empty() => Some(draw(runs)),
        _ => beside_references(&arguments),
    };
    match outcome {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
        None => ExitCode::from(2),
    }
}

/// Measures beside references in this process. Returns `None` if the arguments are not known.
fn beside_references(arguments: &[String]) -> Option<Result> {
    let (mut format, mut wanted) = (Format::Text, Vec::new());
    for argument in arguments {
        match (argument.as_str(), ALL.iter().find(|scenario| scenario.name == argument)) {
            ("--json", _) => format = Format::Json,
            (_, Some(scenario)) => wanted.push(*scenario),
            _ => {
                eprintln!(
                    "bench [SCENARIO …] [--json]\nbench peers [SCENARIO …] [--quick] [--json]\nbench plots FILE…\n"
                );
                for scenarios::Scenario { name, about, .. } in ALL {
                    eprintln!("  {name:<10} {about}");
                }
                return None;
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(ALL.iter().filter(|scenario| !ONLY_WHEN_NAMED.contains(&scenario.name)));
    }
    Some(measure(format, |runtime, report| {
        for scenario in wanted {
            runtime.block_on((scenario.run)(report)).map_err(|error| format!("{}: {error}", scenario.name))?;
        }
        Ok(())
    }))
}

/// Measures beside Go libraries, each in a process of its own. Returns `None` if the arguments are not known.
fn beside_peers(arguments: &[String]) -> Option<Result> {
    let (mut format, mut plan, mut wanted) = (Format::Text, &Plan::FULL, Vec::new());
    for argument in arguments {
        match (argument.as_str(), peers::ALL.iter().find(|scenario| scenario.name == argument)) {
            ("--json", _) => format = Format::Json,
            ("--quick", _) => plan = &Plan::QUICK,
            (_, Some(scenario)) => wanted.push(*scenario),
            _ => {
                eprintln!("bench peers [SCENARIO …] [--quick] [--json]\n");
                for peers::Scenario { name, about, .. } in peers::ALL {
                    eprintln!("  {name:<10} {about}");
                }
                return None;
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(peers::ALL);
    }
    Some(measure(format, |runtime, report| {
        for scenario in wanted {
            runtime.block_on((scenario.run)(report, plan)).map_err(|error| format!("{}: {error}", scenario.name))?;
        }
        Ok(())
    }))
}

/// Draws the results of runs beside Go libraries, a file of JSON lines each.
fn draw(runs: &[String]) -> Result {
    let read = |path: &String| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let texts: std::result::Result<Vec<_>, _> = runs.iter().map(read).collect();
    plots::draw(&texts?, Path::new(PLOTS))
}

fn measure(format: Format, run: impl FnOnce(&Runtime, &mut Report) -> Result) -> Result {
    let mut report = Report::new(format);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    report.machine(&runtime.block_on(machine())?);
    run(&runtime, &mut report)?;
    Ok(report.finish()?)
}

/// Prints the environment that the numbers depend on.
async fn machine() -> Result<Vec<(&'static str, String)>> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let model =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|found| found.1));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let version = World::start().await.version().await?;
    Ok(vec![
        ("processor", format!("{cores} × {}", model.unwrap_or("?"))),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("etcd", version),
        ("4 KiB to disk", format!("{:.0} µs", sync_time()?)),
    ])
}
