//! Fencing on the side of the guarded resource: callers with an outdated token are refused.

use serde::{Deserialize, Serialize};

use crate::model::revision::FencingToken;

/// Highest [`FencingToken`] that a resource has seen. A caller with a smaller one is outdated and is refused.
///
/// A fence makes a lock safe for a resource outside the store, despite clock errors, pauses and network faults. It has
/// two conditions. First, it is kept *with* the data: behind the same mutex, in the same file, in the same row or
/// transaction, so that no other access comes between [`admit`](Self::admit) and the write. Second, it is also checked
/// at the first *read* of a read-modify-write: a holder that only reads must already exclude its predecessors, or one
/// of them may still write between the read and the write.
///
/// It serializes as a number. Shared holders have individual tokens and need not pass a fence as long as they only
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

/// Error for a token below the highest seen: its holder lost the lock, and a later one has used the resource since.
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

    /// Admits the holder of `token` and records the token, or refuses a token below the highest seen. A holder can be
    /// admitted any number of times.
    ///
    /// # Errors
    ///
    /// [`StaleToken`]; the fence is unchanged then.
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
