//! The usual layout of go-kit's `sd/etcdv3`: `{prefix}{service}/{id}` holds `host:port` or a URL.
//!
//! go-kit leaves keys to its user and reads values only. The prefix, `/services/` unless said otherwise, is used as it is and ends in `/`.

use enlist::{Endpoint, Error, Instance, ServiceRef};

use super::{Part, Skip, go, tree::Dialect};

/// The layout of go-kit. The id is free; [`Instance::at`] makes it the address. A removal by address from Go misses an instance with another
/// id.
#[derive(Clone, Debug)]
pub struct GoKit {
    prefix: String,
}

impl Default for GoKit {
    fn default() -> Self {
        Self { prefix: "/services/".to_owned() }
    }
}

impl GoKit {
    /// The layout under another prefix.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if the prefix does not end in `/`, or has control characters.
    pub fn with_prefix(prefix: &str) -> Result<Self, Error> {
        if !prefix.ends_with('/') {
            return Err(Error::invalid_config("prefix", "it must end in `/`, or services that begin alike would mix"));
        }
        Ok(Self { prefix: go::checked_prefix(prefix)? })
    }
}

impl Dialect for GoKit {
    const NAME: &'static str = "go-kit";
    const CARRIES: &'static [Part] = &[Part::Id];

    fn root(&self) -> String {
        self.prefix.clone()
    }

    /// The one endpoint, with its protocol if it has one.
    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        Ok(go::only_endpoint(self, instance)?.to_string().into_bytes())
    }

    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let text = std::str::from_utf8(value).map_err(|_| go::malformed("no UTF-8"))?.trim_end();
        let endpoint =
            Endpoint::parse(text.strip_suffix('/').unwrap_or(text)).map_err(|_| go::malformed("no address"))?;
        if endpoint.is_unix() {
            return Err(go::malformed("no address"));
        }
        go::instance(id, [endpoint])
    }
}
