//! The files of values in a directory. No symbolic link below the directory is followed, so nothing outside of it is
//! read or written, whatever else changes it at the same time.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use enlist::{ConfigPath, MAX_CONFIG_BYTES};
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, mkdirat, open, openat, renameat, unlinkat},
    io::Errno,
};

use super::file_names::{self, NameFault};
use crate::output::Failure;

/// Permissions of directories: values may be secrets.
const DIRECTORY_MODE: Mode = Mode::RWXU;

/// Permissions of files.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The files of a directory.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) values: BTreeMap<ConfigPath, Vec<u8>>,
    /// Files and directories whose names begin with a dot, which are not read.
    pub(crate) hidden: usize,
}

/// Reads all files of a directory. The paths of their values are below `root`.
pub(crate) fn read(directory: &Path, root: Option<&ConfigPath>) -> Result<Files, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(directory, flags, Mode::empty()).map_err(|error| unreadable(directory, error))?;
    let mut reader = TreeReader { root, names: Vec::new(), files: Files::default() };
    reader.directory(&opened, directory)?;
    Ok(reader.files)
}

fn unreadable(file: &Path, error: impl Into<io::Error>) -> Failure {
    Failure::new(format!("{} cannot be read: {}", file.display(), error.into()))
}

fn misnamed(file: &Path, fault: &NameFault) -> Failure {
    Failure::new(format!("{} {fault}", file.display()))
}

/// A directory tree that is being read.
struct TreeReader<'a> {
    root: Option<&'a ConfigPath>,
    /// Names of the directories above, below the first one.
    names: Vec<String>,
    files: Files,
}

impl TreeReader<'_> {
    fn directory(&mut self, directory: &OwnedFd, place: &Path) -> Result<(), Failure> {
        let failed = |error: Errno| unreadable(place, error);
        for entry in Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            if name.to_bytes().starts_with(b".") {
                self.files.hidden += 1;
                continue;
            }
            let place = place.join(OsStr::from_bytes(name.to_bytes()));
            let Ok(text) = name.to_str() else { return Err(misnamed(&place, &NameFault::NotUtf8)) };
            self.names.push(text.to_owned());
            self.entry(directory, name, &place)?;
            self.names.pop();
        }
        Ok(())
    }

    fn entry(&mut self, directory: &OwnedFd, name: &CStr, place: &Path) -> Result<(), Failure> {
        // Without waiting for the writer of a FIFO.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match openat(directory, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::LOOP) => return Err(Failure::new(format!("{} is a symbolic link", place.display()))),
            Err(error) => return Err(unreadable(place, error)),
        };
        let status = fstat(&opened).map_err(|error| unreadable(place, error))?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => self.directory(&opened, place),
            FileType::RegularFile => self.file(opened, place),
            _ => Err(Failure::new(format!("{} is neither a file nor a directory", place.display()))),
        }
    }

    fn file(&mut self, opened: OwnedFd, place: &Path) -> Result<(), Failure> {
        let path = file_names::path(self.root, &self.names).map_err(|fault| misnamed(place, &fault))?;
        let mut value = Vec::new();
        // One byte more, so that the store refuses a longer value.
        let limit = u64::try_from(MAX_CONFIG_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        File::from(opened).take(limit).read_to_end(&mut value).map_err(|error| unreadable(place, error))?;
        self.files.values.insert(path, value);
        Ok(())
    }
}

/// Creates a directory if it does not exist, and opens it.
pub(crate) fn create(directory: &Path) -> Result<OwnedFd, Failure> {
    let failed =
        |error: Errno| Failure::new(format!("{} cannot be created: {}", directory.display(), io::Error::from(error)));
    match mkdirat(CWD, directory, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(error)),
    }
    open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)
}

/// Replaces the file that has these names below the directory.
pub(crate) fn write(directory: &OwnedFd, names: &[String], value: &[u8]) -> io::Result<()> {
    let Some((file, directories)) = names.split_last() else { return Err(Errno::INVAL.into()) };
    let mut opened = None;
    for name in directories {
        let above = opened.as_ref().unwrap_or(directory);
        match mkdirat(above, name, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        opened = Some(openat(above, name, flags, Mode::empty())?);
    }
    let directory = opened.as_ref().unwrap_or(directory);
    // Its dot hides an unfinished file from an import.
    let unfinished = CString::new(format!(".enlist-{}", std::process::id()))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written = openat(directory, &unfinished, flags, FILE_MODE)
        .map_err(io::Error::from)
        .and_then(|opened| File::from(opened).write_all(value))
        .and_then(|()| Ok(renameat(directory, &unfinished, directory, file)?));
    if written.is_err() {
        // The first error is the reason.
        let _ = unlinkat(directory, &unfinished, AtFlags::empty());
    }
    written
}

/// Returns the place of the file with these names, for messages.
pub(crate) fn place(directory: &Path, names: &[String]) -> PathBuf {
    directory.join(names.iter().collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split('/').map(str::to_owned).collect()
    }

    #[test]
    fn files_stay_inside_the_directory() {
        let (outside, inside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (outside, inside) = (outside.path(), inside.path());
        fs::write(outside.join("secret"), "s").unwrap();
        symlink(outside, inside.join("link")).unwrap();
        symlink(outside.join("secret"), inside.join("file")).unwrap();
        let opened = create(inside).unwrap();
        // Through a linked directory nothing is written; a linked file is replaced.
        assert!(write(&opened, &names("link/a"), b"1").is_err());
        write(&opened, &names("file"), b"1").unwrap();
        write(&opened, &names("a/b/c"), b"2").unwrap();
        write(&opened, &names("a/b/c"), b"3").unwrap();
        assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "s");
        let refused = format!("{:?}", read(inside, None).unwrap_err());
        assert!(refused.contains("link is a symbolic link"), "{refused}");
        fs::remove_file(inside.join("link")).unwrap();
        fs::write(inside.join(".hidden"), "h").unwrap();
        let root = ConfigPath::parse("root").unwrap();
        let files = read(inside, Some(&root)).unwrap();
        let shown: Vec<_> = files.values.iter().map(|(path, value)| (path.as_str(), &value[..])).collect();
        assert_eq!((shown, files.hidden), (vec![("root/a/b/c", &b"3"[..]), ("root/file", b"1")], 1));
    }

    #[test]
    fn only_the_owner_can_read_what_is_written() {
        use std::os::unix::fs::PermissionsExt;
        let inside = tempfile::tempdir().unwrap();
        let target = inside.path().join("new");
        write(&create(&target).unwrap(), &names("a/b"), b"1").unwrap();
        for (name, mode) in [("", 0o700), ("a", 0o700), ("a/b", 0o600)] {
            assert_eq!(fs::metadata(target.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
    }

    #[test]
    fn special_files_are_refused() {
        let inside = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(CWD, inside.path().join("fifo"), FILE_MODE).unwrap();
        let refused = format!("{:?}", read(inside.path(), None).unwrap_err());
        assert!(refused.contains("neither a file nor a directory"), "{refused}");
    }
}
