//! Desired value of a raw registration. It contains only valid values, so no backend can omit a check.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use crate::{
    error::Error,
    model::{
        endpoint::Endpoint,
        instance::Instance,
        name::{InstanceId, MAX_NAME_BYTES, Namespace, ServiceName, ServiceRef},
    },
    raw::limit::MAX_RAW_BYTES,
    registration::options::RegisterOptions,
    runtime::sync::MutexExt as _,
};

/// Key and desired value of a raw registration. Clones share the value.
#[derive(Clone)]
pub struct RawCell {
    key: Arc<[u8]>,
    value: Arc<Mutex<Arc<[u8]>>>,
}

impl RawCell {
    /// A cell with `value` for `key`, to be registered with `options`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] for an empty key and for the options, [`Error::Unsupported`] for an owner,
    /// [`Error::TooLarge`] for more than [`MAX_RAW_BYTES`](crate::MAX_RAW_BYTES).
    pub fn new(key: &[u8], value: impl Into<Arc<[u8]>>, options: &RegisterOptions) -> Result<Self, Error> {
        options.check()?;
        if key.is_empty() {
            return Err(Error::invalid_config("key", "it must not be empty"));
        }
        if options.owner.is_some() {
            return Err(Error::Unsupported { what: "an owner token of a raw value".to_owned() });
        }
        let value = value.into();
        check_size(key, &value)?;
        Ok(Self { key: key.into(), value: Arc::new(Mutex::new(value)) })
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The desired value. A write reads it as late as possible: it is at least as new as the generation of the write.
    pub fn get(&self) -> Arc<[u8]> {
        Arc::clone(&self.value.locked())
    }

    /// Changes the desired value. It stays if the new one is too large.
    pub(crate) fn set(&self, value: Arc<[u8]>) -> Result<(), Error> {
        check_size(&self.key, &value)?;
        *self.value.locked() = value;
        Ok(())
    }

    /// Returns a service and an instance that represent the value in a
    /// [`registration`](crate::backend::registration()). Errors and logs name the key by them: the service is the part
    /// before its last `/`, and the instance the part behind it. Different keys may have equal names.
    #[expect(clippy::missing_panics_doc, reason = "its names are made to be accepted")]
    pub fn stand_in(&self) -> (ServiceRef, Instance) {
        let key = self.key();
        let at = key.iter().rposition(|byte| *byte == b'/');
        let (directory, last) = at.map_or((&b""[..], key), |at| (&key[..at], &key[at + 1..]));
        let service = ServiceName::parse(name(directory)).expect("it is short and printable, and not empty");
        let id = InstanceId::parse(name(last)).expect("it is short and printable, and not empty");
        let endpoint = Endpoint::new("raw", 1).expect("a host and a port");
        let instance = Instance::new(id, [endpoint]).expect("it has an endpoint");
        (ServiceRef::new(Namespace::default(), service), instance)
    }
}

impl fmt::Debug for RawCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawCell").field("bytes", &self.get().len()).finish_non_exhaustive()
    }
}

/// Refuses a key and a value that are too large together.
fn check_size(key: &[u8], value: &[u8]) -> Result<(), Error> {
    let size = key.len() + value.len();
    if size > MAX_RAW_BYTES {
        return Err(Error::TooLarge { what: "the key and its value", size, limit: MAX_RAW_BYTES });
    }
    Ok(())
}

/// Printable text of bytes, cut to the maximum length of a name; `/` for none.
fn name(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).replace(char::is_control, "\u{fffd}");
    while text.len() > MAX_NAME_BYTES {
        text.pop();
    }
    if text.is_empty() { "/".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell(key: &[u8]) -> RawCell {
        RawCell::new(key, *b"one", &RegisterOptions::new()).unwrap()
    }

    proptest! {
        #[test]
        fn every_key_has_names(key in proptest::collection::vec(any::<u8>(), 1..600)) {
            cell(&key).stand_in();
        }
    }

    #[test]
    fn a_key_is_named_by_its_parts() {
        let named = |key: &[u8]| {
            let (service, instance) = cell(key).stand_in();
            format!("{} {}", service.name(), instance.id())
        };
        assert_eq!(named(b"/services/svc/10.0.0.1:80"), "/services/svc 10.0.0.1:80");
        assert_eq!((named(b"a"), named(b"/a"), named(b"a/")), ("/ a".into(), "/ a".into(), "a /".into()));
        assert_eq!(named(b"x/\n\xff"), "x \u{fffd}\u{fffd}");
    }

    #[test]
    fn a_cell_contains_only_what_may_be_registered() {
        let options = RegisterOptions::new();
        let new = |key: &[u8], size: usize, options: &RegisterOptions| RawCell::new(key, vec![0; size], options);
        assert!(new(b"k", MAX_RAW_BYTES - 1, &options).is_ok());
        assert!(matches!(new(b"k", MAX_RAW_BYTES, &options), Err(Error::TooLarge { .. })));
        assert!(matches!(new(b"", 1, &options), Err(Error::InvalidConfig { .. })));
        assert!(matches!(new(b"k", 1, &options.clone().owner("me")), Err(Error::Unsupported { .. })));
        assert!(matches!(new(b"k", 1, &options.ttl(std::time::Duration::ZERO)), Err(Error::InvalidConfig { .. })));
    }
}
