//! Writing of JSON. Texts from the store are foreign: unprintable characters and angle brackets are written as numbers,
//! so that a response can neither change a terminal nor be read as HTML.

use std::io;

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use enlist::escape::is_unprintable;
use serde::Serialize;
use serde_json::ser::Formatter;

/// Media type of JSON.
pub(super) const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// Writes JSON without spaces, and foreign characters as numbers.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, character) in fragment.char_indices() {
            if !matches!(character, '<' | '>') && !is_unprintable(character) {
                continue;
            }
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

/// Returns a value as JSON, in one line.
pub(super) fn text(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, Escaping))
        .expect("keys are texts, and a vector takes every byte");
    text
}

/// Returns a response with a value.
pub(super) fn response(value: &impl Serialize) -> Response {
    with_media_type(Body::from(text(value)), MEDIA_TYPE)
}

/// Returns a response with this media type.
pub(super) fn with_media_type(body: Body, media_type: HeaderValue) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_characters_are_numbers() {
        let hostile = "</script>\u{202e}\n\u{1b}[2J\u{e0001}\u{2028}größe\"\\";
        let json = String::from_utf8(text(&hostile)).unwrap();
        assert!(!json.contains(is_unprintable) && !json.contains(['<', '>']), "{json}");
        assert!(json.contains("größe"));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }
}
