//! Sources of an etcd for the tests: given by the environment, built with Go, on the `PATH`, or Debian's package.

pub(crate) mod build;
pub(crate) mod go;
mod supply;
pub(crate) mod upgrade;
mod version;

use std::{
    env, fmt,
    path::PathBuf,
    process::{Command, Stdio},
};

pub(crate) use self::{
    supply::{Override, supply},
    version::Version,
};
use crate::command::{Result, run};

/// Release line that is built where no version is asked for.
const DEFAULT_LINE: (u32, u32) = (3, 6);

/// An etcd that the tests can use.
pub(crate) enum Etcd {
    /// The environment says which; the tests read the same variables.
    Given(&'static str, String),
    /// A binary to start.
    Binary(PathBuf),
}

impl fmt::Display for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(variable, value) => write!(f, "{variable}={value}"),
            Self::Binary(path) => {
                let version =
                    Version::of(path).map_or("of an unknown version".to_owned(), |version| version.to_string());
                write!(f, "{} ({version})", path.display())
            }
        }
    }
}

impl Etcd {
    /// Variables for the tests.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Given(..) => Vec::new(),
            Self::Binary(path) => vec![("ENLIST_ETCD_BIN", path.display().to_string())],
        }
    }

    /// Returns `true` if the tests start processes of it, so that containers are another way to run them.
    pub(crate) fn is_process(&self) -> bool {
        matches!(self, Self::Binary(_))
    }
}

/// Finds an etcd: given, built, on the `PATH`, or Debian's package, which is installed where that is possible.
pub(crate) fn find() -> Result<Etcd> {
    for variable in ["ENLIST_TEST_ETCD", "ENLIST_TEST_PROVIDER", "ENLIST_ETCD_BIN"] {
        if let Ok(value) = env::var(variable) {
            return Ok(Etcd::Given(variable, value));
        }
    }
    if let Ok(image) = env::var("ENLIST_TEST_IMAGE") {
        return out_of_image(&image).map(Etcd::Binary);
    }
    // A build takes minutes, an etcd at hand or Debian's package seconds.
    if on_path("etcd").is_none() && may_install() {
        install("etcd-server")?;
    }
    match on_path("etcd") {
        Some(etcd) => Ok(Etcd::Binary(etcd)),
        None => supply(None, Override::Always).map(Etcd::Binary),
    }
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH")?;
    env::split_paths(&paths).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Supplies an `etcdctl`, beside which some tests queue for a lock: given, that of the etcd, on the `PATH`, or Debian's
/// package.
pub(crate) fn need_etcdctl(etcd: &Etcd) -> Result<PathBuf> {
    let sibling = match etcd {
        Etcd::Binary(etcd) => Some(etcd.clone()),
        Etcd::Given(..) => env::var_os("ENLIST_ETCD_BIN").map(PathBuf::from),
    };
    let sibling = sibling.map(|etcd| etcd.with_file_name("etcdctl")).filter(|path| path.is_file());
    let given = env::var_os("ENLIST_ETCDCTL_BIN").map(PathBuf::from);
    if let Some(found) = given.or(sibling).or_else(|| on_path("etcdctl")) {
        return Ok(found);
    }
    if may_install() {
        install("etcd-client")?;
        if let Some(found) = on_path("etcdctl") {
            return Ok(found);
        }
    }
    Err("the tests need `etcdctl` and it could not be had. Install it (Debian and Ubuntu: `sudo apt-get install \
         etcd-client`), or set ENLIST_ETCDCTL_BIN"
        .into())
}

fn quietly(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Checks that a Docker engine answers.
pub(crate) fn docker_engine() -> std::result::Result<(), String> {
    if on_path("docker").is_none() {
        return Err("there is no `docker` on the PATH".to_owned());
    }
    match quietly("docker", &["info", "--format", "{{.ServerVersion}}"]) {
        Some(version) if !version.is_empty() => Ok(()),
        _ => Err("no Docker engine answers".to_owned()),
    }
}

/// Takes the `etcd` out of an image that Docker has or can get, so that the tests can start processes of it as well.
fn out_of_image(image: &str) -> Result<PathBuf> {
    let container =
        quietly("docker", &["create", image, "etcd"]).ok_or(format!("Docker cannot get the image {image}"))?;
    let directory = PathBuf::from("target/etcd");
    std::fs::create_dir_all(&directory)?;
    let target = directory.join("etcd");
    let copy = |path: &&str| {
        let from = format!("{container}:{path}");
        quietly("docker", &["cp", "--follow-link", &from, &target.display().to_string()]).is_some()
    };
    let found = ["/usr/local/bin/etcd", "/usr/bin/etcd", "/etcd", "/opt/bitnami/etcd/bin/etcd"].iter().any(copy);
    quietly("docker", &["rm", &container]);
    if found { Ok(target.canonicalize()?) } else { Err(format!("there is no etcd in the image {image}").into()) }
}

fn may_install() -> bool {
    let root = quietly("id", &["-u"]).as_deref() == Some("0");
    root && quietly("apt-get", &["--version"]).is_some()
}

fn install(package: &str) -> Result {
    install_all(&[package])
}

/// Installs packages of Debian, where that is possible.
pub(crate) fn install_all(packages: &[&str]) -> Result {
    let names = packages.join(" ");
    if !may_install() {
        return Err(format!("this needs Debian's packages {names}: `sudo apt-get install {names}`").into());
    }
    println!("installing Debian's packages {names}");
    let mut update = Command::new("apt-get");
    run(update.args(["-q", "update"]))?;
    let mut install = Command::new("apt-get");
    install.args(["-q", "install", "-y", "--no-install-recommends"]).args(packages);
    // The server's package would start one of its own, which the tests do not want.
    run(install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))
}
