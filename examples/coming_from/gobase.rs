//! The example of gobase's `etcd` package, and its lock. See `docs/coming-from.md`.

use std::{error::Error, sync::Arc, time::Duration};

use enlist::{
    Directory, Endpoint, Instance, InstanceId, Lock, LockName, LockOptions, Namespace, PickError, PickPolicy,
    RegisterOptions, Registry, ServiceName, ServiceRef,
};
use enlist_etcd::{Etcd, Gobase, GobaseLock};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let etcd = Etcd::from_env()?.layout(Gobase).lock_layout(GobaseLock).connect().await?;

    // reg := etcd.NewEtcdRegister("cluster_name"); the cluster is the namespace.
    let service = ServiceRef::new(Namespace::parse("cluster_name")?, ServiceName::parse("service")?);

    // reg.Register("service", "node-1", info_json); the key is the id, info_json is the instance.
    // The key is `/cluster_name/service/node-1`.
    let instance = Instance::new(InstanceId::parse("node-1")?, [Endpoint::parse("10.0.0.1:80")?])?
        .with_weight(1)
        .with_metadata("owner", "blue");
    let options = RegisterOptions::new().ttl(Duration::from_secs(10));
    let registration = etcd.register(&service, instance, options).await?;

    // reg.UpdateInfo("service", "node-1", info_json)
    let moved = Endpoint::parse("10.0.0.2:80")?;
    registration.update(|update| _ = update.weight(3).endpoints([moved.clone()])).await?;

    // disc := etcd.NewEtcdDis("cluster_name"); disc.Watch("service")
    let view = Directory::new(Arc::new(etcd.clone())).view(&service);
    let snapshot = view.ready().await?;

    // node, has := disc.GetServiceInfoRandom("service")
    let mut picker = view.picker(PickPolicy::Random);
    match picker.pick() {
        Ok(entry) => println!("picked {}", entry.instance().endpoints()[0]),
        Err(PickError::Empty { .. }) => println!("the service has no instance"),
        Err(other) => return Err(other.into()),
    }

    // nodes, has := disc.GetServiceInfoAllNode("service")
    for entry in snapshot.entries() {
        let instance = entry.instance();
        println!("{} at {}, weight {}", instance.id(), instance.endpoints()[0], instance.weight());
        println!("owner {}", instance.metadata().get("owner").map_or("unknown", String::as_str));
    }

    // etcd.Lock("nightly", 30)
    let nightly = LockName::parse("nightly")?;
    match etcd.try_acquire(&nightly, LockOptions::new().ttl(Duration::from_secs(30))).await? {
        Some(guard) => {
            println!("held with token {}", guard.fencing_token());
            guard.release().await?;
        }
        None => println!("another process holds it"),
    }

    // Go has no deregistration: its process ends, and the key after its TTL.
    registration.deregister().await?;
    Ok(())
}
