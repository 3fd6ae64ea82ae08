//! Names of tests. A name states subject and behaviour in few words; the reason and the setup belong into comments. A
//! conformance case has one behaviour.

use super::{known::Finding, sources::Source, tokens::tokens};

/// Maximum number of words in the name of a test.
const MAX_WORDS: usize = 8;

/// Folder of the conformance cases, each of which is one function.
const CASES: &str = "testkit/src/conformance/cases";

/// Returns the files with integration tests or conformance cases whose names are too long.
pub(super) fn findings(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let all = tokens(&source.text);
        let is_case = source.path.starts_with(CASES);
        if !is_case && !source.path.iter().any(|part| part == "tests") {
            continue;
        }
        let functions =
            all.iter().enumerate().filter(|(at, token)| **token == "fn" && (is_case || is_test(&all[..*at])));
        let names: Vec<_> = functions.filter_map(|(at, _)| all.get(at + 1)).collect();
        if let Some(joined) = names.iter().find(|name| is_case && name.contains("_and_")) {
            let detail = format!("case whose name joins two behaviours, {joined}");
            findings.push(Finding::new("test-names", source.path.display().to_string(), 1, detail));
        }
        let long: Vec<_> = names.iter().filter(|name| name.split('_').count() > MAX_WORDS).collect();
        if let Some(first) = long.first() {
            let detail = format!("tests whose names have over {MAX_WORDS} words, such as {first}");
            findings.push(Finding::new("test-names", source.path.display().to_string(), long.len(), detail));
        }
    }
    findings
}

/// Returns `true` if a function after these tokens is a test: one of its attributes is `test`.
fn is_test(before: &[&str]) -> bool {
    let mut before = before.strip_suffix(&["async"]).unwrap_or(before);
    while before.last() == Some(&"]") {
        let Some(open) = before.iter().rposition(|token| *token == "#") else { return false };
        if let ["#", "[", "test", ..] | ["#", "[", "tokio", "::", "test", ..] = before[open..] {
            return true;
        }
        before = &before[..open];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: &str = "a_name_of_a_test_with_eight_words";

    fn found(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.into(), text: text.to_owned() };
        findings(&[source]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_of_over_eight_words_are_found() {
        let text = format!("#[tokio::test(start_paused = true)]\n#[ignore = \"x\"]\nasync fn {EIGHT}_x() {{}}");
        let expected = format!("test-names x/tests/a.rs 1 tests whose names have over 8 words, such as {EIGHT}_x");
        assert_eq!(found("x/tests/a.rs", &text), [expected]);
        assert!(found("x/tests/a.rs", &format!("#[test] fn {EIGHT}() {{}}")).is_empty());
    }

    #[test]
    fn conformance_cases_are_tests() {
        assert_eq!(found("testkit/src/conformance/cases/a.rs", &format!("pub async fn {EIGHT}_x() {{}}")).len(), 1);
    }

    #[test]
    fn a_conformance_case_has_one_behaviour() {
        assert_eq!(found("testkit/src/conformance/cases/a.rs", "pub async fn a_and_b() {}").len(), 1);
        assert!(found("x/tests/a.rs", "#[test] fn a_and_b() {}").is_empty());
    }

    #[test]
    fn helpers_and_unit_tests_may_have_any_name() {
        assert!(found("x/tests/a.rs", &format!("#[test] fn a() {{}} fn {EIGHT}_x() {{}}")).is_empty());
        assert!(found("x/src/a.rs", &format!("#[test] fn {EIGHT}_x() {{}}")).is_empty());
    }
}
