//! Files that no program contains: without a `mod` in a file around them they are not compiled, and their tests are not
//! run.

use std::{ffi::OsStr, path::Path};

use super::{known::Finding, sources::Source, tokens::tokens};

/// Names of files that cargo finds by itself.
const ROOTS: [&str; 3] = ["build.rs", "lib.rs", "main.rs"];

/// Names of folders in which cargo takes each file as a program.
const PROGRAMS: [&str; 4] = ["bin", "examples", "fuzz_targets", "tests"];

/// Returns the files that no `mod` beside them or above them names, and no manifest.
pub(super) fn findings(sources: &[Source], manifests: &[Source]) -> Vec<Finding> {
    let modules: Vec<_> = sources.iter().flat_map(modules).collect();
    let is_module = |path: &Path| {
        let Some((folder, name)) = place(path) else { return true };
        modules.iter().any(|(file, module)| {
            *module == name && (file.parent() == Some(folder) || *file == folder.with_extension("rs"))
        })
    };
    let is_quoted = |path: &Path| sources.iter().chain(manifests).any(|file| quotes(file, path));
    let paths = sources.iter().map(|source| &source.path);
    let orphans = paths.filter(|path| !is_root(path) && !is_module(path) && !is_quoted(path));
    orphans.map(|path| Finding::new("orphans", path.display().to_string(), 1, "file that no `mod` names")).collect()
}

/// Returns `true` if an attribute or an entry of this file is the path of another one, from its own folder.
fn quotes(file: &Source, path: &Path) -> bool {
    let below = file.path.parent().and_then(|folder| path.strip_prefix(folder).ok());
    below.is_some_and(|below| file.text.contains(&format!("path = \"{}\"", below.display())))
}

fn is_root(path: &Path) -> bool {
    let is_one_of = |name: Option<&OsStr>, names: &[&str]| {
        name.and_then(|name| name.to_str()).is_some_and(|name| names.contains(&name))
    };
    is_one_of(path.file_name(), &ROOTS) || is_one_of(path.parent().and_then(Path::file_name), &PROGRAMS)
}

/// Returns the modules that a file names, each with the path of the file.
fn modules(source: &Source) -> Vec<(&Path, &str)> {
    let all = tokens(&source.text);
    let named = all.windows(3).filter(|tokens| tokens[0] == "mod" && tokens[2] == ";");
    named.map(|tokens| (&*source.path, tokens[1])).collect()
}

/// Returns the folder of a module, and its name.
fn place(path: &Path) -> Option<(&Path, &str)> {
    let folder = path.parent()?;
    let (folder, name) = match path.file_stem()? {
        name if name == "mod" => (folder.parent()?, folder.file_name()?),
        name => (folder, name),
    };
    Some((folder, name.to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphans(files: &[(&str, &str)]) -> Vec<String> {
        let source = |(path, text): &(&str, &str)| Source { path: path.into(), text: (*text).to_owned() };
        let manifest = Source { path: "a/Cargo.toml".into(), text: "path = \"x/y.rs\"".to_owned() };
        findings(&files.iter().map(source).collect::<Vec<_>>(), &[manifest]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_that_no_mod_names_is_found() {
        assert_eq!(
            orphans(&[("a/tests/b/main.rs", "mod d;"), ("a/tests/b/c.rs", "")]),
            ["orphans a/tests/b/c.rs 1 file that no `mod` names"]
        );
        for elsewhere in ["a/tests/other.rs", "z/tests/b/main.rs"] {
            assert_eq!(orphans(&[(elsewhere, "mod c;"), ("a/tests/b/c.rs", "")]).len(), 1, "{elsewhere}");
        }
    }

    #[test]
    fn modules_and_programs_are_no_orphans() {
        let files = [
            ("a/src/lib.rs", "mod one; pub(crate) mod two;"),
            ("a/src/one.rs", "mod part;"),
            ("a/src/one/part.rs", ""),
            ("a/src/two/mod.rs", ""),
            ("a/tests/all.rs", "#[path = \"support/helper.rs\"] mod helper;"),
            ("a/tests/support/helper.rs", ""),
            ("a/x/y.rs", ""),
            ("a/src/bin/tool.rs", ""),
        ];
        assert_eq!(orphans(&files), [""; 0]);
    }
}
