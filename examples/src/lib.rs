//! What the examples share: the choice of the backend, and a gRPC service that greets.

pub mod greeter;

use std::{env, error::Error, sync::Arc};

use enlist::{Election, Lock, Registry, Resolver};
use enlist_memory::MemoryStore;

/// All that a program needs of a backend.
pub trait Backend: Registry + Resolver + Lock + Election {}

impl<T: Registry + Resolver + Lock + Election> Backend for T {}

/// Where the processes of an example meet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Store {
    /// In memory.
    Memory(MemoryStore),
    /// In the etcd at this URL.
    #[cfg(feature = "etcd")]
    Etcd(String),
}

impl Store {
    /// The etcd after `--etcd` on the command line, else a store in memory.
    ///
    /// # Errors
    ///
    /// If `--etcd` is given without a URL, or without the feature `etcd`.
    pub fn from_args() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut args = env::args().skip_while(|arg| arg != "--etcd");
        if args.next().is_none() {
            return Ok(Self::Memory(MemoryStore::new()));
        }
        let url = args.next().ok_or("--etcd needs a URL, such as http://127.0.0.1:2379")?;
        #[cfg(feature = "etcd")]
        return Ok(Self::Etcd(url));
        #[cfg(not(feature = "etcd"))]
        return Err(format!("build with `--features etcd` to use {url}").into());
    }

    /// A client, as if it were a process of its own.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn client(&self) -> Result<Arc<dyn Backend>, enlist::Error> {
        match self {
            Self::Memory(store) => Ok(Arc::new(store.client())),
            #[cfg(feature = "etcd")]
            Self::Etcd(url) => Ok(Arc::new(enlist_etcd::Etcd::connect(url).await?)),
        }
    }
}

/// Says whether `flag` is on the command line.
pub fn flag(flag: &str) -> bool {
    env::args().any(|arg| arg == flag)
}
