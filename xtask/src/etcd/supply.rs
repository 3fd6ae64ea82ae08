//! The order of the sources of an etcd. A source counts only if it has the version that is asked for.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::{DEFAULT_LINE, Version, build, go, install, may_install};
use crate::command::Result;

/// Path of the `etcd` in Debian's package.
const PACKAGED: &str = "/usr/bin/etcd";

/// Effect of `ENLIST_ETCD_BIN` on a request for a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Override {
    /// It is used, whatever its version.
    Always,
    /// It is a source like the others.
    IfItMatches,
}

/// Supplies the etcd of a version, or of any if none is asked for: that of `ENLIST_ETCD_BIN`, a build with Go, one on
/// the `PATH`, or Debian's package.
pub(crate) fn supply(wanted: Option<Version>, given: Override) -> Result<PathBuf> {
    choose(&Machine, wanted, given)
}

/// Sources of an etcd.
trait Sources {
    /// The `etcd` of the environment.
    fn given(&self) -> Option<PathBuf>;

    /// Builds a version, or the default one.
    ///
    /// # Errors
    ///
    /// The reason why there is no build.
    fn built(&self, wanted: Option<Version>) -> Result<PathBuf>;

    /// Every `etcd` on the `PATH`, in its order.
    fn on_path(&self) -> Vec<PathBuf>;

    /// The `etcd` of Debian's package, which is installed where that is possible.
    fn packaged(&self) -> Result<Option<PathBuf>>;

    fn version(&self, etcd: &Path) -> Option<Version>;
}

fn choose(sources: &impl Sources, wanted: Option<Version>, given: Override) -> Result<PathBuf> {
    let matches = |etcd: &PathBuf| wanted.is_none() || sources.version(etcd) == wanted;
    if let Some(etcd) = sources.given().filter(|etcd| given == Override::Always || matches(etcd)) {
        return Ok(etcd);
    }
    let reason = match sources.built(wanted) {
        Ok(etcd) => return Ok(etcd),
        Err(reason) => reason,
    };
    if let Some(etcd) = sources.on_path().into_iter().find(matches) {
        return Ok(etcd);
    }
    if let Some(etcd) = sources.packaged()?.filter(matches) {
        return Ok(etcd);
    }
    let named = wanted.map_or("an etcd".to_owned(), |version| format!("etcd {version}"));
    Err(format!(
        "{named} could not be had (not built: {reason}; not the version on the PATH or in Debian's package). Install \
         Go, or an etcd (Debian and Ubuntu: `sudo apt-get install etcd-server`), or set ENLIST_ETCD_BIN to an `etcd` \
         binary, ENLIST_TEST_IMAGE to an image for Docker, or ENLIST_TEST_ETCD to the host:port of an etcd that may be \
         filled and emptied"
    )
    .into())
}

/// The sources of this machine.
struct Machine;

impl Sources for Machine {
    fn given(&self) -> Option<PathBuf> {
        env::var_os("ENLIST_ETCD_BIN").map(PathBuf::from)
    }

    fn built(&self, wanted: Option<Version>) -> Result<PathBuf> {
        let version = wanted.map_or_else(|| build::newest_of(DEFAULT_LINE.0, DEFAULT_LINE.1), Ok)?;
        if !build::versions()?.contains(&version) {
            return Err(format!("testkit/etcd-build has no {version}.mod").into());
        }
        let built = build::build(version).inspect_err(|error| eprintln!("etcd {version} was not built: {error}"))?;
        built.ok_or_else(|| format!("Go {} or newer is not installed", go::OLDEST).into())
    }

    fn on_path(&self) -> Vec<PathBuf> {
        let paths = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&paths).map(|folder| folder.join("etcd")).filter(|etcd| etcd.is_file()).collect()
    }

    fn packaged(&self) -> Result<Option<PathBuf>> {
        let etcd = PathBuf::from(PACKAGED);
        if !etcd.is_file() && may_install() {
            install("etcd-server")?;
        }
        Ok(Some(etcd).filter(|etcd| etcd.is_file()))
    }

    fn version(&self, etcd: &Path) -> Option<Version> {
        Version::of(etcd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sources whose paths are their versions. A source with a `None` has nothing.
    #[derive(Default)]
    struct Shelf {
        given: Option<&'static str>,
        built: Option<&'static str>,
        on_path: &'static [&'static str],
        packaged: Option<&'static str>,
    }

    impl Sources for Shelf {
        fn given(&self) -> Option<PathBuf> {
            self.given.map(|version| format!("given/{version}").into())
        }

        fn built(&self, wanted: Option<Version>) -> Result<PathBuf> {
            let version = wanted.map(|version| version.to_string()).or(self.built.map(str::to_owned));
            let built = self.built.filter(|built| version.as_deref() == Some(built));
            built.map(|version| format!("built/{version}").into()).ok_or_else(|| "no compiler".into())
        }

        fn on_path(&self) -> Vec<PathBuf> {
            self.on_path.iter().map(|version| format!("path/{version}").into()).collect()
        }

        fn packaged(&self) -> Result<Option<PathBuf>> {
            Ok(self.packaged.map(|version| format!("package/{version}").into()))
        }

        fn version(&self, etcd: &Path) -> Option<Version> {
            etcd.file_name()?.to_str()?.parse().ok()
        }
    }

    const ALL: Shelf =
        Shelf { given: Some("3.5.1"), built: Some("3.6.16"), on_path: &["3.4.20", "3.6.16"], packaged: Some("3.4.23") };

    #[track_caller]
    fn chosen(shelf: &Shelf, wanted: &str, given: Override, expected: &str) {
        let wanted = Some(wanted).filter(|wanted| !wanted.is_empty()).map(|wanted| wanted.parse().unwrap());
        assert_eq!(choose(shelf, wanted, given).unwrap(), PathBuf::from(expected));
    }

    #[test]
    fn the_given_one_comes_first() {
        for wanted in ["", "3.6.16", "3.5.1"] {
            chosen(&ALL, wanted, Override::Always, "given/3.5.1");
        }
        chosen(&ALL, "3.5.1", Override::IfItMatches, "given/3.5.1");
        chosen(&ALL, "3.6.16", Override::IfItMatches, "built/3.6.16");
    }

    #[test]
    fn a_build_comes_before_the_path() {
        let shelf = Shelf { given: None, ..ALL };
        chosen(&shelf, "3.6.16", Override::Always, "built/3.6.16");
        chosen(&shelf, "", Override::Always, "built/3.6.16");
    }

    #[test]
    fn the_path_counts_only_with_the_version() {
        let shelf = Shelf { given: None, built: None, ..ALL };
        chosen(&shelf, "3.4.20", Override::Always, "path/3.4.20");
        chosen(&shelf, "3.6.16", Override::Always, "path/3.6.16");
        chosen(&shelf, "", Override::Always, "path/3.4.20");
        // Neither of those on the path has the version of the package.
        chosen(&shelf, "3.4.23", Override::Always, "package/3.4.23");
    }

    #[test]
    fn the_package_counts_only_with_the_version() {
        let shelf = Shelf { packaged: Some("3.4.23"), ..Shelf::default() };
        chosen(&shelf, "3.4.23", Override::Always, "package/3.4.23");
        chosen(&shelf, "", Override::Always, "package/3.4.23");
        assert!(choose(&shelf, "3.5.33".parse().ok(), Override::Always).is_err());
    }

    #[test]
    fn without_a_source_the_message_has_the_remedy() {
        let shelf = Shelf { on_path: &["3.4.23"], ..Shelf::default() };
        let error = choose(&shelf, "3.7.3".parse().ok(), Override::Always).unwrap_err().to_string();
        for part in ["etcd 3.7.3", "no compiler", "Install Go", "ENLIST_ETCD_BIN"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
