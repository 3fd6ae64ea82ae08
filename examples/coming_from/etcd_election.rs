//! An election of etcd's `concurrency` package. See `docs/coming-from.md`.

use std::{error::Error, time::Duration};

use enlist::{Election, LockName, LockOptions};
use enlist_etcd::{Etcd, EtcdConcurrency};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let etcd = Etcd::from_env()?.lock_layout(EtcdConcurrency).connect().await?;
    // The key of a candidate is `/my-election/{lease, hex}`, as in Go.
    let name = LockName::parse("/my-election")?;

    // ch := e.Observe(ctx); the first one is the leader as it is now, or nobody.
    let mut leaders = etcd.observe(&name).await?;
    let first = leaders.next().await?.leader;
    println!("{} leads", first.map_or("nobody".to_owned(), |leader| leader.value));

    // s, err := concurrency.NewSession(c, concurrency.WithTTL(10)); e := concurrency.NewElection(s, "/my-election")
    // ctx, cancel := context.WithTimeout(ctx, 30*time.Second); e.Campaign(ctx, "10.0.0.1:9000")
    let options = LockOptions::new().ttl(Duration::from_secs(10)).deadline(Duration::from_secs(30));
    let leadership = etcd.campaign(&name, "10.0.0.1:9000", options).await?;
    // e.Rev(); the work ends at its next await if the leadership is lost.
    let work = leadership.run(async { println!("leads with token {}", leadership.fencing_token()) });
    if let Err(loss) = work.await {
        println!("lost: {loss:?}");
    }

    // e.Proclaim(ctx, "10.0.0.1:9001")
    leadership.proclaim("10.0.0.1:9001").await?;

    // resp, err := e.Leader(ctx)
    match etcd.leader(&name).await? {
        Some(leader) => println!("{} leads with token {}", leader.value, leader.token),
        None => println!("nobody leads"),
    }

    // e.Resign(ctx)
    println!("resigned: {:?}", leadership.resign().await?);
    Ok(())
}
