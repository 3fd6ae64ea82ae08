//! Values that must not appear in logs.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// A value that `Debug` does not show, and that has neither `Display` nor `Serialize`: it is read with
/// [`expose`](Self::expose) only.
///
/// It protects against accidents, such as `{:?}` of a configuration in a log. The memory is not overwritten on drop:
/// the same bytes are also in the snapshot of the watch, and in the copy on disk if there is one.
///
/// ```
/// use enlist_config::Secret;
///
/// #[derive(Debug, serde::Deserialize)]
/// struct Database {
///     user: String,
///     password: Secret<String>,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let database: Database = serde_json::from_str(r#"{"user": "app", "password": "hunter2"}"#)?;
/// assert_eq!(format!("{database:?}"), r#"Database { user: "app", password: Secret(..) }"#);
/// assert_eq!(database.password.expose(), "hunter2");
/// # Ok(())
/// # }
/// ```
///
/// It cannot be formatted or serialized by accident:
///
/// ```compile_fail,E0277
/// println!("{}", enlist_config::Secret::new("hunter2"));
/// ```
///
/// ```compile_fail,E0277
/// let _ = serde_json::to_string(&enlist_config::Secret::new("hunter2"));
/// ```
#[derive(Clone, Default)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// Unwraps the value.
    pub fn into_exposed(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<T> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_any_type_is_not_shown() {
        let secret: Secret<Vec<u16>> = serde_json::from_str("[7007]").unwrap();
        assert_eq!(secret.expose(), &[7007]);
        let shown = format!("{secret:?} {secret:#?} {:?}", Some(&secret));
        assert!(!shown.contains("7007"), "{shown}");
        assert_eq!(secret.clone().into_exposed(), [7007]);
        assert_eq!(Secret::from("x").expose(), &"x");
    }
}
