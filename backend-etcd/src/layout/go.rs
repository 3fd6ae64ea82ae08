//! Shared parts of the layouts of Go ecosystems: JSON as Go's `encoding/json` writes it, keys in segments, addresses.

use std::{collections::BTreeMap, io, net::IpAddr};

use enlist::{Endpoint, Error, Health, Instance, InstanceId, LeaseId, Namespace, UNIX};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Serializer, Value, ser::Formatter, value::RawValue};

use super::{Layout, MAX_VALUE_BYTES, Part, Skip, not_carried, object::Object};

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

pub(super) fn malformed(reason: impl Into<String>) -> Skip {
    Skip::Malformed(reason.into())
}

/// Reads an object. The error contains the position, not the value, because values must not be logged.
pub(super) fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, Skip> {
    // Through a tree, so that the last one of repeated fields counts, as in Go.
    let read = serde_json::from_value(tree(value)?);
    let Object(object) = read.map_err(|_| malformed("no object, or a field is missing or of another type"))?;
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
    serde_json::from_str(json).map_err(|_| malformed("a field is missing or of another type"))
}

fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Skip> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(malformed(format!("{} bytes", value.len())));
    }
    let place = |error: serde_json::Error| {
        malformed(format!(
            "not as due: {:?} error at line {}, column {}",
            error.classify(),
            error.line(),
            error.column()
        ))
    };
    serde_json::from_slice(value).map_err(place)
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

/// Returns the only segment of `key` below `prefix`. Deeper keys, and keys that are no text, are foreign.
pub(super) fn segment<'a>(key: &'a [u8], prefix: &str) -> Result<&'a str, Skip> {
    let segment = key.strip_prefix(prefix.as_bytes()).ok_or(Skip::Foreign)?;
    let text = std::str::from_utf8(segment).map_err(|_| Skip::Foreign)?;
    if text.is_empty() || text.contains('/') { Err(Skip::Foreign) } else { Ok(text) }
}

/// Returns a name as a segment of a key.
pub(super) fn as_segment<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Error> {
    if name.contains('/') { Err(not_carried(field, '/')) } else { Ok(name) }
}

/// Checks a prefix of keys that a user gave.
pub(super) fn checked_prefix(prefix: &str) -> Result<String, Error> {
    if prefix.chars().any(char::is_control) {
        return Err(Error::invalid_config("prefix", "it must not have control characters"));
    }
    Ok(prefix.to_owned())
}

/// Refuses all namespaces but the default one, in a layout without namespaces.
pub(super) fn only_default(layout: &dyn Layout, namespace: &Namespace) -> Result<(), Error> {
    if *namespace == Namespace::default() { Ok(()) } else { Err(lost(layout, "a namespace other than `default`")) }
}

/// Refuses an instance with parts that a layout would lose. Endpoints are not checked.
pub(super) fn refuse_loss(layout: &dyn Layout, instance: &Instance, owner: Option<&str>) -> Result<(), Error> {
    refuse_loss_but(&[], layout, instance, owner)
}

/// As [`refuse_loss`], for a layout that carries metadata of these names and no other.
pub(super) fn refuse_loss_but(
    names: &[&str],
    layout: &dyn Layout,
    instance: &Instance,
    owner: Option<&str>,
) -> Result<(), Error> {
    let has_metadata = instance.metadata().keys().any(|name| !names.contains(&name.as_str()));
    let default = layout.default_weight();
    let says = [
        (Part::Owner, "an owner token", owner.is_some()),
        (Part::Weight, "a weight other than the default one", instance.weight() != default),
        (Part::Version, "a version", instance.version().is_some()),
        (Part::Zone, "a zone", instance.zone().is_some()),
        (Part::Health, "a health other than serving", instance.health() != Health::Serving),
        (Part::Metadata, "metadata", has_metadata),
    ];
    match says.iter().find(|(part, _, said)| *said && !layout.carries().contains(part)) {
        Some((_, what, _)) => Err(lost(layout, what)),
        None => Ok(()),
    }
}

/// Returns the number at the end of a key that is numbered by lease. A fixed instance has no lease, so its id has to be
/// a number.
pub(super) fn number(layout: &dyn Layout, id: &InstanceId, lease: Option<LeaseId>) -> Result<i64, Error> {
    match lease {
        Some(lease) => Ok(lease.get()),
        None => id.as_str().parse().map_err(|_| lost(layout, "a fixed instance whose id is no number")),
    }
}

/// Returns the error for a part that a layout cannot carry.
pub(super) fn lost(layout: &dyn Layout, what: &str) -> Error {
    Error::Unsupported { what: format!("{what} in the layout {}", layout.name()) }
}

/// Returns the only endpoint, which is not a Unix socket.
pub(super) fn only_endpoint<'a>(layout: &dyn Layout, instance: &'a Instance) -> Result<&'a Endpoint, Error> {
    match instance.endpoints() {
        [endpoint] if endpoint.protocol() != Some(UNIX) => Ok(endpoint),
        [_] => Err(lost(layout, "a unix socket")),
        _ => Err(lost(layout, "more than one endpoint")),
    }
}

/// Returns the only endpoint, which has no protocol.
pub(super) fn only_plain_endpoint<'a>(layout: &dyn Layout, instance: &'a Instance) -> Result<&'a Endpoint, Error> {
    let endpoint = only_endpoint(layout, instance)?;
    if endpoint.protocol().is_some() { Err(lost(layout, "the protocol of an endpoint")) } else { Ok(endpoint) }
}

/// Reads `host:port`. Some writers omit the brackets of an IPv6 address: then the part after the last colon is the
/// port.
pub(super) fn address(text: &str) -> Result<Endpoint, Skip> {
    let no_address = |_| malformed("no host:port");
    if text.contains("://") {
        return Err(malformed("a URL where host:port is due"));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if host.contains(':') && !host.starts_with('[') => {
            Endpoint::parse(format!("[{host}]:{port}")).map_err(no_address)
        }
        _ => Endpoint::parse(text).map_err(no_address),
    }
}

/// Reads `host:port`, or a host alone with `default_port` as its port.
pub(super) fn address_or(text: &str, default_port: u16) -> Result<Endpoint, Skip> {
    if is_bare(text) { host_and_port(text, i64::from(default_port)) } else { address(text) }
}

/// Returns `true` for an address without a port: an IP, or a host without a colon.
pub(super) fn is_bare(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || !text.contains(':')
}

/// Reads a host and a port.
pub(super) fn host_and_port(host: &str, port: i64) -> Result<Endpoint, Skip> {
    let port = u16::try_from(port).map_err(|_| malformed("no port"))?;
    Endpoint::new(host, port).map_err(|_| malformed("no address"))
}

/// Returns a weight above zero, else `default`.
pub(super) fn weight_or(weight: Option<i64>, default: u32) -> u32 {
    match weight {
        Some(weight) if weight > 0 => u32::try_from(weight).unwrap_or(u32::MAX),
        _ => default,
    }
}

/// Returns an instance with this id and these endpoints.
pub(super) fn instance(id: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Instance, Skip> {
    let id = InstanceId::parse(id).map_err(|_| malformed("no id"))?;
    Instance::new(id, endpoints).map_err(|_| malformed("no endpoint"))
}

/// Returns the same instance with this metadata.
pub(super) fn with_metadata(instance: Instance, metadata: impl IntoIterator<Item = (String, String)>) -> Instance {
    metadata.into_iter().fold(instance, |instance, (key, value)| instance.with_metadata(key, value))
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

    #[test]
    fn an_address_without_brackets_has_its_port_at_the_end() {
        let shown = |text| address(text).map(|endpoint| endpoint.to_string()).ok();
        assert_eq!(shown("fd00::5:80").as_deref(), Some("[fd00::5]:80"));
        assert_eq!(shown("[fd00::5]:80").as_deref(), Some("[fd00::5]:80"));
        assert_eq!((shown("h"), shown("h:"), shown("http://h:1"), shown("[::1:80")), (None, None, None, None));
    }
}
