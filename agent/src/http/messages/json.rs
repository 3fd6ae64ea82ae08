//! Writing of JSON. Texts from the store are foreign: unprintable characters and angle brackets are written as numbers,
//! so that a response can neither change a terminal nor be read as HTML.

use std::{convert::Infallible, future, io};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use enlist::escape::is_unprintable;
use futures::stream;
use serde::Serialize;
use serde_json::ser::Formatter;

/// Bytes of a large list after which a part ends. Its last item can exceed them.
pub(crate) const PART_BYTES: usize = 64 << 10;

/// Media type of JSON.
pub(crate) const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/json");

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
pub(crate) fn text(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, Escaping))
        .expect("keys are texts, and a vector takes every byte");
    text
}

/// Returns a response with a value.
pub(crate) fn response(value: &impl Serialize) -> Response {
    with_media_type(Body::from(text(value)), MEDIA_TYPE)
}

/// Returns a response with a list of any length: `head`, the texts of the items, separated by commas, and `tail`. It is
/// made in parts, each when the client has read so far, so that a slow client takes little memory.
pub(crate) fn in_parts<T: Send + 'static>(
    head: Vec<u8>,
    items: Vec<T>,
    write: impl FnMut(T) -> Option<Vec<u8>> + Send + 'static,
    tail: &'static [u8],
) -> Response {
    let mut texts = items.into_iter().filter_map(write).enumerate();
    let parts = stream::unfold(Some(head), move |part| {
        let next = part.map(|mut part| {
            while part.len() < PART_BYTES {
                let Some((number, text)) = texts.next() else {
                    part.extend_from_slice(tail);
                    return (part, None);
                };
                if number > 0 {
                    part.push(b',');
                }
                part.extend(text);
            }
            (part, Some(Vec::new()))
        });
        future::ready(next.map(|(part, rest)| (Ok::<_, Infallible>(Bytes::from(part)), rest)))
    });
    with_media_type(Body::from_stream(parts), MEDIA_TYPE)
}

/// Returns an object that ends with a list, without its last two brackets.
pub(crate) fn open_list(object: &impl Serialize, list: &str) -> Vec<u8> {
    let mut text = text(object);
    text.pop();
    text.extend(format!(",\"{list}\":[").into_bytes());
    text
}

/// Returns a response with this media type.
pub(crate) fn with_media_type(body: Body, media_type: HeaderValue) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_list_in_parts_is_complete() {
        for count in [0, 1, 2, 7, 100, 1000] {
            for length in [1, 1000, PART_BYTES - 1] {
                let items: Vec<_> = (0..count).collect();
                // Every third one is left out.
                let item = move |item: usize| (item % 3 != 1).then(|| format!("{item:0length$}"));
                let write = move |number| Some(text(&item(number)?));
                let response = in_parts(open_list(&serde_json::json!({ "a": 1 }), "b"), items, write, b"]}");
                let mut parts = response.into_body().into_data_stream();
                let mut body = Vec::new();
                while let Some(Ok(part)) = parts.next().await {
                    assert!(part.len() < PART_BYTES + length + 20, "{}", part.len());
                    body.extend_from_slice(&part);
                }
                let expected: Vec<_> = (0..count).filter_map(item).collect();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(body, serde_json::json!({ "a": 1, "b": expected }));
            }
        }
    }

    #[test]
    fn foreign_characters_are_numbers() {
        let hostile = "</script>\u{202e}\n\u{1b}[2J\u{e0001}\u{2028}größe\"\\";
        let json = String::from_utf8(text(&hostile)).unwrap();
        assert!(!json.contains(is_unprintable) && !json.contains(['<', '>']), "{json}");
        assert!(json.contains("größe"));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }
}
