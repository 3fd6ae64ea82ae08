//! State of a subchannel.

use std::sync::atomic::{AtomicU8, Ordering};

/// State of an instance in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceState {
    /// It is not connected to, since the channel was not used for its idle timeout; the next call connects.
    Idle,
    /// The first connection, or the next one after one that worked, is being made.
    Connecting,
    /// It takes calls.
    Ready,
    /// It cannot be connected to; the next try is due.
    Failing,
    /// It is connected and does not answer; it is being asked for a sign of life.
    Suspect,
    /// It failed several calls in a row and rests.
    Ejected,
    /// Its health service says that it does not serve.
    Unhealthy,
    /// It is no longer listed and finishes its calls.
    Leaving,
}

/// State of a subchannel, in bits, so that a call reads it with one load.
#[derive(Debug, Default)]
pub(super) struct Condition(AtomicU8);

impl Condition {
    pub(super) const CONNECTED: u8 = 1;
    /// The last dial failed.
    pub(super) const FAILED: u8 = 2;
    /// A call got no answer, and nothing else was heard since.
    pub(super) const SUSPECT: u8 = 4;
    pub(super) const EJECTED: u8 = 8;
    /// Its health service says that it does not serve.
    pub(super) const UNHEALTHY: u8 = 16;
    /// The resolver no longer lists it.
    pub(super) const RETIRED: u8 = 32;
    /// Its channel is not used.
    pub(super) const IDLE: u8 = 64;

    pub(super) fn set(&self, bits: u8) {
        self.0.fetch_or(bits, Ordering::AcqRel);
    }

    pub(super) fn clear(&self, bits: u8) {
        self.0.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(super) fn has(&self, bits: u8) -> bool {
        self.bits() & bits != 0
    }

    pub(super) fn bits(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}
