//! Tests that are counted while they run.

#![expect(clippy::disallowed_types, reason = "the time of a child process is measured, which no test pauses")]

use std::{
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
/// If the command fails without a failed test.
pub(crate) fn run(command: &mut Command) -> Result<Counts> {
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
    }
    let status = child.wait()?;
    counts.time = began.elapsed();
    if status.success() || counts.failed > 0 {
        return Ok(counts);
    }
    Err(format!("`{}` failed: {status}", shown.join(" ")).into())
}

/// The numbers of passed and failed tests, from the closing line of a test program.
fn result_of(line: &str) -> Option<(usize, usize)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut parts = rest.split("; ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_a_test_program_is_read() {
        let line = "test result: FAILED. 8 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 7.17s";
        assert_eq!(result_of(line), Some((8, 1)));
        assert_eq!(result_of("test result of something else"), None);
        assert_eq!(result_of("running 3 tests"), None);
    }
}
