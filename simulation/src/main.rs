//! Deterministic simulation of clients, network and etcd in one process. A seed decides a run, so each run can be
//! repeated exactly.
//!
//! A run is a process with one thread: `one SEED`. It has several clients of a `FakeEtcd`, over pipes that can stall
//! and break, and a paused clock. Its choices, the order of its tasks and its random numbers follow from the seed.
//! `many` starts one process per seed. Begin with `run.rs`.

mod configs;
mod counts;
mod faults;
mod forced;
mod judge;
mod kinds;
mod lockers;
mod many;
mod operations;
mod options;
mod owners;
mod panics;
mod run;
#[cfg(feature = "defects")]
mod teeth;
mod verdicts;
mod world;

use std::{env, num::NonZeroU32, process::ExitCode};

#[cfg(feature = "defects")]
use self::teeth::teeth;
use self::{
    options::{Options, Outcome, Result},
    world::Logs,
};

const HELP: &str = "\
usage: simulation one SEED [--log] [--trace] [--defect NAME] [--limit SECONDS]
       simulation many [--seed FIRST] [--seeds COUNT] [--jobs JOBS] [--defect NAME]
       simulation teeth [--seeds COUNT] [--jobs JOBS] [--defect NAME]

  one    a single run: prints counts and violations; --log adds the events, --trace also the log of the library; it is
         killed after SECONDS of real time (default 600)
  many   COUNT runs (default 2000) with the seeds from FIRST on (default 1), and a table of the counts
  teeth  for each deliberate defect, runs until one violates an invariant that is about it, at most COUNT (default
         10000), and the same seeds without a defect; needs the feature `defects`
";

/// Enables a defect by its name.
#[cfg(feature = "defects")]
fn turn_on(defect: &str) -> Result {
    let known = enlist_etcd::DeliberateDefect::ALL.iter().find(|known| format!("{known:?}") == defect);
    enlist_etcd::DeliberateDefect::turn_on(*known.ok_or(format!("there is no defect {defect}"))?);
    Ok(())
}

#[cfg(not(feature = "defects"))]
fn turn_on(_: &str) -> Result {
    Err("defects need the feature `defects`".into())
}

fn one(options: &Options) -> Result<Outcome> {
    let seed = options.seed.ok_or("SEED is missing")?;
    let real = options.limit.map_or(run::REAL_LIMIT, NonZeroU32::get);
    forced::force(seed, forced::Limits { processor: run::PROCESSOR_LIMIT, real });
    panics::record();
    if let Some(defect) = &options.defect {
        turn_on(defect)?;
    }
    if options.trace {
        let lines = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stdout);
        lines.with_max_level(tracing_subscriber::filter::LevelFilter::TRACE).init();
    }
    let logs = if options.log || options.trace { Logs::Printed } else { Logs::Omitted };
    let run::RunOutcome { verdicts, counts } = run::run(seed, logs);
    counts.lines().for_each(|line| println!("{line}"));
    for verdict in &verdicts {
        println!("{verdict}");
    }
    Ok(if verdicts.is_empty() { Outcome::Passed } else { Outcome::Failed })
}

#[cfg(not(feature = "defects"))]
fn teeth(_: &Options) -> Result<Outcome> {
    Err("this needs the feature `defects`".into())
}

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let outcome = Options::parse(args).and_then(|options| match command.as_str() {
        "one" => one(&options),
        "many" | "teeth" if options.limit.is_some() => Err("--limit is for a single run".into()),
        "many" => Ok(many::many(&options)),
        "teeth" => teeth(&options),
        _ => Err(HELP.into()),
    });
    match outcome {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
