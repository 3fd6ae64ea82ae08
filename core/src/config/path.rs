//! Names of configuration values, and sets of them.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{error::Error, model::name::NameFault};

/// Maximum length of a path, in bytes of UTF-8.
pub const MAX_CONFIG_PATH_BYTES: usize = 1024;

/// The name of a configuration value within its namespace: segments, separated by `/`.
///
/// 1–1,024 bytes of UTF-8 without control characters. No segment is empty, so a path neither begins nor ends with `/`.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigPath(Arc<str>);

impl ConfigPath {
    /// Checks `text` and creates the path.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if it is empty, longer than 1,024 bytes, holds a control character or has an empty
    /// segment.
    pub fn parse(text: impl AsRef<str>) -> Result<Self, Error> {
        let text = text.as_ref();
        match fault(text) {
            Some(fault) => Err(Error::InvalidName { field: "config path", fault }),
            None => Ok(Self(text.into())),
        }
    }

    /// The given path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns `true` if this path is below `other`: it has more segments, and begins with all of `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn fault(text: &str) -> Option<NameFault> {
    let control = text.char_indices().find(|(_, c)| c.is_control());
    if text.is_empty() {
        Some(NameFault::Empty)
    } else if text.len() > MAX_CONFIG_PATH_BYTES {
        Some(NameFault::PathTooLong { bytes: text.len() })
    } else if let Some((at, _)) = control {
        Some(NameFault::ControlCharacter { at })
    } else {
        text.split('/').any(str::is_empty).then_some(NameFault::EmptySegment)
    }
}

impl FromStr for ConfigPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for ConfigPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The values of one read or watch. It is exhaustive, because a backend has to support each of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a backend has to support each of them")]
pub enum ConfigScope {
    /// The value at this path only.
    Path(ConfigPath),
    /// The values below this path, at any depth. The value at the path itself is not part of it.
    Below(ConfigPath),
    /// All values of the namespace.
    All,
}

impl ConfigScope {
    /// Returns `true` if `path` is part of the scope.
    pub fn contains(&self, path: &ConfigPath) -> bool {
        match self {
            Self::Path(one) => path == one,
            Self::Below(root) => path.is_below(root),
            Self::All => true,
        }
    }
}

impl fmt::Display for ConfigScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.fmt(f),
            Self::Below(path) => write!(f, "{path}/…"),
            Self::All => f.write_str("…"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    #[test]
    fn a_path_has_no_empty_segment_and_no_control_character() {
        let long = "x".repeat(MAX_CONFIG_PATH_BYTES + 1);
        for text in ["", "/a", "a/", "a//b", "a\nb", &*long] {
            assert!(matches!(ConfigPath::parse(text), Err(Error::InvalidName { .. })), "{text:?}");
        }
        for text in ["a", "a/b.toml", "..", "50% größe/🚀", &long[1..]] {
            assert_eq!(path(text).as_str(), text);
        }
    }

    #[test]
    fn a_scope_ends_at_a_segment() {
        let below = ConfigScope::Below(path("app"));
        assert!(below.contains(&path("app/log")) && below.contains(&path("app/log/level")));
        assert!(!below.contains(&path("app")) && !below.contains(&path("app2/log")));
        assert!(ConfigScope::All.contains(&path("x")) && ConfigScope::Path(path("x")).contains(&path("x")));
    }
}
