//! Instruction counts, by callgrind, of operations that are too fast to be timed on a shared machine.

use tokio::process::Command;

use super::finished;
use crate::{
    measure::{Result, Spread},
    report::Report,
};

/// Number of repetitions of an operation, and twice as many: the difference excludes the rest of the program.
const OFTEN: u32 = 20_000;

/// The same for calls, which take longer.
const CALLS: u32 = 1_000;

/// Operations of the program `hot`, with their repetitions and their names in the report.
const PATHS: [(&str, u32, &str); 12] = [
    ("pick-shared", OFTEN, "pick from RwLock<Vec<Arc>>, the reference"),
    ("pick-round-robin", OFTEN, "pick, round robin"),
    ("pick-weighted", OFTEN, "pick, weighted"),
    ("pick-hash", OFTEN, "pick, hash"),
    ("encode", OFTEN, "encode an instance"),
    ("decode", OFTEN, "decode an instance"),
    ("decode-like", OFTEN, "decode an instance with one at hand that says much the same"),
    ("json", OFTEN, "read the same value as JSON of no particular kind"),
    ("call-plain", CALLS, "a call through a plain tonic channel, client and server"),
    ("call", CALLS, "a call through our channel, client and server"),
    ("call-large-plain", CALLS, "a call of 64 KiB through a plain tonic channel, client and server"),
    ("call-large", CALLS, "a call of 64 KiB through our channel, client and server"),
];

pub(crate) async fn run(report: &mut Report) -> Result {
    for (path, often, what) in PATHS {
        let (once, twice) = (counted(path, often).await?, counted(path, 2 * often).await?);
        let each = (twice - once) / f64::from(often);
        report.number("instructions", what, "", Spread::exactly(each), None);
    }
    Ok(())
}

async fn counted(path: &str, often: u32) -> Result<f64> {
    let hot = std::env::current_exe()?.with_file_name("hot");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(hot).args([path, &often.to_string()]);
    let stderr = String::from_utf8(finished(&mut valgrind).await?.stderr)?;
    let collected = stderr.lines().find_map(|line| line.split_once("Collected :")).ok_or("callgrind says nothing")?;
    Ok(collected.1.trim().parse()?)
}
