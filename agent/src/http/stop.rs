//! The end of the server, for its connections.

use tokio::sync::watch;

/// State of the server, as its connections see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stop {
    #[default]
    Serving,
    Stopping,
}

/// Waits until the server stops.
pub(super) async fn stopping(stop: &mut watch::Receiver<Stop>) {
    // An error means that the server is gone.
    let _ = stop.wait_for(|stop| *stop == Stop::Stopping).await;
}
