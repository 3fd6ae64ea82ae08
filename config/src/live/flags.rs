//! Feature flags with a percentage of users, chosen by a stable hash.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

/// Number of equally likely values of the hash: all of them are exact as `f64`.
const BUCKETS: f64 = 9_007_199_254_740_992.0;

/// Percentage of users, from 0 to 100. In configuration it is a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "f64")]
pub struct Percentage(f64);

/// A number that is no percentage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPercentage;

impl fmt::Display for InvalidPercentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a percentage is from 0 to 100")
    }
}

impl std::error::Error for InvalidPercentage {}

impl Percentage {
    /// No user.
    pub const NONE: Self = Self(0.0);

    /// Every user.
    pub const ALL: Self = Self(100.0);

    /// A percentage of users.
    ///
    /// # Errors
    ///
    /// [`InvalidPercentage`] unless it is from 0 to 100.
    pub fn new(percent: f64) -> Result<Self, InvalidPercentage> {
        if (0.0..=100.0).contains(&percent) { Ok(Self(percent)) } else { Err(InvalidPercentage) }
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Returns `true` if the user `id` is among this percentage of users.
    ///
    /// A larger percentage includes all users of a smaller one. With another `salt`, the users are chosen
    /// independently. The choice is the same on every machine and in every release: it is the XXH3 hash (64 bits, seed
    /// 0) of the length of `salt` in bytes (8 bytes, little endian), `salt` and `id`, of which the upper 53 bits are
    /// compared.
    pub fn includes(self, salt: &str, id: &str) -> bool {
        position(salt, id) < self.0 / 100.0
    }
}

impl TryFrom<f64> for Percentage {
    type Error = InvalidPercentage;

    fn try_from(percent: f64) -> Result<Self, InvalidPercentage> {
        Self::new(percent)
    }
}

/// Position of a user, from 0 up to 1, in the order in which users are included.
fn position(salt: &str, id: &str) -> f64 {
    // The length keeps `ab` + `c` and `a` + `bc` apart.
    let text = [&(salt.len() as u64).to_le_bytes()[..], salt.as_bytes(), id.as_bytes()].concat();
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let bucket = (xxh3_64(&text) >> 11) as f64;
    bucket / BUCKETS
}

/// A flag. In configuration it is a table such as `{ "percentage": 10 }`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Flag {
    /// Percentage of users for which the flag is on.
    pub percentage: Percentage,
    /// Salt of the choice of users. Flags with one salt include the same users first. Default: the name of the flag.
    #[serde(default)]
    pub salt: Option<String>,
}

/// Flags by name. A flag that is not there is off.
///
/// ```
/// use enlist_config::Flags;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let flags: Flags = serde_json::from_str(r#"{"new-checkout": {"percentage": 50}, "dark": {"percentage": 100}}"#)?;
/// assert!(flags.is_on("dark", "user-1"));
/// assert!(flags.is_on("new-checkout", "user-4"));
/// assert!(!flags.is_on("new-checkout", "user-1"));
/// assert!(!flags.is_on("unknown", "user-1"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Flags(BTreeMap<String, Flag>);

impl Flags {
    /// Returns `true` if the flag `name` is on for the user `id`, see [`Percentage::includes`].
    pub fn is_on(&self, name: &str, id: &str) -> bool {
        self.0.get(name).is_some_and(|flag| flag.percentage.includes(flag.salt.as_deref().unwrap_or(name), id))
    }

    /// The flag `name`.
    pub fn get(&self, name: &str) -> Option<&Flag> {
        self.0.get(name)
    }

    /// The flags in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Flag)> {
        self.0.iter().map(|(name, flag)| (name.as_str(), flag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USERS: u32 = 100_000;

    fn ids() -> impl Iterator<Item = String> {
        (0..USERS).map(|user| format!("user-{user}"))
    }

    /// Asserts that `count` of `USERS` is within five standard deviations of a share of `expected`. By chance that
    /// fails for one of 1.7 million salts, and the salts are fixed.
    fn assert_share(count: usize, expected: f64) {
        let users = f64::from(USERS);
        let deviation = (users * expected * (1.0 - expected)).sqrt();
        let distance = (f64::from(u32::try_from(count).unwrap()) - users * expected).abs();
        assert!(distance <= 5.0 * deviation, "{count} of {USERS}, expected {expected}, deviation {deviation}");
    }

    #[test]
    fn the_share_of_users_is_the_percentage() {
        for percent in [0.1, 1.0, 10.0, 50.0, 90.0] {
            for salt in ["new-checkout", "dark", ""] {
                let percentage = Percentage::new(percent).unwrap();
                assert_share(ids().filter(|id| percentage.includes(salt, id)).count(), percent / 100.0);
            }
        }
    }

    #[test]
    fn two_flags_choose_their_users_independently() {
        let (one, other) = (Percentage::new(10.0).unwrap(), Percentage::new(30.0).unwrap());
        for (salt, other_salt) in [("a", "b"), ("flag-1", "flag-2"), ("flag-1", "flag-11")] {
            let both = ids().filter(|id| one.includes(salt, id) && other.includes(other_salt, id)).count();
            assert_share(both, 0.03);
        }
    }

    #[test]
    fn none_and_all_are_exact() {
        assert!(ids().all(|id| !Percentage::NONE.includes("s", &id) && Percentage::ALL.includes("s", &id)));
    }

    proptest! {
        #[test]
        fn a_larger_percentage_turns_no_user_off(salt in ".*", id in ".*", one in 0.0..=100.0, other in 0.0..=100.0) {
            let (small, large) = if one < other { (one, other) } else { (other, one) };
            let includes = |percent: f64| Percentage::new(percent).unwrap().includes(&salt, &id);
            prop_assert!(!includes(small) || includes(large));
        }
    }

    /// A change of these would turn flags of users on and off at an upgrade. They were computed with the Python package
    /// `xxhash`.
    #[test]
    fn the_choice_is_the_same_in_each_release() {
        for (salt, id, expected) in [
            ("new-checkout", "user-1", 0.786_331_846_436_134),
            ("new-checkout", "", 0.274_380_145_109_903),
            ("", "user-1", 0.410_924_262_507_634),
            ("größe", "🚀", 0.195_939_489_251_752),
        ] {
            let position = position(salt, id);
            assert!((position - expected).abs() < 1e-12, "{salt} {id}: {position:.15}");
        }
        assert!((position("ab", "c") - position("a", "bc")).abs() > 0.0);
    }

    #[test]
    fn flags_of_the_configuration_are_checked() {
        let read = |json: &str| serde_json::from_str::<Flags>(json).ok();
        let flags = read(r#"{"a": {"percentage": 100}, "b": {"percentage": 0.5, "salt": "x"}}"#).unwrap();
        assert_eq!(flags.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(flags.get("b").and_then(|flag| flag.salt.as_deref()), Some("x"));
        assert!((flags.get("b").unwrap().percentage.get() - 0.5).abs() < f64::EPSILON);
        for bad in ["101", "-1", "\"10\"", "1e999", "true"] {
            assert_eq!(read(&format!(r#"{{"a": {{"percentage": {bad}}}}}"#)), None, "{bad}");
        }
    }

    #[test]
    fn flags_with_one_salt_include_the_same_users_first() {
        let json = r#"{"a": {"percentage": 10, "salt": "x"}, "b": {"percentage": 20, "salt": "x"}}"#;
        let flags: Flags = serde_json::from_str(json).unwrap();
        assert!(ids().take(10_000).all(|id| !flags.is_on("a", &id) || flags.is_on("b", &id)));
    }
}
