//! Structs that are read from JSON objects only. Derived code also accepts an array for a struct, with the fields in
//! order. No writer produces that, and Go refuses it.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// Struct that was read from an object. Every nested struct needs this wrapper as well.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(default)]
        inner: Option<Object<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        number: u32,
    }

    #[test]
    fn an_object_is_read_without_copies_and_nothing_else_is() {
        let Object(read) = serde_json::from_str::<Object<Named<'_>>>(r#"{"name":"a","inner":{"number":7}}"#).unwrap();
        assert!(matches!(read.name, Cow::Borrowed("a")));
        assert_eq!(read.inner.map(|Object(inner)| inner.number), Some(7));
        for other in ["[\"a\"]", "null", "\"a\"", "7", r#"{"name":"a","inner":[7]}"#] {
            assert!(serde_json::from_str::<Object<Named<'_>>>(other).is_err(), "{other}");
        }
    }
}
