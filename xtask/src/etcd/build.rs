//! Builds of etcd from its modules. Each version is a `.mod` file in `testkit/etcd-build`; the result stays in
//! `target/etcd`.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use super::{Version, go};
use crate::command::Result;

/// The module that is built.
const SOURCES: &str = "testkit/etcd-build";

/// Versions that can be built, oldest first.
pub(crate) fn versions() -> Result<Vec<Version>> {
    versions_in(Path::new(""))
}

/// Versions that can be built from the checkout in `folder`.
pub(crate) fn versions_in(folder: &Path) -> Result<Vec<Version>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(folder.join(SOURCES))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "mod") {
            versions
                .extend(path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<Version>().ok()));
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

/// Newest version of a release line that can be built.
pub(crate) fn newest_of(major: u32, minor: u32) -> Result<Version> {
    let newest = versions()?.into_iter().rfind(|version| version.is_of_line(major, minor));
    newest.ok_or(format!("there is no version of etcd {major}.{minor} in {SOURCES}").into())
}

/// Builds a version, unless that was done before, with `etcdctl` and `etcdutl` beside it. `None` without a Go that
/// is new enough.
pub(crate) fn build(version: Version) -> Result<Option<PathBuf>> {
    let folder = env::current_dir()?.join("target").join("etcd").join(version.to_string());
    let etcd = folder.join("etcd");
    if is_current(&etcd, version) {
        return Ok(Some(etcd));
    }
    let Some(go) = go::find() else { return Ok(None) };
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(go);
    command.current_dir(SOURCES).args(["build", "-buildvcs=false", "-trimpath"]);
    command.arg(format!("-modfile={version}.mod")).arg("-o").arg(&etcd).arg(".");
    plain(&mut command);
    // The standard output is for the paths.
    eprintln!("==> building etcd {version} with Go");
    let status = command.stdout(io::stderr()).status()?;
    if !status.success() {
        return Err(format!("go build: {status}").into());
    }
    for name in ["etcdctl", "etcdutl"] {
        replace_link(&etcd, &folder.join(name))?;
    }
    match Version::of(&etcd) {
        Some(built) if built == version => Ok(Some(etcd)),
        other => Err(format!("the etcd built as {version} prints the version {other:?}").into()),
    }
}

/// Lets Go build without a C compiler, and without what the user has set for other projects.
pub(crate) fn plain(go: &mut Command) {
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "").env("GO111MODULE", "on").env("GOWORK", "off");
}

/// The program runs what its name says.
fn replace_link(program: &Path, link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(program, link)
}

/// Returns `true` if the program is of that version and not older than its sources.
fn is_current(etcd: &Path, version: Version) -> bool {
    let sources = [format!("{version}.mod"), format!("{version}.sum"), "main.go".to_owned()];
    let mut changed = sources.iter().map(|source| modified(&Path::new(SOURCES).join(source)));
    let Some(built) = modified(etcd) else { return false };
    changed.all(|changed| changed.is_some_and(|changed| changed <= built)) && Version::of(etcd) == Some(version)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
