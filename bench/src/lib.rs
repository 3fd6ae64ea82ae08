//! Side-by-side measurements: each program runs `enlist` and what people use today in turns, in one process, and prints ratios.
//! Absolute times are noise on a shared machine, ratios of medians are not.

use std::time::Duration;

/// The median of times; zero of none.
pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A measurement and the most it may be.
#[derive(Debug)]
pub struct Bound {
    /// What was measured.
    pub what: &'static str,
    /// What came out.
    pub measured: f64,
    /// The most it may be.
    pub most: f64,
}

/// Prints measurements with their bounds.
///
/// # Errors
///
/// If one is above its bound, or is no number.
pub fn judge(bounds: &[Bound]) -> Result<(), String> {
    for Bound { what, measured, most } in bounds {
        println!("{what}: {measured:.3} (at most {most})");
    }
    match bounds.iter().find(|bound| bound.measured.is_nan() || bound.measured > bound.most) {
        Some(bound) => Err(format!("{} is {:.3}, at most {} was promised", bound.what, bound.measured, bound.most)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_its_bound_or_no_number_is_told() {
        let bound = |measured| [Bound { what: "ratio", measured, most: 1.05 }];
        assert!(judge(&bound(1.0)).is_ok());
        assert!(judge(&bound(1.1)).is_err() && judge(&bound(f64::NAN)).is_err());
        let mut times = [3, 1, 2].map(Duration::from_millis);
        assert_eq!(median(&mut times), Duration::from_millis(2));
    }
}
