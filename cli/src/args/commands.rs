//! Options of each command.

use std::{fmt, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use enlist::escape::Hidden;

use super::values::{duration, key_value};

#[derive(Args, Debug)]
pub(crate) struct Register {
    /// Service
    pub(crate) service: String,
    /// Address of the instance: `host:port`, `protocol://host:port`, or `:port` for the address of the interface that
    /// routes outwards
    #[arg(required = true, value_name = "ENDPOINT")]
    pub(crate) addresses: Vec<String>,
    #[command(flatten)]
    pub(crate) details: Details,
    /// Lifetime of the instance after the last renewal of its lease
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) renewals: Renewals,
    /// Reaction if another live instance has the id
    #[arg(long, default_value = "refuse")]
    pub(crate) on_conflict: ConflictChoice,
    /// Owner token: a later registration of the id with an equal token takes it over at once. All users of the machine
    /// can read the command line, but not the environment or the file
    #[arg(long, env = "ENLIST_OWNER", hide_env_values = true)]
    pub(crate) owner: Option<Token>,
    /// File with the owner token; takes precedence over --owner
    #[arg(long, env = "ENLIST_OWNER_FILE", value_name = "FILE")]
    pub(crate) owner_file: Option<PathBuf>,
    /// Time for which the instance is marked as draining before it is removed
    #[arg(long, value_parser = duration, default_value = "0s")]
    pub(crate) drain: Duration,
    /// Start COMMAND after the instance is registered, instead of at once
    #[arg(long)]
    pub(crate) wait_registered: bool,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// An owner token, which is never printed.
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
    /// Service
    pub(crate) service: String,
    /// Maximum wait for an instance, then exit with 1; default: no wait
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Exit with 1 if there is no instance
    #[arg(long)]
    pub(crate) fail_empty: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Details {
    /// Instance id; default: host and port of the first endpoint
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Weight; 0 excludes the instance from picking; default: that of the layout
    #[arg(long)]
    pub(crate) weight: Option<u32>,
    /// Zone
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Version of the instance
    #[arg(long)]
    pub(crate) version: Option<String>,
    /// Metadata entry; may be repeated
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
    /// Service
    pub(crate) service: String,
    /// Address of the instance: `host:port` or `protocol://host:port`
    #[arg(required = true, value_name = "ENDPOINT")]
    pub(crate) addresses: Vec<String>,
    #[command(flatten)]
    pub(crate) details: Details,
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    /// Service
    pub(crate) service: String,
    /// Instance id
    pub(crate) id: String,
    /// Also remove an instance of a live registration, or a value that cannot be decoded
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Lock {
    /// Lock
    pub(crate) name: String,
    /// Do not wait; exit with 123 if the lock is held
    #[arg(long = "try", conflicts_with = "wait")]
    pub(crate) attempt: bool,
    /// Acquire the lock in shared mode
    #[arg(long)]
    pub(crate) shared: bool,
    /// Maximum wait, then exit with 123; default: no limit
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Lifetime of the lock after the last renewal of its lease
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) renewals: Renewals,
    /// Additional wait if the last holder did not release the lock
    #[arg(long = "lock-delay", value_name = "LOCK_DELAY", value_parser = duration, default_value = "0s")]
    pub(crate) delay: Duration,
    #[command(flatten)]
    pub(crate) reporting: Reporting,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Args, Debug)]
pub(crate) struct Elect {
    /// Election
    pub(crate) name: String,
    /// Value to publish as the leader, for example an address
    pub(crate) value: String,
    /// Maximum wait, then exit with 123; default: no limit
    #[arg(long, value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Lifetime of the leadership after the last renewal of its lease
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) renewals: Renewals,
    #[command(flatten)]
    pub(crate) reporting: Reporting,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// Renewals of a lease.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Renewals {
    /// Interval of renewals of the lease, from 500ms to a third of --ttl; default: a third
    #[arg(long = "renewal-interval", value_name = "TIME", value_parser = duration)]
    pub(crate) interval: Option<Duration>,
}

/// Messages and exit statuses for scripts.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Reporting {
    /// Print problems only; an acquisition that fails shows in the exit status
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Exit status if the lock or leadership was not acquired
    #[arg(long = "not-acquired-status", value_name = "STATUS", default_value_t = 123)]
    pub(crate) not_acquired: u8,
    /// Exit status if it was lost while held
    #[arg(long = "lost-status", value_name = "STATUS", default_value_t = 124)]
    pub(crate) lost: u8,
}

/// A command to run.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Time between SIGTERM and SIGKILL when COMMAND has to end
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) grace: Duration,
    /// Program to run, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Length of the demo; default: until a signal
    #[arg(long = "for", value_parser = duration)]
    pub(crate) length: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::Cli;

    #[test]
    fn an_owner_token_is_not_printed() {
        let cli = Cli::parse_from(["enlist", "register", "svc", "10.0.0.1:80", "--owner", "s3cret"]);
        let shown = format!("{cli:?}");
        assert!(!shown.contains("s3cret") && shown.contains("owner: Some"), "{shown}");
    }
}
