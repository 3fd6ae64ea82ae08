//! Words that the texts of this project avoid, in pages and in comments: keys and tasks are things, not persons.

use super::{
    known::Finding,
    markdown::{Line, lines},
    sources::Source,
};

/// Words and phrases for persons, and the reason to avoid them: a key is deleted, a task receives an error.
const AVOIDED: [&str; 9] =
    ["are robbed", "are told", "is robbed", "is told", "somebody", "was told", "were told", "whoever", "whomever"];

/// First cells of the table whose rows show texts to avoid.
const EXAMPLES: &str = "| not | but |";

/// Returns the pages and Rust files whose texts have such words.
pub(super) fn findings(pages: &[Source], sources: &[Source]) -> Vec<Finding> {
    let pages = pages.iter().map(|page| (page, texts(&page.text)));
    let comments = sources.iter().filter(|source| !source.path.ends_with("xtask/src/rules/prose.rs"));
    let comments = comments.map(|source| (source, comments_of(&source.text)));
    pages.chain(comments).filter_map(|(source, text)| finding(source, &text)).collect()
}

fn finding(source: &Source, text: &str) -> Option<Finding> {
    let text = format!(" {} ", text.to_lowercase());
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    // "To tell from" and "to tell apart" are to distinguish.
    let text =
        format!(" {} ", words.collect::<Vec<_>>().join(" ")).replace(" told from ", " ").replace(" told apart ", " ");
    let found: Vec<_> = AVOIDED.iter().filter(|words| text.contains(&format!(" {words} "))).collect();
    let first = found.first()?;
    let detail = format!("kinds of words for persons, such as \"{first}\"");
    Some(Finding::new("words", source.path.display().to_string(), found.len(), detail))
}

/// Texts of a page, without code and without examples of texts to avoid.
fn texts(page: &str) -> String {
    let mut found = String::new();
    let mut is_example = false;
    for (_, line) in lines(page) {
        let Line::Text(line) = line else { continue };
        is_example = line == EXAMPLES || (is_example && line.starts_with('|'));
        if !is_example {
            found.push_str(&without_code(line));
            found.push('\n');
        }
    }
    found
}

/// Texts of the comments of a Rust file.
fn comments_of(text: &str) -> String {
    let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix("//"));
    comments.map(without_code).collect::<Vec<_>>().join("\n")
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let source = Source { path: path.into(), text: text.to_owned() };
        let (pages, sources) = if source.path.extension().is_some_and(|extension| extension == "md") {
            (vec![source], Vec::new())
        } else {
            (Vec::new(), vec![source])
        };
        findings(&pages, &sources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_for_persons_are_found_across_lines() {
        let expected = ["words a.md 1 kinds of words for persons, such as \"is told\""];
        assert_eq!(found("a.md", "The holder is\ntold."), expected);
        assert_eq!(found("a.rs", "/// Whoever comes.\nfn a() {}").len(), 1);
    }

    #[test]
    fn code_and_examples_may_have_any_words() {
        assert!(
            found("a.md", "`whoever`\n```\nwhoever\n```\n\n| not | but |\n|---|---|\n| whoever | it |\n").is_empty()
        );
        assert!(found("a.rs", "fn whoever() -> &'static str { \"somebody\" }").is_empty());
        assert_eq!(found("a.md", "| not | but |\n| whoever | it |\n\nWhoever.").len(), 1);
    }

    #[test]
    fn parts_of_words_are_no_words() {
        assert!(found("a.md", "This told us. Wholesale.").is_empty());
    }

    #[test]
    fn distinctions_are_no_words_for_persons() {
        assert!(found("a.md", "A restart is told from an update. They are told apart.").is_empty());
    }
}
