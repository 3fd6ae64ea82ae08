//! Keys of configuration in the native layout. Values are the bytes of the user, without an envelope.

use enlist::{ConfigPath, Namespace};

use super::{Native, escape, unescape};

impl Native {
    /// Returns the prefix of all values of a namespace.
    pub(in crate::layout) fn config_prefix(&self, namespace: &Namespace) -> String {
        self.namespace_prefix("config", namespace)
    }

    /// Returns the key of a value.
    pub(in crate::layout) fn config_key(&self, namespace: &Namespace, path: &ConfigPath) -> String {
        let mut key = self.config_prefix(namespace);
        for (number, segment) in path.segments().enumerate() {
            if number > 0 {
                key.push('/');
            }
            escape(&mut key, segment);
        }
        key
    }

    /// Returns the path in the part of a key after [`config_prefix`](Self::config_prefix), if `config_key` could have
    /// written it.
    pub(in crate::layout) fn config_path(rest: &[u8]) -> Option<ConfigPath> {
        let mut path = String::with_capacity(rest.len());
        for (number, segment) in rest.split(|byte| *byte == b'/').enumerate() {
            if number > 0 {
                path.push('/');
            }
            path.push_str(&unescape(segment)?);
        }
        ConfigPath::parse(path).ok()
    }
}
