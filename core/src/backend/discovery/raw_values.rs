//! Parts of [`RawValues`](crate::RawValues): its watcher, its registrations, and the check of a prefix. The value of a
//! registration is in `raw_cell.rs`.

use async_trait::async_trait;

use crate::{
    backend::{
        discovery::publisher::{Subscriber, Update},
        registration::raw_cell::RawCell,
    },
    discovery::freshness::Freshness,
    error::Error,
    raw::{RawChange, RawRegistration, RawWatcher, snapshot::RawSnapshot},
    registration::handle::Registration,
};

/// Creates the change that leads to `snapshot` from the snapshot returned `before`, if there was one.
pub fn raw_change(before: Option<&RawSnapshot>, snapshot: RawSnapshot, freshness: Freshness) -> RawChange {
    let events = before.map_or_else(|| snapshot.as_added(), |before| snapshot.diff(before));
    RawChange { snapshot, events, freshness }
}

/// A [`RawWatcher`] that reads snapshots from a [`Subscriber`].
#[derive(Debug)]
pub struct PrefixWatcher {
    reader: Subscriber<RawSnapshot>,
}

impl PrefixWatcher {
    /// A watcher that reads from `reader`.
    pub fn new(reader: Subscriber<RawSnapshot>) -> Self {
        Self { reader }
    }
}

#[async_trait]
impl RawWatcher for PrefixWatcher {
    async fn next(&mut self) -> Result<RawChange, Error> {
        let Update { value, before, freshness, .. } = self.reader.next().await?;
        Ok(raw_change(before.as_ref(), value, freshness))
    }
}

/// Creates the registration of `cell`, whose [`stand_in`](RawCell::stand_in) is registered by `registration`.
pub fn raw_registration(registration: Registration, cell: RawCell) -> RawRegistration {
    RawRegistration { registration, cell }
}

/// Refuses a prefix that covers the whole store.
///
/// # Errors
///
/// [`Error::InvalidConfig`] for an empty prefix.
pub fn check_prefix(prefix: &[u8]) -> Result<(), Error> {
    if prefix.is_empty() {
        return Err(Error::invalid_config("prefix", "it must not be empty, which would be the whole store"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{MAX_RAW_BYTES, RegisterOptions, Revision, backend::registration::registration_driver::registration};

    #[tokio::test(start_paused = true)]
    async fn a_value_is_there_before_the_generation_that_announces_it() {
        let options = RegisterOptions::new();
        let cell = RawCell::new(b"k", *b"one", &options).unwrap();
        let (service, instance) = cell.stand_in();
        let (registration, mut driver) = registration(service, instance, &options, Arc::new(())).unwrap();
        let raw = raw_registration(registration, cell.clone());
        let large = raw.set(vec![0; MAX_RAW_BYTES]).await;
        assert!(matches!(large, Err(Error::TooLarge { size, .. }) if size == MAX_RAW_BYTES + 1), "{large:?}");
        assert_eq!((driver.desired().generation, &*cell.get()), (1, &b"one"[..]));
        let stored = raw.set(*b"two");
        assert_eq!((driver.desired().generation, &*cell.get()), (2, &b"two"[..]));
        driver.report_stored(2, Revision::new(9));
        assert_eq!(stored.await.unwrap(), Revision::new(9));
    }
}
