//! Many runs, each in its own process.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use enlist::{Moment, backend::MutexExt as _};

use crate::{
    counts::Counts,
    options::{Options, Outcome, Result},
    run::{PROCESSOR_LIMIT, REAL_LIMIT},
    verdicts::{Invariant, Verdict},
};

/// Number of failed runs after which no more are started.
const MAX_FAILURES: usize = 10;

/// Number of runs from which on each kind of operation, fault, observation and check has to occur.
const COMPLETE_FROM: u64 = 2000;

/// Exit status of a process that panicked.
const PANICKED: i32 = 101;

/// A run that failed.
pub(crate) struct Failed {
    pub(crate) seed: u64,
    pub(crate) verdicts: Vec<Verdict>,
}

/// Seeds of several runs.
#[derive(Clone, Copy)]
pub(crate) struct Seeds {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// Outcome of several runs.
pub(crate) struct Batch {
    pub(crate) runs: u64,
    /// In the order of their seeds.
    pub(crate) failed: Vec<Failed>,
    pub(crate) counts: Counts,
    pub(crate) took: Duration,
}

/// Runs one seed in its own process. Returns its verdicts and counts.
fn run_one(seed: u64, defect: Option<&str>) -> (Vec<Verdict>, Counts) {
    let run = || -> Result<Output> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["one", &seed.to_string()]);
        command.args(defect.iter().flat_map(|defect| ["--defect", defect]));
        Ok(command.output()?)
    };
    match run() {
        Ok(output) => verdicts(&output),
        Err(error) => (vec![Verdict { invariant: None, detail: error.to_string() }], Counts::default()),
    }
}

/// Returns the verdicts and counts in the output of a run. A run that was killed or panicked has a verdict of its own.
fn verdicts(output: &Output) -> (Vec<Verdict>, Counts) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let mut verdicts: Vec<Verdict> = text.lines().filter_map(Verdict::parse).collect();
    if output.status.signal() == Some(libc::SIGPROF) {
        verdicts.push(Verdict::of(Invariant::Ends, format!("killed after {PROCESSOR_LIMIT} s of processor time")));
    } else if output.status.signal() == Some(libc::SIGALRM) {
        verdicts.push(Verdict::of(Invariant::Ends, format!("killed after {REAL_LIMIT} s of real time")));
    } else if output.status.code() == Some(PANICKED) {
        verdicts.push(Verdict::of(Invariant::NoPanic, errors));
    } else if verdicts.is_empty() && !output.status.success() {
        verdicts.push(Verdict { invariant: None, detail: format!("{}: {}", output.status, errors.replace('\n', " ")) });
    }
    (verdicts, Counts::parse(&text))
}

/// Runs `seeds` until `enough` returns `true` for the failed ones.
pub(crate) fn batch(
    seeds: Seeds,
    jobs: usize,
    defect: Option<&str>,
    enough: impl Fn(&[Failed]) -> bool + Sync,
) -> Batch {
    let Seeds { first, count } = seeds;
    let begun = Moment::now();
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let done = Mutex::new((Vec::new(), Counts::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    let (verdicts, counts) = run_one(seed, defect);
                    let mut done = done.locked();
                    done.1.merge(&counts);
                    if !verdicts.is_empty() {
                        done.0.push(Failed { seed, verdicts });
                        if enough(&done.0) {
                            stop.store(true, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let (mut failed, counts) = std::mem::take(&mut *done.locked());
    failed.sort_by_key(|failed: &Failed| failed.seed);
    let runs = next.into_inner().min(first + count) - first;
    Batch { runs, failed, counts, took: begun.elapsed() }
}

/// Returns the first failed run that violates one of `wanted`, and that violation.
#[cfg(any(test, feature = "defects"))]
pub(crate) fn found<'a>(failed: &'a [Failed], wanted: &[Invariant]) -> Option<(&'a Failed, Invariant)> {
    failed.iter().find_map(|failed| {
        let mut violated = failed.verdicts.iter().filter_map(|verdict| verdict.invariant);
        violated.find(|invariant| wanted.contains(invariant)).map(|invariant| (failed, invariant))
    })
}

pub(crate) fn jobs(options: &Options) -> usize {
    options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from)).max(1)
}

/// Returns the command that shows the events of a run.
pub(crate) fn shown_by(seed: u64, defect: Option<&str>) -> String {
    let defect = defect.map(|defect| format!(" --defect {defect}")).unwrap_or_default();
    format!("cargo xtask simulate --seed {seed}{defect} --log")
}

pub(crate) fn many(options: &Options) -> Outcome {
    let seeds = Seeds { first: options.seed.unwrap_or(1), count: options.seeds.unwrap_or(COMPLETE_FROM) };
    let batch = batch(seeds, jobs(options), options.defect.as_deref(), |failed| failed.len() >= MAX_FAILURES);
    println!("{}", batch.counts.table(batch.runs, batch.took));
    for Failed { seed, verdicts } in &batch.failed {
        println!("seed {seed} failed; repeat it with `{}`:", shown_by(*seed, options.defect.as_deref()));
        for verdict in verdicts {
            println!("  {verdict}");
        }
    }
    println!("{} runs, {} failed, in {:.1} s", batch.runs, batch.failed.len(), batch.took.as_secs_f64());
    let missing = if batch.runs >= COMPLETE_FROM { batch.counts.missing() } else { Vec::new() };
    if !missing.is_empty() {
        println!("these never occurred, although each has to in {COMPLETE_FROM} runs: {}", missing.join(", "));
    }
    if batch.failed.is_empty() && missing.is_empty() { Outcome::Passed } else { Outcome::Failed }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn output(status: i32, stdout: &str, stderr: &str) -> Vec<Option<Invariant>> {
        let status = ExitStatus::from_raw(status);
        let output = Output { status, stdout: stdout.into(), stderr: stderr.into() };
        verdicts(&output).0.into_iter().map(|verdict| verdict.invariant).collect()
    }

    #[test]
    fn each_end_of_a_run_has_its_verdict() {
        let failed = 1 << 8;
        assert_eq!(output(0, "count: operation/Close 2\n", ""), []);
        assert_eq!(output(failed, "broken: QueueOrder: a\nbroken: Exclusion: b\n", "").len(), 2);
        assert_eq!(output(libc::SIGPROF, "", ""), [Some(Invariant::Ends)]);
        assert_eq!(output(libc::SIGALRM, "", ""), [Some(Invariant::Ends)]);
        assert_eq!(output(PANICKED << 8, "", "thread 'main' panicked"), [Some(Invariant::NoPanic)]);
        assert_eq!(output(failed << 1, "", "there is no such defect"), [None]);
        assert_eq!(output(libc::SIGKILL, "", ""), [None]);
    }

    #[test]
    fn the_command_names_the_defect() {
        assert_eq!(shown_by(7, None), "cargo xtask simulate --seed 7 --log");
        assert_eq!(shown_by(7, Some("HolderDeaf")), "cargo xtask simulate --seed 7 --defect HolderDeaf --log");
    }

    #[test]
    fn a_failure_for_another_reason_finds_nothing() {
        let failed = |seed, invariant| Failed { seed, verdicts: vec![Verdict { invariant, detail: String::new() }] };
        let runs = [failed(1, None), failed(2, Some(Invariant::Ends)), failed(3, Some(Invariant::QueueOrder))];
        let by = |wanted: &[Invariant]| found(&runs, wanted).map(|(failed, invariant)| (failed.seed, invariant));
        assert_eq!(by(&[Invariant::QueueOrder, Invariant::Exclusion]), Some((3, Invariant::QueueOrder)));
        assert_eq!(by(&[Invariant::Exclusion]), None);
    }
}
