//! Known defects of etcd, as switches of the scripted etcd. A [`Misbehavior`](super::Misbehavior) happens once; a
//! defect lasts until it is ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_client::proto::PbEvent;
use tokio::time::Instant;

/// Time for which [`EtcdDefect::EarlyProgress`] holds events back.
pub(super) const LATE_EVENTS: Duration = Duration::from_secs(8);

/// Time from an acknowledged renewal until [`EtcdDefect::FormerLeaderRevokes`] revokes the lease.
pub(super) const REVOKED_AFTER: Duration = Duration::from_secs(1);

/// Time for which [`EtcdDefect::FormerLeaderRevokes`] acknowledges renewals after the revocation.
const STILL_RENEWED: Duration = Duration::from_secs(10);

/// A defect of some releases of etcd. Numbers are those of issues of `etcd-io/etcd`; `docs/faults.md` lists the
/// releases that mended them, and the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EtcdDefect {
    /// Progress is reported before the events that it covers (#15220, before 3.4.25 and 3.5.8).
    ///
    /// The events of a watch are held back for 8 s. A request for its progress in the meantime is answered at once,
    /// with the revision of the store. Periodic notices stay in order, as in etcd. The fake reports version 3.4.24.
    EarlyProgress,
    /// A deletion at exactly the compacted revision is omitted (#18089, #19179; before 3.4.36 and 3.5.18).
    ///
    /// A compaction while this is on removes deletions at the compacted revision from the history. A watch from that
    /// revision is accepted, and does not receive them. The fake reports version 3.4.34.
    ForgottenDeletion,
    /// A former leader revokes leases that the present one renews (#15247, before 3.4.31 and 3.5.13; also observed with
    /// 3.5.16).
    ///
    /// One second after a renewal was acknowledged, the lease is revoked with its keys. Its renewals are acknowledged
    /// for another 10 s. The fake reports version 3.5.12.
    FormerLeaderRevokes,
    /// A watch on a future revision receives old notices and events (#20221, before 3.4.38, 3.5.22 and 3.6.2).
    ///
    /// Watches are opened at a member that lags: it is at the revision at which a watch was opened before, or this was
    /// switched on, and catches up at once. If the start of a watch is in its future, the watch receives a progress
    /// notice of the revision of that member, and then all events since, also those below its start. The fake reports
    /// version 3.6.1.
    OldEvents,
    /// Linearizable reads are stale after a pause of the process (#20418, before 3.4.42, 3.5.28 and 3.6.9).
    ///
    /// While this is on, reads and read-only transactions are answered by a member that was paused when it was switched
    /// on: with the state and the revision of that moment. Writes, watches and leases are those of the other members.
    /// The fake reports version 3.6.8.
    StaleReads,
    /// The renewal of a revoked lease is acknowledged (pull request #20590, before 3.4.38, 3.5.23 and 3.6.5).
    ///
    /// While this is on, each renewal of a lease that was revoked meanwhile, or that has expired, is acknowledged with
    /// its former TTL. The fake reports version 3.6.4.
    RevokedLeaseRenewed,
}

impl EtcdDefect {
    /// Returns a release that has the defect.
    pub(super) fn release(self) -> &'static str {
        match self {
            Self::EarlyProgress => "3.4.24",
            Self::ForgottenDeletion => "3.4.34",
            Self::FormerLeaderRevokes => "3.5.12",
            Self::OldEvents => "3.6.1",
            Self::StaleReads => "3.6.8",
            Self::RevokedLeaseRenewed => "3.6.4",
        }
    }
}

/// Defects of a store, and their state.
#[derive(Debug, Default)]
pub(super) struct Defects {
    present: BTreeSet<EtcdDefect>,
    /// Defects that have changed an answer, a message or the store.
    shown: BTreeSet<EtcdDefect>,
    /// Revoked leases whose renewals are acknowledged.
    revoked: BTreeMap<i64, Revoked>,
    concealed: Vec<ConcealedRevocation>,
}

#[derive(Clone, Copy, Debug)]
struct Revoked {
    /// TTL of the lease in seconds.
    ttl: i64,
    at: Instant,
    cause: RevocationCause,
}

/// Cause of the end of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RevocationCause {
    Request,
    Expiry,
    FormerLeader,
}

/// Revocation of a lease that a defect conceals from its holder. A former leader made it, or a renewal was acknowledged
/// afterwards: after an expiry, one that had arrived before. A holder that renews later has to know of the expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConcealedRevocation {
    /// Time of the revocation.
    pub at: Instant,
    /// The lease.
    pub lease: i64,
}

impl Defects {
    pub(super) fn set(&mut self, defect: EtcdDefect) {
        self.present.insert(defect);
    }

    /// Notes that a defect has changed an answer, a message or the store.
    pub(super) fn note_shown(&mut self, defect: EtcdDefect) {
        self.shown.insert(defect);
    }

    pub(super) fn shown(&self) -> BTreeSet<EtcdDefect> {
        self.shown.clone()
    }

    /// Ends all defects. What they concealed stays known.
    pub(super) fn mend(&mut self) {
        self.present.clear();
        self.revoked.clear();
    }

    pub(super) fn has(&self, defect: EtcdDefect) -> bool {
        self.present.contains(&defect)
    }

    /// Notes that a lease was revoked.
    pub(super) fn note_revoked(&mut self, lease: i64, ttl: i64, cause: RevocationCause) {
        if self.has(EtcdDefect::FormerLeaderRevokes) || self.has(EtcdDefect::RevokedLeaseRenewed) {
            let at = Instant::now();
            self.revoked.insert(lease, Revoked { ttl, at, cause });
            if cause == RevocationCause::FormerLeader {
                self.note_shown(EtcdDefect::FormerLeaderRevokes);
                self.conceal(ConcealedRevocation { at, lease });
            }
        }
    }

    fn conceal(&mut self, revocation: ConcealedRevocation) {
        if !self.concealed.contains(&revocation) {
            self.concealed.push(revocation);
        }
    }

    pub(super) fn concealed(&self) -> Vec<ConcealedRevocation> {
        self.concealed.clone()
    }

    /// Returns the TTL with which a renewal that `arrived` then is answered, of a lease that does not exist: 0 without
    /// a defect.
    pub(super) fn renewed(&mut self, lease: i64, arrived: Instant) -> i64 {
        let Some(Revoked { ttl, at, cause }) = self.revoked.get(&lease).copied() else { return 0 };
        let by_former_leader = self.has(EtcdDefect::FormerLeaderRevokes) && at.elapsed() < STILL_RENEWED;
        if !by_former_leader && !self.has(EtcdDefect::RevokedLeaseRenewed) {
            return 0;
        }
        if self.has(EtcdDefect::RevokedLeaseRenewed) {
            self.note_shown(EtcdDefect::RevokedLeaseRenewed);
        }
        if cause != RevocationCause::Expiry || arrived <= at {
            self.conceal(ConcealedRevocation { at, lease });
        }
        ttl
    }

    /// Notes that a lease with this id was granted.
    pub(super) fn note_granted(&mut self, lease: i64) {
        self.revoked.remove(&lease);
    }

    /// Returns `true` if a compaction to `revision` wrongly removes this event of the history.
    pub(super) fn forgets(&self, event: &PbEvent, revision: i64) -> bool {
        let is_deletion = event.r#type == 1 && event.kv.as_ref().is_some_and(|pair| pair.mod_revision == revision);
        is_deletion && self.has(EtcdDefect::ForgottenDeletion)
    }
}
