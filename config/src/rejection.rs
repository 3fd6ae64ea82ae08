//! Reports of values that are not used. None of them contains the content of a value.

use std::fmt;

use enlist::{ConfigPath, Error, Revision, escape::escaped};

use crate::format::Format;

/// Maximum number of characters of a text that a validation function returns.
const MAX_TEXT: usize = 300;

/// Part of the configuration that a report is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The value at this path of the store.
    Value(ConfigPath),
    /// The environment of the process.
    Environment,
    /// The defaults of the program.
    Defaults,
    /// All of them together.
    Merged,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(path) => escaped(path).fmt(f),
            Self::Environment => f.write_str("the environment"),
            Self::Defaults => f.write_str("the defaults"),
            Self::Merged => f.write_str("the merged configuration"),
        }
    }
}

/// Reason for which a value is not used. It contains keys, positions and types, never content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The path has no known suffix, and the view no [format](crate::ConfigViewBuilder::format).
    UnknownFormat,
    /// The feature of this crate for the format is off.
    FormatOff(Format),
    /// The value is not UTF-8.
    NotText,
    /// The value is not well formed.
    Syntax {
        /// The expected format.
        format: Format,
        /// Line and column of the fault, from 1, if the parser reports them.
        position: Option<(usize, usize)>,
    },
    /// The value is well formed, but no object or table.
    NotATable,
    /// The value does not have the expected type.
    Mismatch {
        /// Location of the fault, such as `log.level` or `hosts[2]`; empty for the whole value.
        key: String,
        /// Description of the fault.
        fault: String,
    },
    /// The validation function refused the value with this text.
    Invalid(String),
    /// Code of the type or the validation function panicked.
    Panicked,
    /// The store lost its data and has no value any more.
    Lost,
}

impl Reason {
    /// A refusal by a validation function, whose text is shortened.
    pub(crate) fn invalid(text: &str) -> Self {
        Self::Invalid(text.chars().take(MAX_TEXT).collect())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat => f.write_str("the path has no known suffix, such as .toml or .json"),
            Self::FormatOff(format) => write!(f, "the feature for {format} is off"),
            Self::NotText => f.write_str("it is not UTF-8"),
            Self::Syntax { format, position: None } => write!(f, "it is not {format}"),
            Self::Syntax { format, position: Some((line, column)) } => {
                write!(f, "it is not {format}, see line {line}, column {column}")
            }
            Self::NotATable => f.write_str("it is no object or table"),
            Self::Mismatch { key, fault } if key.is_empty() => escaped(fault).fmt(f),
            Self::Mismatch { key, fault } => write!(f, "{}: {}", escaped(key), escaped(fault)),
            Self::Invalid(text) => write!(f, "it is not valid: {}", escaped(text)),
            Self::Panicked => f.write_str("the code that reads it panicked"),
            Self::Lost => f.write_str("the store lost its data"),
        }
    }
}

/// Report of a state of the store that is not used, because a value of it cannot be. `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// The part that cannot be used.
    pub origin: Origin,
    /// Revision of the last change of the value, or of the whole state if the fault is in no single value.
    pub revision: Revision,
    /// The reason.
    pub reason: Reason,
}

impl Rejection {
    /// The path of the value; `None` if the fault is in no single value.
    pub fn path(&self) -> Option<&ConfigPath> {
        match &self.origin {
            Origin::Value(path) => Some(path),
            Origin::Environment | Origin::Defaults | Origin::Merged => None,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, revision, reason } = self;
        write!(f, "{origin} at revision {revision}: {reason}")
    }
}

impl std::error::Error for Rejection {}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        Self::invalid_config("configuration", rejection.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_of_bounded_length() {
        let reason = Reason::invalid(&"a\nb\u{202e}".repeat(1000));
        let origin = Origin::Value(ConfigPath::parse("a\u{202e}.json").unwrap());
        let text = Rejection { origin, revision: Revision::new(7), reason }.to_string();
        assert!(text.starts_with(r"a\u{202e}.json at revision 7: it is not valid: a\nb\u{202e}a"), "{text}");
        assert!(!text.contains(['\n', '\u{202e}']) && text.len() < 20 * MAX_TEXT);
    }
}
