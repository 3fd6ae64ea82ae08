//! The Go toolchain that builds etcd and the programs beside Go libraries.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// Oldest release that builds the modules, as their `go` lines state.
pub(crate) const OLDEST: Release = Release(1, 26);

/// Folder of Go's own installation, which is not on every `PATH`.
const INSTALLATION: &str = "/usr/local/go/bin";

/// A release of Go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release(u32, u32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Release {
    /// Reads the output of `go version`, such as `go version go1.26.8 linux/amd64`.
    fn parse(output: &str) -> Option<Self> {
        let mut numbers = output.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    fn of(go: &Path) -> Option<Self> {
        let output = Command::new(go).arg("version").output().ok()?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }
}

/// Returns the first `go` on the `PATH`, or in the folder of its own installation, that is new enough.
pub(crate) fn find() -> Option<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&paths).chain([INSTALLATION.into()]);
    let programs = folders.map(|folder| folder.join("go")).filter(|go| go.is_file());
    programs.into_iter().find(|go| Release::of(go).is_some_and(|release| release >= OLDEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_from_the_output_of_go() {
        assert_eq!(Release::parse("go version go1.26.8 linux/amd64\n"), Some(Release(1, 26)));
        assert_eq!(Release::parse("go version go1.19.8 linux/amd64"), Some(Release(1, 19)));
        assert_eq!([Release::parse("go version devel"), Release::parse("")], [None; 2]);
    }

    #[test]
    fn an_older_release_is_not_enough() {
        assert!(Release(1, 19) < OLDEST && Release(1, 30) > OLDEST && Release(2, 0) > OLDEST);
    }
}
