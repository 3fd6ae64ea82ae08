//! Positions in the sequence of states of a scope.

use std::fmt;

/// Position of a state in the sequence of states of a scope. Clients return it as `Last-Event-ID`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Random number of the follower: positions of another process or follower are not comparable.
    pub(crate) run: u64,
    pub(crate) number: u64,
}

impl Position {
    /// Returns a position before the first state of a new follower.
    pub(crate) fn start() -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        Self { run: RandomState::new().hash_one(std::time::SystemTime::now()), number: 0 }
    }

    /// Returns the next position.
    pub(crate) fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }

    /// Reads the text that [`Display`](fmt::Display) writes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (run, number) = text.split_once('.')?;
        Some(Self { run: u64::from_str_radix(run, 16).ok()?, number: number.parse().ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.run, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_printed_position_is_read() {
        let position = Position { run: 0xab, number: 7 };
        assert_eq!(Position::parse(&position.to_string()), Some(position));
        for text in ["", "3", "ab.", ".7", "g.7", "ab.-7", "ab.7.1"] {
            assert_eq!(Position::parse(text), None, "{text}");
        }
    }
}
