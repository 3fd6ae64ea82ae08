//! Release lines of the tests that upgrade an etcd.

use std::path::PathBuf;

use super::{Override, Version, build, supply};
use crate::command::Result;

/// A release line, and the variable that tells the tests the path of its `etcd`.
pub(crate) type Line = ((u32, u32), &'static str);

/// Release lines, oldest first.
pub(crate) const LINES: [Line; 3] =
    [((3, 5), "ENLIST_ETCD_3_5_BIN"), ((3, 6), "ENLIST_ETCD_3_6_BIN"), ((3, 7), "ENLIST_ETCD_3_7_BIN")];

/// Newest versions of release lines, with the variables.
pub(crate) fn newest(lines: &[Line]) -> Result<Vec<(&'static str, Version)>> {
    lines.iter().map(|((major, minor), variable)| Ok((*variable, build::newest_of(*major, *minor)?))).collect()
}

/// Supplies these versions. Returns the variables for the tests.
pub(crate) fn supply_all(versions: &[(&'static str, Version)]) -> Result<Vec<(&'static str, PathBuf)>> {
    versions.iter().map(|(variable, version)| Ok((*variable, supply(Some(*version), Override::IfItMatches)?))).collect()
}

/// Names versions in the order of the upgrades.
pub(crate) fn shown(versions: &[(&'static str, Version)]) -> String {
    versions.iter().map(|(_, version)| version.to_string()).collect::<Vec<_>>().join(" → ")
}
