//! JSON form of an instance in the native layout.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use enlist::{DEFAULT_WEIGHT, Endpoint};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// Names of the fields of this version.
pub(super) const KNOWN: [&str; 10] =
    ["v", "id", "endpoints", "weight", "version", "zone", "health", "metadata", "owner", "term"];

/// Encoded form of an instance.
#[derive(Serialize)]
pub(super) struct EncodedInstance<'a> {
    pub(super) v: u64,
    pub(super) id: &'a str,
    #[serde(serialize_with = "texts")]
    pub(super) endpoints: &'a [Endpoint],
    pub(super) weight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<&'a str>,
    pub(super) health: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) metadata: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) term: u64,
}

/// Value that replaces one with fields of a later version. Those fields are kept.
#[derive(Serialize)]
pub(super) struct Extended<'a> {
    #[serde(flatten)]
    pub(super) written: EncodedInstance<'a>,
    #[serde(flatten)]
    pub(super) unknown: serde_json::Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(term: &u64) -> bool {
    *term == 0
}

fn texts<S: Serializer>(endpoints: &[Endpoint], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(endpoints.iter().map(Endpoint::as_str))
}

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

/// Fields that are read from a value, without unknown fields and without copies.
#[derive(Deserialize)]
pub(super) struct DecodedInstance<'a> {
    // Only its type matters: a newer version is read as far as possible.
    #[serde(rename = "v")]
    pub(super) _v: u64,
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
    #[serde(deserialize_with = "endpoints")]
    pub(super) endpoints: Vec<Endpoint>,
    #[serde(default = "default_weight")]
    pub(super) weight: u32,
    #[serde(borrow, default)]
    pub(super) version: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) zone: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) health: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) metadata: Option<Pairs<'a>>,
    #[serde(default)]
    pub(super) owner: Option<String>,
}

/// Entries of an object of texts, in its order.
pub(super) struct Pairs<'a>(pub(super) Vec<(Text<'a>, Text<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = entries.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads endpoints without an intermediate list of texts.
fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
    struct Endpoints;
    impl<'de> Visitor<'de> for Endpoints {
        type Value = Vec<Endpoint>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of endpoints")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Vec<Endpoint>, A::Error> {
            // Most instances have one endpoint.
            let mut endpoints = Vec::with_capacity(1);
            while let Some(Text(text)) = texts.next_element()? {
                endpoints.push(Endpoint::parse(text).map_err(de::Error::custom)?);
            }
            Ok(endpoints)
        }
    }
    deserializer.deserialize_seq(Endpoints)
}

/// Text that borrows if possible, also within other types.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Returns the term in a JSON value. Any other number becomes the nearest natural number in range.
pub(super) fn saturating(term: &Value) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "such casts saturate")]
    term.as_u64().unwrap_or_else(|| term.as_f64().map_or(0, |term| term as u64))
}
