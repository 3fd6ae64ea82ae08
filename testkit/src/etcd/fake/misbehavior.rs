//! Misbehavior of the scripted etcd, and the messages that it makes of a watch's events.

use std::time::Duration;

use etcd_client::proto::{PbEvent, PbResponseHeader, PbTxnResponse, PbWatchResponse};
use tokio::time::Instant;

/// Misbehavior of the next message of a watch, of the next renewal, or of the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehavior {
    /// The events of one revision are not sent.
    Lose,
    /// The events of one revision are sent twice.
    Twice,
    /// The events of one revision are sent this many more times.
    Again(u32),
    /// The events of one revision are followed by the same events with revision 1: the revision appears to decrease.
    Backwards,
    /// A progress notification with their revision comes before the events.
    EarlyProgress,
    /// The events have a type that does not exist.
    UnknownType,
    /// An answer to a progress request that was not sent comes before the events with their revision, as from etcd
    /// before 3.4.25 and 3.5.8.
    EarlyAnswer,
    /// The events have a revision that is a thousand ahead.
    Future,
    /// The message has no revision in its header.
    NoRevision,
    /// The events have no key.
    NoKey,
    /// The watch falls silent: neither events nor progress notifications follow.
    Silence,
    /// The next watch is canceled at once, with this reason.
    Refuse(&'static str),
    /// The next watch is created, and a second message cancels it after this time, with this reason.
    RefuseCreated(Duration, &'static str),
    /// The next watch is created only after this time.
    LateWatch(Duration),
    /// The next watch is created by a member that does not know the revision it starts at, and knows all after this
    /// time.
    LaggingWatch(Duration),
    /// The next transaction is applied and answered only after this time, whether or not its caller still waits, as by
    /// a member that is frozen meanwhile. [`FakeEtcd::late_writes`](crate::FakeEtcd::late_writes) returns its outcome.
    LateTxn(Duration),
    /// The next renewal reports that the lease does not exist, although it does.
    LeaseGone,
    /// The next list with values fails.
    NoList,
}

impl Misbehavior {
    /// Returns `true` if it concerns the events of an open watch.
    pub(super) fn is_of_events(&self) -> bool {
        !matches!(
            self,
            Self::Refuse(_)
                | Self::RefuseCreated(..)
                | Self::LateWatch(_)
                | Self::LaggingWatch(_)
                | Self::LateTxn(_)
                | Self::LeaseGone
                | Self::NoList
        )
    }
}

/// Misbehavior that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Misbehaved {
    /// Time at which it began.
    pub at: Instant,
    /// The misbehavior.
    pub misbehavior: Misbehavior,
}

/// Outcome of a transaction that [`Misbehavior::LateTxn`] delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LateWrite {
    /// Its guards held, and its writes were made.
    Applied,
    /// One of its guards failed, and its writes were not made.
    Refused,
}

impl LateWrite {
    pub(super) fn of(response: &PbTxnResponse) -> Self {
        if response.succeeded { Self::Applied } else { Self::Refused }
    }
}

/// Behaviour of a member without a quorum. In both states it answers serializable reads that do not require a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Minority {
    /// The member knows that there is no leader, and refuses requests.
    Leaderless,
    /// The member does not know that yet, and does not answer.
    Silent,
}

pub(super) fn message(header: Option<PbResponseHeader>, events: Vec<PbEvent>) -> PbWatchResponse {
    PbWatchResponse { header, events, ..PbWatchResponse::default() }
}

/// Returns the messages for the events of one revision under a misbehavior, and the misbehavior, which may leave the
/// stream silent afterwards.
pub(super) fn misreported(
    misbehavior: Option<Misbehavior>,
    header: Option<PbResponseHeader>,
    revision: i64,
    events: Vec<PbEvent>,
) -> (Vec<PbWatchResponse>, Option<Misbehavior>) {
    let truth = message(header, events.clone());
    let at = |revision| header.map(|header| PbResponseHeader { revision, ..header });
    let altered = |alter: fn(&mut PbEvent)| {
        let mut events = events.clone();
        events.iter_mut().for_each(alter);
        vec![message(header, events)]
    };
    let messages = match misbehavior {
        None
        | Some(
            Misbehavior::Refuse(_)
            | Misbehavior::RefuseCreated(..)
            | Misbehavior::LateWatch(_)
            | Misbehavior::LaggingWatch(_)
            | Misbehavior::LateTxn(_)
            | Misbehavior::LeaseGone
            | Misbehavior::NoList,
        ) => vec![truth],
        Some(Misbehavior::Lose | Misbehavior::Silence) => Vec::new(),
        Some(Misbehavior::Twice) => vec![truth.clone(), truth],
        Some(Misbehavior::Again(times)) => vec![truth; times as usize + 1],
        Some(Misbehavior::Backwards) => {
            let earlier = altered(|event| {
                if let Some(pair) = &mut event.kv {
                    (pair.mod_revision, pair.value) = (1, b"from the past".to_vec());
                }
            });
            std::iter::once(truth).chain(earlier).collect()
        }
        Some(Misbehavior::EarlyProgress) => vec![message(at(revision), Vec::new()), truth],
        Some(Misbehavior::EarlyAnswer) => {
            vec![PbWatchResponse { watch_id: -1, ..message(at(revision), Vec::new()) }, truth]
        }
        Some(Misbehavior::UnknownType) => altered(|event| event.r#type = 9),
        Some(Misbehavior::NoKey) => altered(|event| event.kv = None),
        Some(Misbehavior::Future) => altered(|event| {
            if let Some(pair) = &mut event.kv {
                pair.mod_revision += 1000;
            }
        }),
        Some(Misbehavior::NoRevision) => vec![message(at(0), events)],
    };
    (messages, misbehavior)
}
