//! Lengths of lines, functions and files. Tests may be longer, except for their lines.

use std::{ops::Range, path::Path};

use super::{
    known::Finding,
    sources::Source,
    tokens::{group_end, items_of_tests, test_modules, tokens},
};

/// Maximum number of characters in a line.
pub(super) const MAX_LINE: usize = 120;

/// Maximum number of lines in a function, from its `fn` to its last brace.
const MAX_FUNCTION: usize = 50;

/// Maximum number of lines in a function of an example, whose `main` is the whole program.
const MAX_EXAMPLE: usize = 60;

/// Maximum number of lines in a file, without its tests.
const MAX_FILE: usize = 450;

/// Files that may be longer, each with the reason. There are at most two.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Returns what is longer than it may be.
pub(super) fn findings(sources: &[Source]) -> Vec<Finding> {
    let modules: Vec<_> = sources.iter().flat_map(test_files).collect();
    let mut findings = Vec::new();
    for source in sources {
        findings.extend(wide_lines(source));
        let is_test = source.path.iter().any(|part| part == "tests" || part == "benches")
            || modules
                .iter()
                .any(|module| source.path.starts_with(module) || source.path == module.with_extension("rs"));
        if !is_test {
            findings.extend(long_file(source));
            findings.extend(long_functions(source));
        }
    }
    findings
}

/// Paths, without extension, of the modules of a file that are for tests only.
fn test_files(source: &Source) -> Vec<std::path::PathBuf> {
    let all = tokens(&source.text);
    let names = test_modules(&all);
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let is_root = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| source.path.ends_with(name));
    let folder = if is_root { folder.to_path_buf() } else { source.path.with_extension("") };
    names.into_iter().map(|name| folder.join(name)).collect()
}

fn wide_lines(source: &Source) -> Option<Finding> {
    let is_wide = |(_, line): &(usize, &str)| line.chars().count() > MAX_LINE && !is_table(line);
    let wide: Vec<_> = numbered(&source.text).filter(is_wide).collect();
    let (first, _) = wide.first()?;
    let place = source.path.display().to_string();
    Some(Finding::new("wide-lines", place, wide.len(), format!("over {MAX_LINE} characters, the first is {first}")))
}

/// Returns `true` for a row of a table in a comment, which cannot be wrapped.
fn is_table(line: &str) -> bool {
    let comment = line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']));
    comment.is_some_and(|text| text.trim_start().starts_with('|'))
}

fn long_file(source: &Source) -> Option<Finding> {
    let path = source.path.display().to_string();
    if EXCEPTIONS.iter().any(|(exception, _)| *exception == path) {
        return None;
    }
    let all = tokens(&source.text);
    let of_tests: usize = items_of_tests(&all).into_iter().map(|item| lines(&source.text, &all, item).len()).sum();
    let length = source.text.lines().count() - of_tests;
    (length > MAX_FILE).then(|| Finding::new("long-file", path, length, format!("lines, at most {MAX_FILE}")))
}

fn long_functions(source: &Source) -> Vec<Finding> {
    let all = tokens(&source.text);
    let tests = items_of_tests(&all);
    let most = if source.path.starts_with("examples") { MAX_EXAMPLE } else { MAX_FUNCTION };
    let mut findings = Vec::new();
    for (at, pair) in all.windows(2).enumerate() {
        let is_of_tests = tests.iter().any(|item| item.contains(&at));
        // `fn(` is a type.
        if pair[0] != "fn" || pair[1] == "(" || is_of_tests {
            continue;
        }
        let Some(open) = body(&all, at) else { continue };
        let length = lines(&source.text, &all, at..group_end(&all, open)).len();
        if length > most {
            let place = format!("{}:{}", source.path.display(), pair[1]);
            findings.push(Finding::new("long-function", place, length, format!("lines, at most {most}")));
        }
    }
    findings
}

/// Position of the brace that opens the body of the function at `at`; `None` if it has none.
fn body(tokens: &[&str], mut at: usize) -> Option<usize> {
    loop {
        match *tokens.get(at)? {
            ";" => return None,
            "{" => return Some(at),
            "(" | "[" => at = group_end(tokens, at),
            _ => at += 1,
        }
    }
}

/// Lines that these tokens of `text` cover.
fn lines(text: &str, tokens: &[&str], range: Range<usize>) -> Range<usize> {
    let line = |token: &str| text[..token.as_ptr().addr() - text.as_ptr().addr()].matches('\n').count();
    match &tokens[range] {
        [first, .., last] => line(first)..line(last) + 1,
        _ => 0..0,
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.into(), text: text.to_owned() };
        findings(&[source]).iter().map(ToString::to_string).collect()
    }

    fn lines_of(count: usize) -> String {
        "    a();\n".repeat(count)
    }

    #[test]
    fn long_functions_are_found_and_short_ones_are_not() {
        let text = |count| format!("fn a(f: fn() -> u8) -> [u8; 3]\nwhere\n    T: X,\n{{\n{}}}\n", lines_of(count));
        assert_eq!(found("a.rs", &text(46)), ["long-function a.rs:a 51 lines, at most 50"]);
        assert!(found("a.rs", &text(45)).is_empty());
        assert!(found("x/tests/a.rs", &text(46)).is_empty());
        assert!(found("examples/a.rs", &text(55)).is_empty());
        assert_eq!(found("examples/a.rs", &text(56)).len(), 1);
    }

    #[test]
    fn files_are_measured_without_their_tests() {
        let item = "const A: u8 = 1;\n";
        let tests = format!("#[cfg(test)]\nmod tests {{\n    fn b() {{\n{}    }}\n}}\n", lines_of(60));
        assert_eq!(found("a.rs", &format!("{}{tests}", item.repeat(451))), ["long-file a.rs 451 lines, at most 450"]);
        assert!(found("a.rs", &format!("{}{tests}", item.repeat(450))).is_empty());
    }

    #[test]
    fn characters_of_a_line_are_counted_not_bytes() {
        let line = |count| format!("fn a() {{}}\n// {}\n", "ü".repeat(count));
        assert!(found("tests/a.rs", &line(117)).is_empty());
        assert_eq!(found("tests/a.rs", &line(118)), ["wide-lines tests/a.rs 1 over 120 characters, the first is 2"]);
    }

    #[test]
    fn rows_of_tables_in_comments_may_be_wide() {
        let wide = |prefix: &str| format!("{prefix}{}\n", "x".repeat(120));
        assert!(found("tests/a.rs", &(wide("//! | ") + &wide("    /// | "))).is_empty());
        assert_eq!(found("tests/a.rs", &wide("| ")).len(), 1);
    }

    #[test]
    fn modules_for_tests_may_be_long() {
        let root = Source { path: "x/src/lib.rs".into(), text: "#[cfg(test)]\nmod support;".to_owned() };
        let support = Source { path: "x/src/support.rs".into(), text: "const A: u8 = 1;\n".repeat(500) };
        assert!(findings(&[root, support]).is_empty());
    }
}
