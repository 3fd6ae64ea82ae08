//! Names of the files of values. Pure.
//!
//! Each segment of a path is a directory, and the last one is the file. `%` and a dot at the begin are escaped (`%25`,
//! `%2E`), so no name leaves the directory (`..`) or is hidden. If there are values below the path of a value, its file
//! is `%value` in the directory of that path.

use std::collections::{BTreeMap, HashSet};

use enlist::ConfigPath;

/// Name of the file with the value of the directory's own path. No escaped segment is equal to it.
const OWN_VALUE: &str = "%value";

/// Maximum length of a file name, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Reason for which a path has no file, or a file no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameFault {
    TooLong,
    /// The name is not the one that the value's own file has.
    NotEscaped,
    NotUtf8,
    /// `%value` without a path of the directory.
    NoPath,
    Path(String),
}

impl std::fmt::Display for NameFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => f.write_str("is too long for a file name; `export -` writes it to the standard output"),
            Self::NotEscaped => f.write_str("is no name of a value: `%` is written as %25"),
            Self::NotUtf8 => f.write_str("is no name of a value: it is not UTF-8"),
            Self::NoPath => f.write_str("is the value of the directory, which has no path here"),
            Self::Path(reason) => write!(f, "is no name of a value: {reason}"),
        }
    }
}

/// Returns the file name of a segment.
pub(crate) fn file_name(segment: &str) -> String {
    let escaped = segment.replace('%', "%25");
    match escaped.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => escaped,
    }
}

/// Returns the segment of a file name.
fn segment(name: &str) -> Result<String, NameFault> {
    let segment = name.replace("%2E", ".").replace("%25", "%");
    // Each segment has one name.
    if file_name(&segment) == name { Ok(segment) } else { Err(NameFault::NotEscaped) }
}

/// Returns the names of directories and file for each path, relative to `root`. All paths are below `root`.
pub(crate) fn names<'a>(
    root: Option<&ConfigPath>,
    paths: &[&'a ConfigPath],
) -> Result<BTreeMap<&'a ConfigPath, Vec<String>>, (&'a ConfigPath, NameFault)> {
    let skipped = root.map_or(0, |root| root.segments().count());
    let parents: HashSet<&str> =
        paths.iter().flat_map(|path| path.as_str().match_indices('/').map(|(at, _)| &path.as_str()[..at])).collect();
    let mut names = BTreeMap::new();
    for &path in paths {
        let mut own: Vec<String> = path.segments().skip(skipped).map(file_name).collect();
        if parents.contains(path.as_str()) {
            own.push(OWN_VALUE.to_owned());
        }
        if own.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            return Err((path, NameFault::TooLong));
        }
        names.insert(path, own);
    }
    Ok(names)
}

/// Returns the path of a file, from the names of its directories and its own, relative to `root`.
pub(crate) fn path(root: Option<&ConfigPath>, names: &[String]) -> Result<ConfigPath, NameFault> {
    let (directories, file) = match names {
        [directories @ .., own] if own == OWN_VALUE => (directories, None),
        [directories @ .., file] => (directories, Some(file)),
        [] => return Err(NameFault::NoPath),
    };
    if directories.is_empty() && file.is_none() {
        return Err(NameFault::NoPath);
    }
    let segments: Vec<_> = directories.iter().chain(file).map(|name| segment(name)).collect::<Result<_, _>>()?;
    let below = segments.join("/");
    let text = root.map_or_else(|| below.clone(), |root| format!("{root}/{below}"));
    ConfigPath::parse(text).map_err(|error| NameFault::Path(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<ConfigPath> {
        texts.iter().map(|text| ConfigPath::parse(text).unwrap()).collect()
    }

    #[test]
    fn every_path_has_a_file_of_its_own_inside() {
        let odd = [
            "a",
            "a-b",
            "a/b",
            "a/%value",
            "a/b/c",
            "..",
            "../..",
            "./.",
            ".env",
            ".git/config",
            "50%",
            "50%25",
            "%2E",
            "%2E%2E",
            "%25",
            "größe/🚀",
            "a b",
            "~",
            "-rf",
            "C:\\x",
            "*",
        ];
        let all = paths(&odd);
        let named = names(None, &all.iter().collect::<Vec<_>>()).unwrap();
        let mut seen = HashSet::new();
        for (path, names) in &named {
            assert!(seen.insert(names.join("/")), "{path}");
            assert!(names.iter().all(|name| !name.starts_with('.') && !name.contains('/')), "{path}: {names:?}");
            assert_eq!(&super::path(None, names).unwrap(), *path);
        }
        assert_eq!(named[&all[0]], ["a", "%value"]);
        assert_eq!(named[&all[3]], ["a", "%25value"]);
        assert_eq!(named[&all[6]], ["%2E.", "%2E."]);
        // No file is where another one has its directory.
        for names in &seen {
            assert!(!seen.iter().any(|other| other.starts_with(&format!("{names}/"))), "{names}");
        }
    }

    #[test]
    fn names_are_relative_to_the_root() {
        let (root, all) = (ConfigPath::parse("app").unwrap(), paths(&["app/log/level"]));
        let named = names(Some(&root), &all.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(named[&all[0]], ["log", "level"]);
        assert_eq!(path(Some(&root), &named[&all[0]]).unwrap(), all[0]);
    }

    #[test]
    fn names_that_no_value_has_are_refused() {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (names, fault) in [
            (&["50%"][..], NameFault::NotEscaped),
            (&["%41"], NameFault::NotEscaped),
            (&["a", "..", "b"], NameFault::NotEscaped),
            (&[".env"], NameFault::NotEscaped),
            (&["a%2E"], NameFault::NotEscaped),
            (&["%value"], NameFault::NoPath),
            (&["%value", "a"], NameFault::NotEscaped),
        ] {
            assert_eq!(path(None, &owned(names)), Err(fault), "{names:?}");
        }
        assert!(matches!(path(None, &owned(&["a\nb"])), Err(NameFault::Path(_))));
        let long = paths(&[&"%".repeat(86)]);
        assert_eq!(names(None, &long.iter().collect::<Vec<_>>()).unwrap_err().1, NameFault::TooLong);
    }
}
