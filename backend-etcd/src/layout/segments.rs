//! Segments of keys: the texts between the slashes.

use enlist::Error;

use super::{Skip, not_carried};

/// Returns the only segment of `key` below `prefix`. Deeper keys, and keys that are no text, are foreign.
pub(super) fn segment<'a>(key: &'a [u8], prefix: &str) -> Result<&'a str, Skip> {
    let segment = key.strip_prefix(prefix.as_bytes()).ok_or(Skip::Foreign)?;
    let text = std::str::from_utf8(segment).map_err(|_| Skip::Foreign)?;
    if text.is_empty() || text.contains('/') { Err(Skip::Foreign) } else { Ok(text) }
}

/// Returns a name as a segment of a key.
pub(super) fn as_segment<'a>(field: &'static str, name: &'a str) -> Result<&'a str, Error> {
    if name.contains('/') { Err(not_carried(field, '/')) } else { Ok(name) }
}

/// Checks a prefix of keys that a user gave.
pub(super) fn checked_prefix(prefix: &str) -> Result<String, Error> {
    if prefix.chars().any(char::is_control) {
        return Err(Error::invalid_config("prefix", "it must not have control characters"));
    }
    Ok(prefix.to_owned())
}
