//! Files with Rust source text, pages in Markdown, and manifests, in the tree of this repository.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A file and its text.
#[derive(Debug)]
pub(super) struct Source {
    /// Path from the root of the repository.
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Root of the repository.
pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Reads all Rust files below `directory`, sorted by path. Build output and hidden folders are left out.
pub(super) fn read(root: &Path, directory: &Path) -> io::Result<Vec<Source>> {
    files(root, directory, "rs")
}

/// Reads all Markdown files of the repository, sorted by path.
pub(super) fn pages(root: &Path) -> io::Result<Vec<Source>> {
    files(root, root, "md")
}

/// Reads all manifests of packages, sorted by path.
pub(super) fn manifests(root: &Path) -> io::Result<Vec<Source>> {
    let mut manifests = files(root, root, "toml")?;
    manifests.retain(|file| file.path.ends_with("Cargo.toml"));
    Ok(manifests)
}

fn files(root: &Path, directory: &Path, extension: &str) -> io::Result<Vec<Source>> {
    let (mut found, mut folders) = (Vec::new(), vec![directory.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path)?;
                found.push(Source { path: path.strip_prefix(root).unwrap_or(&path).to_path_buf(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
