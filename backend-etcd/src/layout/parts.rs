//! Parts of an instance: those that a layout does not carry are refused, the others make up the instance that is read.

use enlist::{Endpoint, Error, Health, Instance, InstanceId, LeaseId, Namespace, UNIX};

use super::{Layout, Part, Skip};

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
    let parts = [
        (Part::Owner, "an owner token", owner.is_some()),
        (Part::Weight, "a weight other than the default one", instance.weight() != default),
        (Part::Version, "a version", instance.version().is_some()),
        (Part::Zone, "a zone", instance.zone().is_some()),
        (Part::Health, "a health other than serving", instance.health() != Health::Serving),
        (Part::Metadata, "metadata", has_metadata),
    ];
    match parts.iter().find(|(part, _, present)| *present && !layout.carries().contains(part)) {
        Some((_, what, _)) => Err(lost(layout, what)),
        None => Ok(()),
    }
}

/// Returns the error for a part that a layout cannot carry.
pub(super) fn lost(layout: &dyn Layout, what: &str) -> Error {
    Error::Unsupported { what: format!("{what} in the layout {}", layout.name()) }
}

/// Returns the number at the end of a key that is numbered by lease. A fixed instance has no lease, so its id has to be
/// a number.
pub(super) fn number(layout: &dyn Layout, id: &InstanceId, lease: Option<LeaseId>) -> Result<i64, Error> {
    match lease {
        Some(lease) => Ok(lease.get()),
        None => id.as_str().parse().map_err(|_| lost(layout, "a fixed instance whose id is no number")),
    }
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

/// Returns an instance with this id and these endpoints.
pub(super) fn instance(id: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Result<Instance, Skip> {
    let id = InstanceId::parse(id).map_err(|_| Skip::malformed("no id"))?;
    Instance::new(id, endpoints).map_err(|_| Skip::malformed("no endpoint"))
}

/// Returns the same instance with this metadata.
pub(super) fn with_metadata(instance: Instance, metadata: impl IntoIterator<Item = (String, String)>) -> Instance {
    metadata.into_iter().fold(instance, |instance, (key, value)| instance.with_metadata(key, value))
}

/// Returns a weight above zero, else `default`.
pub(super) fn weight_or(weight: Option<i64>, default: u32) -> u32 {
    match weight {
        Some(weight) if weight > 0 => u32::try_from(weight).unwrap_or(u32::MAX),
        _ => default,
    }
}
