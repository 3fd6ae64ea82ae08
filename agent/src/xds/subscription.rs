//! Names that a client subscribes to, within the limits of its stream.

use std::{collections::BTreeSet, mem, sync::Arc};

use super::{
    name_budget::{NameAccount, cost},
    resource::ResourceType,
};

/// Name that stands for all listeners or clusters.
const WILDCARD: &str = "*";

/// Bytes that a subscribed name has on average at most. The limit of names also limits their bytes together.
pub(super) const MEAN_NAME_BYTES: usize = 128;

/// Names, which a type shares between its sets: each client has them.
pub(super) type Names = BTreeSet<Arc<str>>;

/// Names that a client subscribes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Subscription {
    /// There was no request for the type.
    #[default]
    None,
    /// These; none after the client has lost its interest.
    Names(Names),
    /// All.
    Wildcard,
}

impl Subscription {
    /// Returns the subscription after a request. An empty list of names stands for all listeners and clusters, unless
    /// names were given before. Routes and assignments have no wildcard: it counts as no name.
    pub(super) fn after(&self, kind: ResourceType, names: &[String]) -> Self {
        let is_wildcard = |name: &String| name == WILDCARD;
        let keeps_all = names.is_empty() && !matches!(self, Self::Names(_));
        if kind.is_complete() && (keeps_all || names.iter().any(is_wildcard)) {
            return Self::Wildcard;
        }
        let present = |name: &str| self.names().and_then(|names| names.get(name)).cloned();
        let names = names.iter().filter(|name| !is_wildcard(name));
        Self::Names(names.map(|name| present(name).unwrap_or_else(|| Arc::from(&**name))).collect())
    }

    /// Omits the names for which there is no room, and returns their number. Those of the subscription before stay.
    pub(super) fn limit(&mut self, before: &Self, room: &mut Room<'_>) -> usize {
        let Self::Names(names) = self else { return 0 };
        let all = names.len();
        let (kept, new): (Vec<_>, Vec<_>) = mem::take(names).into_iter().partition(|name| before.contains(name));
        names.extend(kept.into_iter().chain(new).filter(|name| room.take(name)));
        all - names.len()
    }

    pub(super) fn names(&self) -> Option<&Names> {
        match self {
            Self::Names(names) => Some(names),
            Self::None | Self::Wildcard => None,
        }
    }

    /// Returns the name, if it is one of these.
    pub(super) fn name(&self, name: &str) -> Option<&Arc<str>> {
        self.names()?.get(name)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.name(name).is_some()
    }
}

/// Names of a type that a stream can still subscribe to.
#[derive(Debug)]
pub(super) struct Room<'a> {
    kind: ResourceType,
    names: usize,
    bytes: usize,
    /// Memory of the names so far.
    used: usize,
    /// Memory that the type has taken.
    taken: &'a mut usize,
    account: &'a mut NameAccount,
    omitted: Omitted,
}

impl<'a> Room<'a> {
    /// Creates the room of a type that has taken this memory, for the names of a request. `max`: number of names.
    pub(super) fn new(kind: ResourceType, max: usize, taken: &'a mut usize, account: &'a mut NameAccount) -> Self {
        let bytes = max.saturating_mul(MEAN_NAME_BYTES);
        Self { kind, names: max, bytes, used: 0, taken, account, omitted: Omitted::default() }
    }

    /// Returns the names for which there was no room.
    pub(super) fn omitted(&self) -> Omitted {
        self.omitted
    }

    /// Takes the place of a name; returns `false` if there is none.
    fn take(&mut self, name: &str) -> bool {
        let (Some(names), Some(bytes)) = (self.names.checked_sub(1), self.bytes.checked_sub(name.len())) else {
            self.omitted.above_limit += 1;
            return false;
        };
        let used = self.used + cost(self.kind, name);
        let more = used.saturating_sub(*self.taken);
        if more > 0 && !self.account.take(more) {
            self.omitted.missing_bytes += cost(self.kind, name);
            return false;
        }
        *self.taken += more;
        (self.names, self.bytes, self.used) = (names, bytes, used);
        true
    }
}

/// Names of the latest request that the subscription lacks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Omitted {
    /// Number of those above the limit of the stream.
    pub(super) above_limit: usize,
    /// Memory of those for which there is none.
    pub(super) missing_bytes: usize,
}
