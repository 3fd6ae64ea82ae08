//! A health check over a silent connection; any response will do. A probe that could not be sent, because all streams
//! of the connection are taken, is no evidence about the other side.

use std::{pin::pin, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    retry::failure::{Failure, Reach},
    subchannel::{
        connections::connection::Connection,
        liveness::probe_request::{HEAD_ONLY, REQUEST, ask},
    },
};

/// Result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// Something was received.
    Alive,
    /// The probe could not be sent, which is no evidence.
    Unsent,
    /// The connection takes no more calls: it has ended, or the server sent GOAWAY.
    Refused,
    /// The probe was sent, and nothing was received.
    Silent,
}

/// Sends a probe. It may take `limit` to be sent, and `limit` until something is received.
///
/// # Cancel safety
///
/// Dropping the future cancels the probe.
pub(crate) async fn probe(connection: &Connection, limit: Duration) -> ProbeOutcome {
    let (before, opened) = (connection.reads(), CancellationToken::new());
    let message = if connection.calls() > 0 { HEAD_ONLY } else { REQUEST };
    let mut response = pin!(ask(connection.channel(), message, opened.clone()));
    let response = tokio::select! {
        response = &mut response => Some(response),
        () = opened.cancelled() => timeout(limit, &mut response).await.ok(),
        () = sleep(limit) => None,
    };
    let refused = matches!(response, Some(Err(Failure { reach: Reach::NeverSent, broken: true, .. })));
    judge(Observed { is_heard: connection.reads() != before, is_opened: opened.is_cancelled(), is_refused: refused })
}

/// Facts about a probe that has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    /// Something was received meanwhile.
    is_heard: bool,
    /// The probe had a stream.
    is_opened: bool,
    /// The connection did not take the probe.
    is_refused: bool,
}

fn judge(observed: Observed) -> ProbeOutcome {
    match observed {
        Observed { is_refused: true, .. } => ProbeOutcome::Refused,
        Observed { is_heard: true, .. } => ProbeOutcome::Alive,
        Observed { is_opened: true, .. } => ProbeOutcome::Silent,
        Observed { .. } => ProbeOutcome::Unsent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sent_probe_counts_against_a_connection() {
        assert_eq!(judge(Observed { is_opened: true, ..Observed::default() }), ProbeOutcome::Silent);
        assert_eq!(judge(Observed::default()), ProbeOutcome::Unsent);
        for is_opened in [false, true] {
            let heard = Observed { is_heard: true, is_opened, is_refused: false };
            assert_eq!(judge(heard), ProbeOutcome::Alive);
            assert_eq!(judge(Observed { is_refused: true, ..heard }), ProbeOutcome::Refused);
        }
    }
}
