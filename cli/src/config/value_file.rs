//! The file of `--write-to`, which is replaced by each new value.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use enlist::{ConfigPath, ConfigSnapshot};
use serde_json::json;

use super::{content, decision::FileState};
use crate::{
    args::CheckOption,
    output::{Failure, Output, To},
};

/// A file with the last valid content of a value.
#[derive(Debug)]
pub(crate) struct ValueFile {
    /// The file itself, if the argument is a symbolic link.
    file: PathBuf,
    path: ConfigPath,
    check: CheckOption,
    output: Output,
}

impl ValueFile {
    /// The file of `path`.
    pub(crate) fn new(file: &Path, path: ConfigPath, check: CheckOption, output: Output) -> Result<Self, Failure> {
        let file = match fs::canonicalize(file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
            Err(error) => return Err(Failure::new(format!("{} cannot be written: {error}", file.display()))),
        };
        if file.is_dir() || !directory(&file).is_dir() {
            let text = format!("--write-to {} has to be a file in an existing directory", file.display());
            return Err(Failure::usage(text));
        }
        Ok(Self { file, path, check, output })
    }

    /// The place of the file.
    pub(crate) fn place(&self) -> &Path {
        &self.file
    }

    /// Returns the state of the file without changing it.
    pub(crate) fn state(&self) -> FileState {
        if self.file.exists() { FileState::Untouched } else { FileState::Missing }
    }

    /// Replaces the file if the value exists, parses, and differs from the file. Otherwise, and if the file cannot be
    /// written, it stays as it is.
    pub(crate) fn update(&self, snapshot: &ConfigSnapshot) -> FileState {
        let Some(entry) = snapshot.get(&self.path) else {
            self.warn(&format!("there is no value {} at revision {}", self.path, snapshot.revision()));
            return self.state();
        };
        if let Err(fault) = content::check(self.check, &self.path, &entry.value) {
            self.warn(&format!("{} {fault}, at revision {}", self.path, entry.modified));
            return self.state();
        }
        replace(&self.file, &entry.value).unwrap_or_else(|error| {
            self.warn(&format!("the value {} cannot be stored: {error}", self.path));
            self.state()
        })
    }

    fn warn(&self, problem: &str) {
        let warning = format!("{problem}; {} stays as it is", self.file.display());
        self.output.tell(To::Stderr, format!("enlist: {warning}"), &json!({ "warning": warning }));
    }
}

/// Returns the directory of a file.
fn directory(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Replaces a file atomically, unless it has the content already. The permissions of an existing file stay; those of a
/// new one are for the owner only.
fn replace(file: &Path, value: &[u8]) -> io::Result<FileState> {
    let before = match fs::read(file) {
        Ok(before) if before == value => return Ok(FileState::Untouched),
        Ok(_) => Some(fs::metadata(file)?.permissions()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let permissions = before.unwrap_or_else(|| fs::Permissions::from_mode(0o600));
    let mut unfinished = tempfile::Builder::new().prefix(".enlist-").tempfile_in(directory(file))?;
    unfinished.write_all(value)?;
    unfinished.as_file().set_permissions(permissions)?;
    unfinished.as_file().sync_all()?;
    unfinished.persist(file)?;
    Ok(FileState::Written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_if_the_content_differs() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("value");
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(replace(&file, b"1").unwrap(), FileState::Written);
        assert_eq!(mode(), 0o600);
        assert_eq!(replace(&file, b"1").unwrap(), FileState::Untouched);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(replace(&file, b"2").unwrap(), FileState::Written);
        assert_eq!((mode(), fs::read(&file).unwrap()), (0o640, b"2".to_vec()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
