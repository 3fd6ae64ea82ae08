//! The numbers that tell the places of a session in a line apart. They are used again: each key that ever was in a line costs
//! etcd time at every look at the line, until the history is compacted.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::defects::Defect;

/// The numbers of all lines.
#[derive(Debug, Default)]
pub(crate) struct KeySuffixes {
    lines: Mutex<HashMap<Vec<u8>, InUse>>,
}

/// The numbers of one line.
#[derive(Debug, Default)]
struct InUse {
    /// Largest number that was taken at a time.
    taken: u64,
    free: Vec<u64>,
}

impl KeySuffixes {
    /// Takes a number that no place in `line` has.
    pub(crate) fn take(&self, line: &[u8]) -> u64 {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = lines.entry(line.to_vec()).or_default();
        if Defect::NumbersShared.is_on() {
            return 0;
        }
        numbers.free.pop().unwrap_or_else(|| {
            numbers.taken += 1;
            numbers.taken - 1
        })
    }

    /// Number of places of this session in `line`.
    pub(crate) fn in_use(&self, line: &[u8]) -> u64 {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get(line).map_or(0, |numbers| numbers.taken - numbers.free.len() as u64)
    }

    /// Gives a number back whose key is gone for good.
    pub(crate) fn give_back(&self, line: &[u8], number: u64) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(numbers) = lines.get_mut(line) {
            numbers.free.push(number);
            if numbers.free.len() as u64 == numbers.taken {
                lines.remove(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_never_twice_at_a_time() {
        let numbers = KeySuffixes::default();
        assert_eq!([numbers.take(b"l"), numbers.take(b"l"), numbers.take(b"other")], [0, 1, 0]);
        numbers.give_back(b"l", 0);
        assert_eq!([numbers.take(b"l"), numbers.take(b"l")], [0, 2]);
        assert_eq!([numbers.in_use(b"l"), numbers.in_use(b"nobody's")], [3, 0]);
        for number in 0..3 {
            numbers.give_back(b"l", number);
        }
        numbers.give_back(b"other", 0);
        assert!(numbers.lines.lock().unwrap().is_empty());
    }
}
