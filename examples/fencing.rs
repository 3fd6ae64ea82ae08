//! Fencing: a holder that is paused between its last check and its write. Without a fence updates are lost, with a
//! fence they are not.
//!
//! ```text
//! cargo run --example fencing
//! ```
//!
//! A holder reads a counter and then loses its connection for longer than its lease, like a stopped process or a paused
//! machine. A second holder increments the counter. Then the first one continues and writes its old value.

use std::{error::Error, time::Duration};

use enlist::{Fence, FencingToken, Lock, LockGuard, LockName, LockOptions, StaleToken};
use enlist_memory::MemoryStore;

/// A counter outside of the store. The fence is stored with the data, and guards reads and writes.
struct Counter {
    /// Without a fence every access is admitted.
    fence: Option<Fence>,
    value: u64,
}

impl Counter {
    /// Reads pass the fence as well: a holder that has read excludes its predecessors, which could otherwise write
    /// between its read and its write.
    fn open(&mut self, token: FencingToken) -> Result<&mut u64, StaleToken> {
        if let Some(fence) = &mut self.fence {
            fence.admit(token)?;
        }
        Ok(&mut self.value)
    }
}

async fn acquire(client: &impl Lock) -> Result<LockGuard, enlist::Error> {
    client.acquire(&LockName::parse("counter")?, LockOptions::new().ttl(Duration::from_secs(2))).await
}

/// Outcome of a write by a holder that has lost its lock.
#[derive(Debug, PartialEq, Eq)]
enum LateWrite {
    Accepted,
    Refused(StaleToken),
}

/// Returns the outcome of the first holder's write.
async fn overtaken_holder(counter: &mut Counter) -> Result<LateWrite, Box<dyn Error + Send + Sync>> {
    let store = MemoryStore::new();
    let (one, two) = (store.client(), store.client());

    let first = acquire(&one).await?;
    let read = *counter.open(first.fencing_token())?;
    assert!(first.is_held(), "its last check");
    one.cut();

    // Granted after the lease of the first holder has expired.
    let second = acquire(&two).await?;
    for _ in 0..3 {
        *counter.open(second.fencing_token())? += 1;
    }

    let late = match counter.open(first.fencing_token()) {
        Ok(value) => {
            *value = read + 1;
            LateWrite::Accepted
        }
        Err(stale) => LateWrite::Refused(stale),
    };
    assert!(!first.is_held(), "another check would have shown the loss");
    Ok(late)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut wrong = Counter { fence: None, value: 0 };
    let late = overtaken_holder(&mut wrong).await?;
    println!("without a fence: three were added, then a late write got through, and the counter shows {}", wrong.value);
    assert_eq!((late, wrong.value), (LateWrite::Accepted, 1), "updates are lost");

    let mut right = Counter { fence: Some(Fence::default()), value: 0 };
    let LateWrite::Refused(refused) = overtaken_holder(&mut right).await? else {
        return Err("an overtaken holder is refused".into());
    };
    println!("with a fence: the counter shows {}, and the late write was refused: {refused}", right.value);
    assert_eq!(right.value, 3, "nothing is lost");
    Ok(())
}
