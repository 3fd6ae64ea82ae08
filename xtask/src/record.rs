//! The record of a long run: a table in the build folder, written anew after each part, so that an interrupted run
//! leaves the parts that it has finished.

use std::{fmt::Write as _, fs, path::Path};

use crate::{command::Result, counted::Counts};

/// Outcomes of the parts of a run.
pub(crate) struct Record {
    path: &'static str,
    /// Title of the first column.
    title: &'static str,
    rows: Vec<(String, Result<Counts>)>,
}

impl Record {
    pub(crate) fn new(path: &'static str, title: &'static str) -> Self {
        Self { path, title, rows: Vec::new() }
    }

    /// Adds the outcome of a part, prints the table and writes it.
    pub(crate) fn add(&mut self, part: impl Into<String>, outcome: Result<Counts>) -> Result {
        self.rows.push((part.into(), outcome));
        let table = self.table();
        println!("\n{table}");
        let path = Path::new(self.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(path, &table)?)
    }

    /// # Errors
    ///
    /// If a part failed, or none ran.
    pub(crate) fn finish(self) -> Result {
        let failed = self.rows.iter().filter(|(_, outcome)| !passed(outcome)).count();
        if failed > 0 || self.rows.is_empty() {
            return Err(format!("{failed} of {} rows failed; {} has them", self.rows.len(), self.path).into());
        }
        println!("recorded in {}", self.path);
        Ok(())
    }

    fn table(&self) -> String {
        let mut table = format!("| {} | passed | failed | minutes |\n|---|---|---|---|\n", self.title);
        for (part, outcome) in &self.rows {
            let line = match outcome {
                Ok(Counts { passed, failed, time }) => {
                    // The tests of several programs run side by side, so that a single one has no time.
                    let minutes =
                        if time.is_zero() { String::new() } else { format!("{:.1}", time.as_secs_f64() / 60.0) };
                    format!("| {part} | {passed} | {failed} | {minutes} |")
                }
                Err(error) => format!("| {part} | | not run: {error} | |"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{line}");
        }
        table
    }
}

/// Returns `true` if tests ran and none failed.
fn passed(outcome: &Result<Counts>) -> bool {
    outcome.as_ref().is_ok_and(|counts| counts.failed == 0 && counts.passed > 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MINUTE_AND_A_HALF: Duration = Duration::from_secs(90);

    fn record(rows: Vec<(&str, Result<Counts>)>) -> Record {
        let rows = rows.into_iter().map(|(part, outcome)| (part.to_owned(), outcome)).collect();
        Record { rows, ..Record::new("", "etcd") }
    }

    fn counts(passed: usize, failed: usize) -> Counts {
        Counts { passed, failed, time: MINUTE_AND_A_HALF }
    }

    #[test]
    fn the_table_has_one_line_for_each_row() {
        let table = record(vec![("3.4.23", Ok(counts(7, 1))), ("3.7.3", Err("no compiler".into()))]).table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "| etcd | passed | failed | minutes |");
        assert_eq!(lines[2..], ["| 3.4.23 | 7 | 1 | 1.5 |", "| 3.7.3 | | not run: no compiler | |"]);
    }

    #[test]
    fn a_record_passes_only_with_tests() {
        assert!(record(vec![("a", Ok(counts(1, 0))), ("b", Ok(counts(2, 0)))]).finish().is_ok());
        for other in [Ok(counts(0, 0)), Ok(counts(5, 1)), Err("no compiler".into())] {
            assert!(record(vec![("a", Ok(counts(1, 0))), ("b", other)]).finish().is_err());
        }
        assert!(record(Vec::new()).finish().is_err());
    }
}
