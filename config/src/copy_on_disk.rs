//! Copy of the last good values on disk, for a start while the store is unavailable.
//!
//! It contains the values of the store, not the converted value: a new version of the program reads them with its own
//! types, defaults and environment.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use enlist::{ConfigPath, ConfigScope, Namespace, Revision, backend::DiskFile};
use serde::{Deserialize, Serialize};

use crate::{layers::Document, plan::SavedState};

const FORMAT_VERSION: &str = "enlist-config 1";

/// File of a view on disk.
#[derive(Clone, Debug)]
pub(crate) struct CopyOnDisk {
    file: DiskFile,
    identity: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Namespace and scope: the file name is only a hash of them.
    identity: String,
    revision: u64,
    /// Time of the last proof, in milliseconds since 1970.
    proven: u64,
    values: Vec<StoredValue>,
}

#[derive(Serialize, Deserialize)]
struct StoredValue {
    path: String,
    /// A good value is text in each format.
    value: String,
    modified: u64,
}

impl CopyOnDisk {
    /// The copy of the view of `scope`.
    pub(crate) fn new(directory: &Path, namespace: &Namespace, scope: &ConfigScope) -> Self {
        // Names and paths have no control characters.
        let identity = match scope {
            ConfigScope::Path(path) => format!("{namespace}\0path\0{path}"),
            ConfigScope::Below(path) => format!("{namespace}\0below\0{path}"),
            ConfigScope::All => format!("{namespace}\0all"),
        };
        Self { file: DiskFile::new(directory, &identity, "config", FORMAT_VERSION), identity }
    }

    /// Writes the copy, which was proven `age` ago. Blocks.
    pub(crate) fn write(&self, state: &SavedState, age: Duration) -> io::Result<()> {
        self.file.write(&self.encode(state, age)?)
    }

    /// Reads the copy, and its age; `None` if there is none, or a damaged one. Blocks.
    pub(crate) fn read(&self) -> io::Result<Option<(SavedState, Duration)>> {
        Ok(self.file.read()?.and_then(|body| self.decode(&body)))
    }

    /// Removes half-written files that a crash left. Blocks.
    pub(crate) fn remove_leftovers(&self) {
        self.file.remove_leftovers();
    }

    fn encode(&self, state: &SavedState, age: Duration) -> io::Result<Vec<u8>> {
        let proven = SystemTime::now().checked_sub(age).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let values = state.documents.iter().map(|document| {
            let value = String::from_utf8(document.value.to_vec()).map_err(io::Error::other)?;
            Ok(StoredValue { path: document.path.to_string(), value, modified: document.modified.get() })
        });
        let stored = Stored {
            identity: self.identity.clone(),
            revision: state.revision.get(),
            proven: proven.and_then(|proven| u64::try_from(proven.as_millis()).ok()).unwrap_or(0),
            values: values.collect::<io::Result<_>>()?,
        };
        serde_json::to_vec(&stored).map_err(io::Error::other)
    }

    fn decode(&self, body: &[u8]) -> Option<(SavedState, Duration)> {
        let stored: Stored = serde_json::from_slice(body).ok()?;
        if stored.identity != self.identity {
            return None;
        }
        let document = |stored: StoredValue| {
            let path = ConfigPath::parse(stored.path).ok()?;
            Some(Document { path, value: stored.value.into_bytes().into(), modified: Revision::new(stored.modified) })
        };
        let documents: Option<Vec<_>> = stored.values.into_iter().map(document).collect();
        let proven = SystemTime::UNIX_EPOCH + Duration::from_millis(stored.proven);
        // If the clock was set back, the copy looks younger than it is. That cannot be detected here.
        let age = SystemTime::now().duration_since(proven).unwrap_or_default();
        Some((SavedState { revision: Revision::new(stored.revision), documents: documents? }, age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    fn saved() -> SavedState {
        let document =
            Document { path: path("a.json"), value: Vec::from("{\"ß\": 1}").into(), modified: Revision::new(3) };
        SavedState { revision: Revision::new(7), documents: vec![document] }
    }

    #[test]
    fn a_copy_is_read_as_it_was_written() {
        let place = tempfile::tempdir().unwrap();
        let disk = CopyOnDisk::new(place.path(), &Namespace::default(), &ConfigScope::All);
        assert!(disk.read().unwrap().is_none());
        disk.write(&saved(), Duration::from_secs(60)).unwrap();
        let (read, age) = disk.read().unwrap().unwrap();
        assert!(read.documents == saved().documents && read.revision == saved().revision);
        assert!(age >= Duration::from_secs(60) && age < Duration::from_secs(120), "{age:?}");
    }

    #[test]
    fn views_that_read_alike_are_kept_apart() {
        let scopes = [
            ConfigScope::Path(path("a")),
            ConfigScope::Below(path("a")),
            ConfigScope::All,
            ConfigScope::Path(path("a/…")),
        ];
        let place = tempfile::tempdir().unwrap();
        let file = |scope| CopyOnDisk::new(place.path(), &Namespace::default(), scope);
        file(&scopes[0]).write(&saved(), Duration::ZERO).unwrap();
        let body = file(&scopes[0]).encode(&saved(), Duration::ZERO).unwrap();
        for other in &scopes[1..] {
            assert!(file(other).read().unwrap().is_none() && file(other).decode(&body).is_none(), "{other:?}");
        }
        let namespace = Namespace::parse("other").unwrap();
        assert!(CopyOnDisk::new(place.path(), &namespace, &scopes[0]).read().unwrap().is_none());
    }
}
