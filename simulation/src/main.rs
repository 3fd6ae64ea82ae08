//! Whole runs of clients, network and etcd in one process, decided by a number: each can be repeated exactly.
//!
//! A run is a process of its own with one thread: `one SEED`. It has several clients on a `FakeEtcd`, over pipes that can stall and
//! break, and a paused clock. Its choices, the order in which tasks run and what random numbers there are follow from its number.
//! `many` starts a process for each of a row of numbers. Begin to read in `run.rs`.

mod faults;
mod forced;
mod lockers;
mod many;
mod owners;
mod run;
mod world;

use std::{env, error::Error, process::ExitCode};

const HELP: &str = "\
usage: simulation one SEED [--log] [--trace] [--defect NAME]
       simulation many [--seed FIRST] [--seeds COUNT] [--jobs JOBS] [--defect NAME]
       simulation teeth [--seeds COUNT] [--jobs JOBS]

  one    a single run: prints what was broken, with --log what happened, with --trace also what the library logged
  many   runs for so many seeds (default 2000) from FIRST on (default 1)
  teeth  for each deliberate defect, runs until one finds it, or COUNT (default 10000) have not; needs the feature `defects`
";

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The options, all of them.
#[derive(Clone, Debug, Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    jobs: Option<usize>,
    defect: Option<String>,
    log: bool,
    trace: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--seed" => options.seed = Some(value()?.parse()?),
                "--seeds" => options.seeds = Some(value()?.parse()?),
                "--jobs" => options.jobs = Some(value()?.parse()?),
                "--defect" => options.defect = Some(value()?),
                "--log" => options.log = true,
                "--trace" => options.trace = true,
                seed => options.seed = Some(seed.parse().map_err(|_| format!("{seed} is no option and no number"))?),
            }
        }
        Ok(options)
    }
}

/// Turns a defect on by its name.
#[cfg(feature = "defects")]
fn turn_on(defect: &str) -> Result {
    let known = enlist_etcd::Defect::ALL.iter().find(|known| format!("{known:?}") == defect);
    enlist_etcd::Defect::turn_on(*known.ok_or(format!("there is no defect {defect}"))?);
    Ok(())
}

#[cfg(not(feature = "defects"))]
fn turn_on(_: &str) -> Result {
    Err("defects need the feature `defects`".into())
}

fn one(options: &Options) -> Result<bool> {
    let seed = options.seed.ok_or("which SEED?")?;
    forced::force(seed, run::REAL_LIMIT);
    if let Some(defect) = &options.defect {
        turn_on(defect)?;
    }
    if options.trace {
        let lines = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stdout);
        lines.with_max_level(tracing_subscriber::filter::LevelFilter::TRACE).init();
    }
    let broken = run::run(seed, options.log || options.trace);
    for broken in &broken {
        println!("broken: {broken}");
    }
    Ok(broken.is_empty())
}

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let good = Options::parse(args).and_then(|options| match command.as_str() {
        "one" => one(&options),
        "many" => Ok(many::many(&options)),
        "teeth" => many::teeth(&options),
        _ => Err(HELP.into()),
    });
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
