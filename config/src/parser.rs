//! Parsers of values: those of the crate `config`. Here their errors lose the content that they quote.

#[cfg(any(feature = "json", feature = "toml"))]
use config::{ConfigError, File, FileFormat, Source};
use config::{Map, Value};

use crate::{format::Format, rejection::Reason};

/// Reads the object or table that `text` contains.
pub(crate) fn parse(format: Format, text: &str) -> Result<Map<String, Value>, Reason> {
    match format {
        #[cfg(feature = "json")]
        Format::Json => json(text),
        #[cfg(feature = "toml")]
        Format::Toml => toml(text),
        #[cfg(not(all(feature = "json", feature = "toml")))]
        _ => {
            let _ = text;
            Err(Reason::FormatOff(format))
        }
    }
}

#[cfg(feature = "json")]
fn json(text: &str) -> Result<Map<String, Value>, Reason> {
    File::from_str(text, FileFormat::Json).collect().map_err(|error| match cause(&error) {
        Some(cause) => match cause.downcast_ref::<serde_json::Error>() {
            Some(error) => Reason::Syntax { format: Format::Json, position: Some((error.line(), error.column())) },
            // The only other error of this parser.
            None => Reason::NotATable,
        },
        None => Reason::Syntax { format: Format::Json, position: None },
    })
}

#[cfg(feature = "toml")]
fn toml(text: &str) -> Result<Map<String, Value>, Reason> {
    File::from_str(text, FileFormat::Toml).collect().map_err(|error| {
        // Without a span it is a number that cannot be represented.
        let span = cause(&error).and_then(|cause| cause.downcast_ref::<toml::de::Error>()?.span());
        Reason::Syntax { format: Format::Toml, position: span.map(|span| position(text, span.start)) }
    })
}

#[cfg(any(feature = "json", feature = "toml"))]
fn cause(error: &ConfigError) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
    match error {
        ConfigError::FileParse { cause, .. } => Some(&**cause),
        _ => None,
    }
}

/// Line and column of a byte, from 1.
#[cfg(feature = "toml")]
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

#[cfg(test)]
#[cfg(all(feature = "json", feature = "toml"))]
mod tests {
    use super::*;

    #[test]
    fn errors_of_parsers_have_a_position_and_no_content() {
        let syntax = |format: Format, text: &str| match parse(format, text) {
            Err(Reason::Syntax { position, .. }) => position,
            other => panic!("{other:?}"),
        };
        assert_eq!(syntax(Format::Json, "{\n \"a\": hunter2}"), Some((2, 7)));
        assert_eq!(syntax(Format::Toml, "a = 1\nß = hunter2\n"), Some((2, 1)));
        assert_eq!(syntax(Format::Toml, "a = 1\nb = hunter2\n"), Some((2, 5)));
        assert_eq!(syntax(Format::Toml, "a = 99999999999999999999999\n"), None);
        for text in ["7", "\"hunter2\"", "[1]", "null"] {
            assert_eq!(parse(Format::Json, text), Err(Reason::NotATable), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow_of_the_stack() {
        let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        assert!(parse(Format::Json, &deep("{\"a\":", "}")).is_err());
        assert!(parse(Format::Json, &deep("{\"a\":[", "]}")).is_err());
        assert!(parse(Format::Toml, &format!("a = {}", deep("[", "]"))).is_err());
        assert!(parse(Format::Toml, &format!("a = {}", deep("{a=", "}"))).is_err());
    }
}
