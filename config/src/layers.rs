//! Layers: defaults, values of the store, environment. The crate `config` merges them; this file only arranges them.
//!
//! The maintained layering crates are few: `figment` has had no release since May 2024. Of `config` only the merging,
//! the parsers and the source of environment variables are used. Its conversion into types is not, because it rounds
//! numbers and panics for some enums (rust-cli/config-rs#126); see `merged.rs`.

use std::{collections::BTreeMap, sync::Arc};

use config::{ConfigError, Environment, Map, Source, Value, ValueKind};
use enlist::{ConfigPath, ConfigScope, ConfigSnapshot, Revision};
use serde::Serialize;

use crate::{
    format::{Format, split},
    parser::parse,
    rejection::{Origin, Reason, Rejection},
};

/// Key of the whole configuration. Keys of a source are expressions for `config`, such as `a[999999999]`, which makes
/// an array of that length. Below a table they are plain keys, so all layers are below this one.
const ROOT: &str = "root";

/// Separates the keys in the name of an environment variable.
const SEPARATOR: &str = "__";

/// Place of the values of a subtree in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tree {
    /// Each value is a layer of the whole configuration. They are merged in the order of their paths, byte by byte, so
    /// a later one overrides an earlier one.
    #[default]
    Merged,
    /// Each value is the part of the configuration at the keys of its path: that of `app/log.toml` below `app` is at
    /// `log`. The suffix of the format is no part of the key.
    Nested,
}

/// A value of the store.
#[derive(Clone, PartialEq)]
pub(crate) struct Document {
    pub(crate) path: ConfigPath,
    pub(crate) value: Arc<[u8]>,
    pub(crate) modified: Revision,
}

impl Document {
    /// The values of a snapshot, in the order of their paths.
    pub(crate) fn all_of(snapshot: &ConfigSnapshot) -> Vec<Self> {
        let document = |entry: &enlist::ConfigEntry| Self {
            path: entry.path.clone(),
            value: Arc::clone(&entry.value),
            modified: entry.modified,
        };
        snapshot.entries().map(|entry| document(entry)).collect()
    }
}

/// Marks of leaves, by which a fault is attributed to a layer. Documents are marked with their index.
pub(crate) mod mark {
    pub(crate) const DEFAULTS: &str = "defaults";
    pub(crate) const ENVIRONMENT: &str = "environment";
}

/// Layers that do not depend on the store, and rules for those that do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    defaults: Vec<Layer>,
    /// One layer for each variable: `config` reads a source in no order, and `APP_LOG` contradicts `APP_LOG__LEVEL`.
    environment: Vec<Layer>,
    pub(crate) format: Option<Format>,
    pub(crate) tree: Tree,
}

/// A source of `config` that is read already.
#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layer {
    /// A layer with `table` at these keys.
    fn at<'a>(keys: impl DoubleEndedIterator<Item = &'a str>, table: Map<String, Value>, mark: &str) -> Self {
        let mut value = marked(Value::new(None, ValueKind::Table(table)), &mark.to_owned());
        for key in keys.rev() {
            value = Value::new(None, ValueKind::Table(Map::from([(key.to_owned(), value)])));
        }
        Self(Map::from([(ROOT.to_owned(), value)]))
    }
}

/// Returns the value with this mark at all of its parts.
fn marked(value: Value, mark: &String) -> Value {
    let kind = match value.kind {
        ValueKind::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(key, value)| (key, marked(value, mark))).collect())
        }
        ValueKind::Array(values) => ValueKind::Array(values.into_iter().map(|value| marked(value, mark)).collect()),
        other => other,
    };
    Value::new(Some(mark), kind)
}

impl Layers {
    /// Adds a layer of defaults above the earlier ones.
    pub(crate) fn add_defaults(&mut self, defaults: &impl Serialize) -> Result<(), Reason> {
        let mismatch = |fault: &str| Reason::Mismatch { key: String::new(), fault: fault.to_owned() };
        let json = serde_json::to_value(defaults).map_err(|_| mismatch("they cannot be serialized"))?;
        let value: Value = serde_json::from_value(json).map_err(|_| mismatch("an integer is above 2^63"))?;
        let ValueKind::Table(table) = value.kind else {
            return Err(Reason::NotATable);
        };
        self.defaults.push(Layer::at([].into_iter(), table, mark::DEFAULTS));
        Ok(())
    }

    /// Adds a layer of defaults above the earlier ones.
    pub(crate) fn add_default_text(&mut self, format: Format, text: &str) -> Result<(), Reason> {
        self.defaults.push(Layer::at([].into_iter(), parse(format, text)?, mark::DEFAULTS));
        Ok(())
    }

    /// Reads the variables whose names begin with `prefix` and `_`: those of the process, or the given ones.
    pub(crate) fn read_environment(
        &mut self,
        prefix: &str,
        variables: Option<Map<String, String>>,
    ) -> Result<(), Reason> {
        let source = Environment::with_prefix(prefix).prefix_separator("_").separator(SEPARATOR).source(variables);
        // The only failure is a value that is not UTF-8.
        let variables: BTreeMap<_, _> = source.collect().map_err(|_| Reason::NotText)?.into_iter().collect();
        // `config` has made `log.level` of the name `APP_LOG__LEVEL`.
        let below_root =
            |(key, value)| Layer(Map::from([(format!("{ROOT}.{key}"), marked(value, &mark::ENVIRONMENT.to_owned()))]));
        self.environment = variables.into_iter().map(below_root).collect();
        Ok(())
    }

    /// Merges defaults, documents and environment, in this order.
    pub(crate) fn merged(&self, scope: &ConfigScope, documents: &[Document]) -> Result<Value, Rejection> {
        let mut builder = config::Config::builder().add_source(Layer::at([].into_iter(), Map::new(), mark::DEFAULTS));
        for layer in &self.defaults {
            builder = builder.add_source(layer.clone());
        }
        for (index, document) in documents.iter().enumerate() {
            let layer = self.layer(scope, document, &index.to_string()).map_err(|reason| Rejection {
                origin: Origin::Value(document.path.clone()),
                revision: document.modified,
                reason,
            })?;
            builder = builder.add_source(layer);
        }
        for layer in &self.environment {
            builder = builder.add_source(layer.clone());
        }
        // Sources that are read already cannot fail.
        let merged = builder.build().ok().map(|merged| merged.cache.kind);
        let root = match merged {
            Some(ValueKind::Table(mut table)) => table.remove(ROOT),
            _ => None,
        };
        Ok(root.unwrap_or_default())
    }

    fn layer(&self, scope: &ConfigScope, document: &Document, mark: &str) -> Result<Layer, Reason> {
        let format = self.format.or_else(|| Format::of(&document.path)).ok_or(Reason::UnknownFormat)?;
        let text = std::str::from_utf8(&document.value).map_err(|_| Reason::NotText)?;
        let table = parse(format, text)?;
        Ok(match self.tree {
            Tree::Merged => Layer::at([].into_iter(), table, mark),
            Tree::Nested => Layer::at(keys(scope, &document.path).into_iter(), table, mark),
        })
    }
}

/// Keys of a value in a nested configuration.
fn keys<'a>(scope: &ConfigScope, path: &'a ConfigPath) -> Vec<&'a str> {
    let skipped = match scope {
        ConfigScope::Below(root) => root.segments().count(),
        ConfigScope::All => 0,
        // A single value is the whole configuration.
        ConfigScope::Path(_) => return Vec::new(),
    };
    let mut keys: Vec<_> = path.segments().skip(skipped).collect();
    if let Some(last) = keys.last_mut() {
        *last = split(last).0;
    }
    keys
}

#[cfg(test)]
#[cfg(all(feature = "json", feature = "toml"))]
mod tests {
    use super::*;

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    fn document(at: &str, value: &str) -> Document {
        Document { path: path(at), value: value.as_bytes().into(), modified: Revision::new(7) }
    }

    fn below(root: &str) -> ConfigScope {
        ConfigScope::Below(path(root))
    }

    /// The merged configuration as JSON.
    fn shown(value: &Value) -> serde_json::Value {
        match &value.kind {
            ValueKind::Table(table) => table.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
            ValueKind::Array(values) => values.iter().map(shown).collect(),
            ValueKind::String(text) => text.clone().into(),
            ValueKind::I64(number) => (*number).into(),
            ValueKind::Boolean(is) => (*is).into(),
            other => other.to_string().into(),
        }
    }

    fn merged(layers: &Layers, scope: &ConfigScope, documents: &[Document]) -> serde_json::Value {
        shown(&layers.merged(scope, documents).unwrap())
    }

    fn layers(defaults: &str, environment: &[(&str, &str)]) -> Layers {
        let mut layers = Layers::default();
        layers.add_default_text(Format::Json, defaults).unwrap();
        let variables = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        layers.read_environment("APP", Some(variables.collect())).unwrap();
        layers
    }

    #[test]
    fn the_store_overrides_defaults_and_the_environment_overrides_the_store() {
        let environment = [("APP_LOG__LEVEL", "trace"), ("APP_X", "1"), ("APPX_Y", "2"), ("OTHER", "3")];
        let layers = layers(r#"{"log": {"level": "info", "json": true}, "hosts": ["a", "b"]}"#, &environment);
        let stored = document("app.toml", "hosts = [\"c\"]\n[log]\nlevel = \"debug\"\nfile = \"f\"");
        let scope = ConfigScope::Path(path("app.toml"));
        let expected = serde_json::json!({
            "log": {"level": "trace", "json": true, "file": "f"}, "hosts": ["c"], "x": "1"
        });
        assert_eq!(merged(&layers, &scope, &[stored]), expected);
    }

    #[test]
    fn a_variable_with_more_keys_overrides_one_with_fewer() {
        let layers = layers("{}", &[("APP_LOG__LEVEL", "debug"), ("APP_LOG", "x")]);
        assert_eq!(merged(&layers, &ConfigScope::All, &[]), serde_json::json!({"log": {"level": "debug"}}));
    }

    #[test]
    fn values_of_a_subtree_are_merged_in_the_order_of_paths() {
        let documents = [document("app/10-base.toml", "a = 1\nb = 1"), document("app/20-site.json", r#"{"b": 2}"#)];
        assert_eq!(merged(&Layers::default(), &below("app"), &documents), serde_json::json!({"a": 1, "b": 2}));
    }

    #[test]
    fn values_of_a_nested_tree_are_at_the_keys_of_their_paths() {
        let nested = Layers { tree: Tree::Nested, ..Layers::default() };
        let documents = [document("app/eu.west/db.json", r#"{"b": 2}"#), document("app/log.toml", "a = 1")];
        let expected = serde_json::json!({"eu.west": {"db": {"b": 2}}, "log": {"a": 1}});
        assert_eq!(merged(&nested, &below("app"), &documents), expected);
        let expected = serde_json::json!({"app": {"log": {"a": 1}}});
        assert_eq!(merged(&nested, &ConfigScope::All, &documents[1..]), expected);
        let one = ConfigScope::Path(path("app/log.toml"));
        assert_eq!(merged(&nested, &one, &documents[1..]), serde_json::json!({"a": 1}));
    }

    /// For `config` the keys of a source are expressions.
    #[test]
    fn keys_of_values_are_plain_texts() {
        let stored = document("a.json", r#"{"x[9999999999]": 1, "a.b": 2, "": 3, "root": {"c[1]": 4}}"#);
        let expected = serde_json::json!({"x[9999999999]": 1, "a.b": 2, "": 3, "root": {"c[1]": 4}});
        assert_eq!(merged(&Layers::default(), &ConfigScope::All, &[stored]), expected);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_named_with_its_revision() {
        for (at, value, reason) in [
            ("app/a", "{}", Reason::UnknownFormat),
            ("app/a.json", "[]", Reason::NotATable),
            ("app/a.json", "\u{0}", Reason::Syntax { format: Format::Json, position: Some((1, 1)) }),
        ] {
            let bad = document(at, value);
            let rejection = Layers::default().merged(&below("app"), &[bad]).unwrap_err();
            let expected = Rejection { origin: Origin::Value(path(at)), revision: Revision::new(7), reason };
            assert_eq!(rejection, expected);
        }
        let bytes = Document { value: Arc::from(&b"\xff"[..]), ..document("a.json", "") };
        let rejection = Layers::default().merged(&ConfigScope::All, &[bytes]).unwrap_err();
        assert_eq!(rejection.reason, Reason::NotText);
    }

    #[test]
    fn the_format_of_the_view_replaces_that_of_the_suffix() {
        let toml = Layers { format: Some(Format::Toml), ..Layers::default() };
        let documents = [document("app/config", "a = 1"), document("app/old.json", "b = 2")];
        assert_eq!(merged(&toml, &below("app"), &documents), serde_json::json!({"a": 1, "b": 2}));
    }

    #[test]
    fn defaults_may_be_values_of_a_type() {
        #[derive(Serialize)]
        struct Defaults {
            port: u16,
            name: Option<&'static str>,
            tags: Vec<u8>,
        }
        let mut layers = Layers::default();
        layers.add_defaults(&Defaults { port: 1, name: None, tags: Vec::new() }).unwrap();
        layers.add_defaults(&std::collections::BTreeMap::from([("port", 2)])).unwrap();
        let expected = serde_json::json!({"port": 2, "name": "nil", "tags": []});
        assert_eq!(merged(&layers, &ConfigScope::All, &[]), expected);
        assert_eq!(layers.add_defaults(&7), Err(Reason::NotATable));
    }
}
