//! Use of a channel: whether its subchannels connect, or wait for the next call.

use tokio::sync::watch;

/// Tells the subchannels of a channel whether it is in use.
#[derive(Debug)]
pub(crate) struct Activity(watch::Sender<bool>);

impl Default for Activity {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Activity {
    pub(crate) fn is_active(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends the idleness, since there is a call.
    pub(crate) fn activate(&self) {
        self.set(true);
    }

    pub(crate) fn set(&self, active: bool) {
        self.0.send_if_modified(|was| std::mem::replace(was, active) != active);
    }

    /// Waits until the channel is in use, or is not.
    pub(crate) async fn becomes(&self, active: bool) {
        // The sender is `self`.
        _ = self.0.subscribe().wait_for(|is| *is == active).await;
    }
}
