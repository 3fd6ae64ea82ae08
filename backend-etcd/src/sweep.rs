//! Waiting for a creation of unknown outcome: it is undone on sight, until it is impossible.
//!
//! No time that has passed proves that a write is gone: it can lie in the socket of a frozen member and be done when that goes on.
//! What proves it is the acknowledged end of the lease that it was to be under, see [`Leases::retire`](crate::lease::Leases::retire).

use std::{sync::Arc, time::Duration};

use enlist::{BackoffPolicy, LeaseId, Revision, backoff::spread};

use crate::{
    connection::Written,
    error::Failure,
    lease::{Lease, Revoked},
    pipeline::{Begin, Hub},
    record::Record,
    session::Session,
    writes::Guard,
};

/// Pause between two reads of a key beside its watch, and between two looks at a given lease; jittered by half.
const POLL: Duration = Duration::from_secs(10);

/// The proof that a creation under a lease is impossible.
#[derive(Clone, Debug)]
pub(crate) enum Impossible {
    /// Its lease was revoked, which the store has acknowledged.
    Revoked(Revoked),
    /// Its lease, which somebody else keeps, has ended.
    Ended(LeaseId),
}

impl Impossible {
    /// Returns the proof for a creation under `lease`, and retires that, unless it is `given` and not this session's to revoke.
    pub(crate) fn after(session: &Session, lease: &Arc<Lease>, given: bool) -> Self {
        if given {
            return Self::Ended(lease.id());
        }
        session.leases.retire(lease);
        Self::Revoked(lease.revoked())
    }

    /// Returns `true` if the proof is there without asking for it.
    pub(crate) fn is_proved(&self) -> bool {
        matches!(self, Self::Revoked(revoked) if revoked.is_acknowledged())
    }

    /// Waits for the proof.
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn proved(&mut self, session: &Session) {
        match self {
            Self::Revoked(revoked) => revoked.acknowledged().await,
            Self::Ended(lease) => {
                while !matches!(session.conn.time_to_live(*lease).await, Ok(None)) {
                    tokio::time::sleep(POLL / 2 + spread(POLL)).await;
                }
            }
        }
    }
}

/// Deletes `key` on sight until a creation of it is `impossible`. Only for a key that nobody else uses.
pub(crate) async fn sweep(session: &Arc<Session>, key: &[u8], mut impossible: Impossible) {
    let mut backoff = BackoffPolicy::default().start();
    loop {
        let absent_at = match remove(session, key).await {
            Ok(absent_at) => absent_at,
            Err(failure) => {
                tracing::debug!(cause = %failure, "creation of unknown outcome not looked for yet");
                None
            }
        };
        let wait = match absent_at {
            Some(_) => POLL / 2 + spread(POLL),
            None => backoff.next_delay(),
        };
        tokio::select! {
            biased;
            () = impossible.proved(session) => return,
            () = appears(session, key, absent_at) => tracing::info!("a write that had been given up was done, it is undone"),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Deletes the key if it is there. Returns the revision at which it was absent, if it was.
async fn remove(session: &Session, key: &[u8]) -> Result<Option<Revision>, Failure> {
    let (found, at) = session.conn.get(key).await?;
    let Some(Record { created, .. }) = found else {
        return Ok(Some(at));
    };
    Ok(match session.conn.delete(key, Guard::Created(created)).await? {
        Written::Done(revision) => Some(revision),
        Written::Refused(_) => None,
    })
}

/// Waits until a key that was absent at that revision appears.
///
/// Dropping the future has no effect.
pub(crate) async fn appears(session: &Arc<Session>, key: &[u8], absent_at: Option<Revision>) {
    let followed = absent_at.and_then(|at| Hub::follow_key(session, key, None, at, Begin::Known).ok());
    let Some(mut reader) = followed else {
        return std::future::pending().await;
    };
    loop {
        match reader.next().await {
            Ok(reading) if reading.value.records().next().is_some() => return,
            Ok(_) => {}
            // It cannot be watched; it is read at a slow pace all the same.
            Err(_) => return std::future::pending().await,
        }
    }
}
