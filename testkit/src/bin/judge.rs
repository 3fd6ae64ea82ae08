//! Checks saved records of nemesis runs: `judge FILE…`. The exit status is 1 if one has violations.

use std::{env, path::Path, process::ExitCode};

use enlist_testkit::history::Record;

fn main() -> ExitCode {
    let files: Vec<String> = env::args().skip(1).collect();
    if files.is_empty() {
        eprintln!("usage: judge FILE…");
        return ExitCode::from(2);
    }
    let mut good = true;
    for file in files {
        match Record::load(Path::new(&file)) {
            Ok(record) => {
                let violations = record.check();
                good &= violations.is_empty();
                println!("{file}: {} violations", violations.len());
                for violation in violations {
                    println!("  {violation}");
                }
            }
            Err(error) => {
                good = false;
                eprintln!("{file}: {error}");
            }
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
