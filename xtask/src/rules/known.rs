//! Known findings in `xtask/known.txt`. The list only shrinks: a finding that is not listed, or worse than listed,
//! fails.

use std::{collections::BTreeMap, fmt};

use crate::command::Result;

/// Path of the list.
const LIST: &str = "xtask/known.txt";

/// A place in the tree that breaks a rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    rule: &'static str,
    place: String,
    amount: usize,
    detail: String,
}

impl Finding {
    pub(super) fn new(rule: &'static str, place: String, amount: usize, detail: impl Into<String>) -> Self {
        Self { rule, place, amount, detail: detail.into() }
    }

    /// Returns `true` if the finding is one of `rule`.
    #[cfg(test)]
    pub(super) fn is_of(&self, rule: &str) -> bool {
        self.rule == rule
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, place, amount, detail } = self;
        write!(f, "{rule} {place} {amount} {detail}")
    }
}

/// Permitted amounts, by rule and place.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known(BTreeMap<(String, String), usize>);

impl Known {
    /// Reads the list of the repository.
    pub(super) fn read(root: &std::path::Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(root.join(LIST))?)
    }

    /// Reads lines of the form `rule place amount`.
    fn parse(text: &str) -> Result<Self> {
        let mut known = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let [rule, place, amount] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                return Err(format!("{LIST}: {line} is not `rule place amount`").into());
            };
            known.insert((rule.to_owned(), place.to_owned()), amount.parse()?);
        }
        Ok(Self(known))
    }

    /// Compares the findings with the list. Prints how it can shrink.
    ///
    /// # Errors
    ///
    /// The findings that are not in the list, or that are worse than it says.
    pub(super) fn judge(&self, findings: &[Finding]) -> Result {
        let key = |finding: &Finding| (finding.rule.to_owned(), finding.place.clone());
        let permitted = |finding: &&Finding| self.0.get(&key(finding)).copied().unwrap_or(0);
        let worse: Vec<_> = findings.iter().filter(|finding| finding.amount > permitted(finding)).collect();
        let now: BTreeMap<_, _> = findings.iter().map(|finding| (key(finding), finding.amount)).collect();
        let least = |(place, permitted): (&(String, String), &usize)| {
            now.get(place).map(|amount| (place.clone(), *amount.min(permitted)))
        };
        let shrunk: BTreeMap<_, _> = self.0.iter().filter_map(least).collect();
        println!("{} known findings of style rules remain", self.0.len());
        if shrunk != self.0 {
            println!("{LIST} can shrink to:");
            for ((rule, place), amount) in &shrunk {
                println!("{rule} {place} {amount}");
            }
        }
        if worse.is_empty() {
            return Ok(());
        }
        let texts: Vec<_> = worse.iter().map(ToString::to_string).collect();
        Err(format!("these break rules of CONTRIBUTING.md:\n{}", texts.join("\n")).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_may_shrink_and_not_grow() {
        let known = Known::parse("# a comment\nlong-file a.rs 500\n").expect("it is well formed");
        let finding = |place: &str, amount| Finding::new("long-file", place.to_owned(), amount, "lines");
        assert!(known.judge(&[]).is_ok());
        assert!(known.judge(&[finding("a.rs", 500)]).is_ok());
        assert!(known.judge(&[finding("a.rs", 499)]).is_ok());
        let refused = known.judge(&[finding("a.rs", 501), finding("b.rs", 1)]).expect_err("it has grown").to_string();
        assert!(refused.contains("a.rs 501") && refused.contains("b.rs 1"), "{refused}");
    }

    #[test]
    fn a_malformed_line_is_refused() {
        assert!(Known::parse("long-file a.rs").is_err());
        assert!(Known::parse("long-file a.rs many").is_err());
    }
}
