//! Share of documentation comments that open with an interrogative, instead of a noun phrase or a third-person verb.

use super::sources::Source;
use crate::command::Result;

/// Maximum share of such `///` blocks in percent. Well-known crates have 0 to 4.
const MAX_PERCENT: f64 = 4.0;

const INTERROGATIVES: [&str; 8] = ["what", "how", "who", "when", "where", "whether", "why", "which"];

/// Number of blocks, and the interrogative ones.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Openings {
    blocks: usize,
    /// File, line and text of each interrogative block.
    interrogative: Vec<(String, usize, String)>,
}

impl Openings {
    pub(super) fn of(sources: &[Source]) -> Self {
        let mut openings = Self::default();
        for source in sources {
            for (line, text) in first_lines(&source.text) {
                openings.blocks += 1;
                if is_interrogative(text) {
                    openings.interrogative.push((source.path.display().to_string(), line, text.to_owned()));
                }
            }
        }
        openings
    }

    fn percent(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts of comments are small")]
        let share = self.interrogative.len() as f64 / self.blocks.max(1) as f64;
        share * 100.0
    }

    /// Prints the share.
    ///
    /// # Errors
    ///
    /// The comments, if the share is above the limit.
    pub(super) fn report(&self) -> Result {
        let summary = format!(
            "{} of {} documentation comments open with an interrogative: {:.1} % (limit: {MAX_PERCENT} %)",
            self.interrogative.len(),
            self.blocks,
            self.percent()
        );
        println!("{summary}");
        if self.percent() <= MAX_PERCENT {
            return Ok(());
        }
        for (file, line, text) in &self.interrogative {
            println!("{file}:{line}: {text}");
        }
        Err(summary.into())
    }
}

/// Number and text of the first line of each `///` block.
fn first_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut within = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let comment = line.trim_start().strip_prefix("///").filter(|rest| !rest.starts_with('/'));
        let first = comment.filter(|_| !within);
        within = comment.is_some();
        first.map(|text| (index + 1, text.trim()))
    })
}

fn is_interrogative(text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default().to_ascii_lowercase();
    INTERROGATIVES.contains(&&*first) || (first == "says" && words.next() == Some("whether"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openings(text: &str) -> Openings {
        Openings::of(&[Source { path: "a.rs".into(), text: text.to_owned() }])
    }

    #[test]
    fn only_the_first_line_of_a_block_counts() {
        let found = openings(
            "//! What a module is.\n\n/// Names.\n/// What follows is no opening.\nstruct A {\n\
                 /// How long it is.\n    \
             a: u8,\n    //// What a ruler is.\n    // When it is set.\n    /// Whatever follows.\n    b: u8,\n}\n",
        );
        let expected = vec![("a.rs".to_owned(), 6, "How long it is.".to_owned())];
        assert_eq!(found, Openings { blocks: 3, interrogative: expected });
    }

    #[test]
    fn interrogatives_are_known_in_any_case_and_form() {
        for text in ["What it is", "how", "Who, if anybody", "`Whether`", "Says whether it ends", "**When** it ends"] {
            assert!(is_interrogative(text), "{text}");
        }
        for text in ["", "Returns what is left", "Says what it is", "Whenever it ends", "Somehow", "1 of whom"] {
            assert!(!is_interrogative(text), "{text}");
        }
    }

    #[test]
    fn a_share_above_the_limit_fails() {
        let of = |bad: usize| openings(&("/// What.\n\n".repeat(bad) + &"/// A noun.\n\n".repeat(100 - bad)));
        assert!(of(4).report().is_ok());
        let refused = of(5).report().unwrap_err().to_string();
        assert!(refused.contains("5 of 100") && refused.contains("5.0 %"), "{refused}");
        assert!(openings("").report().is_ok());
    }
}
