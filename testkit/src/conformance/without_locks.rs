//! Support for backends that implement `Registry` and `Resolver` only.

use std::time::Duration;

use async_trait::async_trait;
use enlist::{
    Config, ConfigScope, ConfigSnapshot, ConfigWatcher, ConfigWrite, Election, Entry, Error, Evicted, Instance,
    InstanceId, Leader, LeaderWatcher, Leadership, Lease, Lock, LockGuard, LockName, LockOptions, Namespace,
    PermitGuard, Queues, RawRegistration, RawSnapshot, RawValues, RawWatcher, RegisterOptions, Registration, Registry,
    Resolver, Revision, Semaphore, SemaphoreOptions, ServiceName, ServiceRef, ServicesWatcher, Snapshot, Watcher,
};

/// A backend whose locks, elections, semaphores, queues, raw values and configuration return `Unsupported`.
#[derive(Debug)]
pub(crate) struct WithoutLocks<B>(pub(crate) B);

fn unsupported<T>(what: &str) -> Result<T, Error> {
    Err(Error::Unsupported { what: what.to_owned() })
}

#[async_trait]
impl<B: Registry> Registry for WithoutLocks<B> {
    async fn register(&self, s: &ServiceRef, i: Instance, options: RegisterOptions) -> Result<Registration, Error> {
        self.0.register(s, i, options).await
    }

    async fn publish(&self, service: &ServiceRef, instance: Instance) -> Result<Revision, Error> {
        self.0.publish(service, instance).await
    }

    async fn remove(&self, service: &ServiceRef, id: &InstanceId) -> Result<Entry, Error> {
        self.0.remove(service, id).await
    }

    async fn evict(&self, s: &ServiceRef, id: &InstanceId, modified: Option<Revision>) -> Result<Evicted, Error> {
        self.0.evict(s, id, modified).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error> {
        self.0.grant_lease(ttl).await
    }
}

#[async_trait]
impl<B: Resolver> Resolver for WithoutLocks<B> {
    async fn resolve(&self, service: &ServiceRef) -> Result<Snapshot, Error> {
        self.0.resolve(service).await
    }

    async fn watch(&self, service: &ServiceRef) -> Result<Box<dyn Watcher>, Error> {
        self.0.watch(service).await
    }

    async fn services(&self, namespace: &Namespace) -> Result<Vec<ServiceName>, Error> {
        self.0.services(namespace).await
    }

    async fn watch_services(&self, namespace: &Namespace) -> Result<Box<dyn ServicesWatcher>, Error> {
        self.0.watch_services(namespace).await
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.0.namespaces().await
    }
}

#[async_trait]
impl<B: Registry> Lock for WithoutLocks<B> {
    async fn acquire(&self, _: &LockName, _: LockOptions) -> Result<LockGuard, Error> {
        unsupported("acquiring a lock")
    }

    async fn try_acquire(&self, _: &LockName, _: LockOptions) -> Result<Option<LockGuard>, Error> {
        unsupported("acquiring a lock")
    }
}

#[async_trait]
impl<B: Registry> Election for WithoutLocks<B> {
    async fn campaign(&self, _: &LockName, _: &str, _: LockOptions) -> Result<Leadership, Error> {
        unsupported("campaigning")
    }

    async fn leader(&self, _: &LockName) -> Result<Option<Leader>, Error> {
        unsupported("finding a leader")
    }

    async fn observe(&self, _: &LockName) -> Result<LeaderWatcher, Error> {
        unsupported("observing an election")
    }
}

impl<B: Registry> Queues for WithoutLocks<B> {}

#[async_trait]
impl<B: Registry> Semaphore for WithoutLocks<B> {
    async fn acquire_permits(&self, _: &LockName, _: SemaphoreOptions) -> Result<PermitGuard, Error> {
        unsupported("acquiring permits")
    }

    async fn try_acquire_permits(&self, _: &LockName, _: SemaphoreOptions) -> Result<Option<PermitGuard>, Error> {
        unsupported("acquiring permits")
    }

    async fn permits(&self, _: &LockName) -> Result<Option<u32>, Error> {
        unsupported("reading the number of permits")
    }

    async fn set_permits(&self, _: &LockName, _: u32) -> Result<(), Error> {
        unsupported("setting the number of permits")
    }
}

#[async_trait]
impl<B: Registry> RawValues for WithoutLocks<B> {
    async fn list_prefix(&self, _: &[u8]) -> Result<RawSnapshot, Error> {
        unsupported("listing a prefix")
    }

    async fn watch_prefix(&self, _: &[u8]) -> Result<Box<dyn RawWatcher>, Error> {
        unsupported("watching a prefix")
    }

    async fn register_value(&self, _: &[u8], _: Vec<u8>, _: RegisterOptions) -> Result<RawRegistration, Error> {
        unsupported("registering a value")
    }
}

#[async_trait]
impl<B: Registry> Config for WithoutLocks<B> {
    async fn list(&self, _: &Namespace, _: &ConfigScope) -> Result<ConfigSnapshot, Error> {
        unsupported("listing configuration")
    }

    async fn watch(&self, _: &Namespace, _: &ConfigScope) -> Result<Box<dyn ConfigWatcher>, Error> {
        unsupported("watching configuration")
    }

    async fn write(&self, _: &Namespace, _: Vec<ConfigWrite>) -> Result<Revision, Error> {
        unsupported("writing configuration")
    }
}
