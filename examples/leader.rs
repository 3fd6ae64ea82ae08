//! Election of one leader among several processes, with an observer.
//!
//! ```text
//! cargo run --example leader
//! ```

use std::error::Error;

use enlist::{Candidate, LockName, LockOptions};
use enlist_examples::Store;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let store = Store::from_args()?;
    let (one, two, observer) = (store.client().await?, store.client().await?, store.client().await?);
    let name = LockName::parse("scheduler")?;
    let mut leaders = observer.observe(&name).await?;
    println!("nobody leads: {:?}", leaders.next().await?.leader);

    let leadership = one.campaign(&name, "10.0.0.1:9000", LockOptions::new()).await?;
    println!("observed: {:?}", leaders.next().await?.leader);

    leadership.proclaim("10.0.0.1:9001").await?;
    println!("observed: {:?}", leaders.next().await?.leader);

    // The second candidate waits until the first one resigns.
    let next = two.campaign(&name, "10.0.0.2:9000", LockOptions::new());
    let (next, resigned) = tokio::join!(next, leadership.resign());
    println!("the first resigned: {:?}", resigned?);
    let next = next?;
    println!("the second leads with token {}: {:?}", next.fencing_token(), two.leader(&name).await?);
    next.resign().await?;

    // Work of the leader: it is aborted when the leadership is lost, and started anew after the next election.
    let candidate = Candidate::new(one, name, "10.0.0.1:9000").again_after_loss();
    let done = candidate.run(async |leadership| format!("worked under token {}", leadership.fencing_token())).await?;
    println!("{done}");
    Ok(())
}
