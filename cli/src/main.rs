//! The `enlist` command. `enlist --help` lists what it does; `docs/cli.md` has the details.

// They panic where nobody reads.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod args;
mod child;
mod connect;
mod demo;
mod doctor;
mod instances;
mod locks;
mod output;
mod queues;
mod reaper;
mod register;
mod signals;
mod table;
mod terminal;
mod watch;

use std::{io::Write, process::ExitCode};

use clap::CommandFactory;

use args::{Cli, Command};
use output::{Failure, Output};

/// Usage errors, as clap reports them too.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // For this program itself only, so that nobody is told of it.
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
        Command::Man { command } => man(command.as_deref()),
        command => {
            // Before there are threads, which inherit it.
            if command.runs_a_command()
                && let Err(error) = signals::block_terminal_stop()
            {
                return Failure::said(format!("SIGTTOU cannot be blocked: {error}")).tell(output);
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(&cli.global, command, output)),
                Err(error) => Err(Failure::said(format!("no runtime could be started: {error}"))),
            }
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.tell(output),
    }
}

async fn run(global: &args::Global, command: Command, output: Output) -> Result<u8, Failure> {
    if command.asks_etcd() {
        global.warn(output);
    }
    match command {
        Command::Register(register) => register::run(global, register, output).await,
        Command::Resolve(resolve) => instances::resolve(global, &resolve, output).await,
        Command::Watch { service } => watch::watch(global, &service, output).await,
        Command::Services => instances::services(global, output).await,
        Command::Publish(publish) => instances::publish(global, &publish, output).await,
        Command::Remove { service, id, force: false } => instances::remove(global, &service, &id, output).await,
        Command::Remove { service, id, force: true } => instances::evict(global, &service, &id, output).await,
        Command::Lock(lock) => locks::lock(global, lock, output).await,
        Command::Locks { name } => queues::locks(global, name.as_deref(), output).await,
        Command::Elect(elect) => locks::elect(global, elect, output).await,
        Command::Leader { name } => locks::leader(global, &name, output).await,
        Command::Observe { name } => locks::observe(global, &name, output).await,
        Command::Doctor => doctor::run(global, output).await,
        Command::Demo(demo) => demo::run(&demo, output).await,
        // Dealt with before there is a runtime.
        Command::Completions { .. } | Command::Man { .. } => Ok(0),
    }
}

/// The man page of the command, or of one of its subcommands.
fn man(of: Option<&str>) -> Result<u8, Failure> {
    let mut root = Cli::command();
    root.build();
    let page = match of {
        None => root,
        Some(name) => {
            let found = root.find_subcommand(name).cloned();
            found.ok_or_else(|| Failure::usage(format!("there is no command `{name}`; `enlist --help` lists them")))?
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    print(&text)
}

/// Prints what is the same for everybody. Nobody may be reading.
fn print(text: &[u8]) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(0)
}
