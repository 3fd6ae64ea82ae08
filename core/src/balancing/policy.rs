//! Policies of picks from a view.

/// Policy of a picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickPolicy {
    /// Evenly at random, whatever the weights.
    Random,
    /// One after the other, from a random start, whatever the weights.
    RoundRobin,
    /// At random, in proportion to the weights.
    Weighted,
    /// By key: see [`Picker::pick_for`](crate::Picker::pick_for). When the set changes, few keys change their instance.
    /// A pick without a key works as `Weighted`.
    ConsistentHash,
}
