//! Runs the agent with clients in other languages, whose libraries are installed below the build folder.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{FEATURES, HELP, Result, cargo, run},
    etcd::{self, Etcd},
    interop,
};

/// Folder of the sources of the clients.
const SOURCES: &str = "agent/tests/clients";

/// The tests over etcd in the layouts of Go frameworks, with a client in Go.
const LAYOUTS: &str = "layouts";

/// Programs on these frameworks.
const FRAMEWORKS: [&str; 3] = ["gozero", "kitex", "kratos"];

/// Variables for tests.
type Variables = Vec<(&'static str, PathBuf)>;

/// A client, and the preparation of its tests.
struct Part {
    /// Name, which is also that of the module with its tests, apart from hyphens.
    name: &'static str,
    /// Installs and builds what is missing. Returns paths for the tests.
    prepare: fn() -> Result<Variables>,
}

const PARTS: [Part; 9] = [
    Part { name: "python", prepare: python },
    Part { name: "envoy", prepare: envoy },
    Part { name: "go", prepare: go },
    Part { name: "tonic-xds", prepare: tonic },
    Part { name: "java", prepare: java },
    Part { name: "console", prepare: node },
    Part { name: "http", prepare: http },
    Part { name: "prometheus", prepare: prometheus },
    Part { name: "browser", prepare: browser },
];

/// Runs `cargo xtask clients` with the parts named, or all.
pub(crate) fn test(parts: impl Iterator<Item = String>) -> Result {
    let parts: Vec<_> = parts.collect();
    let known: Vec<_> = PARTS.iter().map(|part| part.name).chain([LAYOUTS]).collect();
    if let Some(unknown) = parts.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no part {unknown}; there are {}\n\n{HELP}", known.join(", ")).into());
    }
    let is_wanted = |name: &str| parts.is_empty() || parts.iter().any(|one| one == name);
    let (mut names, mut variables) = (Vec::new(), Variables::new());
    for Part { name, prepare } in PARTS.iter().filter(|part| is_wanted(part.name)) {
        names.push(format!("{}::", name.replace('-', "_")));
        variables.extend(prepare().map_err(|error| format!("{name}: {error}"))?);
    }
    let over_layouts = is_wanted(LAYOUTS).then(prepare_layouts).transpose();
    let over_layouts = over_layouts.map_err(|error| format!("{LAYOUTS}: {error}"))?;
    if !names.is_empty() {
        let mut tests = cargo()?;
        tests.args(["test", "--workspace", "--features", FEATURES, "--test", "clients", "--", "--ignored"]);
        // The clients need the cores more than the tests do.
        run(tests.args(["--test-threads", "2"]).args(names).envs(variables))?;
    }
    if let Some((etcd, variables)) = over_layouts {
        let mut tests = cargo()?;
        let features = format!("{FEATURES},enlist-cli/agent");
        tests.args(["test", "--workspace", "--features", &features, "--test", "agent_layouts", "--"]);
        run(tests.args(["--ignored", "--test-threads", "2"]).envs(variables).envs(etcd.variables()))?;
    }
    Ok(())
}

fn prepare_layouts() -> Result<(Etcd, Variables)> {
    let etcd = etcd::find()?;
    let mut variables = go()?;
    variables.push(("ENLIST_INTEROP_BIN", interop::build(&FRAMEWORKS)?));
    Ok((etcd, variables))
}

fn python() -> Result<Variables> {
    Ok(vec![("ENLIST_CLIENT_PYTHON", environment("python")?.join("python"))])
}

/// Envoy is published for Python, and the client in front of it is one in Python.
fn envoy() -> Result<Variables> {
    let mut variables = python()?;
    variables.push(("ENLIST_CLIENT_ENVOY", environment("envoy")?.join("envoy")));
    Ok(variables)
}

fn go() -> Result<Variables> {
    let Some(go) = etcd::go::find() else {
        return Err(format!("this needs Go {} or newer, and there is none", etcd::go::OLDEST).into());
    };
    let folder = installations()?.join("go");
    fs::create_dir_all(&folder)?;
    let mut build = Command::new(go);
    build.current_dir(root().join(SOURCES).join("go")).args(["build", "-buildvcs=false", "-trimpath", "-o"]);
    build.arg(&folder).arg("./...");
    etcd::build::plain(&mut build);
    run(&mut build)?;
    Ok(vec![("ENLIST_CLIENT_GO", folder)])
}

fn tonic() -> Result<Variables> {
    let target = target()?;
    let mut build = cargo()?;
    build.arg("build").arg("--manifest-path").arg(root().join(SOURCES).join("tonic/Cargo.toml")).arg("--locked");
    // Crates that both builds need are compiled once.
    run(build.arg("--target-dir").arg(&target))?;
    Ok(vec![("ENLIST_CLIENT_TONIC", target.join("debug"))])
}

fn java() -> Result<Variables> {
    let folder = installations()?.join("java");
    let libraries = folder.join("libraries");
    let mut build = Command::new("mvn");
    build.current_dir(root().join(SOURCES).join("java")).args(["--quiet", "--batch-mode", "compile"]);
    build.arg("dependency:copy-dependencies").arg(format!("-Doutput={}", folder.display()));
    build.arg(format!("-DoutputDirectory={}", libraries.display()));
    if let Err(error) = Command::new("mvn").arg("--version").output() {
        return Err(format!("mvn cannot be run ({error}): install Maven and a Java of version 17 or newer").into());
    }
    run(&mut build)?;
    let classes = folder.join("classes");
    Ok(vec![("ENLIST_CLIENT_JAVA", format!("{}:{}/*", classes.display(), libraries.display()).into())])
}

/// The scripts of the console are tested in Node.
fn node() -> Result<Variables> {
    let version = Command::new("node").arg("--version").output();
    let version = version.map_err(|error| format!("node cannot be run ({error}): install Node 20 or newer"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|text| text.parse::<u32>().ok());
    match major {
        Some(20..) => Ok(vec![("ENLIST_CLIENT_NODE", "node".into())]),
        _ => Err(format!("this needs Node 20 or newer, and there is {version}").into()),
    }
}

/// Requests are generated by a program in Python, or sent by curl.
fn http() -> Result<Variables> {
    program(&["curl"], "curl")?;
    Ok(vec![("ENLIST_CLIENT_SCHEMATHESIS", environment("http")?.join("schemathesis"))])
}

fn prometheus() -> Result<Variables> {
    Ok(vec![("ENLIST_CLIENT_PROMETHEUS", program(&["prometheus"], "prometheus")?)])
}

fn browser() -> Result<Variables> {
    let browsers = ["chromium-headless-shell", "chromium", "google-chrome"];
    Ok(vec![
        ("ENLIST_CLIENT_CHROMIUM", program(&browsers, "chromium-headless-shell")?),
        ("ENLIST_CLIENT_CHROMEDRIVER", program(&["chromedriver"], "chromium-driver")?),
    ])
}

/// Returns the path of the first of these programs that is on the `PATH`. `package`: Debian's package of it.
fn program(names: &[&str], package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        names.iter().find_map(|name| env::split_paths(&path).map(|folder| folder.join(name)).find(|one| one.is_file()));
    found.ok_or_else(|| format!("{} is not on the PATH: install Debian's package {package}", names.join(" or ")).into())
}

/// Returns the folder of programs of an environment of Python with the libraries that a client needs, and installs them
/// if need be.
fn environment(client: &str) -> Result<PathBuf> {
    let requirements = root().join(SOURCES).join(client).join("requirements.txt");
    let needed = fs::read_to_string(&requirements)?;
    let folder = installations()?.join(client);
    let (programs, installed) = (folder.join("bin"), folder.join("installed.txt"));
    if fs::read_to_string(&installed).is_ok_and(|text| text == needed) {
        return Ok(programs);
    }
    let venv = Command::new("python3").args(["-m", "venv"]).arg(&folder).status();
    match venv {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("python3 cannot make an environment ({status}): install python3-venv").into()),
        Err(error) => return Err(format!("python3 cannot be run ({error}): install it, with its module venv").into()),
    }
    let mut install = Command::new(programs.join("python"));
    run(install.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(requirements))?;
    fs::write(installed, needed)?;
    Ok(programs)
}

/// Returns the folder for what is installed or built. The tests run in another folder, so the path is absolute.
fn installations() -> Result<PathBuf> {
    Ok(target()?.join("clients"))
}

/// Returns the build folder.
fn target() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(std::path::absolute(target)?)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
