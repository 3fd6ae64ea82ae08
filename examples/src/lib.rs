//! Code that the examples share: the choice of the backend, and a gRPC service.

pub mod greeter;
#[cfg(feature = "etcd")]
mod layouts;

use std::{env, error::Error, sync::Arc};

use enlist::{Config, Election, Lock, Registry, Resolver};
use enlist_memory::MemoryStore;

/// All traits that a program uses.
pub trait Backend: Registry + Resolver + Lock + Election {}

impl<T: Registry + Resolver + Lock + Election> Backend for T {}

/// Store that the processes of an example share.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Store {
    /// The memory backend.
    Memory(MemoryStore),
    /// etcd.
    #[cfg(feature = "etcd")]
    Etcd(Box<enlist_etcd::EtcdBuilder>),
}

#[cfg_attr(not(feature = "etcd"), expect(clippy::unused_async, reason = "nothing but etcd is waited for"))]
impl Store {
    /// Returns the etcd of the option `--etcd`, with the layout `--layout` and the prefix `--prefix`; the memory
    /// backend without `--etcd`.
    ///
    /// # Errors
    ///
    /// If an option has no value or an invalid one, if `--layout` or `--prefix` is given without `--etcd`, or `--etcd`
    /// without the feature `etcd`.
    pub fn from_args() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (layout, prefix) = (option("--layout")?, option("--prefix")?);
        let Some(endpoint) = option("--etcd")? else {
            if layout.is_some() || prefix.is_some() {
                return Err("--layout and --prefix need --etcd".into());
            }
            return Ok(Self::Memory(MemoryStore::new()));
        };
        #[cfg(feature = "etcd")]
        return Ok(Self::Etcd(Box::new(layouts::builder(&endpoint, layout.as_deref(), prefix.as_deref())?)));
        #[cfg(not(feature = "etcd"))]
        return Err(format!("build with `--features etcd` to use {endpoint}").into());
    }

    /// Creates a client, which stands for a process of its own.
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
            Self::Etcd(builder) => Ok(Arc::new(builder.as_ref().clone().connect().await?)),
        }
    }

    /// Creates a client for configuration.
    ///
    /// # Errors
    ///
    /// If etcd does not answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn config(&self) -> Result<Arc<dyn Config>, enlist::Error> {
        match self {
            Self::Memory(store) => Ok(Arc::new(store.client())),
            #[cfg(feature = "etcd")]
            Self::Etcd(builder) => Ok(Arc::new(builder.as_ref().clone().connect().await?)),
        }
    }
}

/// Returns the value after `name` on the command line.
///
/// # Errors
///
/// If `name` has no value.
pub fn option(name: &str) -> Result<Option<String>, String> {
    let mut args = env::args().skip_while(|arg| arg != name);
    if args.next().is_none() {
        return Ok(None);
    }
    let value = args.next().filter(|value| !value.starts_with("--"));
    Ok(Some(value.ok_or_else(|| format!("{name} needs a value"))?))
}

/// Returns the protocol that the endpoints of a gRPC server name in the layout `--layout`: clients of kratos connect
/// only to endpoints that begin with `grpc://`, and the other libraries expect an address alone.
///
/// # Errors
///
/// If `--layout` has no value.
pub fn endpoint_protocol() -> Result<Option<&'static str>, String> {
    Ok(option("--layout")?.filter(|layout| layout == "kratos").map(|_| "grpc"))
}

/// Returns `true` if `flag` is on the command line.
pub fn flag(flag: &str) -> bool {
    env::args().any(|arg| arg == flag)
}

/// Runs the programs of the tutorial, of the how-to guides and of the reference as tests.
#[cfg(all(doctest, feature = "etcd"))]
mod guides {
    #[doc = include_str!("../../docs/guides/containers.md")]
    struct Containers;
    #[doc = include_str!("../../docs/guides/cron-under-a-lock.md")]
    struct CronUnderALock;
    #[doc = include_str!("../../docs/getting-started.md")]
    struct GettingStarted;
    #[doc = include_str!("../../docs/grpc.md")]
    struct Grpc;
    #[doc = include_str!("../../docs/guides/kubernetes.md")]
    struct Kubernetes;
    #[doc = include_str!("../../docs/guides/live-configuration.md")]
    struct LiveConfiguration;
    #[doc = include_str!("../../docs/locks.md")]
    struct Locks;
    #[doc = include_str!("../../docs/guides/moving-a-go-fleet.md")]
    struct MovingAGoFleet;
    #[doc = include_str!("../../docs/guides/testing.md")]
    struct Testing;
    #[doc = include_str!("../../docs/guides/tls.md")]
    struct Tls;
    #[doc = include_str!("../../docs/wire-formats.md")]
    struct WireFormats;
}

/// Runs the programs of the crates' READMEs as tests.
#[cfg(all(doctest, feature = "etcd"))]
mod readmes {
    #[doc = include_str!("../../backend-etcd/README.md")]
    struct BackendEtcd;
    #[doc = include_str!("../../backend-memory/README.md")]
    struct BackendMemory;
    #[doc = include_str!("../../core/README.md")]
    struct CoreReadme;
    #[doc = include_str!("../../resolver-grpc/README.md")]
    struct ResolverGrpc;
    #[doc = include_str!("../../testkit/README.md")]
    struct Testkit;
}
