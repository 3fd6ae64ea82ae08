//! Layouts with keys of the form `{root}{service}/{id}`, which most ecosystems share. A [`Dialect`] defines the rest,
//! and implements [`Layout`] through it.

use std::fmt;

use enlist::{DEFAULT_WEIGHT, Error, Instance, InstanceId, LeaseId, Namespace, ServiceName, ServiceRef};

use super::{Decoded, Identity, Layout, LeaseScope, Part, Skip, Writing, parts, segments};
use crate::watch::record::KeyRange;

/// Parts in which such layouts differ.
pub(super) trait Dialect: fmt::Debug + Send + Sync + Sized + 'static {
    const NAME: &'static str;
    const CARRIES: &'static [Part];
    const WEIGHT: u32 = DEFAULT_WEIGHT;
    /// Names of the carried metadata, if no other metadata is carried.
    const METADATA: &'static [&'static str] = &[];

    /// Returns the prefix of all keys of a namespace; without namespaces, of the default one.
    fn root(&self) -> String;

    /// Returns the root of a namespace.
    fn root_of(&self, namespace: &Namespace) -> Result<String, Error> {
        parts::only_default(self, namespace)?;
        Ok(self.root())
    }

    /// Returns the prefix of all keys of a service.
    fn prefix(&self, service: &ServiceRef) -> Result<String, Error> {
        Ok(format!(
            "{}{}/",
            self.root_of(service.namespace())?,
            segments::as_segment("service", service.name().as_str())?
        ))
    }

    /// Returns `true` if a key alone identifies the service.
    fn keys_name_services(&self) -> bool {
        true
    }

    /// Returns a key without the part that readers of the original library remove.
    fn trimmed<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        key
    }

    /// Returns the value of an instance. Apart from its endpoints it contains only parts that the layout carries.
    fn write(&self, service: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error>;

    /// Returns the content of a value as text.
    fn text_of(&self, value: &[u8]) -> Option<String> {
        String::from_utf8(value.to_vec()).ok()
    }

    /// Returns the instance in a value. Its key ends in `id`.
    fn read(&self, service: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip>;
}

impl<D: Dialect> Layout for D {
    fn name(&self) -> &'static str {
        D::NAME
    }

    fn carries(&self) -> &'static [Part] {
        D::CARRIES
    }

    fn default_weight(&self) -> u32 {
        D::WEIGHT
    }

    fn identity(&self) -> Identity {
        Identity::Id
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::Shared
    }

    fn key(&self, service: &ServiceRef, id: &InstanceId, _: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        Ok(format!("{}{}", self.prefix(service)?, segments::as_segment("id", id.as_str())?).into_bytes())
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        Ok(KeyRange::prefix(self.prefix(service)?))
    }

    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange> {
        self.root_of(namespace).ok().filter(|_| self.keys_name_services()).map(KeyRange::prefix)
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        let (service, id) = split(self, namespace, key)?;
        Some((service, InstanceId::parse(id).ok()?))
    }

    /// Also where the value has the id and the key has none that could be one.
    fn service_of(&self, namespace: &Namespace, key: &[u8]) -> Option<ServiceName> {
        split(self, namespace, key).map(|(service, _)| service)
    }

    fn encode(&self, service: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        parts::refuse_loss_but(D::METADATA, self, instance, writing.owner)?;
        self.write(service, instance)
    }

    fn text(&self, value: &[u8]) -> Option<String> {
        self.text_of(value)
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        let prefix = self.prefix(service).map_err(|_| Skip::Foreign)?;
        let id = segments::segment(self.trimmed(key), &prefix)?;
        Ok(Decoded { instance: self.read(service, id, value)?, owner: None })
    }
}

/// Returns the service of a key, and the segment after it.
fn split<'a>(dialect: &impl Dialect, namespace: &Namespace, key: &'a [u8]) -> Option<(ServiceName, &'a str)> {
    let root = dialect.root_of(namespace).ok()?;
    let rest = std::str::from_utf8(dialect.trimmed(key).strip_prefix(root.as_bytes())?).ok()?;
    let (service, id) = rest.rsplit_once('/').filter(|(_, id)| !id.is_empty())?;
    let service = ServiceRef::new(namespace.clone(), ServiceName::parse(service).ok()?);
    // A refused name has no keys.
    dialect.prefix(&service).ok()?;
    Some((service.name().clone(), id))
}
