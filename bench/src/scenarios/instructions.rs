//! Instruction counts, by callgrind, of operations that are too fast to be timed on a shared machine.

use tokio::process::Command;

use super::finished;
use crate::{
    measure::{Result, Spread},
    report::Report,
};

/// Number of repetitions of an operation, and twice as many: the difference excludes the rest of the program.
const OFTEN: u32 = 20_000;

/// Operations of the program `hot`, with their names in the report.
const PATHS: [(&str, &str); 8] = [
    ("pick-shared", "pick from RwLock<Vec<Arc>>, the reference"),
    ("pick-round-robin", "pick, round robin"),
    ("pick-weighted", "pick, weighted"),
    ("pick-hash", "pick, hash"),
    ("encode", "encode an instance"),
    ("decode", "decode an instance"),
    ("decode-like", "decode an instance with one at hand that says much the same"),
    ("json", "read the same value as JSON of no particular kind"),
];

pub(crate) async fn run(report: &mut Report) -> Result {
    for (path, what) in PATHS {
        let (once, twice) = (counted(path, OFTEN).await?, counted(path, 2 * OFTEN).await?);
        let each = (twice - once) / f64::from(OFTEN);
        report.number("instructions", what, "", Spread::exactly(each), None);
    }
    Ok(())
}

async fn counted(path: &str, often: u32) -> Result<f64> {
    let hot = std::env::current_exe()?.with_file_name("hot");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(hot).args([path, &often.to_string()]);
    let said = String::from_utf8(finished(&mut valgrind).await?.stderr)?;
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).ok_or("callgrind says nothing")?;
    Ok(collected.1.trim().parse()?)
}
