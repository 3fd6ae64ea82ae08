//! Options for the choice of an instance. [`enlist::balance`] implements the choice; the [pool
//! task](crate::load_balancing::pool_task) provides the candidates.

use bytes::Bytes;
use enlist::balance::SelectionPolicy;
use http::HeaderName;

/// Policy by which a channel chooses among the instances that are ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalancePolicy {
    /// Two different instances are drawn by weight. The one with fewer calls in flight per weight takes the call. The
    /// default.
    #[default]
    LeastLoaded,
    /// One after the other, regardless of weights.
    RoundRobin,
    /// Uniformly at random, regardless of weights.
    Random,
    /// By key, in proportion to the weights: the [`HashKey`] in the request's extensions, else the value of this
    /// header. A call with neither is drawn by weight. When the set of ready instances changes, few keys change their
    /// instance.
    ConsistentHash(Option<HeaderName>),
}

impl BalancePolicy {
    /// Selection for a call without a key.
    pub(crate) fn selection(&self) -> SelectionPolicy {
        match self {
            Self::LeastLoaded | Self::ConsistentHash(_) => SelectionPolicy::LeastLoaded,
            Self::RoundRobin => SelectionPolicy::RoundRobin,
            Self::Random => SelectionPolicy::Random,
        }
    }
}

/// The key of a call under [`BalancePolicy::ConsistentHash`], put into the extensions of a `tonic::Request`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashKey(pub Bytes);
