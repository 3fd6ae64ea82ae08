//! Output: text or JSON lines, and errors as one sentence.
//!
//! All output passes through [`Output`], which escapes unprintable characters, because values in etcd may contain
//! terminal control sequences.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::SystemTime,
};

use enlist::{
    Entry, Error, Health, Instance, Presence,
    escape::{escaped, is_unprintable},
    with_causes,
};
use serde::Serialize;

use crate::{
    args::{Color, Format},
    exit,
};

/// Format and colours of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    color: Color,
}

/// Destination of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Stdout,
    Stderr,
}

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Good,
    Bad,
    Faint,
}

/// One line of text, with an optional coloured beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    paint: Option<Paint>,
    head: String,
    rest: String,
}

impl Text {
    pub(crate) fn painted(paint: Paint, head: impl Into<String>, rest: impl Into<String>) -> Self {
        Self { paint: Some(paint), head: head.into(), rest: rest.into() }
    }
}

impl<T: Display> From<T> for Text {
    fn from(text: T) -> Self {
        Self { paint: None, head: String::new(), rest: text.to_string() }
    }
}

impl Output {
    pub(crate) fn new(format: Format, color: Color) -> Self {
        Self { json: format == Format::Json, color }
    }

    /// Returns the same output as JSON.
    pub(crate) fn as_json(self) -> Self {
        Self { json: true, ..self }
    }

    /// Returns `true` if the output can be redrawn in place.
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

    /// Returns the line as text, escaped, with its colours.
    pub(crate) fn render(self, to: To, line: &Text) -> String {
        let Text { paint, head, rest } = line;
        match paint {
            Some(paint) if self.colours(to) => {
                let code = match paint {
                    Paint::Good => "32",
                    Paint::Bad => "31",
                    Paint::Faint => "2",
                };
                format!("\x1b[{code}m{}\x1b[0m{}", escaped(head), escaped(rest))
            }
            _ => format!("{}{}", escaped(head), escaped(rest)),
        }
    }

    /// Writes one line: the text or the JSON object. A closed standard error is no failure.
    pub(crate) fn line(self, to: To, text: impl Into<Text>, object: &impl Serialize) -> io::Result<()> {
        let line = if self.json { one_object(object)? } else { self.render(to, &text.into()) };
        match to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                writeln!(out, "{line}")?;
                out.flush()
            }
            To::Stderr => {
                let _ = writeln!(io::stderr().lock(), "{line}");
                Ok(())
            }
        }
    }

    /// Writes one line, and ignores failures: the operation that it reports continues in any case.
    pub(crate) fn tell(self, to: To, text: impl Into<Text>, object: &impl Serialize) {
        // The reader may have closed the stream.
        let _ = self.line(to, text, object);
    }
}

/// Returns the object on one line, with unprintable characters escaped. In JSON these only occur in strings.
fn one_object(object: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(object)?;
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unprintable(character) {
            shown.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            shown.push(character);
        }
    }
    Ok(shown)
}

/// Returns the width of the terminal on the standard output, if there is one and it is known.
pub(crate) fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Returns a time as text in UTC; `-` for one after the year 9999.
pub(crate) fn time(time: SystemTime) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    match write!(text, "{}", humantime::format_rfc3339_millis(time)) {
        Ok(()) => text,
        Err(_) => "-".to_owned(),
    }
}

/// Reason for which a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error that is reported.
    Error { text: String, kind: &'static str, code: u8 },
    /// The reader of the standard output has closed it, which is the usual end of a pipe.
    OutputClosed,
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::with_code(1, text)
    }

    pub(crate) fn with_code(code: u8, text: impl Into<String>) -> Self {
        Self::Error { text: text.into(), kind: "Failed", code }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Error { text: text.into(), kind: "Usage", code: exit::USAGE }
    }

    /// Reports the failure on standard error. Returns the exit status.
    pub(crate) fn report(self, output: Output) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Error { text, kind, code } => {
                let object = serde_json::json!({ "error": text, "kind": kind });
                let line = Text::painted(Paint::Bad, "enlist:", format!(" {text}"));
                output.tell(To::Stderr, line, &object);
                ExitCode::from(code)
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::new(error.to_string()),
        }
    }
}

/// The error with its causes and advice.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (kind, advice) = advice(&error);
        let usage = ["InvalidName", "InvalidAddress", "InvalidConfig"].contains(&kind);
        let mut text = with_causes(&error).to_string();
        if !advice.is_empty() {
            text = format!("{text}; {advice}");
        }
        Self::Error { text, kind, code: if usage { exit::USAGE } else { 1 } }
    }
}

fn advice(error: &Error) -> (&'static str, &'static str) {
    match error {
        Error::InvalidName { .. } => ("InvalidName", ""),
        Error::InvalidAddress { .. } => ("InvalidAddress", "write host:port, or :port for this host"),
        Error::InvalidConfig { .. } => ("InvalidConfig", "`enlist --help` lists the options"),
        Error::AlreadyRegistered { .. } => {
            ("AlreadyRegistered", "use another --id, or --on-conflict wait or take-over")
        }
        Error::NotRegistered { .. } => ("NotRegistered", "`enlist resolve` lists the instances"),
        Error::NotOwner { .. } => (
            "NotOwner",
            "only a fixed instance can be removed; stop the process that registered this one, or use --force",
        ),
        Error::Conflict { .. } => ("Conflict", "another client changed it at the same time; try again"),
        Error::LeaseLost => ("LeaseLost", "try again"),
        Error::Unavailable(_) => ("Unavailable", "check --endpoints, or see `enlist doctor`"),
        Error::Timeout { .. } => ("Timeout", "check --endpoints, or see `enlist doctor`"),
        Error::AuthFailed(_) => ("AuthFailed", "check --user and --password-file"),
        Error::PermissionDenied { .. } => ("PermissionDenied", "grant the user's role readwrite on these keys"),
        Error::TooLarge { .. } => ("TooLarge", "reduce its metadata"),
        Error::RangeTooLarge { .. } => {
            ("RangeTooLarge", "raise --max-range-keys or --max-range-bytes, or remove keys that do not belong there")
        }
        Error::StorageFull => ("StorageFull", "compact and defragment etcd, then `etcdctl alarm disarm`"),
        Error::Unsupported { .. } => ("Unsupported", "choose another --layout or omit the option"),
        Error::Closed => ("Closed", ""),
        _ => ("Failed", ""),
    }
}

/// An instance as a JSON object.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceObject<'a> {
    id: &'a str,
    endpoints: Vec<String>,
    weight: u32,
    version: Option<&'a str>,
    zone: Option<&'a str>,
    health: &'static str,
    presence: &'static str,
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
            presence: if entry.presence() == Presence::Live { "live" } else { "held" },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_any_store_is_shown() {
        let at = |millis| time(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis));
        assert_eq!(at(1_795_000_000_123), "2026-11-18T11:06:40.123Z");
        assert_eq!(at(u64::MAX / 4), "-");
    }

    #[test]
    fn json_escapes_unprintable_characters_without_changing_the_value() {
        let value = "v\x1b\n\x7f\u{9b}\u{202e}\u{e0041}\"\\é";
        let json = one_object(&value).unwrap();
        assert_eq!(json, r#""v\u001b\n\u007f\u009b\u202e\udb40\udc41\"\\é""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
    }

    #[test]
    fn only_own_colours_reach_the_terminal() {
        let line = Text::painted(Paint::Bad, "a\x1b[2J", "b\u{9b}2J");
        let with = |color| Output::new(Format::Text, color).render(To::Stdout, &line);
        assert_eq!(with(Color::Always), "\x1b[31ma\\u{1b}[2J\x1b[0mb\\u{9b}2J");
        assert_eq!(with(Color::Never), "a\\u{1b}[2Jb\\u{9b}2J");
    }
}
