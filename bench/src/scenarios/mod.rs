//! The scenarios, one file per part of the library.

mod bulk;
mod change;
mod cold;
mod growth;
pub mod grpc;
mod instructions;
pub(crate) mod lock;
mod memory;
pub mod pick;
mod register;
mod sync;
mod watchers;
mod wide;

use std::{fmt::Display, future::Future, pin::Pin, process::Output};

use tokio::process::Command;

use crate::{measure::Result, report::Report};

type Run = for<'a> fn(&'a mut Report) -> Pin<Box<dyn Future<Output = Result> + 'a>>;

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// Subject of the measurement.
    pub about: &'static str,
    /// Measures the scenario.
    pub run: Run,
}

/// All scenarios, in the order of a run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "pick",
        about: "one pick among 1,000 instances, on one thread and on two",
        run: |report| Box::pin(pick::run(report)),
    },
    Scenario {
        name: "change",
        about: "one instance changes among 100 to 100,000, from the store to the view",
        run: |report| Box::pin(change::run(report)),
    },
    Scenario {
        name: "burst",
        about: "10,000 changes as fast as etcd takes them",
        run: |report| Box::pin(change::burst(report)),
    },
    Scenario {
        name: "sync",
        about: "the first snapshot of 100,000 instances, and its size on the heap",
        run: |report| Box::pin(sync::run(report)),
    },
    Scenario {
        name: "register",
        about: "one instance after the other, and 32 at a time",
        run: |report| Box::pin(register::few(report)),
    },
    Scenario {
        name: "many",
        about: "10,000 instances from one process",
        run: |report| Box::pin(register::many(report)),
    },
    Scenario {
        name: "steady",
        about: "what 10,000 registrations cost while nothing happens (a minute)",
        run: |report| Box::pin(register::steady(report)),
    },
    Scenario {
        name: "lock",
        about: "acquire and release without contention",
        run: |report| Box::pin(lock::alone(report)),
    },
    Scenario {
        name: "contended",
        about: "a lock with 2 to 10 contenders, also while others write; with 50, in 50 sessions and in one; requests",
        run: |report| Box::pin(lock::contended(report)),
    },
    Scenario { name: "grpc", about: "calls beside tonic's own channels", run: |report| Box::pin(grpc::run(report)) },
    Scenario {
        name: "wide",
        about: "a channel to 10,000 instances, all connected to",
        run: |report| Box::pin(wide::run(report)),
    },
    Scenario {
        name: "memory",
        about: "the memory backend, without a reference",
        run: |report| Box::pin(memory::run(report)),
    },
    Scenario {
        name: "cold",
        about: "from the start of a process to its first pick among 1,000",
        run: |report| Box::pin(cold::run(report)),
    },
    Scenario {
        name: "growth",
        about: "cost by size: instances, contenders, watchers (minutes; only when named)",
        run: |report| Box::pin(growth::run(report)),
    },
    Scenario {
        name: "watchers",
        about: "etcd's cost of changes that 64 processes watch among 100,000 instances (6 GB; only when named)",
        run: |report| Box::pin(watchers::run(report)),
    },
    Scenario {
        name: "catch-up",
        about: "a view that missed 1,000 revisions of 1 MiB (4 GB; only when named)",
        run: |report| Box::pin(bulk::catch_up(report)),
    },
    Scenario {
        name: "million",
        about: "a million instances lost in one revision (4 GB; only when named)",
        run: |report| Box::pin(bulk::million(report)),
    },
    Scenario {
        name: "instructions",
        about: "instructions of what is too quick to be timed well (needs valgrind; only when named)",
        run: |report| Box::pin(instructions::run(report)),
    },
];

/// Scenarios that take long or much memory, and are left out unless they are named.
pub const ONLY_WHEN_NAMED: &[&str] = &["growth", "watchers", "catch-up", "million", "instructions"];

/// Runs a program of this package, and returns its output.
async fn helper(name: &str, arguments: &[&str]) -> Result<String> {
    let output = finished(Command::new(std::env::current_exe()?.with_file_name(name)).args(arguments)).await?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns the output of a program that succeeds.
async fn finished(command: &mut Command) -> Result<Output> {
    let program = command.as_std().get_program().display().to_string();
    let failed = |problem: &dyn Display| format!("{program}: {problem}");
    let output = command.output().await.map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output)
}
