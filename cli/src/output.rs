//! What is said, and how: text for people, JSON for programs, errors as one sentence.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use enlist::{Entry, Error, Health, Instance};
use serde::Serialize;

use crate::{
    USAGE,
    args::{Color, Format},
};

/// How to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    color: Color,
}

/// Where a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Stdout,
    Stderr,
}

/// The colours in use.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Paint {
    Good,
    Bad,
    Faint,
}

impl Output {
    pub(crate) fn new(format: Format, color: Color) -> Self {
        Self { json: format == Format::Json, color }
    }

    /// Says whether a live picture makes sense.
    pub(crate) fn is_live(self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    fn colours(self, to: To) -> bool {
        let terminal = match to {
            To::Stdout => io::stdout().is_terminal(),
            To::Stderr => io::stderr().is_terminal(),
        };
        match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// The text in a colour, where there is any.
    pub(crate) fn paint(self, to: To, paint: Paint, text: &str) -> String {
        if !self.colours(to) {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes one line: the text, or the object.
    pub(crate) fn line(self, to: To, text: impl Display, object: &impl Serialize) -> io::Result<()> {
        let line = if self.json { serde_json::to_string(object)? } else { text.to_string() };
        match to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                writeln!(out, "{line}")?;
                out.flush()
            }
            To::Stderr => writeln!(io::stderr().lock(), "{line}"),
        }
    }

    /// Writes one line that nobody needs: what it tells goes on whether it can be told or not.
    pub(crate) fn tell(self, to: To, text: impl Display, object: &impl Serialize) {
        // The reader may be gone.
        let _ = self.line(to, text, object);
    }
}

/// The columns of the terminal on the standard output, if it is one and tells.
pub(crate) fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// With this sentence, and what kind of error it was.
    Said { text: String, kind: &'static str, code: u8 },
    /// Nobody reads what is written any more, which is how a pipe ends.
    Unread,
}

impl Failure {
    pub(crate) fn said(text: impl Into<String>) -> Self {
        Self::Said { text: text.into(), kind: "Failed", code: 1 }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Said { text: text.into(), kind: "Usage", code: USAGE }
    }

    /// Says it, and gives the exit status.
    pub(crate) fn tell(self, output: Output) -> ExitCode {
        match self {
            Self::Unread => ExitCode::SUCCESS,
            Self::Said { text, kind, code } => {
                let object = serde_json::json!({ "error": text, "kind": kind });
                let text = format!("{} {text}", output.paint(To::Stderr, Paint::Bad, "enlist:"));
                output.tell(To::Stderr, text, &object);
                ExitCode::from(code)
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::said(error.to_string()),
        }
    }
}

/// The error with its causes, and what to do about it.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (kind, advice) = advice(&error);
        let usage = ["InvalidName", "InvalidAddress", "InvalidConfig"].contains(&kind);
        let mut text = with_causes(&error);
        if !advice.is_empty() {
            text = format!("{text}; {advice}");
        }
        Self::Said { text, kind, code: if usage { USAGE } else { 1 } }
    }
}

/// The message of an error and of what caused it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text.replace(['\n', '\r'], " ")
}

fn advice(error: &Error) -> (&'static str, &'static str) {
    match error {
        Error::InvalidName { .. } => ("InvalidName", ""),
        Error::InvalidAddress { .. } => ("InvalidAddress", "write host:port, or :port for this host"),
        Error::InvalidConfig { .. } => ("InvalidConfig", "`enlist --help` lists the options"),
        Error::AlreadyRegistered { .. } => {
            ("AlreadyRegistered", "use another --id, or --on-conflict wait or take-over")
        }
        Error::NotRegistered { .. } => ("NotRegistered", "`enlist resolve` lists what is there"),
        Error::NotOwner { .. } => {
            ("NotOwner", "only a fixed instance can be removed; stop the process that keeps this one")
        }
        Error::Conflict { .. } => ("Conflict", "somebody changed it at the same time: try again"),
        Error::LeaseLost => ("LeaseLost", "try again"),
        Error::Unavailable(_) => ("Unavailable", "check --endpoints, or see `enlist doctor`"),
        Error::Timeout { .. } => ("Timeout", "check --endpoints, or see `enlist doctor`"),
        Error::AuthFailed(_) => ("AuthFailed", "check --user and --password-file"),
        Error::PermissionDenied { .. } => ("PermissionDenied", "grant the user's role readwrite on these keys"),
        Error::TooLarge { .. } => ("TooLarge", "store less in it"),
        Error::StorageFull => ("StorageFull", "compact and defragment etcd, then `etcdctl alarm disarm`"),
        Error::Unsupported { .. } => ("Unsupported", "choose another --layout or say less"),
        Error::Closed => ("Closed", ""),
        _ => ("Failed", ""),
    }
}

/// An instance as programs get it.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceObject<'a> {
    id: &'a str,
    endpoints: Vec<String>,
    weight: u32,
    version: Option<&'a str>,
    zone: Option<&'a str>,
    health: &'static str,
    metadata: &'a std::collections::BTreeMap<String, String>,
    created: u64,
    modified: u64,
}

impl<'a> From<&'a Entry> for InstanceObject<'a> {
    fn from(entry: &'a Entry) -> Self {
        let instance = entry.instance();
        Self {
            id: instance.id().as_str(),
            endpoints: endpoints(instance),
            weight: instance.weight(),
            version: instance.version(),
            zone: instance.zone(),
            health: health(instance.health()),
            metadata: instance.metadata(),
            created: entry.created().get(),
            modified: entry.modified().get(),
        }
    }
}

pub(crate) fn endpoints(instance: &Instance) -> Vec<String> {
    instance.endpoints().iter().map(ToString::to_string).collect()
}

pub(crate) fn health(health: Health) -> &'static str {
    match health {
        Health::Serving => "serving",
        Health::Draining => "draining",
        _ => "not-serving",
    }
}
