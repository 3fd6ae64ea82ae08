//! A layout from outside this crate, as `docs/wire-formats.md` shows it.

use enlist::{
    Deregistered, Endpoint, Error, Instance, InstanceId, LeaseId, Namespace, RegisterOptions, Registry, Resolver,
    ServiceName, ServiceRef,
};
use enlist_etcd::{
    Etcd, KeyRange,
    layout::{Decoded, Identity, Layout, LeaseScope, Part, Skip, Writing},
};
use enlist_testkit::{EtcdServer, soon};

/// `apps/{service}/{id}` holds `host:port`.
#[derive(Debug)]
struct Apps;

impl Layout for Apps {
    fn name(&self) -> &'static str {
        "apps"
    }

    fn carries(&self) -> &'static [Part] {
        &[Part::Id]
    }

    fn identity(&self) -> Identity {
        Identity::Id
    }

    fn lease_scope(&self) -> LeaseScope {
        LeaseScope::Shared
    }

    fn key(&self, service: &ServiceRef, id: &InstanceId, _: Option<LeaseId>) -> Result<Vec<u8>, Error> {
        Ok([self.service_range(service)?.bounds().0, id.as_str().as_bytes()].concat())
    }

    fn service_range(&self, service: &ServiceRef) -> Result<KeyRange, Error> {
        // Names that would add a segment, and namespaces, which have no place in the key, are refused.
        if service.name().as_str().contains('/') || *service.namespace() != Namespace::default() {
            return Err(Error::Unsupported { what: format!("{service} in the layout apps") });
        }
        Ok(KeyRange::prefix(format!("apps/{}/", service.name())))
    }

    fn services_range(&self, _: &Namespace) -> Option<KeyRange> {
        Some(KeyRange::prefix("apps/"))
    }

    fn instance_of(&self, _: &Namespace, key: &[u8]) -> Option<(ServiceName, InstanceId)> {
        let (service, id) = std::str::from_utf8(key).ok()?.strip_prefix("apps/")?.split_once('/')?;
        Some((ServiceName::parse(service).ok()?, InstanceId::parse(id).ok()?))
    }

    fn encode(&self, _: &ServiceRef, instance: &Instance, writing: &Writing<'_>) -> Result<Vec<u8>, Error> {
        let [endpoint] = instance.endpoints() else {
            return Err(Error::Unsupported { what: "more than one endpoint in the layout apps".to_owned() });
        };
        // Fields that the value cannot hold are refused instead of dropped.
        let plain = Instance::new(instance.id().clone(), [endpoint.clone()])?;
        if *instance != plain || endpoint.protocol().is_some() || writing.owner.is_some() {
            return Err(Error::Unsupported { what: "more than an address in the layout apps".to_owned() });
        }
        Ok(endpoint.to_string().into_bytes())
    }

    fn decode(&self, service: &ServiceRef, key: &[u8], value: &[u8]) -> Result<Decoded, Skip> {
        let range = self.service_range(service).map_err(|_| Skip::Foreign)?;
        let id = key.strip_prefix(range.bounds().0).and_then(|id| std::str::from_utf8(id).ok());
        let id = id.filter(|id| !id.contains('/')).and_then(|id| InstanceId::parse(id).ok()).ok_or(Skip::Foreign)?;
        let address = std::str::from_utf8(value).map_err(|_| Skip::Malformed("no text".to_owned()))?;
        let endpoint = Endpoint::parse(address).map_err(|_| Skip::Malformed("no host:port".to_owned()))?;
        let instance = Instance::new(id, [endpoint]).map_err(|_| Skip::Malformed("no endpoint".to_owned()))?;
        Ok(Decoded { instance, owner: None })
    }
}

#[tokio::test]
async fn a_custom_layout_serves_like_any_other() {
    let server = EtcdServer::start().await;
    let etcd = Etcd::builder([server.url()]).layout(Apps).connect().await.unwrap();
    let service = ServiceRef::parse("shop").unwrap();
    let instance = Instance::new(InstanceId::parse("a").unwrap(), [Endpoint::parse("10.0.0.1:80").unwrap()]).unwrap();
    let registering = etcd.register(&service, instance.clone(), RegisterOptions::new());
    let registration = soon("registered", registering).await.unwrap();
    let mut raw = etcd_client::Client::connect([server.url()], None).await.unwrap();
    assert_eq!(raw.get("apps/shop/a", None).await.unwrap().kvs()[0].value(), b"10.0.0.1:80");
    assert_eq!(etcd.resolve(&service).await.unwrap().entries().next().unwrap().instance(), &instance);
    assert_eq!(etcd.services(&Namespace::default()).await.unwrap(), [ServiceName::parse("shop").unwrap()]);
    let refused = registration.update(|update| _ = update.weight(7)).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(soon("deregistered", registration.deregister()).await.unwrap(), Deregistered::Removed);
}

/// The page shows the code that is tested here.
#[test]
fn the_page_shows_this_layout() {
    let page = include_str!("../../docs/wire-formats.md");
    let shown = page.split("```rust,ignore\n").last().unwrap().split("```").next().unwrap();
    assert!(include_str!("custom_layout.rs").contains(shown));
}
