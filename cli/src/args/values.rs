//! Values of options that clap does not parse itself.

use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use enlist_etcd::layout::{LAYOUTS, LOCK_LAYOUTS, NamedLayout, NamedLockLayout};

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 10s, 1m30s or 500ms"))
}

pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value".to_owned()),
    }
}

/// Returns the parser of a layout of instances.
pub(super) fn layout() -> impl TypedValueParser<Value = &'static NamedLayout> {
    PossibleValuesParser::new(LAYOUTS.iter().map(NamedLayout::name))
        .try_map(|name| NamedLayout::find(&name).ok_or("there is no such layout"))
}

/// Returns the parser of a layout of locks.
pub(super) fn lock_layout() -> impl TypedValueParser<Value = &'static NamedLockLayout> {
    PossibleValuesParser::new(LOCK_LAYOUTS.iter().map(NamedLockLayout::name))
        .try_map(|name| NamedLockLayout::find(&name).ok_or("there is no such layout"))
}
