//! Copy of a view on disk, for a start while the store is unavailable: one [`DiskFile`] per service, with JSON.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    discovery::snapshot::Snapshot,
    model::{
        endpoint::Endpoint,
        instance::{Entry, Health, Instance},
        name::{InstanceId, ServiceRef},
        revision::{Epoch, Revision},
    },
    runtime::disk_file::DiskFile,
};

const FORMAT_VERSION: &str = "enlist-view 2";

#[derive(Serialize, Deserialize)]
struct StoredView {
    namespace: String,
    service: String,
    revision: u64,
    /// Time of the last proof, in milliseconds since 1970.
    proven: u64,
    entries: Vec<StoredInstance>,
}

#[derive(Serialize, Deserialize)]
struct StoredInstance {
    id: String,
    endpoints: Vec<String>,
    weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    health: String,
    #[serde(default)]
    metadata: std::collections::BTreeMap<String, String>,
    created: u64,
    modified: u64,
}

impl StoredInstance {
    fn new(entry: &Entry) -> Self {
        let instance = entry.instance();
        Self {
            id: instance.id().to_string(),
            endpoints: instance.endpoints().iter().map(ToString::to_string).collect(),
            weight: instance.weight(),
            version: instance.version().map(str::to_owned),
            zone: instance.zone().map(str::to_owned),
            health: instance.health().as_str().to_owned(),
            metadata: instance.metadata().clone(),
            created: entry.created().get(),
            modified: entry.modified().get(),
        }
    }

    fn entry(self) -> Option<Entry> {
        let endpoints: Result<Vec<_>, _> = self.endpoints.iter().map(Endpoint::parse).collect();
        let mut instance = Instance::new(InstanceId::parse(self.id).ok()?, endpoints.ok()?).ok()?;
        instance = instance.with_weight(self.weight).with_health(Health::from_word(&self.health)?);
        instance = instance.with_version(self.version.unwrap_or_default()).with_zone(self.zone.unwrap_or_default());
        for (key, value) in self.metadata {
            instance = instance.with_metadata(key, value);
        }
        Some(Entry::new(instance, Revision::new(self.created), Revision::new(self.modified)).held())
    }
}

/// The file for `service`. Names have no control characters, so the hashed text is unique to the namespace and name.
fn file(directory: &Path, service: &ServiceRef) -> DiskFile {
    let identity = format!("{}\0{}", service.namespace(), service.name());
    DiskFile::new(directory, &identity, "view", FORMAT_VERSION)
}

/// Body of the file for `snapshot`, which was proven `age` ago.
fn encode(snapshot: &Snapshot, age: Duration) -> io::Result<Vec<u8>> {
    let proven = SystemTime::now().checked_sub(age).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let stored = StoredView {
        namespace: snapshot.service().namespace().to_string(),
        service: snapshot.service().name().to_string(),
        revision: snapshot.revision().get(),
        proven: proven.and_then(|proven| u64::try_from(proven.as_millis()).ok()).unwrap_or(0),
        entries: snapshot.entries().map(|entry| StoredInstance::new(entry)).collect(),
    };
    serde_json::to_vec(&stored).map_err(io::Error::other)
}

/// The snapshot in the body of a file, and its age; `None` if it is malformed or belongs to another service.
fn decode(body: &[u8], service: &ServiceRef) -> Option<(Snapshot, Duration)> {
    let stored: StoredView = serde_json::from_slice(body).ok()?;
    if (stored.namespace.as_str(), stored.service.as_str()) != (service.namespace().as_str(), service.name().as_str()) {
        return None;
    }
    let mut snapshot = Snapshot::empty(service.clone(), Revision::new(stored.revision), Epoch::default());
    for instance in stored.entries {
        snapshot.insert(Arc::new(instance.entry()?));
    }
    let proven = SystemTime::UNIX_EPOCH + Duration::from_millis(stored.proven);
    // If the clock was set back, the snapshot looks younger than it is. That cannot be detected here.
    Some((snapshot, SystemTime::now().duration_since(proven).unwrap_or_default()))
}

/// Writes the view in place of the former one.
pub(super) fn write(directory: &Path, snapshot: &Snapshot, age: Duration) -> io::Result<()> {
    file(directory, snapshot.service()).write(&encode(snapshot, age)?)
}

/// Removes half-written files that a crash left.
pub(super) fn remove_leftovers(directory: &Path, service: &ServiceRef) {
    file(directory, service).remove_leftovers();
}

/// Reads the snapshot of `service`, and its age.
pub(super) fn read(directory: &Path, service: &ServiceRef) -> Option<(Snapshot, Duration)> {
    decode(&file(directory, service).read().ok()??, service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot(names: &[String]) -> Snapshot {
        let mut snapshot = Snapshot::empty(ServiceRef::parse("s").unwrap(), Revision::new(7), Epoch::default());
        for (at, name) in names.iter().enumerate() {
            let Ok(id) = InstanceId::parse(name) else { continue };
            let instance = Instance::new(id, [Endpoint::parse("grpc://[::1]:80").unwrap()]).unwrap();
            let instance = instance.with_zone(name).with_metadata(name, "x").with_weight(u32::try_from(at).unwrap());
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(3), Revision::new(4)).held()));
        }
        snapshot
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_what_is_damaged_is_not(
            names in proptest::collection::vec("\\PC{1,20}", 0..8),
            damage in any::<prop::sample::Index>(),
        ) {
            let before = snapshot(&names);
            let file = file(Path::new("."), before.service());
            let decode = |bytes: &[u8], service: &ServiceRef| decode(file.unsealed(bytes)?, service);
            let bytes = file.sealed(&encode(&before, Duration::from_secs(60)).unwrap());
            let (after, age) = decode(&bytes, before.service()).unwrap();
            prop_assert_eq!(&after, &before);
            prop_assert!(age >= Duration::from_secs(60) && age < Duration::from_secs(120));
            let at = damage.index(bytes.len());
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            // The case of a hexadecimal digit is the only bit without information. Flipping the lowest bit of a byte
            // never changes only the case.
            prop_assert!(decode(&damaged, before.service()).is_none());
            prop_assert!(decode(&bytes[..at], before.service()).is_none());
            prop_assert!(decode(&bytes, &ServiceRef::parse("other").unwrap()).is_none());
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let service = ServiceRef::parse("s").unwrap();
            prop_assert!(decode(&bytes, &service).is_none());
            prop_assert!(file(Path::new("."), &service).unsealed(&bytes).is_none());
        }
    }

    /// The checksum is right, but the file may belong to another service.
    #[test]
    fn a_copy_in_another_format_is_not_read() {
        let (place, shown) = (tempfile::tempdir().unwrap(), snapshot(&["a".to_owned()]));
        write(place.path(), &shown, Duration::ZERO).unwrap();
        let path = file(place.path(), shown.service()).path();
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(read(place.path(), shown.service()).is_some());
        std::fs::write(&path, written.replacen("enlist-view 2", "enlist-view 1", 1)).unwrap();
        assert!(read(place.path(), shown.service()).is_none());
    }

    #[test]
    fn services_that_read_alike_with_their_namespaces_are_kept_apart() {
        let place = tempfile::tempdir().unwrap();
        let service = |namespace: &str, name: &str| {
            ServiceRef::new(crate::Namespace::parse(namespace).unwrap(), crate::ServiceName::parse(name).unwrap())
        };
        let (one, other) = (service("a/b", "c"), service("a", "b/c"));
        let listed = |service: &ServiceRef, id: &str| {
            let mut snapshot = Snapshot::empty(service.clone(), Revision::new(1), Epoch::default());
            let instance = Instance::new(InstanceId::parse(id).unwrap(), [Endpoint::parse("h:1").unwrap()]).unwrap();
            snapshot.insert(Arc::new(Entry::new(instance, Revision::new(1), Revision::new(1)).held()));
            snapshot
        };
        write(place.path(), &listed(&one, "x"), Duration::ZERO).unwrap();
        assert!(read(place.path(), &other).is_none());
        write(place.path(), &listed(&other, "y"), Duration::ZERO).unwrap();
        for (service, id) in [(one, "x"), (other, "y")] {
            assert_eq!(read(place.path(), &service).unwrap().0, listed(&service, id));
        }
    }
}
