//! The resource's side of a lock: refusing callers with an outdated token.

use serde::{Deserialize, Serialize};

use crate::model::revision::FencingToken;

/// The highest [`FencingToken`] that a resource has seen; a caller with a smaller one is outdated and is
/// refused.
///
/// This is what makes a lock safe over something outside the store, whatever clocks, pauses and networks do. It works
/// under two conditions. It is kept *with* the data: behind the same mutex, in the same file, in the same row or
/// transaction, so that nothing comes between [`admit`](Self::admit) and the write. And it is asked at the first *read*
/// of a read-modify-write too: a holder that only reads must already shut its predecessors out, or one of them may
/// still write between its read and its write.
///
/// It serializes as a number. Shared holders have tokens of their own and need not pass a fence as long as they only
/// read.
///
/// ```
/// use enlist::{Fence, FencingToken};
///
/// let mut fence = Fence::default();
/// let (old, new) = (FencingToken::new(7), FencingToken::new(9));
/// assert!(fence.admit(old).is_ok());
/// assert!(fence.admit(new).is_ok());
/// assert_eq!(fence.admit(old).unwrap_err().highest, new);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence {
    highest: u64,
}

/// A smaller token than the resource has seen: its holder lost the lock, and another has come since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fencing token {token} was overtaken by {highest}")]
#[non_exhaustive]
pub struct StaleToken {
    /// The token that was refused.
    pub token: FencingToken,
    /// The highest one that was seen.
    pub highest: FencingToken,
}

impl Fence {
    /// A fence of a resource that was last used under `highest`.
    pub fn new(highest: FencingToken) -> Self {
        Self { highest: highest.get() }
    }

    /// The highest token seen; 0 if there was none.
    pub fn highest(&self) -> FencingToken {
        FencingToken::new(self.highest)
    }

    /// Lets the holder of `token` pass and remembers it, or refuses a token that was overtaken. A holder may pass as
    /// often as it likes.
    ///
    /// # Errors
    ///
    /// [`StaleToken`]; nothing was changed then.
    pub fn admit(&mut self, token: FencingToken) -> Result<(), StaleToken> {
        if token.get() < self.highest {
            return Err(StaleToken { token, highest: self.highest() });
        }
        self.highest = token.get();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_survives_being_stored() {
        let mut fence = Fence::new(FencingToken::new(41));
        fence.admit(FencingToken::new(42)).unwrap();
        let stored = serde_json::to_string(&fence).unwrap();
        assert_eq!(stored, "42");
        let mut restored: Fence = serde_json::from_str(&stored).unwrap();
        assert!(restored.admit(FencingToken::new(41)).is_err());
        assert!(restored.admit(FencingToken::new(42)).is_ok());
        assert_eq!(restored.highest(), FencingToken::new(42));
    }
}
