//! Misbehavior of the scripted etcd, and the messages that it makes of a watch's events.

use std::time::Duration;

use etcd_client::proto::{PbEvent, PbResponseHeader, PbWatchResponse};

/// What the next message of a watch, or the next renewal, is to be instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehavior {
    /// The changes of one revision are never told.
    Lose,
    /// They are told twice.
    Twice,
    /// They are told again and again: so many more times.
    Again(u32),
    /// After them come the same changes as of a revision before the last: time seems to run backwards.
    Backwards,
    /// A progress notice with their revision comes before them.
    EarlyProgress,
    /// Their type is one that does not exist.
    UnknownType,
    /// Before them comes an answer to a request for progress that nobody made, with their revision, as from etcd before
    /// 3.4.25 and 3.5.8.
    EarlyAnswer,
    /// They claim a revision that is a thousand ahead.
    Future,
    /// Their message has no revision in its header.
    NoRevision,
    /// Their message has events without a key.
    NoKey,
    /// The watch falls silent: no events, and no signs of life.
    Silence,
    /// The next watch that is opened is refused inside the stream, with this reason.
    Refuse(&'static str),
    /// The next watch that is opened is there only this much later.
    LateWatch(Duration),
    /// The next transaction is done, and answered, only this much later, whether or not its caller still waits then, as
    /// by a member that is frozen meanwhile. [`FakeEtcd::late_writes`] tells what became of it.
    LateTxn(Duration),
    /// The next renewal says that the lease is gone, though it is not.
    LeaseGone,
    /// The next list with values is refused.
    NoList,
}

impl Misbehavior {
    /// Returns `true` if it is about what a watch tells that is open.
    pub(super) fn is_of_events(&self) -> bool {
        !matches!(self, Self::Refuse(_) | Self::LateWatch(_) | Self::LateTxn(_) | Self::LeaseGone | Self::NoList)
    }
}

/// Behaviour of a member without a quorum. Either way it answers serializable reads of those that do not want it to
/// know a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Minority {
    /// It knows that there is no leader, and refuses.
    Leaderless,
    /// It does not know that yet, and does not answer.
    Silent,
}

pub(super) fn message(header: Option<PbResponseHeader>, events: Vec<PbEvent>) -> PbWatchResponse {
    PbWatchResponse { header, events, ..PbWatchResponse::default() }
}

/// The messages of one revision, under a lie. It is returned: after some the stream falls silent.
pub(super) fn misreported(
    lie: Option<Misbehavior>,
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
    let messages = match lie {
        None
        | Some(
            Misbehavior::Refuse(_)
            | Misbehavior::LateWatch(_)
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
            let answer = PbWatchResponse { watch_id: -1, ..message(at(revision), Vec::new()) };
            vec![answer, truth]
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
    (messages, lie)
}
