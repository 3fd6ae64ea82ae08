//! Support for backends that implement `Registry` and `Resolver` only.

use std::time::Duration;

use async_trait::async_trait;
use enlist::{
    Election, Entry, Error, Evicted, Instance, InstanceId, Leader, LeaderWatcher, Leadership, Lease, Lock, LockGuard,
    LockName, LockOptions, Namespace, RawRegistration, RawSnapshot, RawValues, RawWatcher, RegisterOptions,
    Registration, Registry, Resolver, Revision, ServiceName, ServiceRef, Snapshot, Watcher,
};

/// A backend whose locks, elections and raw values return `Unsupported`.
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
