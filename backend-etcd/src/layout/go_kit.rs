//! The usual layout of go-kit's `sd/etcdv3`: `{prefix}{service}/{id}` contains `host:port` or a URL.
//!
//! go-kit leaves keys to its user and reads only values. The prefix is used unchanged and ends in `/`; the default is
//! `/services/`. The rest of a URL after the address is the `path` in the metadata of the instance.

use enlist::{Endpoint, Error, Instance, ServiceRef};

use super::{Part, Skip, parts, segments, tree::Dialect};

/// Name of the metadata that contains the rest of the URL.
const PATH: &str = "path";

/// The layout of go-kit. The part of a URL after the address, path and query, is the metadata `path` of the instance:
/// `http://10.0.0.1:80/api?v=1` has the `path` `/api?v=1`. No other metadata is carried. The id is free;
/// [`Instance::at`] makes it the address. A removal by address from Go misses an instance with another id.
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
    /// Returns the layout with another prefix.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if the prefix does not end in `/`, or has control characters.
    pub fn with_prefix(prefix: &str) -> Result<Self, Error> {
        if !prefix.ends_with('/') {
            return Err(Error::invalid_config("prefix", "it must end in `/`, or services that begin alike would mix"));
        }
        Ok(Self { prefix: segments::checked_prefix(prefix)? })
    }
}

impl Dialect for GoKit {
    const NAME: &'static str = "go-kit";
    const CARRIES: &'static [Part] = &[Part::Id];
    const METADATA: &'static [&'static str] = &[PATH];

    fn root(&self) -> String {
        self.prefix.clone()
    }

    /// Writes the only endpoint, with its protocol and its path if it has them.
    fn write(&self, _: &ServiceRef, instance: &Instance) -> Result<Vec<u8>, Error> {
        let address = parts::only_endpoint(self, instance)?.to_string();
        let Some(path) = instance.metadata().get(PATH) else { return Ok(address.into_bytes()) };
        let text = format!("{address}{path}");
        // A single `/` means no path, and trailing space is cut off.
        if path.is_empty() || split(&text) != (&address, path) {
            return Err(parts::lost(self, "a path that would be read as another one"));
        }
        Ok(text.into_bytes())
    }

    fn read(&self, _: &ServiceRef, id: &str, value: &[u8]) -> Result<Instance, Skip> {
        let text = std::str::from_utf8(value).map_err(|_| Skip::malformed("no UTF-8"))?;
        let (address, path) = split(text);
        let endpoint = Endpoint::parse(address).map_err(|_| Skip::malformed("no address"))?;
        if endpoint.is_unix() {
            return Err(Skip::malformed("no address"));
        }
        let path = Some(path).filter(|path| !path.is_empty()).map(|path| (PATH.to_owned(), path.to_owned()));
        Ok(parts::with_metadata(parts::instance(id, [endpoint])?, path))
    }
}

/// Returns the address, and the rest after it. Only a scheme at the start counts, not one of a URL within the rest.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim_end();
    let scheme = text.find("://").filter(|at| !text[..*at].contains(['/', '?', '#']));
    let begin = scheme.map_or(0, |at| at + "://".len());
    let end = text[begin..].find(['/', '?', '#']).map_or(text.len(), |at| begin + at);
    match text.split_at(end) {
        (address, "/") => (address, ""),
        parts => parts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, Writing};
    use enlist::InstanceId;

    #[test]
    fn only_a_scheme_at_the_start_is_one() {
        for (text, address, path) in [
            ("h:80/cb?u=http://x/", "h:80", "/cb?u=http://x/"),
            ("h:80?u=http://x/", "h:80", "?u=http://x/"),
            ("h:80#http://x/", "h:80", "#http://x/"),
            ("http://h:80/cb?u=http://x/", "http://h:80", "/cb?u=http://x/"),
            ("http://h:80/", "http://h:80", ""),
        ] {
            assert_eq!(split(text), (address, path), "{text}");
        }
        let service = ServiceRef::parse("s").unwrap();
        let read = GoKit::default().decode(&service, b"/services/s/a", b"h:80/cb?u=http://x/").unwrap().instance;
        assert_eq!(read.endpoints(), [Endpoint::parse("h:80").unwrap()]);
        assert_eq!(read.metadata().get(PATH).map(|path| &**path), Some("/cb?u=http://x/"));
    }

    #[test]
    fn a_path_that_would_not_be_read_again_is_refused() {
        let (layout, service) = (GoKit::default(), ServiceRef::parse("s").unwrap());
        let at = |path: &str| {
            let endpoint = Endpoint::parse("http://10.0.0.1:80").unwrap();
            let instance =
                Instance::new(InstanceId::parse("a").unwrap(), [endpoint]).unwrap().with_metadata(PATH, path);
            let written = layout.encode(&service, &instance, &Writing::default());
            written
                .map(|value| (layout.decode(&service, b"/services/s/a", &value).unwrap().instance == instance, value))
        };
        for path in ["/api", "/api?v=1#x", "?v=1", "//", "/ü b"] {
            let (same, value) = at(path).unwrap();
            assert!(same && value == format!("http://10.0.0.1:80{path}").into_bytes(), "{path}");
        }
        for path in ["", "/", "api", ":1/api", "/api ", "/\n"] {
            let refused = at(path);
            assert!(matches!(refused, Err(Error::Unsupported { .. })), "{path:?}: {refused:?}");
        }
    }
}
