//! What is said, and how: text for people, JSON for programs, errors as one sentence.
//!
//! Whatever is written goes through [`Output`], which escapes it: what others stored in etcd is shown, and does nothing else.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use enlist::{
    Entry, Error, Health, Instance, Presence,
    escape::{escaped, is_unprintable},
    with_causes,
};
use serde::Serialize;

use crate::{
    USAGE,
    args::{Color, Format},
};

/// Format of the answers.
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

/// The colours in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Good,
    Bad,
    Faint,
}

/// One line for people, whose beginning may be in a colour.
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

    /// Returns `true` if a live picture makes sense.
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

    /// A line as it is written for people.
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

    /// Writes one line: the text, or the object. A standard error that nobody reads is no failure.
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

    /// Writes one line that nobody needs: what it tells goes on whether it can be told or not.
    pub(crate) fn tell(self, to: To, text: impl Into<Text>, object: &impl Serialize) {
        // The reader may be gone.
        let _ = self.line(to, text, object);
    }
}

/// The object on one line, in which every character can be seen. Outside of its texts JSON has none that cannot.
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

/// The columns of the terminal on the standard output, if it is one and tells.
pub(crate) fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Reason for which a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// With this sentence, and what kind of error it was.
    Said { text: String, kind: &'static str, code: u8 },
    /// Nobody reads what is written any more, which is how a pipe ends.
    Unread,
}

impl Failure {
    pub(crate) fn said(text: impl Into<String>) -> Self {
        Self::exit(1, text)
    }

    pub(crate) fn exit(code: u8, text: impl Into<String>) -> Self {
        Self::Said { text: text.into(), kind: "Failed", code }
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
        let mut text = with_causes(&error).to_string();
        if !advice.is_empty() {
            text = format!("{text}; {advice}");
        }
        Self::Said { text, kind, code: if usage { USAGE } else { 1 } }
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
        Error::NotRegistered { .. } => ("NotRegistered", "`enlist resolve` lists what is there"),
        Error::NotOwner { .. } => (
            "NotOwner",
            "only a fixed instance can be removed; stop the process that keeps this one, or remove it with --force",
        ),
        Error::Conflict { .. } => ("Conflict", "somebody changed it at the same time: try again"),
        Error::LeaseLost => ("LeaseLost", "try again"),
        Error::Unavailable(_) => ("Unavailable", "check --endpoints, or see `enlist doctor`"),
        Error::Timeout { .. } => ("Timeout", "check --endpoints, or see `enlist doctor`"),
        Error::AuthFailed(_) => ("AuthFailed", "check --user and --password-file"),
        Error::PermissionDenied { .. } => ("PermissionDenied", "grant the user's role readwrite on these keys"),
        Error::TooLarge { .. } => ("TooLarge", "store less in it"),
        Error::RangeTooLarge { .. } => {
            ("RangeTooLarge", "raise --max-range-keys or --max-range-bytes, or remove what does not belong there")
        }
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
    fn json_shows_every_character_and_means_the_same() {
        let value = "v\x1b\n\x7f\u{9b}\u{202e}\u{e0041}\"\\é";
        let json = one_object(&value).unwrap();
        assert_eq!(json, r#""v\u001b\n\u007f\u009b\u202e\udb40\udc41\"\\é""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
    }

    #[test]
    fn only_our_own_colours_reach_a_terminal() {
        let line = Text::painted(Paint::Bad, "a\x1b[2J", "b\u{9b}2J");
        let with = |color| Output::new(Format::Text, color).render(To::Stdout, &line);
        assert_eq!(with(Color::Always), "\x1b[31ma\\u{1b}[2J\x1b[0mb\\u{9b}2J");
        assert_eq!(with(Color::Never), "a\\u{1b}[2Jb\\u{9b}2J");
    }
}
