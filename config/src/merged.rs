//! Conversion of the merged configuration into a type.
//!
//! Types are strict: a number is no text, and 1.5 is no integer. Values of the environment are texts, so they are
//! converted to the expected type. An error contains the keys that lead to the fault, and never a value.

use std::{collections::BTreeMap, fmt};

use config::{Map, Value, ValueKind};
use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor,
        value::{MapAccessDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};

use crate::layers::mark;

/// Maximum number of characters of a key in an error.
const MAX_KEY: usize = 64;

/// Maximum number of characters of a description, some of which list all fields or variants of a type.
const MAX_DESCRIPTION: usize = 300;

/// Converts the merged configuration.
pub(crate) fn convert<T: DeserializeOwned>(merged: Value) -> Result<T, Fault> {
    T::deserialize(Part { value: merged, as_text: false })
}

/// Fault of a configuration, without content.
#[derive(Debug, PartialEq)]
pub(crate) struct Fault {
    /// Keys that lead to it, the innermost first.
    keys: Vec<Key>,
    /// Mark of the layer with the fault.
    pub(crate) mark: Option<String>,
    description: String,
}

#[derive(Debug, PartialEq)]
enum Key {
    Name(String),
    Index(usize),
}

impl Fault {
    fn new(description: impl Into<String>) -> Self {
        Self { keys: Vec::new(), mark: None, description: description.into().chars().take(MAX_DESCRIPTION).collect() }
    }

    fn below(mut self, key: Key) -> Self {
        self.keys.push(key);
        self
    }

    fn in_layer(mut self, mark: Option<String>) -> Self {
        self.mark = self.mark.or(mark);
        self
    }

    /// The location and the description.
    pub(crate) fn into_texts(self) -> (String, String) {
        let mut location = String::new();
        for key in self.keys.iter().rev() {
            match key {
                Key::Name(name) => {
                    let dot = if location.is_empty() { "" } else { "." };
                    location = format!("{location}{dot}{}", name.chars().take(MAX_KEY).collect::<String>());
                }
                Key::Index(index) => location = format!("{location}[{index}]"),
            }
        }
        (location, self.description)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    /// Such a message can quote the value, so it is not kept.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::new("refused by its type")
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", kind(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found another {}", kind(found)))
    }

    fn invalid_length(count: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {count} elements"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected one of {}", expected.join(", ")))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let fault = format!("unknown field, expected one of {}", expected.join(", "));
        Self::new(fault).below(Key::Name(field.to_owned()))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("missing").below(Key::Name(field.to_owned()))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new("present twice").below(Key::Name(field.to_owned()))
    }
}

/// Kind of a value.
fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "integer",
        Unexpected::Float(_) => "number",
        Unexpected::Char(_) | Unexpected::Str(_) => "text",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "list",
        Unexpected::Map => "table",
        _ => "value",
    }
}

/// Part of the merged configuration.
struct Part {
    value: Value,
    /// A text that is converted to the expected type: a key.
    as_text: bool,
}

impl Part {
    /// The text, if it stands for a value of any type.
    fn text(&self) -> Option<&str> {
        match &self.value.kind {
            ValueKind::String(text) if self.as_text || self.value.origin() == Some(mark::ENVIRONMENT) => Some(text),
            _ => None,
        }
    }

    /// The part with a text that stands for another value replaced by that value.
    fn replaced<N: Into<ValueKind>>(mut self, parse: impl FnOnce(&str) -> Option<N>) -> Self {
        if let Some(value) = self.text().and_then(parse) {
            self.value.kind = value.into();
        }
        self
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let mark = self.value.origin().map(str::to_owned);
        let visited = match self.value.kind {
            ValueKind::Nil => visitor.visit_unit(),
            ValueKind::Boolean(is) => visitor.visit_bool(is),
            ValueKind::I64(number) => visitor.visit_i64(number),
            ValueKind::I128(number) => visitor.visit_i128(number),
            ValueKind::U64(number) => visitor.visit_u64(number),
            ValueKind::U128(number) => visitor.visit_u128(number),
            ValueKind::Float(number) => visitor.visit_f64(number),
            ValueKind::String(text) => visitor.visit_string(text),
            ValueKind::Array(values) => visitor.visit_seq(Elements { values: values.into_iter(), next: 0 }),
            ValueKind::Table(table) => visitor.visit_map(Entries::new(table)),
        };
        visited.map_err(|fault| fault.in_layer(mark))
    }
}

/// Reads a boolean in the words that the crate `config` accepts.
fn boolean(text: &str) -> Option<bool> {
    Value::new(None, text).into_bool().ok()
}

/// Reads a list or a table in JSON.
fn json(text: &str) -> Option<ValueKind> {
    let value: Value = serde_json::from_str(text).ok()?;
    // Texts within it have no mark of the environment, so they are texts.
    matches!(value.kind, ValueKind::Array(_) | ValueKind::Table(_)).then_some(value.kind)
}

macro_rules! numbers {
    ($($method:ident: $type:ty => $kind:ty),+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.replaced(|text| text.trim().parse::<$type>().ok().map(<$kind>::from)).visit(visitor)
        })+
    };
}

impl<'de> Deserializer<'de> for Part {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.replaced(boolean).visit(visitor)
    }

    numbers! {
        deserialize_i8: i64 => i64, deserialize_i16: i64 => i64, deserialize_i32: i64 => i64,
        deserialize_i64: i64 => i64, deserialize_i128: i128 => i128,
        deserialize_u8: u64 => u64, deserialize_u16: u64 => u64, deserialize_u32: u64 => u64,
        deserialize_u64: u64 => u64, deserialize_u128: u128 => u128,
        deserialize_f32: f64 => f64, deserialize_f64: f64 => f64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value.kind {
            ValueKind::Nil => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.replaced(json).visit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.replaced(json).visit(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let mark = self.value.origin().map(str::to_owned);
        match self.value.kind {
            ValueKind::String(name) => {
                let name: StrDeserializer<'_, Fault> = name.as_str().into_deserializer();
                visitor.visit_enum(name)
            }
            ValueKind::Table(table) if table.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(Entries::new(table)))
            }
            _ => Err(Fault::new("expected the name of a variant, or a table with one as its only key")),
        }
        .map_err(|fault| fault.in_layer(mark))
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct identifier ignored_any
    }
}

struct Elements {
    values: std::vec::IntoIter<Value>,
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Elements {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(value) = self.values.next() else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(Part { value, as_text: false }).map(Some).map_err(|fault| fault.below(Key::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.values.len())
    }
}

/// Entries of a table in the order of their keys, so that the same fault of several is reported each time.
struct Entries {
    entries: std::collections::btree_map::IntoIter<String, Value>,
    value: Option<(String, Value)>,
}

impl Entries {
    fn new(table: Map<String, Value>) -> Self {
        let sorted: BTreeMap<_, _> = table.into_iter().collect();
        Self { entries: sorted.into_iter(), value: None }
    }
}

impl<'de> de::MapAccess<'de> for Entries {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let mark = value.origin().map(str::to_owned);
        let name = Part { value: Value::new(None, key.as_str()), as_text: true };
        self.value = Some((key, value));
        seed.deserialize(name).map(Some).map_err(|fault| fault.in_layer(mark))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((key, value)) = self.value.take() else { return Err(Fault::new("a value was read without its key")) };
        seed.deserialize(Part { value, as_text: false }).map_err(|fault| fault.below(Key::Name(key)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

#[cfg(test)]
#[cfg(all(feature = "json", feature = "toml"))]
mod tests {
    use super::*;
    use crate::{Secret, format::Format, layers::Layers};
    use enlist::ConfigScope;
    use proptest::prelude::*;
    use serde::Deserialize;
    use std::{collections::HashMap, net::IpAddr};

    /// The merged configuration of a default and of variables.
    fn merged(json: &str, environment: &[(&str, &str)]) -> Value {
        let mut layers = Layers::default();
        layers.add_default_text(Format::Json, json).unwrap();
        let variables = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        layers.read_environment("APP", Some(variables.collect())).unwrap();
        layers.merged(&ConfigScope::All, &[]).unwrap()
    }

    fn fault<T: DeserializeOwned + fmt::Debug>(json: &str) -> (String, String) {
        convert::<T>(merged(json, &[])).unwrap_err().into_texts()
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Off,
        Limit(u32),
        Window { seconds: u8 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        port: u16,
        #[serde(default)]
        rate: Option<f64>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        inner: Inner,
        name: String,
        on: bool,
        #[serde(default)]
        tags: Vec<String>,
        #[serde(default)]
        mode: Option<Mode>,
        #[serde(default)]
        by_number: HashMap<u8, i8>,
    }

    #[test]
    fn variables_are_converted_to_the_expected_types() {
        let environment = [
            ("APP_INNER__PORT", "80"),
            ("APP_INNER__RATE", "0.5"),
            ("APP_NAME", "12345"),
            ("APP_ON", "yes"),
            ("APP_TAGS", r#"["1", "b"]"#),
            ("APP_MODE", "off"),
            ("APP_BY_NUMBER", r#"{"7": -1}"#),
        ];
        let read: Outer = convert(merged("{}", &environment)).unwrap();
        assert_eq!(
            read,
            Outer {
                inner: Inner { port: 80, rate: Some(0.5) },
                name: "12345".to_owned(),
                on: true,
                tags: vec!["1".to_owned(), "b".to_owned()],
                mode: Some(Mode::Off),
                by_number: HashMap::from([(7, -1)]),
            }
        );
    }

    /// The crate `config` would read all of these, and panic for the last one (rust-cli/config-rs#126).
    #[test]
    fn stored_values_are_not_converted() {
        let inner = |port: &str| fault::<Inner>(&format!(r#"{{"port": {port}}}"#));
        for (port, found) in [("\"80\"", "text"), ("1.5", "number"), ("true", "boolean"), ("null", "null")] {
            assert_eq!(inner(port), ("port".to_owned(), format!("expected u16, found {found}")));
        }
        assert_eq!(inner("70000").1, "expected u16, found another integer");
        let (key, text) = fault::<HashMap<String, Mode>>(r#"{"m": "limit"}"#);
        assert_eq!((key.as_str(), text.as_str()), ("m", "expected newtype variant, found value"));
    }

    #[test]
    fn all_forms_of_variants_are_read() {
        let json = r#"{"a": "off", "b": {"limit": 7}, "c": {"window": {"seconds": 3}}}"#;
        let read: BTreeMap<String, Mode> = convert(merged(json, &[])).unwrap();
        let read: Vec<_> = read.into_values().collect();
        assert_eq!(read, [Mode::Off, Mode::Limit(7), Mode::Window { seconds: 3 }]);
        assert!(convert::<HashMap<String, Mode>>(merged(r#"{"a": {"limit": 7, "off": null}}"#, &[])).is_err());
    }

    #[test]
    fn a_fault_names_its_keys_and_no_content() {
        #[derive(Debug, Deserialize)]
        struct Hosts {
            #[expect(dead_code, reason = "only read")]
            hosts: Vec<HashMap<String, IpAddr>>,
        }
        for (json, key, text) in [
            (r#"{"hosts": [{}, {"a": "hunter2"}]}"#, "hosts[1].a", "refused by its type"),
            (r#"{"hosts": "hunter2"}"#, "hosts", "expected a sequence, found text"),
            (r#"{"hosts": [{"a": 7007}]}"#, "hosts[0].a", "expected IP address, found integer"),
            ("{}", "hosts", "missing"),
        ] {
            let (at, fault) = fault::<Hosts>(json);
            assert_eq!((at.as_str(), fault.as_str()), (key, text));
        }
        let (key, text) = fault::<Inner>(r#"{"port": 1, "prot": "hunter2"}"#);
        assert_eq!((key.as_str(), text.as_str()), ("prot", "unknown field, expected one of port, rate"));
        let (key, text) = fault::<HashMap<String, Mode>>(r#"{"m": "hunter2"}"#);
        assert_eq!((key.as_str(), text.as_str()), ("m", "expected one of off, limit, window"));
    }

    #[test]
    fn a_fault_is_attributed_to_its_layer() {
        let of_variable = convert::<Inner>(merged(r#"{"port": 1}"#, &[("APP_PORT", "x")])).unwrap_err();
        assert_eq!(of_variable.mark.as_deref(), Some(mark::ENVIRONMENT));
        let of_default = convert::<Inner>(merged(r#"{"port": "x"}"#, &[])).unwrap_err();
        assert_eq!(of_default.mark.as_deref(), Some(mark::DEFAULTS));
        assert_eq!(convert::<Inner>(merged("{}", &[])).unwrap_err().mark, None);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            (-1e9..1e9).prop_map(|number: f64| number.into()),
            "[a-z.\\[\\]0-9]{0,5}".prop_map(Into::into),
        ];
        let tree = leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                proptest::collection::hash_map("[a-z.\\[\\]0-9]{0,5}", inner, 0..5)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        });
        proptest::collection::hash_map("[a-z.\\[\\]0-9]{0,5}", tree, 0..5).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn without_other_layers_the_result_is_that_of_serde_json(value in json()) {
            // Not compared with `value` itself, because texts of numbers are rounded.
            let text = value.to_string();
            let read: serde_json::Value = convert(merged(&text, &[])).unwrap();
            prop_assert_eq!(read, serde_json::from_str::<serde_json::Value>(&text).unwrap());
        }

        #[test]
        fn any_value_is_read_or_refused_without_its_content(value in json()) {
            let text = serde_json::json!({"value": value, "secret": "hunter2"}).to_string();
            if let Err(fault) = convert::<HashMap<String, Inner>>(merged(&text, &[])) {
                let (at, text) = fault.into_texts();
                prop_assert!(!at.contains("hunter2") && !text.contains("hunter2"), "{at} {text}");
            }
            let secret = r#"{"secret": "hunter2"}"#;
            let read: HashMap<String, Secret<String>> = convert(merged(secret, &[])).unwrap();
            prop_assert_eq!(read["secret"].expose(), "hunter2");
        }
    }
}
