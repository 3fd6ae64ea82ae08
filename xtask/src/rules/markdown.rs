//! Markdown files: widths of lines, relative links, former names in code, and tests that a page names. `prose.rs` looks
//! at the words of their texts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use super::{
    known::Finding,
    limits::MAX_LINE,
    names::OLD,
    sources::Source,
    tokens::{is_word, tokens},
};

/// Minimum number of words of a name in code that only a test can have.
const WORDS_OF_A_TEST: usize = 4;

/// Old names that are also names in other libraries, with the page that is about them.
const FOREIGN: [(&str, &str); 1] = [("docs/coming-from.md", "Registrar")];

/// Returns the findings in the pages. `sources` are the Rust files, whose tests the pages name.
pub(super) fn findings(root: &Path, pages: &[Source], sources: &[Source]) -> Vec<Finding> {
    let anchors: BTreeMap<_, _> = pages.iter().map(|page| (page.path.clone(), anchors(&page.text))).collect();
    let functions = functions(sources);
    let exists = |path: &Path| root.join(path).exists();
    let mut findings = Vec::new();
    for page in pages {
        let place = page.path.display().to_string();
        findings.extend(report("wide-lines", &place, &wide_lines(&page.text), "is over 120 characters"));
        findings.extend(report("dead-links", &place, &dead_links(page, &anchors, exists), "has no target"));
        findings.extend(report("old-name", &place, &old_names(page), "is an old name"));
        findings.extend(report("dead-tests", &place, &dead_tests(&page.text, &functions), "is no function"));
    }
    findings
}

/// Returns one finding for what a rule found in a page, with the first as an example.
fn report(rule: &'static str, place: &str, found: &[String], fault: &str) -> Option<Finding> {
    let first = found.first()?;
    Some(Finding::new(rule, place.to_owned(), found.len(), format!("{first} {fault}")))
}

/// A line of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Part of a block of code, or one of its fences.
    Code(&'a str),
    /// Everything else.
    Text(&'a str),
}

/// Lines of a page with their numbers.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, Line<'_>)> {
    let mut is_code = false;
    text.lines().enumerate().map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (index + 1, if is_code || is_fence { Line::Code(line) } else { Line::Text(line) })
    })
}

/// Lines of text that are too wide. Rows of tables cannot be wrapped, nor can a line of code.
fn wide_lines(text: &str) -> Vec<String> {
    let is_wide = |line: &str| line.chars().count() > MAX_LINE && !line.trim_start().starts_with('|');
    let wide = lines(text).filter_map(|(number, line)| match line {
        Line::Text(line) if is_wide(line) => Some(format!("line {number}")),
        _ => None,
    });
    wide.collect()
}

/// Parts of a line outside of quoted code, and those inside of it.
fn split_code(line: &str) -> (String, Vec<&str>) {
    let parts: Vec<_> = line.split('`').collect();
    let outside: Vec<_> = parts.iter().step_by(2).copied().collect();
    (outside.join("`"), parts.iter().skip(1).step_by(2).copied().collect())
}

/// Code of a page: its blocks, and what its texts quote.
fn code(text: &str) -> Vec<&str> {
    let parts = lines(text).flat_map(|(_, line)| match line {
        Line::Code(line) => vec![line],
        Line::Text(line) => split_code(line).1,
    });
    parts.collect()
}

fn old_names(page: &Source) -> Vec<String> {
    let words = code(&page.text).into_iter().flat_map(|code| code.split(|c: char| !is_word(c)));
    let is_foreign = |word: &str| FOREIGN.iter().any(|(path, name)| page.path == Path::new(path) && *name == word);
    words.filter(|word| OLD.contains(word) && !is_foreign(word)).map(str::to_owned).collect()
}

/// Functions of the sources: the paths of the files that have one of a name.
type Functions<'a> = BTreeMap<&'a str, Vec<&'a Path>>;

fn functions(sources: &[Source]) -> Functions<'_> {
    let mut found = Functions::new();
    for source in sources {
        for pair in tokens(&source.text).windows(2).filter(|pair| pair[0] == "fn") {
            found.entry(pair[1]).or_default().push(&source.path);
        }
    }
    found
}

/// Returns `true` if the path has a folder or a file of this name.
fn is_in(path: &Path, module: &str) -> bool {
    path.with_extension("").iter().any(|part| part == module)
}

/// Tests that the page names as `module::name`, of which the sources have none in a file or folder of that name.
fn dead_tests(text: &str, functions: &Functions<'_>) -> Vec<String> {
    let quoted = lines(text).flat_map(|(_, line)| match line {
        Line::Code(_) => Vec::new(),
        Line::Text(line) => split_code(line).1,
    });
    let is_test = |name: &str| {
        let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        is_name && name.split('_').count() >= WORDS_OF_A_TEST
    };
    let is_dead = |code: &&str| {
        let Some((modules, name)) = code.rsplit_once("::").filter(|(_, name)| is_test(name)) else { return false };
        let first = modules.split("::").next().unwrap_or_default();
        // A type may be in any file.
        let has = |path: &Path| first.starts_with(char::is_uppercase) || is_in(path, first);
        !functions.get(name).is_some_and(|paths| paths.iter().any(|path| has(path)))
    };
    quoted.filter(is_dead).map(str::to_owned).collect()
}

/// Relative links whose file or heading does not exist.
fn dead_links(
    page: &Source,
    anchors: &BTreeMap<PathBuf, BTreeSet<String>>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<String> {
    let folder = page.path.parent().unwrap_or(Path::new(""));
    let is_dead = |link: &String| {
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if path.is_empty() { page.path.clone() } else { normal(&folder.join(path)) };
        let has_anchor = anchor.is_empty() || anchors.get(&target).is_none_or(|known| known.contains(anchor));
        !exists(&target) || !has_anchor
    };
    links(&page.text).into_iter().filter(is_dead).collect()
}

/// Targets of the relative links of a page.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (_, line) in lines(text) {
        let Line::Text(line) = line else { continue };
        let (outside, _) = split_code(line);
        let targets = outside.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        found.extend(targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains(':')));
    }
    found
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => _ = found.pop(),
            part => found.push(part),
        }
    }
    found
}

/// Anchors of the headings of a page: lower case, hyphens for spaces, and no other punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in lines(text) {
        let Line::Text(line) = line else { continue };
        let heading = line.trim_start_matches('#');
        if heading.len() < line.len() && heading.starts_with(' ') {
            let kept = heading.trim().chars().filter(|c| is_word(*c) || matches!(c, ' ' | '-'));
            found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    fn found(text: &str) -> Vec<String> {
        let sources = [page("a/tests/b.rs", "fn one_two_three_four() {}")];
        let findings = findings(Path::new("/nonexistent"), &[page("docs/a.md", text)], &sources);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn wide_texts_are_found_but_no_tables_or_code() {
        let wide = "x".repeat(121);
        assert_eq!(found(&wide), ["wide-lines docs/a.md 1 line 1 is over 120 characters"]);
        assert!(found(&format!("| {wide} |\n```\n{wide}\n```\n")).is_empty());
    }

    #[test]
    fn old_names_are_found_in_code_only() {
        assert_eq!(found("Standing by `Stander::new`."), ["old-name docs/a.md 1 Stander is an old name"]);
        assert_eq!(found("```rust\nlet a: Stander;\n```"), ["old-name docs/a.md 1 Stander is an old name"]);
        assert!(found("The Stander is here.").is_empty());
    }

    #[test]
    fn tests_that_do_not_exist_are_found() {
        assert_eq!(
            found("See `b::one_two_three_five`."),
            ["dead-tests docs/a.md 1 b::one_two_three_five is no function"]
        );
        assert_eq!(found("`c::one_two_three_four`").len(), 1, "it is in another file");
        let known = "`b::one_two_three_four`, `b::tests::one_two_three_four`, `tests::one_two_three_four`";
        assert!(found(&format!("See {known},\n`b::one_two`, `B::ONE_TWO_THREE_FOUR`.")).is_empty());
    }

    #[test]
    fn links_need_a_file_and_a_heading() {
        let pages = [page("docs/a.md", "# A `b`: c\n"), page("README.md", "")];
        let anchors = pages.iter().map(|page| (page.path.clone(), anchors(&page.text))).collect();
        let dead = |text: &str| {
            let exists = |path: &Path| ["docs/a.md", "README.md", "docs"].iter().any(|known| path == Path::new(known));
            dead_links(&page("docs/c.md", text), &anchors, exists)
        };
        assert_eq!(dead("[a](a.md) [b](../README.md) [c](a.md#a-b-c) [d](https://x.example/y)"), [""; 0]);
        assert_eq!(dead("[a](b.md) [b](a.md#a-b) `[c](d.md)`"), ["b.md", "a.md#a-b"]);
        assert_eq!(dead("```\n[a](b.md)\n```"), [""; 0]);
    }

    #[test]
    fn fences_begin_and_end_code() {
        let all: Vec<_> = lines("a\n```sh\nb\n```\nc").map(|(_, line)| line).collect();
        let code = ["```sh", "b", "```"].map(Line::Code);
        assert_eq!(all, [&[Line::Text("a")][..], &code[..], &[Line::Text("c")][..]].concat());
    }
}
