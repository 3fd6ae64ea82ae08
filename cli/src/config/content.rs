//! The content of values: its check by the suffix of the path, its display, and its fields in JSON.

use std::fmt::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use enlist::{ConfigPath, escape::is_unprintable};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::{args::CheckOption, output::Failure};

/// Reason for which a value does not parse. It has no part of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks that a value parses, if its path ends in `.json` or `.toml`.
pub(crate) fn check(option: CheckOption, path: &ConfigPath, value: &[u8]) -> Result<(), Fault> {
    match path.as_str().rsplit_once('.').map(|(_, suffix)| suffix) {
        _ if option.none => Ok(()),
        Some("json") => json(value),
        Some("toml") => toml(value),
        _ => Ok(()),
    }
}

/// Returns the failure for a value that is refused.
pub(crate) fn refusal(path: &ConfigPath, fault: &Fault) -> Failure {
    let text = format!("{path} {fault}; correct it, or use --no-check");
    Failure::Error { text, kind: "InvalidValue", code: 1 }
}

fn json(value: &[u8]) -> Result<(), Fault> {
    match serde_json::from_slice::<IgnoredAny>(value) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault(format!("is not valid JSON: {error}"))),
    }
}

fn toml(value: &[u8]) -> Result<(), Fault> {
    let text = std::str::from_utf8(value).map_err(|error| Fault(format!("is not valid TOML: {error}")))?;
    match toml::from_str::<toml::Table>(text) {
        Ok(_) => Ok(()),
        // Its display would have the line.
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Err(Fault(format!("is not valid TOML: {} at line {line}", error.message())))
        }
    }
}

/// Returns a value as text for a terminal: lines and tabs stay, all other unprintable characters are escaped, and bytes
/// that are no UTF-8 are shown by number, as `\xff`.
pub(crate) fn shown(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' | '\t' => text.push(character),
                '\r' => text.push_str("\\r"),
                hidden if is_unprintable(hidden) => text.extend(hidden.escape_unicode()),
                plain => text.push(plain),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a `String` does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Adds the fields of a value to an object: `value`, or `base64` if the value is no UTF-8; the other one is `null`.
pub(crate) fn add_fields(object: &mut Value, value: Option<&[u8]>) {
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    let encoded = value.filter(|_| text.is_none()).map(|value| STANDARD.encode(value));
    if let Some(fields) = object.as_object_mut() {
        fields.extend(Map::from_iter([("value".to_owned(), text.into()), ("base64".to_owned(), encoded.into())]));
    }
}

/// Returns the value of an object with the fields of [`add_fields`].
pub(crate) fn from_fields(value: Option<String>, base64: Option<String>) -> Result<Vec<u8>, Fault> {
    match (value, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(encoded)) => {
            STANDARD.decode(encoded).map_err(|error| Fault(format!("has no valid base64: {error}")))
        }
        _ => Err(Fault("needs either `value` or `base64`".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_SUFFIX: CheckOption = CheckOption { none: false };

    fn checked(path: &str, value: &[u8]) -> Result<(), String> {
        check(BY_SUFFIX, &ConfigPath::parse(path).unwrap(), value).map_err(|fault| fault.to_string())
    }

    #[test]
    fn values_with_a_known_suffix_have_to_parse() {
        for (path, value) in [
            ("a.json", &b"{\"a\":[1,null]}\n"[..]),
            ("a/b.toml", b"[log]\nlevel = \"debug\"\n"),
            ("a.toml", b""),
            ("a.json/b", b"{"),
            ("json", b"{"),
            ("a.JSON", b"{"),
            ("a", b"\xff"),
        ] {
            assert_eq!(checked(path, value), Ok(()), "{path}");
        }
        for (path, value, reason) in [
            ("a.json", &b"{\n s3cret: 1}"[..], "is not valid JSON: key must be a string at line 2 column 2"),
            ("a.json", b"", "is not valid JSON: EOF while parsing a value at line 1 column 0"),
            ("a.json", b"1 2", "is not valid JSON: trailing characters at line 1 column 3"),
            ("a.toml", b"a = 1\na = 2\n", "is not valid TOML: duplicate key at line 2"),
            ("a.toml", b"\xff", "is not valid TOML: invalid utf-8 sequence of 1 bytes from index 0"),
        ] {
            assert_eq!(checked(path, value), Err(reason.to_owned()), "{path}");
        }
        let unquoted = checked("a.toml", b"password = s3cret\n").unwrap_err();
        assert!(unquoted.contains("at line 1") && !unquoted.contains("s3cret"), "{unquoted}");
        assert_eq!(check(CheckOption { none: true }, &ConfigPath::parse("a.json").unwrap(), b"{"), Ok(()));
    }

    #[test]
    fn a_value_on_a_terminal_keeps_its_lines_only() {
        assert_eq!(shown(b"a\tb\r\nc\x1b[2J\xff\xc3\xa9\n"), "a\tb\\r\nc\\u{1b}[2J\\xff\u{e9}\n");
    }

    #[test]
    fn fields_of_a_value_are_read_back() {
        for value in [&b""[..], b"text\n", b"\xff\0"] {
            let mut object = serde_json::json!({});
            add_fields(&mut object, Some(value));
            let field = |name: &str| object[name].as_str().map(str::to_owned);
            assert_eq!(from_fields(field("value"), field("base64")).unwrap(), value);
        }
        let mut absent = serde_json::json!({});
        add_fields(&mut absent, None);
        assert_eq!(absent, serde_json::json!({ "value": null, "base64": null }));
        for (value, base64) in [(None, None), (Some("a"), Some("YQ==")), (None, Some("?"))] {
            assert!(from_fields(value.map(str::to_owned), base64.map(str::to_owned)).is_err());
        }
    }
}
