//! Values of any JSON type in the metadata of an instance. Metadata are texts: a text is stored under its name, any
//! other value as JSON text under `{name}.json`.

use serde::Serialize;
use serde_json::Value;

use super::Instance;
use crate::error::Error;

/// Suffix of the names of metadata with JSON text. Layouts that support values of any type use `{name}.json` for the
/// value `name`, and `.json` for all metadata as one value that is no object.
pub const JSON_SUFFIX: &str = ".json";

impl Instance {
    /// Sets one entry of the metadata to a value of any type: a text under `name`, any other value as JSON text under
    /// `{name}.json`. An entry under the other of these names is removed. An empty name represents all metadata as one
    /// value.
    ///
    /// Every layout with metadata stores such entries, as texts. Layouts that support values of any type write the
    /// value itself, which programs in other languages read as such.
    ///
    /// ```
    /// # use enlist::{Instance, Endpoint, InstanceId};
    /// let instance = Instance::new(InstanceId::parse("a")?, [Endpoint::parse("10.0.0.1:80")?])?;
    /// let instance = instance.with_json("shards", &[1, 2])?.with_json("team", "blue")?;
    /// assert_eq!((&*instance.metadata()["shards.json"], &*instance.metadata()["team"]), ("[1,2]", "blue"));
    /// assert_eq!(instance.json("shards").unwrap()[1], 2);
    /// # Ok::<(), enlist::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a value that JSON cannot hold, such as a map whose keys are no texts.
    pub fn with_json(mut self, name: &str, value: &(impl Serialize + ?Sized)) -> Result<Self, Error> {
        let unsupported = |error| Error::Unsupported { what: format!("metadata {name:?} as JSON ({error})") };
        let text = serde_json::to_string(value).map_err(unsupported)?;
        let typed = format!("{name}{JSON_SUFFIX}");
        let is_plain = text.starts_with('"') && has_plain_name(name);
        let metadata = self.metadata_mut();
        if is_plain {
            metadata.remove(&typed);
            metadata.insert(name.to_owned(), serde_json::from_str(&text).map_err(unsupported)?);
        } else {
            if has_plain_name(name) {
                metadata.remove(name);
            }
            metadata.insert(typed, text);
        }
        Ok(self)
    }

    /// Returns one entry of the metadata as a value of any type, as set by [`with_json`](Self::with_json); `None` if
    /// there is none, or if the text under `{name}.json` is no JSON.
    pub fn json(&self, name: &str) -> Option<Value> {
        let typed = self.metadata().get(&format!("{name}{JSON_SUFFIX}"));
        match typed {
            Some(text) => serde_json::from_str(text).ok(),
            None if has_plain_name(name) => self.metadata().get(name).cloned().map(Value::String),
            None => None,
        }
    }
}

/// Returns `true` for a name under which a text is stored as plain text.
fn has_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.ends_with(JSON_SUFFIX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;
    use crate::model::{endpoint::Endpoint, name::InstanceId};

    #[test]
    fn a_value_of_any_type_is_read_as_it_was_set() {
        let bare = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
        for (name, value, key) in [
            ("team", json!("blue"), "team"),
            ("shards", json!(7), "shards.json"),
            ("tags", json!(["a", { "b": null }]), "tags.json"),
            ("gone", json!(null), "gone.json"),
            ("a.json", json!("text"), "a.json.json"),
            ("", json!("blue"), ".json"),
        ] {
            let instance = bare.clone().with_json(name, &value).unwrap();
            assert_eq!(instance.json(name).as_ref(), Some(&value), "{name}");
            assert_eq!(instance.metadata().keys().collect::<Vec<_>>(), [key]);
            // The last value remains.
            for other in [json!("text"), json!(true)] {
                let changed = instance.clone().with_json(name, &other).unwrap();
                assert_eq!((changed.json(name), changed.metadata().len()), (Some(other), 1), "{name}");
            }
        }
        assert_eq!(bare.clone().with_metadata("a", "b").json("a"), Some(json!("b")));
        assert_eq!(bare.clone().with_metadata("a.json", "no JSON").json("a"), None);
        assert_eq!(bare.json("a"), None);
        let refused = bare.with_json("a", &HashMap::from([(vec![1], 2)]));
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
}
