//! Options of the commands, and their outcome.

use std::{error::Error, num::NonZeroU32};

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Outcome of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Passed,
    Failed,
}

/// Options of all commands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) seed: Option<u64>,
    pub(crate) seeds: Option<u64>,
    pub(crate) jobs: Option<usize>,
    pub(crate) defect: Option<String>,
    pub(crate) log: bool,
    pub(crate) trace: bool,
    /// Seconds of real time after which a run is killed.
    pub(crate) limit: Option<NonZeroU32>,
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--seed" => options.seed = Some(value()?.parse()?),
                "--seeds" => options.seeds = Some(value()?.parse()?),
                "--jobs" => options.jobs = Some(value()?.parse()?),
                "--limit" => options.limit = Some(value()?.parse()?),
                "--defect" => options.defect = Some(value()?),
                "--log" => options.log = true,
                "--trace" => options.trace = true,
                seed => options.seed = Some(seed.parse().map_err(|_| format!("{seed} is no option and no number"))?),
            }
        }
        Ok(options)
    }
}
