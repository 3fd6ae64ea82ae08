//! Earlier states of a scope, for event clients that return. States share their structure, so keeping one costs only
//! its difference to the next.

use std::collections::VecDeque;

use super::{position::Position, state::RegistryState};

/// Number of states that a returning client can continue from.
const HISTORY: usize = 256;

/// The latest states of a scope.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<(Position, RegistryState)>);

impl History {
    /// Adds a state and forgets the oldest one above the limit.
    pub(crate) fn push(&mut self, position: Position, state: RegistryState) {
        if self.0.len() >= HISTORY {
            self.0.pop_front();
        }
        self.0.push_back((position, state));
    }

    /// Returns the state at a position; `None` if it is not kept.
    pub(crate) fn at(&self, position: Position) -> Option<RegistryState> {
        self.0.iter().find(|(kept, _)| *kept == position).map(|(_, state)| state.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded() {
        let mut history = History::default();
        let at = |number| Position { run: 1, number };
        for number in 0..=HISTORY as u64 {
            history.push(at(number), RegistryState::default());
        }
        assert!(history.at(at(0)).is_none() && history.at(at(1)).is_some());
        assert!(history.at(Position { run: 2, number: 1 }).is_none());
    }
}
