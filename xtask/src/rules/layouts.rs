//! Places that name each layout of `enlist-etcd`, besides the table in `layout/named.rs`, and that no compiler compares
//! with it. `docs/architecture.md` has the whole checklist.

use std::{collections::BTreeSet, fs, path::Path};

use super::{
    known::Finding,
    sources::Source,
    tokens::{group_end, tokens},
};
use crate::command::Result;

/// The table of layouts, whose imports are the types of all layouts.
const TABLE: &str = "backend-etcd/src/layout/named.rs";

/// Places that name the type of each layout.
const PLACES: [&str; 3] = ["backend-etcd/tests/layouts.rs", TARGETS, PAGE];

const TARGETS: &str = "backend-etcd/tests/fuzzed/targets.rs";

/// Manifest of the fuzz targets.
const FUZZ: &str = "fuzz/Cargo.toml";

/// Folder with the sources of the fuzz targets.
const FUZZ_SOURCES: &str = "fuzz/fuzz_targets";

/// Page with a table of layouts, and below [`PARTS`] one of what they carry.
const PAGE: &str = "docs/wire-formats.md";

/// Heading of the second table.
const PARTS: &str = "\n## Supported parts of an instance\n";

/// Traits that the table imports.
const TRAITS: [&str; 2] = ["Layout", "LockLayout"];

/// Layouts without a place, each with the reason.
const EXCEPTIONS: [(&str, &str); 1] = [
    // Every value is an entry, so there is no decoder to try.
    (TARGETS, "GobaseLock"),
];

/// Returns the layouts that a place does not name.
pub(super) fn findings(root: &Path, sources: &[Source]) -> Result<Vec<Finding>> {
    let read = |path: &str| match sources.iter().find(|source| source.path == Path::new(path)) {
        Some(source) => Ok(source.text.clone()),
        None => fs::read_to_string(root.join(path)),
    };
    let table = read(TABLE)?;
    let mut findings = Vec::new();
    for place in PLACES {
        let missing = unnamed(&types(&table), place, &read(place)?);
        findings.extend(report(place, "layouts that it does not name", &missing));
    }
    let targets = read(TARGETS)?;
    let missing = without_target(&targets, &read(FUZZ)?);
    findings.extend(report(FUZZ, "fuzz targets without a binary", &missing));
    let missing = without_source(&targets, |file| root.join(FUZZ_SOURCES).join(file).exists());
    findings.extend(report(FUZZ_SOURCES, "fuzz targets without a file", &missing));
    let page = read(PAGE)?;
    findings.extend(report(PAGE, "names of layouts without a row", &without_row(&names(&table), &page)));
    findings.extend(report(PAGE, "layouts without a row of their parts", &without_parts(&page)));
    Ok(findings)
}

fn report(place: &str, fault: &str, missing: &[&str]) -> Option<Finding> {
    let detail = format!("{fault}: {}", missing.join(", "));
    (!missing.is_empty()).then(|| Finding::new("layouts", place.to_owned(), missing.len(), detail))
}

/// Types that the table imports from the other files of its folder.
fn types(table: &str) -> Vec<&str> {
    let all = tokens(table);
    let Some(at) = all.windows(3).position(|three| three == ["use", "super", "::"]) else { return Vec::new() };
    let imports = &all[at + 3..group_end(&all, at + 3)];
    let is_type = |word: &&str| word.starts_with(|first: char| first.is_uppercase()) && !TRAITS.contains(word);
    imports.iter().copied().filter(is_type).collect()
}

/// Names in the table: of users, for the command line and for `named_layout`.
fn names(table: &str) -> Vec<&str> {
    let quoted = table.split("name: \"").skip(1).filter_map(|rest| rest.split_once('"'));
    quoted.map(|(name, _)| name).collect()
}

fn unnamed<'a>(types: &[&'a str], place: &str, text: &str) -> Vec<&'a str> {
    let words: BTreeSet<_> = text.split(|c: char| !c.is_alphanumeric()).collect();
    let is_missing = |name: &&&str| !words.contains(**name) && !EXCEPTIONS.contains(&(place, **name));
    types.iter().filter(is_missing).copied().collect()
}

/// Names of the targets in the list of the tests.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let list = text.split_once("TARGETS: ").and_then(|(_, rest)| rest.split_once("];")).map_or("", |(list, _)| list);
    list.split("(\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name)
}

/// Targets in the list of the tests that the manifest of the fuzz targets does not name.
fn without_target<'a>(list: &'a str, manifest: &str) -> Vec<&'a str> {
    // The name of a binary has no dots.
    targets(list).filter(|name| !manifest.contains(&format!("name = \"{}\"", name.replace('.', "_")))).collect()
}

/// Targets in the list of the tests whose source does not exist.
fn without_source(list: &str, exists: impl Fn(&str) -> bool) -> Vec<&str> {
    targets(list).filter(|name| !exists(&format!("{}.rs", name.replace(['.', '-'], "_")))).collect()
}

/// Names that are in no second cell of a row.
fn without_row<'a>(names: &[&'a str], page: &str) -> Vec<&'a str> {
    let cells: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix('|')?.split('|').nth(1)).collect();
    names.iter().filter(|name| !cells.contains(&*format!(" `{name}` "))).copied().collect()
}

/// Layouts of the first table that have no row in the table of their parts.
fn without_parts(page: &str) -> Vec<&str> {
    fn first_cells(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name)
    }
    let (layouts, rest) = page.split_once(PARTS).unwrap_or((page, ""));
    let parts: BTreeSet<_> = first_cells(rest.split("\n## ").next().unwrap_or_default()).collect();
    first_cells(layouts).filter(|name| !parts.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMPORTS: &str =
        "use std::fmt;\nuse super::{\n    Layout, LockLayout,\n    a::{A, AByLease},\n    b::B,\n};\nfn c() {}";

    #[test]
    fn imports_of_the_table_are_the_layouts() {
        assert_eq!(types(IMPORTS), ["A", "AByLease", "B"]);
    }

    #[test]
    fn each_place_names_each_layout() {
        assert_eq!(unnamed(&["A", "AByLease", "B"], "a.rs", "A::new(), `B`"), ["AByLease"]);
        assert_eq!(unnamed(&["GobaseLock"], TARGETS, ""), [""; 0]);
    }

    #[test]
    fn each_fuzz_target_has_a_binary() {
        let targets = "pub(crate) const TARGETS: &[(&str, &str)] = &[\n    (\"a\", \"x\"),\n    (\"b\", \"y\"),\n];";
        assert_eq!(without_target(targets, "[[bin]]\nname = \"a\"\n"), ["b"]);
    }

    #[test]
    fn each_fuzz_target_has_a_file() {
        let targets = "TARGETS: &[(&str, &str)] = &[\n    (\"go-a\", \"x\"),\n    (\"b-v0.1\", \"y\"),\n];";
        assert_eq!(without_source(targets, |file| file == "go_a.rs"), ["b-v0.1"]);
        assert_eq!(without_source(targets, |file| file == "b_v0_1.rs"), ["go-a"]);
    }

    #[test]
    fn each_layout_has_a_row_of_parts() {
        let page = "| `A` (a) | `a` |\n| `B` | `b` |\n\n## Supported parts of an instance\n\n| `A` | yes |\n\n\
            ## Locks\n\n| `B` | |\n";
        assert_eq!(without_parts(page), ["B"]);
        assert_eq!(without_parts("| `A` | `a` |\n"), ["A"]);
    }

    #[test]
    fn each_name_has_a_row() {
        let table = "L { name: \"a-b\", x }, L { name: NATIVE }, L { name: \"c\" }";
        assert_eq!(without_row(&names(table), "| `AB` | `a-b` | x |\n| `C` | x | `c` |\n"), ["c"]);
    }
}
