//! Many runs, each in a process of its own.

use std::{
    process::{Command, Output},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::Moment;

use crate::{Options, Result};

/// Failed runs after which no more are begun.
const ENOUGH: usize = 10;

/// A run that failed.
struct Failed {
    seed: u64,
    why: String,
}

/// Outcome of a row of runs.
struct Row {
    runs: u64,
    failed: Vec<Failed>,
    took: Duration,
}

/// One run in a process of its own; `None` if it was good.
fn failure(seed: u64, defect: Option<&str>) -> Option<Failed> {
    let run = || -> Result<Output> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["one", &seed.to_string()]);
        command.args(defect.iter().flat_map(|defect| ["--defect", defect]));
        Ok(command.output()?)
    };
    match run() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let why = format!("{}\n{}", output.status, String::from_utf8_lossy(&said));
            Some(Failed { seed, why })
        }
        Err(error) => Some(Failed { seed, why: error.to_string() }),
    }
}

/// Runs `count` seeds from `first` on, until so many have failed.
fn row(first: u64, count: u64, jobs: usize, defect: Option<&str>, enough: usize) -> Row {
    let begun = Moment::now();
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    if let Some(failure) = failure(seed, defect) {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.push(failure);
                        if failed.len() >= enough {
                            stop.store(true, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|failed: &Failed| failed.seed);
    let runs = next.into_inner().min(first + count) - first;
    Row { runs, failed, took: begun.elapsed() }
}

fn jobs(options: &Options) -> usize {
    options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from)).max(1)
}

pub(crate) fn many(options: &Options) -> bool {
    let (first, count) = (options.seed.unwrap_or(1), options.seeds.unwrap_or(2000));
    let row = row(first, count, jobs(options), options.defect.as_deref(), ENOUGH);
    for Failed { seed, why } in &row.failed {
        println!("seed {seed} failed; repeat it with `cargo xtask simulate --seed {seed} --log`: {why}");
    }
    println!("{} runs, {} failed, in {:.1} s", row.runs, row.failed.len(), row.took.as_secs_f64());
    row.failed.is_empty()
}

/// The names of all defects.
#[cfg(feature = "defects")]
fn defects() -> Vec<String> {
    enlist_etcd::Defect::ALL.iter().map(|defect| format!("{defect:?}")).collect()
}

#[cfg(not(feature = "defects"))]
fn defects() -> Vec<String> {
    Vec::new()
}

/// Looks for every defect, until a run fails because of it.
pub(crate) fn teeth(options: &Options) -> Result<bool> {
    let defects = defects();
    if defects.is_empty() {
        return Err("this needs the feature `defects`".into());
    }
    let mut missed = 0;
    for defect in &defects {
        let row = row(options.seed.unwrap_or(1), options.seeds.unwrap_or(10_000), jobs(options), Some(defect), 1);
        let seconds = row.took.as_secs_f64();
        if let Some(Failed { seed, why }) = row.failed.first() {
            let first = why.lines().nth(1).unwrap_or_default();
            println!(
                "{defect}: found by seed {seed} in {seconds:.1} s: {}",
                first.chars().take(160).collect::<String>()
            );
        } else {
            missed += 1;
            println!("{defect}: not found by {} runs in {seconds:.1} s", row.runs);
        }
    }
    println!("{} of {} defects were found", defects.len() - missed, defects.len());
    Ok(missed == 0)
}
