//! Use of a channel: its subchannels connect while it is in use, and otherwise wait for the next call.

use tokio::sync::watch;

/// Use of a channel by calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Active,
    /// No call was made for the idle timeout.
    Idle,
}

/// The usage of a channel, which its subchannels follow.
#[derive(Debug)]
pub(crate) struct Activity(watch::Sender<Usage>);

impl Default for Activity {
    fn default() -> Self {
        Self(watch::Sender::new(Usage::Active))
    }
}

impl Activity {
    /// Returns `true` while the channel is in use.
    pub(crate) fn is_active(&self) -> bool {
        *self.0.borrow() == Usage::Active
    }

    /// Sets the usage.
    pub(crate) fn set(&self, usage: Usage) {
        self.0.send_if_modified(|current| std::mem::replace(current, usage) != usage);
    }

    /// Waits for a usage.
    pub(crate) async fn becomes(&self, usage: Usage) {
        // The sender is `self`.
        _ = self.0.subscribe().wait_for(|current| *current == usage).await;
    }
}
