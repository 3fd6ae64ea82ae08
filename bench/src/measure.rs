//! Measurements of two sides in turns. The result is the ratio of neighbouring rounds, with its median and its spread.

use std::{fmt, future::Future};

use rustix::time::{ClockId, clock_gettime};

/// Result of the programs.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A median, with the quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Lower quartile.
    pub low: f64,
    /// Upper quartile.
    pub high: f64,
}

impl Spread {
    /// Returns the spread of these values; NaN without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| quantile(&values, part);
        Self { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    /// Returns the spread of a single value.
    pub fn exactly(value: f64) -> Self {
        Self { median: value, low: value, high: value }
    }
}

/// Returns the quantile `part` of the sorted values; NaN without values.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Measurements of two sides in turns.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// Values of `enlist`, one per round.
    pub ours: Vec<f64>,
    /// Values of the reference, one per round.
    pub reference: Vec<f64>,
}

impl Turns {
    /// Returns the ratios of `enlist` to the reference, round by round, so that a drift of the machine cancels out.
    pub fn ratio(&self) -> Spread {
        Spread::of(self.ours.iter().zip(&self.reference).map(|(ours, reference)| ours / reference))
    }
}

/// Runs both sides in turns, A B A B …. The first round of each is a warm-up and does not count.
///
/// # Errors
///
/// The errors of the two sides.
pub async fn in_turns<A, B>(
    rounds: usize,
    mut ours: impl FnMut() -> A,
    mut reference: impl FnMut() -> B,
) -> Result<Turns>
where
    A: Future<Output = Result<f64>>,
    B: Future<Output = Result<f64>>,
{
    let mut turns = Turns::default();
    for round in 0..=rounds {
        let (ours, reference) = (ours().await?, reference().await?);
        if round > 0 {
            turns.ours.push(ours);
            turns.reference.push(reference);
        }
    }
    Ok(turns)
}

/// Returns the exponent `k` of the best-fitting power law `cost ~ size^k`: 0 for a cost independent of the size, 1 for
/// a proportional cost.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(size, cost)| (size.ln(), cost.ln())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let count = logs.len() as f64;
    let (mean_x, mean_y) =
        (logs.iter().map(|point| point.0).sum::<f64>() / count, logs.iter().map(|point| point.1).sum::<f64>() / count);
    let up: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let across: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    up / across
}

/// Returns the processor time of this process in all its threads, in microseconds.
#[expect(clippy::cast_precision_loss, reason = "days in microseconds fit")]
pub fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Formats a number with three significant digits.
#[derive(Clone, Copy, Debug)]
pub struct Digits(pub f64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.abs() {
            100.0.. => write!(f, "{:.0}", self.0),
            10.0.. => write!(f, "{:.1}", self.0),
            1.0.. => write!(f, "{:.2}", self.0),
            _ => write!(f, "{:.3}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_half() {
        let spread = Spread::of([9.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(spread, Spread { median: 3.0, low: 2.0, high: 4.0 });
        assert!(Spread::of([]).median.is_nan());
    }

    #[tokio::test]
    async fn sides_alternate_and_neighbouring_rounds_are_compared() {
        let order = std::cell::RefCell::new(String::new());
        let side = |name: char, cost: f64| {
            order.borrow_mut().push(name);
            async move { Ok(cost) }
        };
        let mut slower = 1.0;
        let turns = in_turns(2, || side('a', 1.0), || side('b', 2.0)).await.unwrap();
        assert_eq!(*order.borrow(), "ababab");
        assert_eq!(turns.ratio(), Spread::exactly(0.5));
        let drifting = Turns {
            ours: vec![1.0, 10.0, 100.0],
            reference: [1.0, 10.0, 100.0].into_iter().map(|cost| cost * std::mem::replace(&mut slower, 1.0)).collect(),
        };
        assert_eq!(drifting.ratio(), Spread::exactly(1.0));
    }

    #[test]
    fn a_slope_tells_constant_from_proportional() {
        let sizes = [100.0, 1000.0, 10_000.0];
        assert!(slope(&sizes.map(|size| (size, 7.0))).abs() < 1e-9);
        assert!((slope(&sizes.map(|size| (size, size * 3.0))) - 1.0).abs() < 1e-9);
    }
}
