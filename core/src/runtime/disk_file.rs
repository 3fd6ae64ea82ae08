//! File with the last known state of a view, for a start while the store is unavailable.
//!
//! The file has a line with a format version and a checksum, then the body. A new version is written to a temporary
//! file and renamed over the old one, so a reader sees either the old or the new version. A file that does not
//! match its checksum counts as absent. Only the user that wrote the file can read it, because the state may be
//! confidential.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use xxhash_rust::xxh3::xxh3_64;

/// Larger files are not read: 256 MiB. A view of 100,000 instances takes some 40 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Age after which a temporary file counts as the leftover of a crash.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// File in a directory that belongs to one view.
#[derive(Clone, Debug)]
pub struct DiskFile {
    directory: PathBuf,
    /// File name without an extension. It is a hash, because names may contain characters that a file name cannot.
    stem: String,
    extension: &'static str,
    version: &'static str,
}

impl DiskFile {
    /// The file of the view `identity`. `version` names the format of the body: other versions are not read.
    ///
    /// Two views may have the same file if the hashes of their identities are equal, so the body has to contain the
    /// identity.
    pub fn new(directory: impl Into<PathBuf>, identity: &str, extension: &'static str, version: &'static str) -> Self {
        let stem = format!("{:016x}", xxh3_64(identity.as_bytes()));
        Self { directory: directory.into(), stem, extension, version }
    }

    /// Path of the file.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(&self.stem).with_extension(self.extension)
    }

    /// Writes the body to a temporary file, then renames it over the old one. Blocks.
    ///
    /// # Errors
    ///
    /// Those of the file system. The old version then remains.
    pub fn write(&self, body: &[u8]) -> io::Result<()> {
        create_directory(&self.directory)?;
        let path = self.path();
        let aside = path.with_extension(format!("{}-{:x}.tmp", std::process::id(), fastrand::u32(..)));
        let bytes = self.sealed(body);
        let written = write_synced(&aside, &bytes).and_then(|()| std::fs::rename(&aside, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
        written
    }

    /// Reads the body; `None` if there is no file, or a damaged one. Blocks, but not for a pipe in place of the file.
    ///
    /// # Errors
    ///
    /// Those of the file system, except for an absent file: there may be a body.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match open(&self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // Metadata of the opened file; the path may refer to another file by now.
        let metadata = file.metadata()?;
        // Reading anything but a regular file, such as a pipe, could block for ever.
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(self.unsealed(&bytes).map(<[u8]>::to_vec))
    }

    /// Removes half-written files that a crash left. A recent one may belong to another process. Blocks.
    pub fn remove_leftovers(&self) {
        for file in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = file.path();
            let is_of_view = file.file_name().to_str().is_some_and(|name| name.starts_with(&self.stem));
            let is_half = is_of_view && path.extension().is_some_and(|extension| extension == "tmp");
            let age = file.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed());
            // The age is unknown if the clock was set back.
            if is_half && age.is_ok_and(|age| age.is_ok_and(|age| age > LEFTOVER_AGE)) {
                // After a failure, the next start tries again.
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Contents of the file for `body`.
    pub(crate) fn sealed(&self, body: &[u8]) -> Vec<u8> {
        [format!("{} {:016x}\n", self.version, xxh3_64(body)).as_bytes(), body].concat()
    }

    /// The body in `bytes`; `None` if they are damaged or of another version.
    pub(crate) fn unsealed<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
        let sum = head.strip_prefix(self.version)?.trim();
        (u64::from_str_radix(sum, 16).ok()? == xxh3_64(body)).then_some(body)
    }
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

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private().write(true).create_new(true).open(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
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
    use std::time::SystemTime;

    fn file(directory: &Path) -> DiskFile {
        DiskFile::new(directory, "default\0s", "view", "test 1")
    }

    #[cfg(unix)]
    #[test]
    fn only_the_user_can_read_what_is_written() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("deep/views");
        file(&directory).write(b"secret").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = file(&directory).path();
        assert_eq!((mode(&path), mode(&directory), mode(&place.path().join("deep"))), (0o600, 0o700, 0o700));
    }

    /// The checksum is right, but the body may mean something else.
    #[test]
    fn another_version_is_not_read() {
        let place = tempfile::tempdir().unwrap();
        file(place.path()).write(b"body").unwrap();
        assert_eq!(file(place.path()).read().unwrap().as_deref(), Some(&b"body"[..]));
        assert_eq!(DiskFile::new(place.path(), "default\0s", "view", "test 2").read().unwrap(), None);
        assert_eq!(DiskFile::new(place.path(), "default\0t", "view", "test 1").read().unwrap(), None);
    }

    /// Opening a pipe that has no writer blocks, and another file may appear between a check of the path and its
    /// opening.
    #[cfg(unix)]
    #[test]
    fn a_pipe_that_takes_the_place_of_a_file_holds_no_reader_up() {
        let place = tempfile::tempdir().unwrap();
        file(place.path()).write(b"body").unwrap();
        let path = file(place.path()).path();
        let [good, pipe, aside] = ["good", "pipe", "aside"].map(|name| place.path().join(name));
        std::fs::hard_link(&path, &good).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (done, finished) = std::sync::mpsc::channel();
        let directory = place.path().to_owned();
        std::thread::spawn(move || {
            let read = (0..5000).filter_map(|_| file(&directory).read().unwrap()).all(|read| read == b"body");
            done.send(read)
        });
        let begun = crate::Moment::now();
        let all_right = loop {
            for other in [&pipe, &good] {
                std::fs::hard_link(other, &aside).unwrap();
                std::fs::rename(&aside, &path).unwrap();
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
        let path = file(place.path()).path();
        let (old, new) = (path.with_extension("999-a.tmp"), path.with_extension("999-b.tmp"));
        let of_another = place.path().join("0123456789abcdef.999-c.tmp");
        for file in [&old, &new, &of_another] {
            std::fs::write(file, b"half").unwrap();
        }
        let hour = Duration::from_secs(3600);
        let yesterday = SystemTime::now() - 24 * hour;
        for file in [&old, &of_another] {
            std::fs::File::options().append(true).open(file).unwrap().set_modified(yesterday).unwrap();
        }
        file(place.path()).remove_leftovers();
        assert!(!old.exists() && new.exists() && of_another.exists(), "another process may be writing the new one");
    }
}
