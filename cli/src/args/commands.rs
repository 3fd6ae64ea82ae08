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
    /// Acquire so many permits of a semaphore instead of a lock; 123 if they are not free in time
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with_all = ["shared", "delay"]
    )]
    pub(crate) permits: Option<u32>,
    /// Number of permits of the semaphore, stored if it has none yet; see `enlist semaphores`
    #[arg(long, value_name = "COUNT", requires = "permits")]
    pub(crate) of: Option<u32>,
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
pub(crate) struct Semaphores {
    /// Show this semaphore only
    pub(crate) name: Option<String>,
    /// First store this number of permits; fewer permits revoke none, and 0 pauses the semaphore
    #[arg(long, value_name = "COUNT", requires = "name")]
    pub(crate) set: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct RunOnce {
    /// Job; each name is a job of its own, for example `nightly/2026-11-26`
    pub(crate) name: String,
    /// Run COMMAND also if the job is done; the mark is replaced when it begins
    #[arg(long)]
    pub(crate) again: bool,
    /// Do not wait; exit with 123 if another process runs the job
    #[arg(long = "try", conflicts_with = "wait")]
    pub(crate) attempt: bool,
    /// Maximum wait for a run of another process, then exit with 123; default: no limit
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
pub(crate) struct Forget {
    /// Job
    pub(crate) name: String,
    /// Forget the jobs below NAME that were done longer ago than this, instead of the job NAME
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,
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

#[cfg(feature = "agent")]
#[derive(Args, Debug)]
pub(crate) struct AgentOptions {
    /// File with the agent's configuration (TOML); options given here take precedence
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on for xDS; one that other hosts can reach needs a certificate or a token; default:
    /// 127.0.0.1:18000
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) xds: Option<std::net::SocketAddr>,
    /// Serve HTTP and the web console as well; without an address on 127.0.0.1:18001
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:18001")]
    pub(crate) http: Option<std::net::SocketAddr>,
    /// Name of the agent in HTTP requests, besides localhost and addresses; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) http_host: Vec<String>,
    /// File with a token, which clients send as `authorization: Bearer TOKEN`
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate chain of the agent (PEM): serve over TLS only
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the agent's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Authority of clients (PEM): admit only clients with a certificate of it
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Permit an address that other hosts can reach, without a certificate and without a token
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Listener for Envoy on Envoy's host, whose calls go to SERVICE; may be repeated
    #[arg(long, value_name = "ADDRESS=SERVICE")]
    pub(crate) envoy: Vec<String>,
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
