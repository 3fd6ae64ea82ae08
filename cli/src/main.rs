//! The `enlist` command. `docs/cli.md` describes it.

// These macros panic if the reader has closed the stream.
#![warn(clippy::print_stderr, clippy::print_stdout)]

#[cfg(feature = "agent")]
mod agent;
mod args;
mod child;
mod config;
mod connect;
mod deadlines;
mod demo;
mod doctor;
mod exit;
mod freshness;
mod holding;
mod instances;
mod jobs;
mod keyboard_stop;
mod leaders;
mod locks;
mod output;
mod process_group;
mod program_process;
mod queues;
mod reaper;
mod register;
mod semaphores;
mod signals;
mod table;
mod terminal;
mod watch;

use std::{io::Write, process::ExitCode, time::Duration};

use clap::CommandFactory;

use args::{Cli, Command};
use output::{Failure, Output};

/// Maximum time for the tasks of a finished command to be dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // Internal: the command line does not list it.
    if std::env::args_os().skip(1).eq(["reap"]) {
        return ExitCode::from(reaper::run());
    }
    let cli = Cli::read();
    let output = Output::new(cli.global.output, cli.global.color);
    let outcome = match cli.command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "enlist", &mut text);
            print(&text)
        }
        Command::Man { command } => man(&command),
        command => {
            // Before any thread is started, because threads inherit the mask.
            if command.runs_a_command()
                && let Err(error) = signals::block_terminal_stops()
                    .and_then(|()| signals::unblock_ends_of_children())
                    .and_then(|()| keyboard_stop::listen())
            {
                return Failure::new(format!("signals cannot be handled: {error}")).report(output);
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            match runtime {
                Ok(runtime) => {
                    let outcome = runtime.block_on(run(&cli.global, command, output));
                    // Not by dropping it, which waits for names that are still being resolved.
                    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
                    outcome
                }
                Err(error) => Err(Failure::new(format!("no runtime could be started: {error}"))),
            }
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(output),
    }
}

async fn run(global: &args::Global, command: Command, output: Output) -> Result<u8, Failure> {
    if command.uses_etcd() {
        global.warn_of_clear_text(output);
    }
    match command {
        Command::Register(register) => register::run(global, register, output).await,
        Command::Resolve(resolve) => instances::resolve(global, &resolve, output).await,
        Command::Watch { service } => watch::watch(global, &service, output).await,
        Command::Services => instances::services(global, output).await,
        Command::Publish(publish) => instances::publish(global, &publish, output).await,
        Command::Remove(remove) if remove.force => instances::evict(global, &remove, output).await,
        Command::Remove(remove) => instances::remove(global, &remove, output).await,
        Command::Lock(lock) => locks::lock(global, lock, output).await,
        Command::Once(job) => jobs::run(global, job, output).await,
        Command::Jobs { name } => jobs::jobs(global, name.as_deref(), output).await,
        Command::Forget(forget) => jobs::forget(global, &forget, output).await,
        Command::Locks { name } => queues::locks(global, name.as_deref(), output).await,
        Command::Semaphores(asked) => semaphores::semaphores(global, &asked, output).await,
        Command::Elect(elect) => locks::elect(global, elect, output).await,
        Command::Elections { name } => queues::elections(global, name.as_deref(), output).await,
        Command::Leader { name } => leaders::leader(global, &name, output).await,
        Command::Observe { name } => leaders::observe(global, &name, output).await,
        Command::Config(command) => config::run(global, command, output).await,
        Command::Doctor => doctor::run(global, output).await,
        #[cfg(feature = "agent")]
        Command::Agent(options) => agent::run(global, &options, output).await,
        Command::Demo(demo) => demo::run(&demo, output).await,
        // Handled without a runtime.
        Command::Completions { .. } | Command::Man { .. } => Ok(0),
    }
}

/// Prints the man page of the command, or of one of its subcommands.
fn man(of: &[String]) -> Result<u8, Failure> {
    let mut page = Cli::command();
    page.build();
    for name in of {
        let found = page.find_subcommand(name).cloned();
        page = found.ok_or_else(|| {
            Failure::usage(format!("there is no command `{}`; `enlist --help` lists them", of.join(" ")))
        })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    print(&text)
}

/// Prints a text that does not depend on options.
fn print(text: &[u8]) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(0)
}
