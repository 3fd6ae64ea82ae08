//! Versions of etcd, as its programs print them and as requests name them.

use std::{fmt, path::Path, process::Command, str::FromStr};

/// A release of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Returns `true` if both are of one release line, such as 3.6.
    pub(crate) fn is_of_line(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) == (major, minor)
    }

    /// Version that the program at `etcd` prints.
    pub(crate) fn of(etcd: &Path) -> Option<Self> {
        let output = Command::new(etcd).arg("--version").output().ok()?;
        printed(&String::from_utf8_lossy(&output.stdout))
    }
}

/// The version in the output of `etcd --version`.
fn printed(output: &str) -> Option<Version> {
    output.lines().find_map(|line| line.strip_prefix("etcd Version: "))?.trim().parse().ok()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
        let mut parts = text.split('.');
        match (number(parts.next()), number(parts.next()), number(parts.next()), parts.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self { major, minor, patch }),
            _ => Err(format!("{text} is no version such as 3.6.16")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_it_is_printed() {
        let version: Version = "3.6.16".parse().unwrap();
        assert_eq!(version.to_string(), "3.6.16");
        assert!(version.is_of_line(3, 6) && !version.is_of_line(3, 5));
        for wrong in ["", "3", "3.6", "3.6.16.1", "v3.6.16", "3.6.x"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn versions_are_ordered_by_number() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("3.6.16") > version("3.6.9") && version("3.10.0") > version("3.6.16"));
    }

    #[test]
    fn the_version_is_found_in_the_output_of_etcd() {
        let output = "etcd Version: 3.4.23\nGit SHA: Not provided\nGo Version: go1.19.8\nGo OS/Arch: linux/amd64\n";
        assert_eq!(printed(output), "3.4.23".parse().ok());
        assert_eq!(printed("flag provided but not defined"), None);
    }
}
