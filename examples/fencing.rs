//! What if the holder of a lock is paused between its last check and its write? The wrong way loses updates, the right way does not.
//!
//! ```text
//! cargo run --example fencing
//! ```
//!
//! A holder reads a counter and is then cut off for longer than its lease lives, as a stopped process or a paused machine is. A second
//! holder counts on. Then the first one wakes in the middle of its work and writes what it had in mind.

use std::{error::Error, time::Duration};

use enlist::{Fence, FencingToken, Lock, LockGuard, LockName, LockOptions, StaleToken};
use enlist_memory::MemoryStore;

/// A counter outside of the store. The fence is kept with the data, and whoever wants either passes it first.
struct Counter {
    /// Without one, everybody passes: the lock was held a moment ago, so it will be all right.
    fence: Option<Fence>,
    value: u64,
}

impl Counter {
    /// Reads pass the fence too: a holder that has only read shuts its predecessors out already, or one of them could write
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

/// Says what the first holder was told when it woke.
async fn overtaken_holder(counter: &mut Counter) -> Result<Result<(), StaleToken>, Box<dyn Error + Send + Sync>> {
    let store = MemoryStore::new();
    let (one, two) = (store.client(), store.client());

    let first = acquire(&one).await?;
    let read = *counter.open(first.fencing_token())?;
    assert!(first.is_held(), "its last check");
    one.cut();

    // Granted only once the lease of the first has run out.
    let second = acquire(&two).await?;
    for _ in 0..3 {
        *counter.open(second.fencing_token())? += 1;
    }

    let late = counter.open(first.fencing_token()).map(|value| *value = read + 1);
    assert!(!first.is_held(), "had it asked once more, it would have known");
    Ok(late)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut wrong = Counter { fence: None, value: 0 };
    let late = overtaken_holder(&mut wrong).await?;
    println!("without a fence: three were added, then a late write got through, and the counter shows {}", wrong.value);
    assert_eq!((late, wrong.value), (Ok(()), 1), "updates are lost");

    let mut right = Counter { fence: Some(Fence::default()), value: 0 };
    let refused = overtaken_holder(&mut right).await?.expect_err("whoever was overtaken is refused");
    println!("with a fence: the counter shows {}, and the late write was refused: {refused}", right.value);
    assert_eq!(right.value, 3, "nothing is lost");
    Ok(())
}
