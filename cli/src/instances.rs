//! `enlist resolve`, `services`, `publish` and `remove`.

use std::{sync::Arc, time::Duration};

use enlist::{Cause, Endpoint, Entry, Error, Instance, InstanceId, LeaseId, Registry, Resolver, ServiceRef, Snapshot};
use enlist_etcd::Etcd;
use serde_json::json;

use crate::{
    args::{Details, Global, Publish, Remove, Resolve},
    output::{Failure, InstanceObject, Output, Text, To},
    signals::Signals,
    table,
};

/// Returns the instance that the command line describes.
pub(crate) fn instance(addresses: Vec<Endpoint>, details: &Details, etcd: &Etcd) -> Result<Instance, Failure> {
    let mut instance = match &details.id {
        Some(id) => Instance::new(InstanceId::parse(id)?, addresses)?,
        None => Instance::at(addresses)?,
    };
    instance = instance.with_weight(details.weight.unwrap_or_else(|| etcd.layout().default_weight()));
    if let Some(version) = &details.version {
        instance = instance.with_version(version);
    }
    if let Some(zone) = &details.zone {
        instance = instance.with_zone(zone);
    }
    Ok(details.meta.iter().fold(instance, |instance, (key, value)| instance.with_metadata(key, value)))
}

fn object(service: &ServiceRef, entry: &Entry) -> serde_json::Value {
    let mut object = json!({ "service": service.to_string() });
    if let (Some(object), Ok(serde_json::Value::Object(fields))) =
        (object.as_object_mut(), serde_json::to_value(InstanceObject::from(entry)))
    {
        object.extend(fields);
    }
    object
}

pub(crate) async fn resolve(global: &Global, resolve: &Resolve, output: Output) -> Result<u8, Failure> {
    let (etcd, service) = (global.client()?, global.service(&resolve.service)?);
    let snapshot = match resolve.wait {
        None => etcd.resolve(&service).await?,
        Some(limit) => {
            let mut signals = Signals::ending()?;
            tokio::select! {
                snapshot = appearing(&etcd, &service, limit) => snapshot?,
                signal = signals.next() => return Ok(signal.as_exit()),
            }
        }
    };
    if output.json {
        for entry in snapshot.entries() {
            output.line(To::Stdout, "", &object(&service, entry))?;
        }
    } else if snapshot.is_empty() {
        output.line(To::Stderr, format!("{service} has no instances"), &())?;
    } else {
        for line in table::lines(snapshot.entries().map(|entry| &**entry)) {
            output.line(To::Stdout, line, &())?;
        }
    }
    let wanted = resolve.fail_empty || resolve.wait.is_some();
    Ok(u8::from(wanted && snapshot.is_empty()))
}

/// Waits until a service has instances. Returns the last snapshot within `limit`, which may be empty.
async fn appearing(etcd: &Etcd, service: &ServiceRef, limit: Duration) -> Result<Snapshot, Error> {
    let mut watcher = etcd.watch(service).await?;
    let mut seen = None;
    let waiting = async {
        loop {
            let snapshot = watcher.next().await?.snapshot;
            let found = !snapshot.is_empty();
            seen = Some(snapshot);
            if found {
                return Ok::<_, Error>(());
            }
        }
    };
    // A watch reports no error while etcd cannot be reached; a request returns the cause.
    let mut cause = None;
    let asking = async {
        cause = etcd.resolve(service).await.err().map(|error| Arc::new(error) as Cause);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = waiting => ended?,
        () = asking => {}
        () = tokio::time::sleep(limit) => {}
    }
    // Without any snapshot the service is unknown, which is different from empty.
    seen.ok_or(Error::Timeout { op: "resolve", limit, cause })
}

pub(crate) async fn services(global: &Global, output: Output) -> Result<u8, Failure> {
    let (etcd, namespace) = (global.client()?, global.namespace()?);
    for name in etcd.services(&namespace).await? {
        let object = json!({ "namespace": namespace.as_str(), "service": name.as_str() });
        output.line(To::Stdout, name, &object)?;
    }
    Ok(0)
}

pub(crate) async fn publish(global: &Global, publish: &Publish, output: Output) -> Result<u8, Failure> {
    let (etcd, service) = (global.client()?, global.service(&publish.service)?);
    let addresses: Result<Vec<_>, _> = publish.addresses.iter().map(Endpoint::parse).collect();
    let instance = instance(addresses?, &publish.details, &etcd)?;
    let id = instance.id().clone();
    let revision = etcd.publish(&service, instance).await?;
    let object = json!({
        "event": "published", "service": service.to_string(), "id": id.as_str(), "revision": revision.get(),
    });
    output.line(To::Stdout, format!("published {service}/{id} at revision {revision}"), &object)?;
    Ok(0)
}

pub(crate) async fn remove(global: &Global, remove: &Remove, output: Output) -> Result<u8, Failure> {
    let (etcd, service) = (global.client()?, global.service(&remove.service)?);
    let removed = etcd.remove(&service, &InstanceId::parse(&remove.id)?).await?;
    let object = json!({
        "event": "removed", "service": service.to_string(), "instance": InstanceObject::from(&removed),
    });
    output.line(To::Stdout, format!("removed {service}/{}", removed.instance().id()), &object)?;
    Ok(0)
}

pub(crate) async fn evict(global: &Global, remove: &Remove, output: Output) -> Result<u8, Failure> {
    let (etcd, service) = (global.client()?, global.service(&remove.service)?);
    let id = InstanceId::parse(&remove.id)?;
    let evicted = etcd.evict(&service, &id, None).await?;
    let object = json!({
        "event": "removed", "service": service.to_string(), "id": id.as_str(),
        "instance": evicted.entry.as_ref().map(InstanceObject::from), "forced": true,
        "lease": evicted.lease.map(LeaseId::get),
    });
    let lease = evicted.lease.map(|lease| format!(", kept by lease {lease}")).unwrap_or_default();
    let content = if evicted.entry.is_none() { ", whose value was no instance" } else { "" };
    output.line(To::Stdout, format!("evicted {service}/{id}{lease}{content}"), &object)?;
    Ok(0)
}

/// Returns the table of a snapshot, with a heading.
pub(crate) fn titled_table(service: &ServiceRef, snapshot: &Snapshot) -> Vec<Text> {
    let mut lines = vec![Text::from(format!("{service}: {} instances", snapshot.len()))];
    lines.extend(table::lines(snapshot.entries().map(|entry| &**entry)));
    lines.push("".into());
    lines
}
