//! Measures `enlist` next to its references. See `bench/README.md`.

use std::process::ExitCode;

use enlist_bench::{
    measure::Result,
    report::{Format, Report},
    scenarios::{ALL, Scenario},
    world::{World, sync_time},
};

fn main() -> ExitCode {
    let (mut format, mut wanted) = (Format::Text, Vec::new());
    for argument in std::env::args().skip(1) {
        match (argument.as_str(), ALL.iter().find(|scenario| scenario.name == argument)) {
            ("--json", _) => format = Format::Json,
            (_, Some(scenario)) => wanted.push(*scenario),
            _ => {
                eprintln!("bench [SCENARIO …] [--json]\n");
                for Scenario { name, about, .. } in ALL {
                    eprintln!("  {name:<10} {about}");
                }
                return ExitCode::from(2);
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(ALL.iter().filter(|scenario| !["growth", "instructions"].contains(&scenario.name)));
    }
    match measure(&wanted, format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(wanted: &[Scenario], format: Format) -> Result {
    let mut report = Report::new(format);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    report.machine(&runtime.block_on(machine())?);
    for scenario in wanted {
        runtime.block_on((scenario.run)(&mut report)).map_err(|error| format!("{}: {error}", scenario.name))?;
    }
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
