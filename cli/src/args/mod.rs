//! The command line: options of all commands, and the list of commands. `commands.rs` has the options of each.

mod commands;
mod config;
mod values;

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, builder::Resettable};
use enlist_etcd::layout::{NamedLayout, NamedLockLayout};

#[cfg(feature = "agent")]
pub(crate) use self::commands::AgentOptions;
pub(crate) use self::commands::{
    ConflictChoice, Demo, Details, Elect, Forget, Lock, Publish, Register, Remove, Reporting, Resolve, Run, RunOnce,
    Semaphores, Token,
};
pub(crate) use self::config::{
    CheckOption, ConfigCommand, ConfigDelete, ConfigDiff, ConfigEdit, ConfigExport, ConfigGet, ConfigHistory,
    ConfigImport, ConfigList, ConfigSet, ConfigWatch, HiddenValue, ReloadSignal,
};
use self::values::{duration, layout, lock_layout};
use crate::exit;

const EXIT_STATUS: &str = "\
Exit status: 0 success, 1 failure, 2 usage error, 123 lock or leadership not acquired, 124 lost while held, 126 \
COMMAND cannot be executed, 127 COMMAND not found, otherwise the exit status of COMMAND (128 + n for a signal).

Example:
  enlist register greeter 10.0.0.1:8080 -- ./greeter --port 8080";

const REGISTER_HELP: &str = "\
Example:
  enlist register greeter 10.0.0.1:8080 --zone eu-1a --meta team=blue -- ./greeter --port 8080

COMMAND starts at once, without waiting for the registration. After any failure of etcd the instance is registered \
again. On SIGTERM the instance is removed first, then COMMAND receives the signal.";

const REMOVE_HELP: &str = "\
Example:
  enlist remove postgres primary
  enlist remove greeter 10.0.0.1:8080 --force

--force removes an instance under any lease, and a value that cannot be decoded. A live registration stores its \
instance again, unless it respects evictions.";

const LOCK_HELP: &str = "\
Example:
  enlist lock nightly --wait 10s -- ./backup.sh
  enlist lock uploads --permits 1 --of 5 -- ./upload.sh

The environment of COMMAND has the fencing token in ENLIST_FENCING_TOKEN. The resource that COMMAND writes to should \
reject smaller tokens than the largest one that it has seen.";

const SEMAPHORES_HELP: &str = "\
Example:
  enlist semaphores uploads --set 5";

const CONFIG_HELP: &str = "\
Example:
  enlist config set app/log.toml --file log.toml

A path has segments separated by `/`. Each value has a revision, at which it was written last: `--expect` writes only \
if no other client has written meanwhile.";

const ONCE_HELP: &str = "\
Example:
  enlist once migrations/42 -- ./migrate.sh

COMMAND runs under the lock NAME, unless the job is done. A job is done after its COMMAND has exited with 0. If \
COMMAND fails, or the lock is lost, the next `enlist once NAME` runs it again, so COMMAND has to allow for a part of \
the work being done. Its environment has the fencing token in ENLIST_FENCING_TOKEN.";

const FORGET_HELP: &str = "\
Example:
  enlist forget migrations/42
  enlist forget nightly --older-than 30d

A job that is forgotten runs again. A run in progress goes on, and is not marked as done.";

/// Register, find, watch, lock, elect and configure over etcd from a shell.
///
/// Uses etcd. Each global option can also be set by an environment variable.
#[derive(Debug, Parser)]
#[command(
    name = "enlist",
    version,
    args_override_self = true,
    max_term_width = 100,
    after_help = EXIT_STATUS
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Parses the command line. Prints help or an error and ends the process if there is nothing to run.
    pub(crate) fn read() -> Self {
        let mut command = with_whole_usage(without_empty_variables(Self::command()));
        if std::env::args_os().len() <= 1 {
            // Also if variables are set, which clap counts as arguments. Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "{}", command.render_help());
            std::process::exit(exit::USAGE.into());
        }
        let matches = command.get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Returns the command such that an empty variable counts as unset.
fn without_empty_variables(mut command: clap::Command) -> clap::Command {
    let is_empty = |arg: &&clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let empty: Vec<_> = command.get_arguments().filter(is_empty).map(|arg| arg.get_id().clone()).collect();
    for id in empty {
        command = command.mut_arg(id, |arg| arg.env(Resettable::Reset));
    }
    command.mut_subcommands(without_empty_variables)
}

/// Returns the command with usage lines that do not depend on variables: clap would list options set by variables as
/// required.
fn with_whole_usage(mut command: clap::Command) -> clap::Command {
    fn fixed(mut command: clap::Command) -> clap::Command {
        let usage = command.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").to_owned();
        command.override_usage(usage).mut_subcommands(fixed)
    }
    command.build();
    fixed(command)
}

/// Options of all commands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Members of the etcd cluster, separated by commas
    #[arg(
        long,
        global = true,
        env = "ENLIST_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Namespace of services, locks, elections and configuration values
    #[arg(long, global = true, env = "ENLIST_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    /// Prefix of all keys, in layouts with a configurable prefix
    #[arg(long, global = true, env = "ENLIST_PREFIX")]
    pub(crate) prefix: Option<String>,
    /// Layout of instances in etcd
    #[arg(long, global = true, env = "ENLIST_LAYOUT", default_value = "native", value_parser = layout())]
    pub(crate) layout: &'static NamedLayout,
    /// Environment in the fireflycore layouts
    #[arg(long, global = true, env = "ENLIST_LAYOUT_ENV", default_value = "prod")]
    pub(crate) layout_env: String,
    /// Port of addresses without one, in `etcd-naming` and the fireflycore layouts
    #[arg(
        long,
        global = true,
        env = "ENLIST_LAYOUT_PORT",
        value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) layout_port: Option<u16>,
    /// Layout of locks and elections in etcd; `etcd-concurrency` shares its queues with `etcdctl lock` and `etcdctl
    /// elect`; `gobase` has one key per lock, and no elections
    #[arg(long, global = true, env = "ENLIST_LOCK_LAYOUT", default_value = "native", value_parser = lock_layout())]
    pub(crate) lock_layout: &'static NamedLockLayout,
    /// Prefix of plain keys of configuration values: the key is PREFIX, `/` and the path, as other programs read and
    /// write it; default: the native layout
    #[arg(long, global = true, env = "ENLIST_CONFIG_PREFIX", value_name = "PREFIX")]
    pub(crate) config_prefix: Option<String>,
    /// User to authenticate as
    #[arg(long, global = true, env = "ENLIST_USER")]
    pub(crate) user: Option<String>,
    /// File with the user's password; `ENLIST_PASSWORD` is the alternative
    #[arg(long, global = true, env = "ENLIST_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Certificate of the authority that signs etcd's certificates (PEM)
    #[arg(long, global = true, env = "ENLIST_CACERT", value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// Client certificate (PEM)
    #[arg(long, global = true, env = "ENLIST_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM)
    #[arg(long, global = true, env = "ENLIST_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Deadline of one request
    #[arg(long, global = true, env = "ENLIST_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub(crate) timeout: Duration,
    /// Maximum number of keys of a service, namespace or election; default: 1,000,000
    #[arg(long, global = true, env = "ENLIST_MAX_RANGE_KEYS", value_name = "COUNT")]
    pub(crate) max_range_keys: Option<usize>,
    /// Maximum size of these keys and their values in bytes; default: 1 GiB
    #[arg(long, global = true, env = "ENLIST_MAX_RANGE_BYTES", value_name = "BYTES")]
    pub(crate) max_range_bytes: Option<usize>,
    /// Time without traffic after which a connection to etcd is pinged; at least 6s
    #[arg(long, global = true, env = "ENLIST_KEEP_ALIVE_INTERVAL", value_parser = duration, default_value = "10s")]
    pub(crate) keep_alive_interval: Duration,
    /// Time without an answer to a ping after which a connection is closed
    #[arg(long, global = true, env = "ENLIST_KEEP_ALIVE_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub(crate) keep_alive_timeout: Duration,
    /// Output format: text, or one JSON object per line
    #[arg(long, global = true, env = "ENLIST_OUTPUT", default_value = "text")]
    pub(crate) output: Format,
    /// Use of colours; `auto`: on a terminal, unless `NO_COLOR` is set
    #[arg(long, global = true, env = "ENLIST_COLOR", default_value = "auto")]
    pub(crate) color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep an instance registered while a command runs, or until a signal
    #[command(after_help = REGISTER_HELP)]
    Register(Register),
    /// Show the instances of a service
    #[command(after_help = "Example:\n  enlist resolve greeter --output json | jq -r '.endpoints[0]'")]
    Resolve(Resolve),
    /// Follow the instances of a service: a live table on a terminal, otherwise one line per change
    #[command(after_help = "Example:\n  enlist watch greeter --output json")]
    Watch {
        /// Service
        service: String,
    },
    /// List the services that have instances
    #[command(after_help = "Example:\n  enlist services --namespace team-a")]
    Services,
    /// Store a fixed instance, which exists until it is removed
    #[command(after_help = "Example:\n  enlist publish postgres postgres://10.0.0.9:5432 --id primary")]
    Publish(Publish),
    /// Remove a fixed instance, or with --force any instance
    #[command(after_help = REMOVE_HELP)]
    Remove(Remove),
    /// Run a command while holding a lock, or permits of a semaphore
    #[command(after_help = LOCK_HELP)]
    Lock(Lock),
    /// Show the holders of locks and the number of waiting contenders
    #[command(after_help = "Example:\n  enlist locks nightly")]
    Locks {
        /// Show this lock only; exit with 1 if it is free
        name: Option<String>,
    },
    /// Show the permits of semaphores, their holders and the number of waiting contenders
    #[command(after_help = SEMAPHORES_HELP)]
    Semaphores(Semaphores),
    /// Run a command that has to run once, unless it is done
    #[command(after_help = ONCE_HELP)]
    Once(RunOnce),
    /// Show the jobs that `once` has run
    #[command(after_help = "Example:\n  enlist jobs migrations/42")]
    Jobs {
        /// Show this job only; exit with 1 if it is not done
        name: Option<String>,
    },
    /// Forget that a job is done, so that it runs again
    #[command(after_help = FORGET_HELP)]
    Forget(Forget),
    /// Run a command while this process is the leader
    #[command(after_help = "Example:\n  enlist elect scheduler 10.0.0.1:9000 -- ./scheduler")]
    Elect(Elect),
    /// Show the leaders of elections and the number of waiting candidates
    #[command(after_help = "Example:\n  enlist elections --output json")]
    Elections {
        /// Show this election only; exit with 1 if it has no candidates
        name: Option<String>,
    },
    /// Show the leader; exit with 1 if there is none
    #[command(after_help = "Example:\n  enlist leader scheduler")]
    Leader {
        /// Election
        name: String,
    },
    /// Follow the leader of an election
    #[command(after_help = "Example:\n  enlist observe scheduler")]
    Observe {
        /// Election
        name: String,
    },
    /// Read, write and watch configuration values
    #[command(subcommand, after_help = CONFIG_HELP)]
    Config(ConfigCommand),
    /// Check everything that enlist needs from etcd, and print advice for each problem
    #[command(
        after_help = "Example:\n  enlist doctor --endpoints https://etcd-1:2379,https://etcd-2:2379 --cacert ca.pem"
    )]
    Doctor,
    /// Serve the registry to gRPC clients in any language, and to Envoy, over xDS
    #[cfg(feature = "agent")]
    #[command(after_help = "Example:\n  enlist agent --layout kitex")]
    Agent(AgentOptions),
    /// Show two services and a rolling restart on the memory backend
    #[command(after_help = "Example:\n  enlist demo --for 20s")]
    Demo(Demo),
    /// Print shell completions
    #[command(after_help = "Example:\n  enlist completions bash > /etc/bash_completion.d/enlist")]
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    #[command(after_help = "Example:\n  enlist man | man -l -")]
    Man {
        /// Show the page of this command, for example `lock` or `config set`
        command: Vec<String>,
    },
}

impl Command {
    /// Returns `true` if the command sends requests to etcd and does not report on the connection itself.
    pub(crate) fn uses_etcd(&self) -> bool {
        !matches!(self, Self::Doctor | Self::Demo(_) | Self::Completions { .. } | Self::Man { .. })
    }

    /// Returns `true` if the command starts another program, which uses the terminal.
    pub(crate) fn runs_a_command(&self) -> bool {
        match self {
            Self::Register(Register { run, .. })
            | Self::Lock(Lock { run, .. })
            | Self::Once(RunOnce { run, .. })
            | Self::Elect(Elect { run, .. })
            | Self::Config(ConfigCommand::Watch(ConfigWatch { run, .. })) => !run.command.is_empty(),
            _ => false,
        }
    }
}
