//! Counts of the operations, faults, observations and checks of runs, which show what the runs cover.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::{
    kinds::{Fault, KnownDefect, Observed, Operation, ServerDefect},
    verdicts::Invariant,
};

/// First word of a line with a count.
const MARK: &str = "count: ";

/// Kind of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Operation(Operation),
    Fault(Fault),
    ServerDefect(ServerDefect),
    KnownDefect(KnownDefect),
    Observed(Observed),
    /// A check of an invariant.
    Check(Invariant),
}

impl Kind {
    /// Returns all kinds, in the order of the table.
    fn all() -> impl Iterator<Item = Self> {
        let operations = Operation::ALL.iter().copied().map(Self::Operation);
        let faults = Fault::ALL.iter().copied().map(Self::Fault);
        let defects = ServerDefect::ALL.iter().copied().map(Self::ServerDefect);
        let known = KnownDefect::ALL.iter().copied().map(Self::KnownDefect);
        let observed = Observed::ALL.iter().copied().map(Self::Observed);
        let checks = Invariant::ALL.iter().copied().map(Self::Check);
        operations.chain(faults).chain(defects).chain(known).chain(observed).chain(checks)
    }

    fn group(self) -> &'static str {
        match self {
            Self::Operation(_) => "operation",
            Self::Fault(_) => "fault",
            Self::ServerDefect(_) => "server defect",
            Self::KnownDefect(_) => "defect of etcd",
            Self::Observed(_) => "observed",
            Self::Check(_) => "check",
        }
    }

    fn name(self) -> String {
        match self {
            Self::Operation(kind) => format!("{kind:?}"),
            Self::Fault(kind) => format!("{kind:?}"),
            Self::ServerDefect(kind) => format!("{kind:?}"),
            Self::KnownDefect(kind) => format!("{kind:?}"),
            Self::Observed(kind) => format!("{kind:?}"),
            Self::Check(kind) => format!("{kind:?}"),
        }
    }
}

impl From<Operation> for Kind {
    fn from(kind: Operation) -> Self {
        Self::Operation(kind)
    }
}

impl From<Observed> for Kind {
    fn from(kind: Observed) -> Self {
        Self::Observed(kind)
    }
}

impl From<Invariant> for Kind {
    fn from(kind: Invariant) -> Self {
        Self::Check(kind)
    }
}

/// Number of a kind, and of the runs in which it occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    number: u64,
    runs: u64,
}

/// Counts of one run or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<Kind, Count>);

impl Counts {
    /// Adds to the count of a kind in one run.
    pub(crate) fn add(&mut self, kind: impl Into<Kind>, number: u64) {
        if number > 0 {
            let count = self.0.entry(kind.into()).or_default();
            (count.number, count.runs) = (count.number + number, 1);
        }
    }

    /// Adds the counts of another run.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (kind, Count { number, runs }) in &other.0 {
            let count = self.0.entry(*kind).or_default();
            (count.number, count.runs) = (count.number + number, count.runs + runs);
        }
    }

    /// Returns the counts of one run as lines.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(kind, count)| format!("{MARK}{}/{} {}", kind.group(), kind.name(), count.number))
    }

    /// Returns the counts in the output of one run.
    pub(crate) fn parse(text: &str) -> Self {
        let known: BTreeMap<String, Kind> =
            Kind::all().map(|kind| (format!("{}/{}", kind.group(), kind.name()), kind)).collect();
        let mut counts = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix(MARK)) {
            if let Some((name, number)) = line.rsplit_once(' ')
                && let (Some(kind), Ok(number)) = (known.get(name), number.parse())
            {
                counts.add(*kind, number);
            }
        }
        counts
    }

    /// Returns the kinds that never occurred.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = Kind::all().filter(|kind| !self.0.contains_key(kind));
        missing.map(|kind| format!("{} {}", kind.group(), kind.name())).collect()
    }

    /// Returns a table of all kinds, also of those that never occurred.
    pub(crate) fn table(&self, runs: u64, took: Duration) -> String {
        let mut text = format!("{:<40}{:>12}{:>9}\n", "kind", "number", "runs");
        let mut group = "";
        for kind in Kind::all() {
            if kind.group() != group {
                group = kind.group();
                // Writing to a string does not fail.
                let _ = writeln!(text, "{group}");
            }
            let Count { number, runs } = self.0.get(&kind).copied().unwrap_or_default();
            let _ = writeln!(text, "  {:<38}{number:>12}{runs:>9}", kind.name());
        }
        let _ = writeln!(text, "{runs} runs in {:.1} s", took.as_secs_f64());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_pass_through_the_output_of_a_run() {
        let mut run = Counts::default();
        run.add(Operation::Update, 2);
        run.add(Operation::Update, 1);
        run.add(Kind::Fault(Fault::Freeze), 4);
        run.add(Invariant::Ends, 0);
        let text = run.lines().collect::<Vec<_>>().join("\n");
        assert_eq!(text, "count: operation/Update 3\ncount: fault/Freeze 4");
        assert_eq!(Counts::parse(&text), run);
        let mut sum = run.clone();
        sum.merge(&run);
        assert_eq!(sum.0[&Kind::Operation(Operation::Update)], Count { number: 6, runs: 2 });
    }

    #[test]
    fn a_kind_that_never_occurred_is_missing() {
        let mut counts = Counts::default();
        Kind::all().for_each(|kind| counts.add(kind, 1));
        assert_eq!(counts.missing(), [""; 0]);
        counts.0.remove(&Kind::Observed(Observed::LeaseLost));
        assert_eq!(counts.missing(), ["observed LeaseLost"]);
        let table = counts.table(1, Duration::ZERO);
        assert!(table.lines().any(|line| line.split_whitespace().eq(["LeaseLost", "0", "0"])), "{table}");
    }
}
