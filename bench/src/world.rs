//! An etcd of the scenario's own, filled with instances, and a count of its requests.

use std::time::Duration;

use crate::measure::Result;
use enlist::{Endpoint, Instance, InstanceId, Moment, ServiceRef};
use enlist_etcd::{
    Etcd, Native,
    layout::{Layout, Writing},
};
use enlist_testkit::{EtcdServer, Provider, Proxy, ServerOptions};
use etcd_client::{Client, PutOptions, Txn, TxnOp};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Maximum number of operations in a transaction.
pub const MAX_OPS: usize = 128;

/// Storage quota for many revisions of a hundred thousand keys.
const QUOTA: &str = "--quota-backend-bytes=8589934592";

/// Metric of received messages.
const RECEIVED: &str = "grpc_server_msg_received_total";

/// An etcd and its clients.
#[derive(Debug)]
pub struct World {
    server: EtcdServer,
}

impl World {
    /// Starts an etcd.
    pub async fn start() -> Self {
        Self { server: EtcdServer::start_with(Provider::own(), ServerOptions::new().arguments([QUOTA])).await }
    }

    /// Returns its address.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Starts a proxy to it.
    ///
    /// # Errors
    ///
    /// If no port is free.
    pub async fn proxy(&self) -> Result<Proxy> {
        Ok(Proxy::start(self.server.address()).await?)
    }

    /// Returns a connected client of `enlist`.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub async fn ours(&self) -> Result<Etcd> {
        Ok(Etcd::connect(self.url()).await?)
    }

    /// Returns a connected client of `enlist` that does not compare its views with the store.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub async fn without_audits(&self) -> Result<Etcd> {
        Ok(Etcd::builder([self.url()]).audit(None).connect().await?)
    }

    /// Returns a connected plain client with a connection of its own.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub async fn raw(&self) -> Result<Client> {
        let mut client = Client::connect([self.url()], None).await?;
        client.get("connected?", None).await?;
        Ok(client)
    }

    /// Stores `count` instances of `service` without a lease.
    ///
    /// # Errors
    ///
    /// If etcd refuses.
    pub async fn fill(&self, service: &ServiceRef, count: usize) -> Result {
        let mut client = self.raw().await?;
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(MAX_OPS) {
            let puts: Result<Vec<TxnOp>> = some.iter().map(|number| put(service, *number, 100, None)).collect();
            client.txn(Txn::new().and_then(puts?)).await?;
        }
        Ok(())
    }

    /// Returns the number of messages that etcd has received, without renewals: each request, and each message on a
    /// watch.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub async fn requests(&self) -> Result<f64> {
        self.metric(RECEIVED, |labels| !labels.contains("LeaseKeepAlive")).await
    }

    /// Returns the number of messages that etcd has received, renewals included.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub async fn messages(&self) -> Result<f64> {
        self.metric(RECEIVED, |_| true).await
    }

    /// Returns the processor time that etcd has used, in microseconds. It is counted in steps of 10 ms.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    pub async fn processor_time(&self) -> Result<f64> {
        Ok(self.metric("process_cpu_seconds_total", |_| true).await? * 1e6)
    }

    async fn metric(&self, name: &str, is_counted: impl Fn(&str) -> bool) -> Result<f64> {
        Ok(self.server.metric(name, is_counted).await.ok_or_else(|| format!("etcd states no {name}"))?)
    }

    /// Returns the version of etcd.
    ///
    /// # Errors
    ///
    /// If etcd does not say.
    pub async fn version(&self) -> Result<String> {
        Ok(self.server.versions().await.ok_or("no version")?.0)
    }
}

/// Returns a typical instance: its value is about 150 bytes of JSON.
///
/// # Errors
///
/// None; names are well-formed.
pub fn instance(number: usize) -> Result<Instance> {
    let id = InstanceId::parse(format!("i-{number:06}"))?;
    let [_, a, b, c] = u32::try_from(number)?.to_be_bytes();
    let endpoint = Endpoint::parse(format!("grpc://10.{a}.{b}.{c}:8080"))?;
    Ok(Instance::new(id, [endpoint])?.with_version("1.4").with_zone("eu-1").with_metadata("team", "blue"))
}

/// Returns a put of instance `number` with this weight.
///
/// # Errors
///
/// None; names are well-formed.
pub fn put(service: &ServiceRef, number: usize, weight: u32, lease: Option<i64>) -> Result<TxnOp> {
    let (key, value) = pair(service, number, weight)?;
    Ok(TxnOp::put(key, value, lease.map(|lease| PutOptions::new().with_lease(lease))))
}

/// Returns key and value of instance `number` with this weight, in the native layout.
///
/// # Errors
///
/// None; names are well-formed.
pub fn pair(service: &ServiceRef, number: usize, weight: u32) -> Result<(Vec<u8>, Vec<u8>)> {
    let (layout, instance) = (Native::default(), instance(number)?.with_weight(weight));
    let key = layout.key(service, instance.id(), None)?;
    let value = layout.encode(service, &instance, &Writing::default())?;
    Ok((key, value))
}

/// Returns the key range of a service.
///
/// # Errors
///
/// None; names are well-formed.
pub fn range(service: &ServiceRef) -> Result<(Vec<u8>, Vec<u8>)> {
    let range = Native::default().service_range(service)?;
    let (start, end) = range.bounds();
    Ok((start.to_vec(), end.unwrap_or_default().to_vec()))
}

/// Raises the limit of open files of this process to the maximum, and returns it.
///
/// # Errors
///
/// If the system refuses.
pub fn most_files() -> Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Returns the time of a synchronous write of 4 KiB to the disk in microseconds, which bounds every write of etcd.
///
/// # Errors
///
/// If the disk cannot be written to.
pub fn sync_time() -> Result<f64> {
    use std::io::Write as _;
    let directory = std::env::temp_dir();
    let path = directory.join(format!("enlist-bench-{}", std::process::id()));
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Moment::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(micros(begun.elapsed()));
    }
    std::fs::remove_file(&path)?;
    Ok(crate::measure::Spread::of(times).median)
}

/// Returns a duration in microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
