//! A view's last picture on disk, for starting while the store is away.
//!
//! One file per service: a line with a format version and a checksum, then JSON. It is written beside and renamed over, so a
//! reader sees the old one or the new one. What cannot be read, or does not match its checksum, is as if it were not there.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    endpoint::Endpoint,
    instance::{Entry, Health, Instance},
    name::{InstanceId, ServiceRef},
    revision::{Epoch, Revision},
    snapshot::Snapshot,
};

const FORMAT: &str = "enlist-view 1";

#[derive(Serialize, Deserialize)]
struct Picture {
    service: String,
    revision: u64,
    /// Milliseconds since 1970, when it was last proven right.
    proven: u64,
    entries: Vec<Stored>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
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

impl Stored {
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

/// Where the picture of `service` lies. The name is a hash, because a service may be called anything.
fn path(directory: &Path, service: &ServiceRef) -> PathBuf {
    directory.join(format!("{:016x}.view", xxh3_64(service.to_string().as_bytes())))
}

/// The bytes of a file.
fn encode(snapshot: &Snapshot, age: Duration) -> io::Result<Vec<u8>> {
    let proven = SystemTime::now().checked_sub(age).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let picture = Picture {
        service: snapshot.service().to_string(),
        revision: snapshot.revision().get(),
        proven: proven.and_then(|proven| u64::try_from(proven.as_millis()).ok()).unwrap_or(0),
        entries: snapshot.entries().map(|entry| Stored::new(entry)).collect(),
    };
    let body = serde_json::to_vec(&picture).map_err(io::Error::other)?;
    Ok([format!("{FORMAT} {:016x}\n", xxh3_64(&body)).as_bytes(), &body].concat())
}

/// The picture in `bytes`, and how old it is; `None` if it is broken or of another service.
fn decode(bytes: &[u8], service: &ServiceRef) -> Option<(Snapshot, Duration)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let sum = head.strip_prefix(FORMAT)?.trim();
    if u64::from_str_radix(sum, 16).ok()? != xxh3_64(body) {
        return None;
    }
    let picture: Picture = serde_json::from_slice(body).ok()?;
    if picture.service != service.to_string() {
        return None;
    }
    let mut snapshot = Snapshot::empty(service.clone(), Revision::new(picture.revision), Epoch::default());
    for stored in picture.entries {
        snapshot.insert(Arc::new(stored.entry()?));
    }
    let proven = SystemTime::UNIX_EPOCH + Duration::from_millis(picture.proven);
    // A clock that was set back makes it young; it cannot be told from here.
    Some((snapshot, SystemTime::now().duration_since(proven).unwrap_or_default()))
}

/// Writes the picture: aside first, then over the old one.
pub(super) fn write(directory: &Path, snapshot: &Snapshot, age: Duration) -> io::Result<()> {
    let bytes = encode(snapshot, age)?;
    std::fs::create_dir_all(directory)?;
    let path = path(directory, snapshot.service());
    let aside = path.with_extension(format!("{}-{:x}.tmp", std::process::id(), fastrand::u32(..)));
    let written = write_synced(&aside, &bytes).and_then(|()| std::fs::rename(&aside, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Reads the picture of `service`, and how old it is.
pub(super) fn read(directory: &Path, service: &ServiceRef) -> Option<(Snapshot, Duration)> {
    decode(&std::fs::read(path(directory, service)).ok()?, service)
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
            let bytes = encode(&before, Duration::from_secs(60)).unwrap();
            let (after, age) = decode(&bytes, before.service()).unwrap();
            prop_assert_eq!(&after, &before);
            prop_assert!(age >= Duration::from_secs(60) && age < Duration::from_secs(120));
            let at = damage.index(bytes.len());
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            // The case of a hexadecimal digit is the only bit that carries nothing, and flipping the lowest never changes only that.
            prop_assert!(decode(&damaged, before.service()).is_none());
            prop_assert!(decode(&bytes[..at], before.service()).is_none());
            prop_assert!(decode(&bytes, &ServiceRef::parse("other").unwrap()).is_none());
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes, &ServiceRef::parse("s").unwrap()).is_none());
        }
    }
}
