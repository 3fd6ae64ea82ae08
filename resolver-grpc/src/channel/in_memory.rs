//! Support of unit tests: a service whose instances are reached over streams in memory, so that ten thousand
//! connections need neither sockets nor tasks.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use enlist::{Directory, Endpoint, Instance, InstanceId, Registry, ServiceRef, ServiceView, backend::MutexExt as _};
use enlist_memory::{MemoryClient, MemoryStore};
use futures::future::BoxFuture;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use crate::retry::failure::BoxError;

/// The first frame of a server: SETTINGS without a setting (RFC 9113, section 6.5).
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Bytes that a client sends before its first call, and more.
const BUFFER: usize = 1 << 10;

/// A view of `count` instances with an endpoint each, and the client that published them.
pub(crate) async fn view(count: u32, endpoint: impl Fn(u32) -> String) -> (ServiceView, MemoryClient) {
    let client = MemoryStore::new().client();
    let service = ServiceRef::parse("echo").unwrap();
    for n in 0..count {
        client.publish(&service, instance(n, &endpoint(n))).await.unwrap();
    }
    let view = Directory::new(Arc::new(client.clone())).view(&service);
    view.ready().await.unwrap();
    (view, client)
}

/// The instance with this number.
pub(crate) fn instance(n: u32, endpoint: &str) -> Instance {
    Instance::new(InstanceId::parse(format!("i{n}")).unwrap(), [Endpoint::parse(endpoint).unwrap()]).unwrap()
}

/// An endpoint of its own for each instance.
pub(crate) fn address(n: u32) -> String {
    let [_, _, high, low] = n.to_be_bytes();
    format!("127.1.{high}.{low}:1")
}

/// Servers that accept every connection and answer no call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Servers {
    dialling: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<DuplexStream>>>,
}

impl Servers {
    /// A connector to the servers, each of which accepts after `delay`.
    pub(crate) fn connector(
        &self,
        delay: Duration,
    ) -> impl Fn(&Instance, &Endpoint) -> BoxFuture<'static, Result<DuplexStream, BoxError>> + Send + Sync + 'static
    {
        let servers = self.clone();
        move |_, _| {
            let servers = servers.clone();
            Box::pin(async move {
                let now = servers.dialling.fetch_add(1, Ordering::SeqCst) + 1;
                servers.most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(delay).await;
                let (client, mut server) = duplex(BUFFER);
                server.write_all(&SETTINGS).await?;
                servers.open.locked().push(server);
                servers.dialling.fetch_sub(1, Ordering::SeqCst);
                Ok(client)
            })
        }
    }

    /// Maximum number of dials at a time so far.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}
