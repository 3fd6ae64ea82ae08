//! Copy of a view on disk, for a start while the store is unavailable.
//!
//! There is one file per service: a line with a format version and a checksum, then JSON. A new version is written to a
//! temporary file and renamed over the old one, so a reader sees either the old or the new version. A file that cannot
//! be read or does not match its checksum is ignored. Only the user that wrote the file can read it, because metadata
//! may be confidential.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    discovery::snapshot::Snapshot,
    model::{
        endpoint::Endpoint,
        instance::{Entry, Health, Instance},
        name::{InstanceId, ServiceRef},
        revision::{Epoch, Revision},
    },
};

const FORMAT_VERSION: &str = "enlist-view 2";

/// Larger files are not read: 256 MiB. A view of 100,000 instances takes some 40 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Age after which a temporary file counts as the leftover of a crash.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

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

/// File name for `service`, without an extension. It is a hash, because a service name may contain characters that a
/// file name cannot. Names have no control characters, so the hashed text is unique to the namespace and name.
fn stem(service: &ServiceRef) -> String {
    format!("{:016x}", xxh3_64(format!("{}\0{}", service.namespace(), service.name()).as_bytes()))
}

/// Path of the file for `service`.
fn path(directory: &Path, service: &ServiceRef) -> PathBuf {
    directory.join(stem(service)).with_extension("view")
}

/// Contents of the file for `snapshot`, which was proven `age` ago.
fn encode(snapshot: &Snapshot, age: Duration) -> io::Result<Vec<u8>> {
    let proven = SystemTime::now().checked_sub(age).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let stored = StoredView {
        namespace: snapshot.service().namespace().to_string(),
        service: snapshot.service().name().to_string(),
        revision: snapshot.revision().get(),
        proven: proven.and_then(|proven| u64::try_from(proven.as_millis()).ok()).unwrap_or(0),
        entries: snapshot.entries().map(|entry| StoredInstance::new(entry)).collect(),
    };
    let body = serde_json::to_vec(&stored).map_err(io::Error::other)?;
    Ok([format!("{FORMAT_VERSION} {:016x}\n", xxh3_64(&body)).as_bytes(), &body].concat())
}

/// The snapshot in `bytes`, and its age; `None` if the contents are damaged or belong to another service.
fn decode(bytes: &[u8], service: &ServiceRef) -> Option<(Snapshot, Duration)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let sum = head.strip_prefix(FORMAT_VERSION)?.trim();
    if u64::from_str_radix(sum, 16).ok()? != xxh3_64(body) {
        return None;
    }
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

/// Writes the view to a temporary file, then renames it over the old one.
pub(super) fn write(directory: &Path, snapshot: &Snapshot, age: Duration) -> io::Result<()> {
    let bytes = encode(snapshot, age)?;
    create_directory(directory)?;
    let path = path(directory, snapshot.service());
    let aside = path.with_extension(format!("{}-{:x}.tmp", std::process::id(), fastrand::u32(..)));
    let written = write_synced(&aside, &bytes).and_then(|()| std::fs::rename(&aside, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written
}

/// Options for files that only the current user can read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Creates the missing parts of a directory, accessible to the current user only.
fn create_directory(directory: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(directory)
}

/// Removes half-written files that a crash left. A recent one may belong to another process.
pub(super) fn remove_leftovers(directory: &Path, service: &ServiceRef) {
    let (stem, files) = (stem(service), std::fs::read_dir(directory));
    for file in files.into_iter().flatten().flatten() {
        let path = file.path();
        let is_of_service = file.file_name().to_str().is_some_and(|name| name.starts_with(&stem));
        let is_half = is_of_service && path.extension().is_some_and(|extension| extension == "tmp");
        let age = file.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed());
        // The age is unknown if the clock was set back.
        if is_half && age.is_ok_and(|age| age.is_ok_and(|age| age > LEFTOVER_AGE)) {
            // After a failure, the next start tries again.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private().write(true).create_new(true).open(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// Reads the snapshot of `service`, and its age.
pub(super) fn read(directory: &Path, service: &ServiceRef) -> Option<(Snapshot, Duration)> {
    let file = open(&path(directory, service)).ok()?;
    // Metadata of the opened file; the path may refer to another file by now.
    let metadata = file.metadata().ok()?;
    // Reading anything but a regular file, such as a pipe, could block for ever.
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    decode(&bytes, service)
}

/// Opens `path` without waiting, whatever its file type, and does not follow links.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Without `O_NONBLOCK`, opening a pipe that has no writer blocks.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOFOLLOW);
    options.read(true).open(path)
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
            // The case of a hexadecimal digit is the only bit without information. Flipping the lowest bit of a byte
            // never changes only the case.
            prop_assert!(decode(&damaged, before.service()).is_none());
            prop_assert!(decode(&bytes[..at], before.service()).is_none());
            prop_assert!(decode(&bytes, &ServiceRef::parse("other").unwrap()).is_none());
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes, &ServiceRef::parse("s").unwrap()).is_none());
        }
    }

    /// The checksum is right, but the file may belong to another service.
    #[test]
    fn a_picture_in_the_former_format_is_not_read() {
        let (shown, service) = (snapshot(&["a".to_owned()]), ServiceRef::parse("s").unwrap());
        let written = String::from_utf8(encode(&shown, Duration::ZERO).unwrap()).unwrap();
        assert!(decode(written.as_bytes(), &service).is_some());
        assert!(decode(written.replacen("enlist-view 2", "enlist-view 1", 1).as_bytes(), &service).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_can_read_what_is_written() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("deep/views");
        write(&directory, &snapshot(&["secret".to_owned()]), Duration::ZERO).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = path(&directory, &ServiceRef::parse("s").unwrap());
        assert_eq!((mode(&file), mode(&directory), mode(&place.path().join("deep"))), (0o600, 0o700, 0o700));
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

    /// Opening a pipe that has no writer blocks, and another file may appear between a check of the path and its
    /// opening.
    #[cfg(unix)]
    #[test]
    fn a_pipe_that_takes_the_place_of_a_file_holds_no_reader_up() {
        let place = tempfile::tempdir().unwrap();
        let shown = snapshot(&["a".to_owned()]);
        write(place.path(), &shown, Duration::ZERO).unwrap();
        let file = path(place.path(), shown.service());
        let [good, pipe, aside] = ["good", "pipe", "aside"].map(|name| place.path().join(name));
        std::fs::hard_link(&file, &good).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (done, finished) = std::sync::mpsc::channel();
        let directory = place.path().to_owned();
        std::thread::spawn(move || {
            let read = (0..5000).filter_map(|_| read(&directory, shown.service())).all(|(read, _)| read == shown);
            done.send(read)
        });
        let begun = crate::Moment::now();
        let all_right = loop {
            for other in [&pipe, &good] {
                std::fs::hard_link(other, &aside).unwrap();
                std::fs::rename(&aside, &file).unwrap();
                // It does nothing if both are the same file.
                let _ = std::fs::remove_file(&aside);
            }
            match finished.try_recv() {
                Ok(all_right) => break all_right,
                Err(_) => assert!(begun.elapsed() < Duration::from_secs(60), "the reader is held up"),
            }
        };
        assert!(all_right);
    }

    #[test]
    fn what_a_crash_left_behind_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let snapshot = snapshot(&[]);
        let file = path(place.path(), snapshot.service());
        let (old, new) = (file.with_extension("999-a.tmp"), file.with_extension("999-b.tmp"));
        let of_another = place.path().join("0123456789abcdef.999-c.tmp");
        for file in [&old, &new, &of_another] {
            std::fs::write(file, b"half").unwrap();
        }
        let hour = Duration::from_secs(3600);
        let yesterday = SystemTime::now() - 24 * hour;
        for file in [&old, &of_another] {
            std::fs::File::options().append(true).open(file).unwrap().set_modified(yesterday).unwrap();
        }
        remove_leftovers(place.path(), snapshot.service());
        assert!(!old.exists() && new.exists() && of_another.exists(), "another process may be writing the new one");
    }
}
