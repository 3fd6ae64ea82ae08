//! Where an etcd for the tests can be had: given by the environment, on the `PATH`, or Debian's package.

use std::{
    env, fmt,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Result, run};

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
                let output = Command::new(path).arg("--version").output();
                let text =
                    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
                write!(f, "{} ({})", path.display(), text.lines().next().unwrap_or("tells no version"))
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

/// Finds an etcd, and installs Debian's package where that is possible and nothing else is there.
pub(crate) fn find() -> Result<Etcd> {
    for variable in ["ENLIST_TEST_ETCD", "ENLIST_TEST_PROVIDER", "ENLIST_ETCD_BIN"] {
        if let Ok(value) = env::var(variable) {
            return Ok(Etcd::Given(variable, value));
        }
    }
    if let Ok(image) = env::var("ENLIST_TEST_IMAGE") {
        return out_of_image(&image).map(Etcd::Binary);
    }
    if let Some(path) = on_path("etcd") {
        return Ok(Etcd::Binary(path));
    }
    if may_install() {
        install("etcd-server")?;
        if let Some(path) = on_path("etcd") {
            return Ok(Etcd::Binary(path));
        }
    }
    Err("the tests need an etcd and none could be had. Install one (Debian and Ubuntu: `sudo apt-get install \
         etcd-server`), or set ENLIST_ETCD_BIN to an `etcd` binary, ENLIST_TEST_IMAGE to an image for Docker, or \
         ENLIST_TEST_ETCD to the host:port of an etcd that may be filled and emptied"
        .into())
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH")?;
    env::split_paths(&paths).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// Makes sure that there is an `etcdctl`, beside which some tests queue for a lock.
pub(crate) fn need_etcdctl() -> Result {
    let beside = env::var_os("ENLIST_ETCD_BIN").map(|etcd| PathBuf::from(etcd).with_file_name("etcdctl"));
    if env::var_os("ENLIST_ETCDCTL_BIN").is_some()
        || beside.is_some_and(|path| path.is_file())
        || on_path("etcdctl").is_some()
    {
        return Ok(());
    }
    if may_install() {
        install("etcd-client")?;
        if on_path("etcdctl").is_some() {
            return Ok(());
        }
    }
    Err("the tests need `etcdctl` and it could not be had. Install it (Debian and Ubuntu: `sudo apt-get install etcd-client`), or \
         set ENLIST_ETCDCTL_BIN"
        .into())
}

fn quietly(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns `true` if a Docker engine answers.
pub(crate) fn docker_works() -> bool {
    quietly("docker", &["info", "--format", "{{.ServerVersion}}"]).is_some_and(|version| !version.is_empty())
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
