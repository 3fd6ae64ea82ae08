//! Formats of values, and the suffixes that name them. `parser.rs` reads them.

use std::fmt;

use enlist::ConfigPath;

/// Format of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JSON, with the feature `json`. The suffix is `.json`.
    Json,
    /// TOML, with the feature `toml`. The suffix is `.toml`.
    Toml,
}

impl Format {
    /// The format that belongs to the suffix of a path.
    pub fn of(path: &ConfigPath) -> Option<Self> {
        split(path.segments().last()?).1
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Toml => "TOML",
        })
    }
}

/// Splits the last segment of a path into the name and the format of its suffix.
pub(crate) fn split(segment: &str) -> (&str, Option<Format>) {
    match segment.rsplit_once('.') {
        Some((name, "json")) => (name, Some(Format::Json)),
        Some((name, "toml")) => (name, Some(Format::Toml)),
        _ => (segment, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_names_the_format() {
        let of = |path: &str| Format::of(&ConfigPath::parse(path).unwrap());
        assert_eq!((of("app.json"), of("a.json/b.toml")), (Some(Format::Json), Some(Format::Toml)));
        assert_eq!((of("app"), of("json"), of("a.json/b"), of("a.JSON")), (None, None, None, None));
        assert_eq!(split("eu.west.toml"), ("eu.west", Some(Format::Toml)));
    }
}
