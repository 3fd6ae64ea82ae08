//! Lists in the documentation that follow from the sources: crates, folders of crates, and tasks.

use std::{collections::BTreeSet, fs, path::Path};

use super::{known::Finding, sources::Source, tokens::without_test_text};
use crate::command::Result;

const PAGE: &str = "docs/architecture.md";

/// Pages with a table of crates, and the heading above it.
const CRATES: [(&str, &str); 2] = [(PAGE, "## Crates"), ("CONTRIBUTING.md", "## Crates and their dependencies")];

/// Folders with libraries, whose tasks are listed.
const LIBRARIES: [&str; 6] = ["agent", "backend-etcd", "backend-memory", "config", "core", "resolver-grpc"];

/// Functions that start a task by its name.
const STARTS: [&str; 3] = ["in_background(", "spawn(", "spawn_until_stopped("];

/// Returns what the lists do not have.
pub(super) fn findings(root: &Path, sources: &[Source]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let members = members(&fs::read_to_string(root.join("Cargo.toml"))?);
    for (page, heading) in CRATES {
        let text = fs::read_to_string(root.join(page))?;
        let missing = missing(&members, section(&text, heading), "");
        findings.extend(report("crates", page, &missing));
    }
    let text = fs::read_to_string(root.join(PAGE))?;
    let mut folders = BTreeSet::new();
    for member in &members {
        folders.extend(subfolders(&root.join(member).join("src"))?);
    }
    findings.extend(report("folders", PAGE, &missing(&folders, section(&text, "## Folders"), "/")));
    let libraries = sources.iter().filter(|source| {
        let mut parts = source.path.iter().filter_map(|part| part.to_str());
        parts.next().is_some_and(|first| LIBRARIES.contains(&first)) && parts.next() == Some("src")
    });
    let tasks: BTreeSet<_> = libraries.flat_map(|source| tasks(&source.text)).collect();
    findings.extend(report("tasks", PAGE, &missing(&tasks, section(&text, "### Tasks and their states"), "")));
    Ok(findings)
}

fn report(kind: &str, page: &str, missing: &[String]) -> Option<Finding> {
    let detail = format!("{kind} that it does not list: {}", missing.join(", "));
    (!missing.is_empty()).then(|| Finding::new("lists", page.to_owned(), missing.len(), detail))
}

/// Names that a text does not quote, each with `end`, as code: alone, or at the end of a path.
fn missing(names: &BTreeSet<String>, text: &str, end: &str) -> Vec<String> {
    let quoted: BTreeSet<_> = text.split('`').skip(1).step_by(2).collect();
    let is_quoted = |name: &str| {
        let name = format!("{name}{end}");
        quoted.iter().any(|code| code.strip_suffix(&*name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/')))
    };
    names.iter().filter(|name| !is_quoted(name)).cloned().collect()
}

/// Text of a page from a heading to the next one of the same level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let level = heading.split(' ').next().unwrap_or_default();
    let Some(at) = page.find(&format!("{heading}\n")) else { return "" };
    let rest = &page[at + heading.len()..];
    let end = rest.find(&format!("\n{level} ")).unwrap_or(rest.len());
    &rest[..end]
}

/// Folders of the crates of the workspace.
fn members(manifest: &str) -> BTreeSet<String> {
    let list =
        manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).map_or("", |(list, _)| list);
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Names of the folders in `folder`; none if it does not exist.
fn subfolders(folder: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

/// Names of the tasks that a file starts, without its tests.
fn tasks(text: &str) -> BTreeSet<String> {
    let text = without_test_text(text);
    let mut found = BTreeSet::new();
    for start in STARTS {
        for rest in text.split(start).skip(1) {
            let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
            found.extend(name.map(|(name, _)| name.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_count_if_they_are_quoted() {
        let text = "| `core`, `x/src/watch/` | `pool` |";
        assert_eq!(missing(&set(&["core", "pool", "watch"]), text, ""), ["watch"]);
        assert_eq!(missing(&set(&["core", "watch", "atch"]), text, "/"), ["atch", "core"]);
    }

    #[test]
    fn a_section_ends_at_the_next_heading() {
        assert_eq!(section("# A\n## B\nc\n### D\ne\n## F\ng", "## B").trim(), "c\n### D\ne");
        assert_eq!(section("# A\n", "## B"), "");
    }

    #[test]
    fn members_are_the_folders_of_the_manifest() {
        let manifest = "[workspace]\nmembers = [\"a\", \"b\"]\ndefault-members = [\"c\"]\n";
        assert_eq!(members(manifest), set(&["a", "b"]));
    }

    #[test]
    fn tasks_of_tests_do_not_count() {
        let text = "#[cfg(test)]\nmod tests { fn b() { tasks.spawn(\"three\", x); } }\n\
                    fn a() { tasks.spawn(\"one\", x); tasks\n.spawn_until_stopped(\n    \"two\", x); \
                    y.spawn(name, z) }\n";
        assert_eq!(tasks(text), set(&["one", "two"]));
    }
}
