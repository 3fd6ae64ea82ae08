//! A job that runs in one place at a time: a lock, work that is aborted at its loss, and a token for the resource.
//!
//! ```text
//! cargo run --example lock_job
//! ```

use std::{error::Error, time::Duration};

use enlist::{Fence, FencingToken, LockName, LockOptions, StaleToken};
use enlist_examples::Store;

/// A resource that rejects smaller tokens than the largest one that it has seen: the only complete protection.
#[derive(Default)]
struct Ledger {
    fence: Fence,
}

impl Ledger {
    fn write(&mut self, token: FencingToken, what: &str) -> Result<(), StaleToken> {
        self.fence.admit(token)?;
        println!("{what} (token {token})");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let store = Store::from_args()?;
    let (one, two) = (store.client().await?, store.client().await?);
    let (mut ledger, name) = (Ledger::default(), LockName::parse("nightly")?);

    let guard = one.acquire(&name, LockOptions::new().ttl(Duration::from_secs(5))).await?;
    let old = guard.fencing_token();
    let job = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        ledger.write(old, "the first job is done")
    };
    match guard.run(job).await {
        Ok(written) => written?,
        Err(loss) => println!("aborted, the lock was lost: {loss:?}"),
    }
    assert!(two.try_acquire(&name, LockOptions::new()).await?.is_none());
    println!("released: {:?}", guard.release().await?);

    let guard = two.acquire(&name, LockOptions::new().deadline(Duration::from_secs(5))).await?;
    ledger.write(guard.fencing_token(), "the second job is done")?;
    println!("a late write of the first is refused: {:?}", ledger.write(old, "too late").err());
    Ok(())
}
