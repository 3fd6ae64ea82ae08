//! Parts of [`Config`](crate::Config): its watcher, and the checks of a transaction before it is sent.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::{
    backend::discovery::publisher::{Subscriber, Update},
    config::{
        limit::{MAX_CONFIG_BYTES, MAX_CONFIG_WRITES},
        snapshot::ConfigSnapshot,
        store::{ConfigChange, ConfigWatcher},
        write::ConfigWrite,
    },
    discovery::freshness::Freshness,
    error::Error,
};

/// Creates the change that leads to `snapshot` from the snapshot returned `before`, if there was one.
pub fn config_change(before: Option<&ConfigSnapshot>, snapshot: ConfigSnapshot, freshness: Freshness) -> ConfigChange {
    ConfigChange::since(before, snapshot, freshness)
}

/// A [`ConfigWatcher`] that reads snapshots from a [`Subscriber`].
#[derive(Debug)]
pub struct ScopeWatcher {
    reader: Subscriber<ConfigSnapshot>,
}

impl ScopeWatcher {
    /// A watcher that reads from `reader`.
    pub fn new(reader: Subscriber<ConfigSnapshot>) -> Self {
        Self { reader }
    }
}

#[async_trait]
impl ConfigWatcher for ScopeWatcher {
    async fn next(&mut self) -> Result<ConfigChange, Error> {
        let Update { value, before, freshness, .. } = self.reader.next().await?;
        Ok(config_change(before.as_ref(), value, freshness))
    }
}

/// Refuses a transaction that is too large for a store, or has two writes of one path.
///
/// # Errors
///
/// [`Error::InvalidConfig`] for more than [`MAX_CONFIG_WRITES`] writes or two of one path; [`Error::TooLarge`] for more
/// than [`MAX_CONFIG_BYTES`] of paths and values.
pub fn check_writes(writes: &[ConfigWrite]) -> Result<(), Error> {
    if writes.len() > MAX_CONFIG_WRITES {
        let reason = format!("{} writes in one transaction, at most {MAX_CONFIG_WRITES} are allowed", writes.len());
        return Err(Error::invalid_config("writes", reason));
    }
    let mut paths = BTreeSet::new();
    if let Some(twice) = writes.iter().find(|write| !paths.insert(&write.path)) {
        return Err(Error::invalid_config("writes", format!("two writes of {}", twice.path)));
    }
    let bytes = |write: &ConfigWrite| write.path.as_str().len() + write.value.as_ref().map_or(0, Vec::len);
    let size = writes.iter().map(bytes).sum();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::TooLarge { what: "the configuration", size, limit: MAX_CONFIG_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{path::ConfigPath, write::Expect};

    fn write(path: impl AsRef<str>, bytes: usize) -> ConfigWrite {
        ConfigWrite::put(ConfigPath::parse(path).unwrap(), vec![0; bytes], Expect::Any)
    }

    #[test]
    fn a_transaction_has_a_bounded_number_of_writes_of_different_paths() {
        let many = |count: usize| (0..count).map(|number| write(format!("a/{number}"), 1)).collect::<Vec<_>>();
        assert!(check_writes(&[]).is_ok());
        assert!(check_writes(&many(MAX_CONFIG_WRITES)).is_ok());
        let over = check_writes(&many(MAX_CONFIG_WRITES + 1));
        assert!(matches!(over, Err(Error::InvalidConfig { field: "writes", .. })), "{over:?}");
        let twice = check_writes(&[write("a", 1), write("b", 1), write("a", 1)]);
        assert!(matches!(twice, Err(Error::InvalidConfig { field: "writes", .. })), "{twice:?}");
    }

    #[test]
    fn the_size_of_a_transaction_includes_paths() {
        assert!(check_writes(&[write("a", MAX_CONFIG_BYTES - 1)]).is_ok());
        assert!(check_writes(&[write("a", MAX_CONFIG_BYTES - 3), write("b", 1)]).is_ok());
        let large = check_writes(&[write("a", MAX_CONFIG_BYTES - 3), write("b", 2)]);
        assert!(matches!(large, Err(Error::TooLarge { size, .. }) if size == MAX_CONFIG_BYTES + 1), "{large:?}");
    }
}
