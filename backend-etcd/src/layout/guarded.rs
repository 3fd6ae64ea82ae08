//! Guards around layouts, which users can provide: a panic of a layout fails the call that needs it, not the task of
//! the session.
//!
//! A call that can return an error does so. The others have a safe result: a value counts as no instance, and a key in
//! a queue counts as a queue entry, because ignoring it could grant a lock twice.

use std::{fmt, sync::Arc};

use enlist::{
    Error, Instance, InstanceId, LeaseId, LockMode, LockName, Namespace, ServiceName, ServiceRef,
    backend::caught_now as caught,
};

use super::{
    Decoded, Identity, Layout, LeaseScope, LockLayout, LockOrder, Part, PermitEntryValue, QueueEntryValue, QueueKind,
    SemaphoreLayout, Skip, Writing,
};
use crate::watch::record::KeyRange;

/// Returns the error of a call that panicked.
fn panicked(name: &str, message: &str) -> Error {
    Error::Unsupported { what: format!("this in the layout {name}, which panicked ({message}),") }
}

fn unusable(field: &'static str) -> impl Fn(String) -> Error {
    move |message| Error::invalid_config(field, format!("it panicked: {message}"))
}

/// Wrapper that catches the panics of a layout. Constant properties are read once.
pub(crate) struct Guarded {
    inner: Arc<dyn Layout>,
    name: &'static str,
    carries: &'static [Part],
    default_weight: u32,
    identity: Identity,
    lease_scope: LeaseScope,
}

impl Guarded {
    /// Reads the constant properties of a layout.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if that panics.
    pub(crate) fn new(inner: Arc<dyn Layout>) -> Result<Self, Error> {
        let asked = caught(|| {
            let (name, carries, default_weight) = (inner.name(), inner.carries(), inner.default_weight());
            let (identity, lease_scope) = (inner.identity(), inner.lease_scope());
            Self { inner, name, carries, default_weight, identity, lease_scope }
        });
        asked.map_err(unusable("layout"))
    }

    fn call<T>(&self, call: impl FnOnce(&dyn Layout) -> Result<T, Error>) -> Result<T, Error> {
        caught(|| call(&*self.inner)).unwrap_or_else(|message| Err(panicked(self.name, &message)))
    }

    fn find<T>(&self, call: impl FnOnce(&dyn Layout) -> Option<T>) -> Option<T> {
        caught(|| call(&*self.inner)).unwrap_or_default()
    }

    fn read(&self, call: impl FnOnce(&dyn Layout) -> Result<Decoded, Skip>) -> Result<Decoded, Skip> {
        // The message could quote the value, which must not be logged.
        caught(|| call(&*self.inner)).unwrap_or_else(|_| Err(Skip::Malformed("the layout panicked".to_owned())))
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(&self.name).finish()
    }
}

impl Layout for Guarded {
    fn name(&self) -> &'static str {
        self.name
    }

    fn carries(&self) -> &'static [Part] {
        self.carries
    }

    fn default_weight(&self) -> u32 {
        self.default_weight
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn lease_scope(&self) -> LeaseScope {
        self.lease_scope
    }

    fn key(&self, service: &ServiceRef, id: &InstanceId, lease: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        self.call(|layout| layout.key(service, id, lease))
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        self.call(|layout| layout.service_range(service))
    }

    fn services_range(&self, namespace: &Namespace) -> Option<KeyRange> {
        self.find(|layout| layout.services_range(namespace))
    }

    fn instance_of(&self, namespace: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        self.find(|layout| layout.instance_of(namespace, key))
    }

    fn service_of(&self, namespace: &Namespace, key: &[u8]) -> Option<ServiceName> {
        self.find(|layout| layout.service_of(namespace, key))
    }

    fn namespaces_range(&self) -> Option<KeyRange> {
        self.find(<dyn Layout>::namespaces_range)
    }

    fn namespace_of(&self, key: &[u8]) -> Option<Namespace> {
        self.find(|layout| layout.namespace_of(key))
    }

    fn encode(&self, service: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        self.call(|layout| layout.encode(service, instance, writing))
    }

    fn accepts(&self, service: &ServiceRef, instance: &Instance, owner: Option<&str>) -> Result<(), Error> {
        self.call(|layout| layout.accepts(service, instance, owner))
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        self.read(|layout| layout.decode(service, key, value))
    }

    fn decode_like(&self, like: &Instance, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        self.read(|layout| layout.decode_like(like, service, key, value))
    }

    fn term(&self, value: &[u8]) -> Option<u64> {
        self.find(|layout| layout.term(value))
    }

    fn text(&self, value: &[u8]) -> Option<String> {
        self.find(|layout| layout.text(value))
    }
}

/// Wrapper that catches the panics of a lock layout. Constant properties are read once.
pub(crate) struct GuardedLocks {
    inner: Arc<dyn LockLayout>,
    name: &'static str,
    order: LockOrder,
    lease_scope: LeaseScope,
    carries_modes: bool,
}

impl GuardedLocks {
    /// Reads the constant properties of a layout.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if that panics, or if the properties contradict each other.
    pub(crate) fn new(inner: Arc<dyn LockLayout>) -> Result<Self, Error> {
        let asked = caught(|| {
            let (name, order) = (inner.name(), inner.order());
            let (lease_scope, carries_modes) = (inner.lease_scope(), inner.carries_modes());
            Self { inner, name, order, lease_scope, carries_modes }
        });
        let asked = asked.map_err(unusable("lock_layout"))?;
        if asked.order == LockOrder::FirstToCreate && asked.lease_scope == LeaseScope::Shared {
            let reason = "with one key for all contenders each needs a lease of its own";
            return Err(Error::invalid_config("lock_layout", reason));
        }
        Ok(asked)
    }

    /// Returns the value of a queue entry.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout panics.
    pub(crate) fn write(&self, kind: QueueKind, value: &QueueEntryValue) -> Result<Vec<u8>, Error> {
        self.call(|layout| Ok(layout.encode(kind, value)))
    }

    /// Returns the key of the mark of a queue entry.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the layout panics: an entry must not be created without its mark.
    pub(crate) fn mark_of(
        &self,
        kind: QueueKind,
        name: &LockName,
        lease: LeaseId,
        nonce: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        self.call(|layout| Ok(layout.mark(kind, name, lease, nonce)))
    }

    /// Calls the layout of semaphores.
    ///
    /// # Errors
    ///
    /// Those of `call`. [`Error::Unsupported`] if the layout has no semaphores, or panics.
    pub(crate) fn of_semaphores<T>(
        &self,
        call: impl FnOnce(&dyn SemaphoreLayout) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.call(|layout| match layout.semaphores() {
            Some(semaphores) => call(semaphores),
            None => Err(Error::Unsupported { what: format!("semaphores in the layout {}", self.name) }),
        })
    }

    /// Reads an entry in the queue of a semaphore. If the layout panics, later entries wait until it is gone.
    pub(crate) fn permit_entry(&self, name: &LockName, key: &[u8], value: &[u8]) -> Option<PermitEntryValue> {
        let read = self.of_semaphores(|layout| Ok(layout.decode_permit_entry(name, key, value)));
        read.unwrap_or(Some(PermitEntryValue::UNREADABLE))
    }

    fn call<T>(&self, call: impl FnOnce(&dyn LockLayout) -> Result<T, Error>) -> Result<T, Error> {
        caught(|| call(&*self.inner)).unwrap_or_else(|message| Err(panicked(self.name, &message)))
    }

    fn find<T>(&self, call: impl FnOnce(&dyn LockLayout) -> Option<T>) -> Option<T> {
        caught(|| call(&*self.inner)).unwrap_or_default()
    }
}

impl fmt::Debug for GuardedLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GuardedLocks").field(&self.name).finish()
    }
}

impl LockLayout for GuardedLocks {
    fn name(&self) -> &'static str {
        self.name
    }

    fn order(&self) -> LockOrder {
        self.order
    }

    fn lease_scope(&self) -> LeaseScope {
        self.lease_scope
    }

    fn carries_modes(&self) -> bool {
        self.carries_modes
    }

    fn queue(&self, kind: QueueKind, name: &LockName) -> Result<KeyRange, Error> {
        self.call(|layout| layout.queue(kind, name))
    }

    fn entry(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Result<Vec<u8>, Error> {
        self.call(|layout| layout.entry(kind, name, lease, nonce))
    }

    fn entries_of_lease(&self, kind: QueueKind, name: &LockName, lease: LeaseId) -> Option<KeyRange> {
        self.find(|layout| layout.entries_of_lease(kind, name, lease))
    }

    fn queues(&self, kind: QueueKind, namespace: &Namespace) -> Option<KeyRange> {
        self.find(|layout| layout.queues(kind, namespace))
    }

    fn lock_of(&self, kind: QueueKind, namespace: &Namespace, key: &[u8]) -> Option<LockName> {
        self.find(|layout| layout.lock_of(kind, namespace, key))
    }

    fn process(&self, value: &[u8]) -> Option<String> {
        self.find(|layout| layout.process(value))
    }

    fn marks(&self, kind: QueueKind, name: &LockName) -> Option<KeyRange> {
        self.find(|layout| layout.marks(kind, name))
    }

    fn all_marks(&self, kind: QueueKind, namespace: &Namespace) -> Option<KeyRange> {
        self.find(|layout| layout.all_marks(kind, namespace))
    }

    fn mark(&self, kind: QueueKind, name: &LockName, lease: LeaseId, nonce: u64) -> Option<Vec<u8>> {
        self.mark_of(kind, name, lease, nonce).unwrap_or_default()
    }

    fn decode_mark(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<LockMode> {
        caught(|| self.inner.decode_mark(kind, name, key, value)).unwrap_or(Some(LockMode::Exclusive))
    }

    fn encode(&self, kind: QueueKind, value: &QueueEntryValue) -> Vec<u8> {
        self.write(kind, value).unwrap_or_default()
    }

    fn decode(&self, kind: QueueKind, name: &LockName, key: &[u8], value: &[u8]) -> Option<QueueEntryValue> {
        let blocking = || QueueEntryValue { mode: LockMode::Exclusive, text: String::new() };
        caught(|| self.inner.decode(kind, name, key, value)).unwrap_or_else(|_| Some(blocking()))
    }
}

#[cfg(test)]
mod tests {
    use enlist::{Endpoint, Health};

    use super::*;
    use crate::layout::{etcd_concurrency::EtcdConcurrency, gobase_lock::GobaseLock, kitex::Kitex, native::Native};

    /// A layout whose answers differ from all defaults of [`Layout`].
    #[derive(Debug)]
    struct Unusual;

    impl Layout for Unusual {
        fn name(&self) -> &'static str {
            "unusual"
        }

        fn carries(&self) -> &'static [Part] {
            &[Part::Zone]
        }

        fn default_weight(&self) -> u32 {
            7
        }

        fn identity(&self) -> Identity {
            Identity::Lease
        }

        fn lease_scope(&self) -> LeaseScope {
            LeaseScope::PerKey
        }

        fn key(&self, _: &ServiceRef, _: &InstanceId, _: Option<LeaseId>) -> Result<Vec<u8>, Error> {
            Ok(b"key".to_vec())
        }

        fn service_range(&self, _: &ServiceRef) -> Result<KeyRange, Error> {
            Ok(KeyRange::prefix("service"))
        }

        fn services_range(&self, _: &Namespace) -> Option<KeyRange> {
            Some(KeyRange::prefix("services"))
        }

        fn instance_of(&self, _: &Namespace, _: &[u8]) -> Option<(ServiceName, InstanceId)> {
            Some((ServiceName::parse("found").unwrap(), InstanceId::parse("a").unwrap()))
        }

        fn service_of(&self, _: &Namespace, _: &[u8]) -> Option<ServiceName> {
            Some(ServiceName::parse("other").unwrap())
        }

        fn namespaces_range(&self) -> Option<KeyRange> {
            Some(KeyRange::prefix("namespaces"))
        }

        fn namespace_of(&self, _: &[u8]) -> Option<Namespace> {
            Some(Namespace::parse("n").unwrap())
        }

        fn encode(&self, _: &ServiceRef, _: &Instance, _: &Writing<'_>) -> Result<Vec<u8>, Error> {
            Ok(b"value".to_vec())
        }

        fn accepts(&self, _: &ServiceRef, _: &Instance, _: Option<&str>) -> Result<(), Error> {
            Err(Error::Closed)
        }

        fn decode(&self, _: &ServiceRef, _: &[u8], _: &[u8]) -> Result<Decoded, Skip> {
            Err(Skip::Foreign)
        }

        fn decode_like(&self, _: &Instance, _: &ServiceRef, _: &[u8], _: &[u8]) -> Result<Decoded, Skip> {
            Ok(Decoded { instance: instance(), owner: None })
        }

        fn term(&self, _: &[u8]) -> Option<u64> {
            Some(5)
        }

        fn text(&self, _: &[u8]) -> Option<String> {
            Some("text".to_owned())
        }
    }

    fn instance() -> Instance {
        Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap()
    }

    /// All answers of a layout.
    fn answers(layout: &dyn Layout) -> Vec<String> {
        let (service, namespace, id) = (ServiceRef::parse("s").unwrap(), Namespace::default(), instance());
        let (id, lease) = (id.id(), Some(LeaseId::new(1)));
        let like = instance().with_health(Health::Draining);
        vec![
            layout.name().to_owned(),
            format!("{:?} {}", layout.carries(), layout.default_weight()),
            format!("{:?} {:?}", layout.identity(), layout.lease_scope()),
            format!("{:?}", layout.key(&service, id, lease).ok()),
            format!("{:?}", layout.service_range(&service).ok()),
            format!("{:?}", layout.services_range(&namespace)),
            format!("{:?}", layout.instance_of(&namespace, b"enlist/services/default/s/a")),
            format!("{:?}", layout.service_of(&namespace, b"enlist/services/default/s/a")),
            format!("{:?}", layout.namespaces_range()),
            format!("{:?}", layout.namespace_of(b"enlist/services/default/s/a")),
            format!("{:?}", layout.encode(&service, &instance(), &Writing::default()).ok()),
            format!("{:?}", layout.accepts(&service, &instance(), None).is_ok()),
            format!("{:?}", layout.decode(&service, b"x", b"")),
            format!("{:?}", layout.decode_like(&like, &service, b"x", b"")),
            format!("{:?} {:?}", layout.term(b""), layout.text(b"x")),
        ]
    }

    #[test]
    fn a_guarded_layout_answers_as_the_layout() {
        let layouts: [Arc<dyn Layout>; 3] =
            [Arc::new(Unusual), Arc::new(Native::default()), Arc::new(Kitex::default())];
        for layout in layouts {
            assert_eq!(answers(&Guarded::new(Arc::clone(&layout)).unwrap()), answers(&*layout));
        }
    }

    /// All answers of a layout of locks.
    fn lock_answers(layout: &dyn LockLayout) -> Vec<String> {
        let (name, namespace, lease) = (LockName::parse("l").unwrap(), Namespace::default(), LeaseId::new(1));
        let mut answers = vec![
            layout.name().to_owned(),
            format!("{:?} {:?} {}", layout.order(), layout.lease_scope(), layout.carries_modes()),
            format!("{:?}", layout.process(br#"{"v":1,"mode":"shared","holder":"host:1"}"#)),
        ];
        for kind in [QueueKind::Lock, QueueKind::Election] {
            let entry = layout.entry(kind, &name, lease, 2).unwrap_or_default();
            let mark = layout.mark(kind, &name, lease, 2).unwrap_or_default();
            let value = QueueEntryValue { mode: LockMode::Shared, text: "text".to_owned() };
            let value = layout.encode(kind, &value);
            answers.extend([
                format!("{:?}", layout.queue(kind, &name).ok()),
                format!("{:?}", layout.entries_of_lease(kind, &name, lease)),
                format!("{:?}", layout.queues(kind, &namespace)),
                format!("{:?}", layout.lock_of(kind, &namespace, &entry)),
                format!("{:?}", layout.marks(kind, &name)),
                format!("{:?}", layout.all_marks(kind, &namespace)),
                format!("{:?}", layout.decode_mark(kind, &name, &mark, &value)),
                format!("{:?}", layout.decode_mark(kind, &name, b"foreign", &value)),
                format!("{:?}", layout.decode(kind, &name, &entry, &value)),
                format!("{:?}", layout.decode(kind, &name, b"foreign", &value)),
                format!("{entry:?} {mark:?} {value:?}"),
            ]);
        }
        answers
    }

    #[test]
    fn a_guarded_layout_of_locks_answers_as_the_layout() {
        let layouts: [Arc<dyn LockLayout>; 3] =
            [Arc::new(Native::default()), Arc::new(EtcdConcurrency), Arc::new(GobaseLock)];
        for layout in layouts {
            assert_eq!(lock_answers(&GuardedLocks::new(Arc::clone(&layout)).unwrap()), lock_answers(&*layout));
        }
    }
}
