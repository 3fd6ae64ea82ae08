//! JSON as Go's `encoding/json` writes and reads it.

use std::{collections::BTreeMap, io};

use enlist::Error;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Serializer, Value, ser::Formatter, value::RawValue};

use super::{MAX_VALUE_BYTES, Skip, object::Object};

/// Metadata in Go's form: sorted by bytes; `null` if empty.
pub(super) type Tags = Option<BTreeMap<String, String>>;

/// Escapes characters as Go does for HTML and JavaScript, unlike `serde_json`.
struct AsGoDoes;

impl Formatter for AsGoDoes {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, special) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut characters = special.chars();
            if let Some(character) = characters.next() {
                write!(writer, "\\u{:04x}", u32::from(character))?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Writes a value as Go does.
pub(super) fn write(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut bytes, AsGoDoes));
    written.map_err(|error| Error::Unsupported { what: format!("this instance ({error})") })?;
    Ok(bytes)
}

/// Reads an object. The error contains the position, not the value, because values must not be logged.
pub(super) fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, Skip> {
    // Through a tree, so that the last one of repeated fields counts, as in Go.
    let read = serde_json::from_value(tree(value)?);
    let Object(object) = read.map_err(|_| Skip::malformed("no object, or a field is missing or of another type"))?;
    Ok(object)
}

/// Reads any JSON value.
pub(super) fn tree(value: &[u8]) -> Result<Value, Skip> {
    parse(value)
}

/// Reads the fields of an object, each as it was written. The last one of repeated fields counts.
pub(super) fn fields(value: &[u8]) -> Result<BTreeMap<String, &RawValue>, Skip> {
    parse(value)
}

/// Reads a field of an object.
pub(super) fn field<T: DeserializeOwned>(fields: &BTreeMap<String, &RawValue>, name: &str) -> Result<T, Skip> {
    let json = fields.get(name).map_or("null", |json| json.get());
    serde_json::from_str(json).map_err(|_| Skip::malformed("a field is missing or of another type"))
}

fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Skip> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Skip::malformed(format!("{} bytes", value.len())));
    }
    let skip = |error: serde_json::Error| {
        Skip::malformed(format!(
            "not as due: {:?} error at line {}, column {}",
            error.classify(),
            error.line(),
            error.column()
        ))
    };
    serde_json::from_slice(value).map_err(skip)
}

/// Reads a field for which `null` means the same as absence.
pub(super) fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Returns metadata in its written form.
pub(super) fn tags(metadata: &BTreeMap<String, String>) -> Tags {
    (!metadata.is_empty()).then(|| metadata.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_go_does() {
        let text = "a<b>&\"\\\u{2028}\u{2029}\n\u{1}\u{7f}é🚲/";
        let written = String::from_utf8(write(&text).unwrap()).unwrap();
        assert_eq!(written, "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\u2028\\u2029\\n\\u0001\u{7f}é🚲/\"");
    }
}
