//! A sign of life, asked for over a connection with a health check; any answer will do. A probe that has to wait for
//! its turn, because all streams of the connection are taken, says nothing about the other side.

use std::{pin::pin, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    retry::failure::{Failure, Reach},
    subchannel::{
        connection::Connection,
        probe_request::{HEAD_ONLY, REQUEST, ask},
    },
};

/// Result of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeOutcome {
    /// Something was heard from the other side.
    Alive,
    /// The probe could not be sent, which is no evidence of anything.
    Unsent,
    /// The connection takes no calls any more: it is gone, or the server said GOAWAY.
    Refused,
    /// The probe was sent, and nothing at all was heard.
    Silent,
}

/// Asks for a sign of life. The probe may take `limit` to be sent and `limit` to be answered.
///
/// # Cancel safety
///
/// Dropping the future takes the probe back.
pub(crate) async fn probe(connection: &Connection, limit: Duration) -> ProbeOutcome {
    let (before, opened) = (connection.reads(), CancellationToken::new());
    let message = if connection.calls() > 0 { HEAD_ONLY } else { REQUEST };
    let mut response = pin!(ask(connection.channel(), message, opened.clone()));
    let response = tokio::select! {
        response = &mut response => Some(response),
        () = opened.cancelled() => timeout(limit, &mut response).await.ok(),
        () = sleep(limit) => None,
    };
    let refused = matches!(response, Some(Err(Failure { reach: Reach::NeverLeft, broken: true, .. })));
    judge(Observed { is_heard: connection.reads() != before, is_opened: opened.is_cancelled(), is_refused: refused })
}

/// Facts about a probe that has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    /// Something was read from the connection meanwhile.
    is_heard: bool,
    /// The probe has got a stream.
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
