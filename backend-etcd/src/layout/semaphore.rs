//! Keys and values of semaphores in etcd.

use std::fmt;

use enlist::{Error, LockName, Namespace, backend::PermitState};

use crate::watch::record::KeyRange;

/// Value of an entry in the queue of a semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "layouts outside this crate build it")]
pub struct PermitEntryValue {
    /// Requested number of permits.
    pub permits: u32,
    /// State of the entry.
    pub state: PermitState,
}

impl PermitEntryValue {
    /// Value of an entry that cannot be read: later entries wait until it is gone. If it were ignored, permits could be
    /// granted twice.
    pub(crate) const UNREADABLE: Self = Self { permits: u32::MAX, state: PermitState::Waiting };
}

/// Layout of semaphores in etcd. The keys of their queues are those of [`LockLayout`](super::LockLayout) for
/// [`QueueKind::Semaphore`](super::QueueKind).
pub trait SemaphoreLayout: fmt::Debug + Send + Sync + 'static {
    /// Returns the key of the number of permits, outside of all queues.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] or [`Error::Unsupported`] for names it cannot carry.
    fn permits_key(&self, name: &LockName) -> Result<Vec<u8>, Error>;

    /// Returns the range of the numbers of permits of all semaphores of a namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if other keys cannot be excluded.
    fn permits_range(&self, namespace: &Namespace) -> Result<KeyRange, Error>;

    /// Returns the name of the semaphore with this key of [`permits_range`](Self::permits_range).
    fn semaphore_of(&self, namespace: &Namespace, key: &[u8]) -> Option<LockName>;

    /// Returns the value of a number of permits. `previous` is the replaced value. Its unknown fields are kept.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the replaced value has a newer version.
    fn encode_permits(&self, permits: u32, previous: Option<&[u8]>) -> Result<Vec<u8>, Error>;

    /// Reads a number of permits; `None` if there is none in the value.
    fn decode_permits(&self, value: &[u8]) -> Option<u32>;

    /// Returns the value of an entry in the queue.
    fn encode_permit_entry(&self, value: PermitEntryValue) -> Vec<u8>;

    /// Reads an entry in the queue of `name`; `None` if the key does not have this layout's shape.
    fn decode_permit_entry(&self, name: &LockName, key: &[u8], value: &[u8]) -> Option<PermitEntryValue>;
}
