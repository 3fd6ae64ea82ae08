//! Lossless conversion between JSON of any type and metadata. A text is stored under its name, any other value as JSON
//! text under `{name}.json` ([`JSON_SUFFIX`]), as it was written, with all digits and in its order.
//!
//! Of two equivalent forms one is refused, so written metadata is read again unchanged.

use std::collections::BTreeMap;

use enlist::JSON_SUFFIX;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

const NO_JSON: &str = "metadata named `….json` that is no JSON, or has white space around it,";
const A_TEXT: &str = "a text as metadata named `….json`, which belongs under its name alone,";
const TWICE: &str = "metadata under a name and the same name with `.json`";
const NOT_ALONE: &str = "metadata named `.json`, which stands for all metadata, beside another one";
const NO_WHOLE: &str = "an object, or null, as metadata named `.json`, which belongs under the names in it,";

/// Value in an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field<'a> {
    Text(&'a str),
    Json(&'a RawValue),
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Json(json) => json.serialize(serializer),
        }
    }
}

/// Metadata as JSON.
#[derive(Debug)]
pub(super) enum Json<'a> {
    Null,
    Object(BTreeMap<&'a str, Field<'a>>),
    Other(&'a RawValue),
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Object(fields) => fields.serialize(serializer),
            Self::Other(json) => json.serialize(serializer),
        }
    }
}

/// Returns metadata as the JSON from which [`entries`] reads it.
///
/// # Errors
///
/// The reason for which the metadata would not be read again unchanged.
pub(super) fn json(metadata: &BTreeMap<String, String>) -> Result<Json<'_>, &'static str> {
    match metadata.get(JSON_SUFFIX) {
        None if metadata.is_empty() => Ok(Json::Null),
        None => Ok(Json::Object(fields(metadata)?)),
        Some(_) if metadata.len() > 1 => Err(NOT_ALONE),
        Some(text) => match entries(raw(text)?).as_slice() {
            [(name, _)] if name == JSON_SUFFIX => Ok(Json::Other(raw(text)?)),
            _ => Err(NO_WHOLE),
        },
    }
}

/// Returns any JSON as metadata. JSON that is no object, an empty object, and an object that would be mistaken for such
/// a value, are stored under `.json`.
pub(super) fn entries(json: &RawValue) -> Vec<(String, String)> {
    if json.get() == "null" {
        return Vec::new();
    }
    let fields = serde_json::from_str::<BTreeMap<String, &RawValue>>(json.get()).unwrap_or_default();
    let whole = fields.is_empty() || fields.get("").is_some_and(|value| text(value).is_none());
    if whole { vec![(JSON_SUFFIX.to_owned(), json.get().to_owned())] } else { entries_of(fields) }
}

/// Returns metadata as the fields from which [`entries_of`] reads it.
///
/// # Errors
///
/// As [`json`].
pub(super) fn fields(metadata: &BTreeMap<String, String>) -> Result<BTreeMap<&str, Field<'_>>, &'static str> {
    let mut fields = BTreeMap::new();
    for (key, value) in metadata {
        let (name, field) = match key.strip_suffix(JSON_SUFFIX) {
            Some(name) => (name, Field::Json(raw(value)?)),
            None => (key.as_str(), Field::Text(value)),
        };
        if matches!(field, Field::Json(json) if is_plain(name, json)) {
            return Err(A_TEXT);
        }
        if fields.insert(name, field).is_some() {
            return Err(TWICE);
        }
    }
    Ok(fields)
}

/// Returns the fields of an object as metadata.
pub(super) fn entries_of<'a>(fields: impl IntoIterator<Item = (String, &'a RawValue)>) -> Vec<(String, String)> {
    let entry = |(name, json): (String, &RawValue)| match text(json) {
        Some(text) if is_plain(&name, json) => (name, text),
        _ => (name + JSON_SUFFIX, json.get().to_owned()),
    };
    fields.into_iter().map(entry).collect()
}

/// Returns `true` for a text under a name without the suffix of JSON.
fn is_plain(name: &str, json: &RawValue) -> bool {
    !name.ends_with(JSON_SUFFIX) && text(json).is_some()
}

/// Returns the text in a JSON value. `None` also for half a surrogate pair, which no Rust text can contain.
fn text(json: &RawValue) -> Option<String> {
    json.get().starts_with('"').then(|| serde_json::from_str(json.get()).ok()).flatten()
}

fn raw(text: &str) -> Result<&RawValue, &'static str> {
    let json: Option<&RawValue> = serde_json::from_str(text).ok();
    json.filter(|json| json.get() == text).ok_or(NO_JSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_json_has_one_metadata_and_each_metadata_one_json() {
        for (json, expected) in [
            (r#"{"name":"x"}"#, &[("name", "x")][..]),
            (
                r#"{"gone":null,"shards":7,"tags":["a"]}"#,
                &[("gone.json", "null"), ("shards.json", "7"), ("tags.json", r#"["a"]"#)],
            ),
            (r#"{"a.json":"text"}"#, &[("a.json.json", r#""text""#)]),
            (r#"{"a.json":7}"#, &[("a.json.json", "7")]),
            (r#"{"":"text"}"#, &[("", "text")]),
            (r#"{"":7}"#, &[(".json", r#"{"":7}"#)]),
            (r#"{"half":"\ud800"}"#, &[("half.json", r#""\ud800""#)]),
            (r#"{"\ud800":"half"}"#, &[(".json", r#"{"\ud800":"half"}"#)]),
            (
                r#"{"large":1152921504606846977,"deep":{"b":1e400,"a":0.10}}"#,
                &[("deep.json", r#"{"b":1e400,"a":0.10}"#), ("large.json", "1152921504606846977")],
            ),
            (r#""blue""#, &[(".json", r#""blue""#)]),
            ("7", &[(".json", "7")]),
            ("[1, 2]", &[(".json", "[1, 2]")]),
            ("{}", &[(".json", "{}")]),
            ("null", &[]),
        ] {
            let expected = metadata(expected);
            let read: BTreeMap<_, _> = entries(raw(json).unwrap()).into_iter().collect();
            assert_eq!(read, expected, "{json}");
            let written = serde_json::to_string(&super::json(&expected).unwrap()).unwrap();
            let again: BTreeMap<_, _> = entries(raw(&written).unwrap()).into_iter().collect();
            assert_eq!(again, expected, "{json} is written as {written}");
        }
    }

    #[test]
    fn what_would_be_read_as_something_else_is_refused() {
        for (pairs, says) in [
            (&[("a.json", "seven")][..], NO_JSON),
            (&[("a.json", " 7")], NO_JSON),
            (&[("a.json", "")], NO_JSON),
            (&[("a.json", r#""text""#)], A_TEXT),
            (&[("a", "7"), ("a.json", "7")], TWICE),
            (&[(".json", "7"), ("a", "b")], NOT_ALONE),
            (&[(".json", r#"{"a":7}"#)], NO_WHOLE),
            (&[(".json", "null")], NO_WHOLE),
        ] {
            assert_eq!(json(&metadata(pairs)).unwrap_err(), says, "{pairs:?}");
        }
    }

    #[test]
    fn depth_has_no_limit() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let metadata = metadata(&[("deep.json", &deep)]);
        let written = serde_json::to_string(&json(&metadata).unwrap()).unwrap();
        assert_eq!(entries(raw(&written).unwrap()), [("deep.json".to_owned(), deep)]);
    }
}
