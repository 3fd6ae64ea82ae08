//! The layout of go-zero (`core/discov`): `{key}/{lease id, decimal}` contains `host:port`. Nothing else is carried.
//!
//! The service name is go-zero's key and may contain `/`; there are no namespaces, so only the default one can be used.
//! Keys are numbered by lease, so each instance needs its own lease and gets a new key when it is registered anew.

use enlist::{Endpoint, Error, Instance, InstanceId, LeaseId, Namespace, ServiceName, ServiceRef};

use super::{Decoded, Identity, Layout, LeaseScope, Part, Skip, Writing, not_carried, parts};
use crate::watch::record::KeyRange;

/// The layout of go-zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct GoZero;

fn prefix(service: &ServiceRef) -> Result<String, Error> {
    parts::only_default(&GoZero, service.namespace())?;
    let name = service.name().as_str();
    if name.ends_with('/') {
        return Err(not_carried("service", '/'));
    }
    Ok(format!("{name}/"))
}

impl Layout for GoZero {
    fn name(&self) -> &'static str {
        "go-zero"
    }

    fn carries(&self) -> &'static [Part] {
        &[]
    }

    fn identity(&self) -> Identity {
        Identity::Lease
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::PerKey
    }

    /// A fixed instance has no lease. Its key contains its id, which has to be a number, as go-zero's `WithId`.
    fn key(&self, service: &ServiceRef, id: &InstanceId, lease: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        Ok(format!("{}{}", prefix(service)?, parts::number(self, id, lease)?).into_bytes())
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        Ok(KeyRange::prefix(prefix(service)?))
    }

    fn services_range(&self, _: &Namespace) -> Option<KeyRange> {
        None
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        let (service, id) = std::str::from_utf8(key).ok()?.rsplit_once('/')?;
        let service = ServiceRef::new(namespace.clone(), ServiceName::parse(service).ok()?);
        prefix(&service).ok()?;
        id.parse::<i64>().ok()?;
        Some((service.name().clone(), InstanceId::parse(id).ok()?))
    }

    /// Only the address of the first endpoint is carried. An instance with more content is refused instead of losing
    /// it.
    fn encode(&self, _: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        parts::refuse_loss(self, instance, writing.owner)?;
        Ok(parts::only_plain_endpoint(self, instance)?.authority().as_bytes().to_vec())
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        let prefix = prefix(service).map_err(|_| Skip::Foreign)?;
        let segment = key.strip_prefix(prefix.as_bytes()).ok_or(Skip::Foreign)?;
        let id = std::str::from_utf8(segment).map_err(|_| Skip::Foreign)?;
        // Further segments belong to the service `{key}/{segment}`, and go-zero writes only numbers.
        if id.parse::<i64>().is_err() {
            return Err(Skip::Foreign);
        }
        let malformed = |reason: &str| Skip::Malformed(reason.to_owned());
        let value = std::str::from_utf8(value).map_err(|_| malformed("no UTF-8"))?;
        // Some writers end their values with a newline.
        let endpoint = Endpoint::parse(value.trim_end()).map_err(|_| malformed("no host:port"))?;
        if endpoint.protocol().is_some() {
            return Err(malformed("a URL where host:port is due"));
        }
        let id = InstanceId::parse(id).map_err(|_| Skip::Foreign)?;
        let instance = Instance::new(id, [endpoint]).map_err(|_| malformed("no endpoint"))?;
        Ok(Decoded { instance, owner: None })
    }
}
