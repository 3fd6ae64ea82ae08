//! Tests that are counted while they run.

#![expect(clippy::disallowed_types, reason = "the time of a child process is measured, which no test pauses")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    ops::AddAssign,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::command::Result;

/// Outcome of some tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) time: Duration,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.time += other.time;
    }
}

/// Runs a test command of cargo, shows its output, and counts the tests.
///
/// # Errors
///
/// If the command fails without a failed test, or if no test ran: a filter that no longer fits any would else pass.
pub(crate) fn run(command: &mut Command) -> Result<Counts> {
    let mut ignored = ByModule::new();
    run_by_module(command, &mut ignored)
}

/// Numbers of passed and failed tests of each outermost module.
pub(crate) type ByModule = BTreeMap<String, Counts>;

/// As [`run`], with the numbers of each module. Tests that print without being captured are in none of them.
pub(crate) fn run_by_module(command: &mut Command, modules: &mut ByModule) -> Result<Counts> {
    let shown: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    println!("\n==> {} {}", command.get_program().to_string_lossy(), shown.join(" "));
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("the command has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some((passed, failed)) = result_of(&line) {
            counts += Counts { passed, failed, time: Duration::ZERO };
        }
        if let Some((module, counts)) = test_of(&line) {
            *modules.entry(module.to_owned()).or_default() += counts;
        }
    }
    let status = child.wait()?;
    counts.time = began.elapsed();
    if !status.success() && counts.failed == 0 {
        return Err(format!("`{}` failed: {status}", shown.join(" ")).into());
    }
    if counts.passed + counts.failed == 0 {
        return Err(format!("`{}` ran no test", shown.join(" ")).into());
    }
    Ok(counts)
}

/// # Errors
///
/// If a test failed.
pub(crate) fn passed(counts: Counts) -> Result {
    let Counts { passed, failed, .. } = counts;
    if failed > 0 { Err(format!("{failed} of {} tests failed", passed + failed).into()) } else { Ok(()) }
}

/// Runs another command, which counts as one test.
///
/// # Errors
///
/// If the command fails.
pub(crate) fn time(command: &mut Command) -> Result<Counts> {
    let began = Instant::now();
    crate::command::run(command)?;
    Ok(Counts { passed: 1, failed: 0, time: began.elapsed() })
}

/// The numbers of passed and failed tests, from the closing line of a test program.
fn result_of(line: &str) -> Option<(usize, usize)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = rest.split("; ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some((number("passed")?, number("failed")?))
}

/// The module and the outcome of one test, from its line.
fn test_of(line: &str) -> Option<(&str, Counts)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (module, _) = name.split_once("::")?;
    let (passed, failed) = match outcome {
        "ok" => (1, 0),
        "FAILED" => (0, 1),
        _ => return None,
    };
    Some((module, Counts { passed, failed, time: Duration::ZERO }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that prints these lines and ends with `status`.
    fn printing(lines: &str, status: u8) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("printf '{lines}'; exit {status}")]);
        command
    }

    const NONE: &str = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out\\n";
    const SOME: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\\n";

    #[test]
    fn a_run_without_a_test_fails() {
        for lines in ["", NONE] {
            let error = run(&mut printing(lines, 0)).unwrap_err().to_string();
            assert!(error.ends_with("ran no test"), "{error}");
        }
        let counts = run(&mut printing(&[NONE, SOME, SOME].concat(), 0)).unwrap();
        assert_eq!((counts.passed, counts.failed), (6, 0));
    }

    #[test]
    fn a_command_that_fails_without_tests_fails() {
        assert!(run(&mut printing(SOME, 101)).unwrap_err().to_string().contains("failed"));
    }

    #[test]
    fn the_line_of_a_test_names_its_module() {
        let counts = |passed, failed| Counts { passed, failed, time: Duration::ZERO };
        assert_eq!(test_of("test kitex::ours_is_found ... ok"), Some(("kitex", counts(1, 0))));
        assert_eq!(test_of("test kitex::deep::theirs ... FAILED"), Some(("kitex", counts(0, 1))));
        for other in ["test kitex::ours_is_found ... ignored", "test alone ... ok", "test result: ok. 1 passed"] {
            assert_eq!(test_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_closing_line_of_a_test_program_is_read() {
        let line = "test result: FAILED. 8 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 7.17s";
        assert_eq!(result_of(line), Some((8, 1)));
        assert_eq!(result_of("test result of something else"), None);
        assert_eq!(result_of("running 3 tests"), None);
    }
}
