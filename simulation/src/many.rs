//! Many runs, each in its own process.

use std::{
    process::{Command, Output},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::Moment;

use crate::{Options, Outcome, Result};

/// Number of failed runs after which no more are started.
const MAX_FAILURES: usize = 10;

/// A run that failed.
struct Failed {
    seed: u64,
    cause: String,
}

/// Outcome of several runs.
struct Batch {
    runs: u64,
    failed: Vec<Failed>,
    took: Duration,
}

/// Runs one seed in its own process. Returns `None` if it passed.
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
            let text = [output.stdout, output.stderr].concat();
            let cause = format!("{}\n{}", output.status, String::from_utf8_lossy(&text));
            Some(Failed { seed, cause })
        }
        Err(error) => Some(Failed { seed, cause: error.to_string() }),
    }
}

/// Runs `count` seeds from `first` on, until `max_failures` have failed.
fn batch(first: u64, count: u64, jobs: usize, defect: Option<&str>, max_failures: usize) -> Batch {
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
                        if failed.len() >= max_failures {
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
    Batch { runs, failed, took: begun.elapsed() }
}

fn jobs(options: &Options) -> usize {
    options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from)).max(1)
}

pub(crate) fn many(options: &Options) -> Outcome {
    let (first, count) = (options.seed.unwrap_or(1), options.seeds.unwrap_or(2000));
    let batch = batch(first, count, jobs(options), options.defect.as_deref(), MAX_FAILURES);
    for Failed { seed, cause } in &batch.failed {
        println!("seed {seed} failed; repeat it with `cargo xtask simulate --seed {seed} --log`: {cause}");
    }
    println!("{} runs, {} failed, in {:.1} s", batch.runs, batch.failed.len(), batch.took.as_secs_f64());
    if batch.failed.is_empty() { Outcome::Passed } else { Outcome::Failed }
}

/// Returns the names of all defects.
#[cfg(feature = "defects")]
fn defects() -> Vec<String> {
    enlist_etcd::DeliberateDefect::ALL.iter().map(|defect| format!("{defect:?}")).collect()
}

#[cfg(not(feature = "defects"))]
fn defects() -> Vec<String> {
    Vec::new()
}

/// Runs each defect until a run finds it.
pub(crate) fn teeth(options: &Options) -> Result<Outcome> {
    let defects = defects();
    if defects.is_empty() {
        return Err("this needs the feature `defects`".into());
    }
    let mut missed = 0;
    for defect in &defects {
        let batch = batch(options.seed.unwrap_or(1), options.seeds.unwrap_or(10_000), jobs(options), Some(defect), 1);
        let seconds = batch.took.as_secs_f64();
        if let Some(Failed { seed, cause }) = batch.failed.first() {
            let first = cause.lines().nth(1).unwrap_or_default();
            println!(
                "{defect}: found by seed {seed} in {seconds:.1} s: {}",
                first.chars().take(160).collect::<String>()
            );
        } else {
            missed += 1;
            println!("{defect}: not found by {} runs in {seconds:.1} s", batch.runs);
        }
    }
    println!("{} of {} defects were found", defects.len() - missed, defects.len());
    Ok(if missed == 0 { Outcome::Passed } else { Outcome::Failed })
}
