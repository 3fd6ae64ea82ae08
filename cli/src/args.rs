//! What can be said on the command line.

use std::{fmt, io::Write, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, builder::Resettable};
use enlist::escape::Hidden;

/// Register, find, watch, lock and elect over etcd from a shell.
///
/// Works against etcd. Each global option has an environment variable of its own, so a shell needs to be told only once.
#[derive(Debug, Parser)]
#[command(
    name = "enlist",
    version,
    args_override_self = true,
    max_term_width = 100,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 123 lock or leadership not acquired, 124 lost while held, 126 the command \
                  cannot be executed, 127 it is not there, else that of the command that was run (128 + n for a signal).\n\nExample:\n  enlist register greeter 10.0.0.1:8080 -- ./greeter --port 8080"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line, or ends the process with what there is to say about it.
    pub(crate) fn read() -> Self {
        let mut command = with_whole_usage(without_empty_variables(Self::command()));
        if std::env::args_os().len() <= 1 {
            // Also where variables are set, which clap takes for arguments.
            // Nobody may be reading.
            let _ = writeln!(std::io::stderr(), "{}", command.render_help());
            std::process::exit(crate::USAGE.into());
        }
        let matches = command.get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// The command, for which a variable without a value is none.
fn without_empty_variables(mut command: clap::Command) -> clap::Command {
    let is_empty = |arg: &&clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let empty: Vec<_> = command.get_arguments().filter(is_empty).map(|arg| arg.get_id().clone()).collect();
    for id in empty {
        command = command.mut_arg(id, |arg| arg.env(Resettable::Reset));
    }
    command.mut_subcommands(without_empty_variables)
}

/// The command, whose usage is the same for all: else clap names what variables have said as if it had to be given.
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
    /// The namespace of services, locks and elections
    #[arg(long, global = true, env = "ENLIST_NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
    /// What all keys begin with, in layouts that let it be chosen
    #[arg(long, global = true, env = "ENLIST_PREFIX")]
    pub(crate) prefix: Option<String>,
    /// How instances lie in etcd
    #[arg(long, global = true, env = "ENLIST_LAYOUT", default_value = "native")]
    pub(crate) layout: LayoutChoice,
    /// The environment in the layouts of fireflycore
    #[arg(long, global = true, env = "ENLIST_LAYOUT_ENV", default_value = "prod")]
    pub(crate) layout_env: String,
    /// The port of addresses that have none, in the layouts `etcd-naming` and of fireflycore
    #[arg(long, global = true, env = "ENLIST_LAYOUT_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) layout_port: Option<u16>,
    /// How locks and elections lie in etcd; `etcd-concurrency` queues with `etcdctl lock` and `etcdctl elect`, `gobase` has
    /// gobase's one key for each lock, and no elections
    #[arg(long, global = true, env = "ENLIST_LOCK_LAYOUT", default_value = "native")]
    pub(crate) lock_layout: LockLayoutChoice,
    /// The user to authenticate as
    #[arg(long, global = true, env = "ENLIST_USER")]
    pub(crate) user: Option<String>,
    /// The file with the user's password; `ENLIST_PASSWORD` holds one too
    #[arg(long, global = true, env = "ENLIST_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// The authority whose certificates are trusted (PEM)
    #[arg(long, global = true, env = "ENLIST_CACERT", value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// The certificate to show to etcd (PEM)
    #[arg(long, global = true, env = "ENLIST_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, global = true, env = "ENLIST_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// How long one request may take
    #[arg(long, global = true, env = "ENLIST_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub(crate) timeout: Duration,
    /// Largest number of keys of a service, namespace or election that is read; default: 1,000,000
    #[arg(long, global = true, env = "ENLIST_MAX_RANGE_KEYS", value_name = "COUNT")]
    pub(crate) max_range_keys: Option<usize>,
    /// Largest number of bytes of its keys and values; default: 1 GiB
    #[arg(long, global = true, env = "ENLIST_MAX_RANGE_BYTES", value_name = "BYTES")]
    pub(crate) max_range_bytes: Option<usize>,
    /// Time without traffic after which a connection to etcd is pinged; at least 6s
    #[arg(long, global = true, env = "ENLIST_KEEP_ALIVE_INTERVAL", value_parser = duration, default_value = "10s")]
    pub(crate) keep_alive_interval: Duration,
    /// Time after which a connection whose ping was not answered is given up
    #[arg(long, global = true, env = "ENLIST_KEEP_ALIVE_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub(crate) keep_alive_timeout: Duration,
    /// How to answer: for people, or one JSON object per line
    #[arg(long, global = true, env = "ENLIST_OUTPUT", default_value = "text")]
    pub(crate) output: Format,
    /// When to use colour; `auto` is on a terminal, and not with `NO_COLOR`
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutChoice {
    Native,
    EtcdNaming,
    Kitex,
    Kratos,
    GoKit,
    GoMicro,
    GoZero,
    Dubbo,
    Fireflycore,
    FireflycoreByLease,
    Gobase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LockLayoutChoice {
    Native,
    EtcdConcurrency,
    Gobase,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep an instance registered, while a command runs or until a signal
    #[command(
        after_help = "Example:\n  enlist register greeter 10.0.0.1:8080 --zone eu-1a --meta team=blue -- ./greeter --port 8080\n\n\
                            The command starts at once, beside the registration. The instance comes back by itself whatever \
                            happens to etcd. On SIGTERM it is removed at once and the \
                            command gets the signal."
    )]
    Register(Register),
    /// Show the instances of a service
    #[command(after_help = "Example:\n  enlist resolve greeter --output json | jq -r '.endpoints[0]'")]
    Resolve(Resolve),
    /// Follow the instances of a service: a live table on a terminal, else a line per change
    #[command(after_help = "Example:\n  enlist watch greeter --output json")]
    Watch {
        /// The service
        service: String,
    },
    /// List the services that have instances
    #[command(after_help = "Example:\n  enlist services --namespace team-a")]
    Services,
    /// Store a fixed instance, which stays until it is removed
    #[command(after_help = "Example:\n  enlist publish postgres postgres://10.0.0.9:5432 --id primary")]
    Publish(Publish),
    /// Remove a fixed instance, or by force any
    #[command(
        after_help = "Example:\n  enlist remove postgres primary\n  enlist remove greeter 10.0.0.1:8080 --force\n\nBy force, an \
                            instance goes whatever keeps it, and a value that is no instance does. A live registration puts it \
                            back, unless it is one that respects evictions."
    )]
    Remove {
        /// The service
        service: String,
        /// The id of the instance
        id: String,
        /// Also remove one that a live registration keeps, or whose value cannot be read
        #[arg(long)]
        force: bool,
    },
    /// Run a command while holding a lock
    #[command(
        after_help = "Example:\n  enlist lock nightly --wait 10s -- ./backup.sh\n\nThe command finds its fencing token in \
                            ENLIST_FENCING_TOKEN: the resource that it writes to should refuse a smaller one than it has seen."
    )]
    Lock(Lock),
    /// Show who holds the locks of the namespace, and how many wait
    #[command(after_help = "Example:\n  enlist locks nightly")]
    Locks {
        /// This lock only; exits with 1 if it is free
        name: Option<String>,
    },
    /// Run a command while leading
    #[command(after_help = "Example:\n  enlist elect scheduler 10.0.0.1:9000 -- ./scheduler")]
    Elect(Elect),
    /// Say who leads; exits with 1 if nobody does
    #[command(after_help = "Example:\n  enlist leader scheduler")]
    Leader {
        /// The election
        name: String,
    },
    /// Follow who leads
    #[command(after_help = "Example:\n  enlist observe scheduler")]
    Observe {
        /// The election
        name: String,
    },
    /// See whether everything that enlist needs of etcd works, and say what to do if not
    #[command(
        after_help = "Example:\n  enlist doctor --endpoints https://etcd-1:2379,https://etcd-2:2379 --cacert ca.pem"
    )]
    Doctor,
    /// Show two services, a few instances and a rolling restart, in memory
    #[command(after_help = "Example:\n  enlist demo --for 20s")]
    Demo(Demo),
    /// Print shell completions
    #[command(after_help = "Example:\n  enlist completions bash > /etc/bash_completion.d/enlist")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    #[command(after_help = "Example:\n  enlist man | man -l -")]
    Man {
        /// Of this command
        command: Option<String>,
    },
}

impl Command {
    /// Returns `true` if etcd is asked, and it is not reported on how.
    pub(crate) fn asks_etcd(&self) -> bool {
        !matches!(self, Self::Doctor | Self::Demo(_) | Self::Completions { .. } | Self::Man { .. })
    }

    /// Returns `true` if a command is run, which gets the terminal.
    pub(crate) fn runs_a_command(&self) -> bool {
        match self {
            Self::Register(Register { run, .. }) | Self::Lock(Lock { run, .. }) | Self::Elect(Elect { run, .. }) => {
                !run.command.is_empty()
            }
            _ => false,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Register {
    /// The service
    pub(crate) service: String,
    /// Where it is reached: `host:port`, `protocol://host:port`, or `:port` for the address of the interface that routes outwards
    #[arg(required = true, value_name = "ENDPOINT")]
    pub(crate) addresses: Vec<String>,
    #[command(flatten)]
    pub(crate) details: Details,
    /// How long the instance outlives this process
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) renewals: Renewals,
    /// What to do if somebody else's live instance has the id
    #[arg(long, default_value = "refuse")]
    pub(crate) on_conflict: ConflictChoice,
    /// Whoever registers the id again with the same token takes it over at once. The command line is seen by every user of the
    /// machine, the environment and files are not
    #[arg(long, env = "ENLIST_OWNER", hide_env_values = true)]
    pub(crate) owner: Option<Token>,
    /// The file with that token; it counts before --owner
    #[arg(long, env = "ENLIST_OWNER_FILE", value_name = "FILE")]
    pub(crate) owner_file: Option<PathBuf>,
    /// How long to show the instance as draining before it is removed
    #[arg(long, value_parser = duration, default_value = "0s")]
    pub(crate) drain: Duration,
    /// Start the command once the instance is registered, instead of at once
    #[arg(long)]
    pub(crate) wait_registered: bool,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// An owner token, which is not shown.
#[derive(Clone)]
pub(crate) struct Token(pub(crate) String);

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hidden.fmt(f)
    }
}

#[derive(Args, Debug)]
pub(crate) struct Resolve {
    /// The service
    pub(crate) service: String,
    /// How long to wait for an instance, then exit with 1; default: not at all
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Exit with 1 if there is no instance
    #[arg(long)]
    pub(crate) fail_empty: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Details {
    /// The id; default: the first endpoint's host and port
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// The weight; 0 means not picked; default: what the layout has for instances that say nothing
    #[arg(long)]
    pub(crate) weight: Option<u32>,
    /// The zone
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// The version of the instance
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// An entry of the metadata, as often as there are entries
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) meta: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConflictChoice {
    Refuse,
    Wait,
    TakeOver,
}

#[derive(Args, Debug)]
pub(crate) struct Publish {
    /// The service
    pub(crate) service: String,
    /// Where it is reached: `host:port` or `protocol://host:port`
    #[arg(required = true, value_name = "ENDPOINT")]
    pub(crate) addresses: Vec<String>,
    #[command(flatten)]
    pub(crate) details: Details,
}

#[derive(Args, Debug)]
pub(crate) struct Lock {
    /// The lock
    pub(crate) name: String,
    /// Do not wait: exit with 123 if it is held
    #[arg(long = "try", conflicts_with = "wait")]
    pub(crate) attempt: bool,
    /// Hold it together with others that share it
    #[arg(long)]
    pub(crate) shared: bool,
    /// How long to wait, then exit with 123; default: for ever
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// How long the lock outlives this process
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) renewals: Renewals,
    /// How much longer to wait if the last holder did not release
    #[arg(long = "lock-delay", value_name = "LOCK_DELAY", value_parser = duration, default_value = "0s")]
    pub(crate) delay: Duration,
    #[command(flatten)]
    pub(crate) telling: Telling,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args, Debug)]
pub(crate) struct Elect {
    /// The election
    pub(crate) name: String,
    /// What to say about oneself, an address for instance
    pub(crate) value: String,
    /// How long to wait, then exit with 123; default: for ever
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// How long the leadership outlives this process
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) renewals: Renewals,
    #[command(flatten)]
    pub(crate) telling: Telling,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// Renewals of a lease.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Renewals {
    /// Time between renewals of the lease, from 500ms to a third of --ttl; default: a third
    #[arg(long = "renewal-interval", value_name = "TIME", value_parser = duration)]
    pub(crate) interval: Option<Duration>,
}

/// What a script is told.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Telling {
    /// Say only what goes wrong; that it was not acquired is told by the exit status
    #[arg(long)]
    pub(crate) quiet: bool,
    /// The exit status if it was not acquired
    #[arg(long = "not-acquired-status", value_name = "STATUS", default_value_t = 123)]
    pub(crate) not_acquired: u8,
    /// The exit status if it was lost while it was held
    #[arg(long = "lost-status", value_name = "STATUS", default_value_t = 124)]
    pub(crate) lost: u8,
}

/// A command to run.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// How long the command gets between SIGTERM and SIGKILL when it has to end
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) grace: Duration,
    /// The command to run
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// How long to go on; default: until a signal
    #[arg(long = "for", value_parser = duration)]
    pub(crate) length: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 10s, 1m30s or 500ms"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_token_is_not_shown() {
        let cli = Cli::parse_from(["enlist", "register", "svc", "10.0.0.1:80", "--owner", "s3cret"]);
        let shown = format!("{cli:?}");
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
    }
}
