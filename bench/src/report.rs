//! Report of the measurements: a table as text, or one JSON object per line.

use std::fmt;

use serde_json::json;

use crate::measure::{Digits, Spread, Turns};

/// Bound of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third side of a bound")]
pub enum Bound {
    /// Maximum.
    AtMost(f64),
    /// Minimum.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtMost(most) => measured <= most,
            Self::AtLeast(least) => measured >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {}", Digits(*most)),
            Self::AtLeast(least) => write!(f, "≥ {}", Digits(*least)),
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Row {
    scenario: &'static str,
    case: String,
    unit: &'static str,
    ours: Spread,
    reference: Option<Spread>,
    ratio: Option<Spread>,
    bound: Option<Bound>,
}

impl Row {
    /// `true` if the bound holds or there is none. NaN never meets a bound.
    fn holds(&self) -> bool {
        let judged = self.ratio.unwrap_or(self.ours).median;
        self.bound.is_none_or(|bound| bound.holds(judged))
    }

    fn json(&self) -> serde_json::Value {
        let spread = |spread: &Spread| json!({ "median": spread.median, "low": spread.low, "high": spread.high });
        let bound = match self.bound {
            None => json!(null),
            Some(Bound::AtMost(most)) => json!({ "at_most": most }),
            Some(Bound::AtLeast(least)) => json!({ "at_least": least }),
        };
        json!({
            "scenario": self.scenario,
            "case": self.case,
            "unit": self.unit,
            "ours": spread(&self.ours),
            "reference": self.reference.as_ref().map(spread),
            "ratio": self.ratio.as_ref().map(spread),
            "bound": bound,
            "holds": self.holds(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, case, unit, ours, reference, ratio, bound } = self;
        write!(f, "{scenario:<10} {case:<58} {:>9} {unit:<8}", Digits(ours.median).to_string())?;
        match (reference, ratio) {
            (Some(reference), Some(ratio)) => {
                let range = format!("{}–{}", Digits(ratio.low), Digits(ratio.high));
                write!(
                    f,
                    " {:>9} {:>7} × {range:<13}",
                    Digits(reference.median).to_string(),
                    Digits(ratio.median).to_string()
                )?;
            }
            _ => write!(f, "{:35}", "")?,
        }
        match bound {
            Some(bound) => write!(f, " {:<8} {}", bound.to_string(), if self.holds() { "met" } else { "MISSED" }),
            None => Ok(()),
        }
    }
}

/// Format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "text and JSON lines")]
pub enum Format {
    /// A table for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Report of a run, printed line by line.
#[derive(Debug)]
pub struct Report {
    format: Format,
    missed: Vec<String>,
}

impl Report {
    /// Creates an empty report, as JSON lines or as text.
    pub fn new(format: Format) -> Self {
        Self { format, missed: Vec::new() }
    }

    /// Prints the environment of the measurement.
    pub fn machine(&self, facts: &[(&'static str, String)]) {
        if self.format == Format::Json {
            let facts: serde_json::Map<_, _> =
                facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact))).collect();
            println!("{}", json!({ "machine": facts }));
            return;
        }
        let facts: Vec<_> = facts.iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
        println!("{}\n", facts.join("; "));
        println!(
            "{:<10} {:<58} {:>9} {:<8} {:>9} {:>9} {:<13} target",
            "scenario", "case", "ours", "", "reference", "ratio", "middle half"
        );
    }

    /// Reports two sides in turns. The bound applies to their ratio.
    pub fn turns(
        &mut self,
        scenario: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        turns: &Turns,
        bound: Option<Bound>,
    ) {
        self.add(&Row {
            scenario,
            case: case.into(),
            unit,
            ours: Spread::of(turns.ours.iter().copied()),
            reference: Some(Spread::of(turns.reference.iter().copied())),
            ratio: Some(turns.ratio()),
            bound,
        });
    }

    /// Reports a number without a reference. The bound applies to the number.
    pub fn number(
        &mut self,
        scenario: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        number: Spread,
        bound: Option<Bound>,
    ) {
        self.add(&Row { scenario, case: case.into(), unit, ours: number, reference: None, ratio: None, bound });
    }

    fn add(&mut self, row: &Row) {
        if self.format == Format::Json {
            println!("{}", row.json());
        } else {
            println!("{row}");
        }
        if !row.holds() {
            self.missed.push(format!("{} ({})", row.scenario, row.case));
        }
    }

    /// Returns the targets that were missed.
    ///
    /// # Errors
    ///
    /// If a target was missed.
    pub fn finish(self) -> Result<(), String> {
        if self.missed.is_empty() { Ok(()) } else { Err(format!("missed: {}", self.missed.join(", "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_bounds_and_non_numbers_are_reported() {
        let finish = |number: f64, bound: Bound| {
            let mut report = Report::new(Format::Json);
            report.number("s", "c", "ns", Spread::exactly(number), Some(bound));
            report.finish()
        };
        assert!(finish(1.0, Bound::AtMost(1.05)).is_ok() && finish(1.1, Bound::AtMost(1.05)).is_err());
        assert!(finish(6.0, Bound::AtLeast(5.0)).is_ok() && finish(4.9, Bound::AtLeast(5.0)).is_err());
        assert!(finish(f64::NAN, Bound::AtMost(1.0)).is_err() && finish(f64::NAN, Bound::AtLeast(1.0)).is_err());
    }

    #[test]
    fn two_sides_are_bound_by_their_ratio() {
        let turns = Turns { ours: vec![10.0], reference: vec![20.0] };
        let row = Row {
            scenario: "s",
            case: "c".to_owned(),
            unit: "ns",
            ours: Spread::exactly(10.0),
            reference: Some(Spread::exactly(20.0)),
            ratio: Some(turns.ratio()),
            bound: Some(Bound::AtMost(0.5)),
        };
        assert!(row.holds());
        assert_eq!(row.json()["ratio"]["median"], 0.5);
        assert!(row.to_string().contains("met"));
    }
}
