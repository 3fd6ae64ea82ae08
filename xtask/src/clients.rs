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

/// The scenarios over etcd, with the agent as a process, in the native layout and in those of two Go frameworks.
const ETCD: &str = "etcd";

/// Modules of tests over etcd.
const OVER_ETCD: [&str; 3] = ["over_etcd::", "over_kitex::", "over_go_zero::"];

/// Programs on these frameworks.
const FRAMEWORKS: [&str; 3] = ["gozero", "kitex", "kratos"];

/// Variables for tests.
type Variables = Vec<(&'static str, PathBuf)>;

/// A client, and the preparation of its tests.
struct Part {
    /// Name, which is also that of the module with its tests, apart from hyphens.
    name: &'static str,
    /// Is tested in all scenarios, also over etcd.
    has_scenarios: bool,
    /// Installs and builds what is missing. Returns paths for the tests.
    prepare: fn() -> Result<Variables>,
}

const PARTS: [Part; 9] = [
    Part { name: "python", has_scenarios: true, prepare: python },
    Part { name: "envoy", has_scenarios: true, prepare: envoy },
    Part { name: "go", has_scenarios: true, prepare: go },
    Part { name: "tonic-xds", has_scenarios: true, prepare: tonic },
    Part { name: "java", has_scenarios: true, prepare: java },
    Part { name: "console", has_scenarios: false, prepare: node },
    Part { name: "http", has_scenarios: false, prepare: http },
    Part { name: "prometheus", has_scenarios: false, prepare: prometheus },
    Part { name: "browser", has_scenarios: false, prepare: browser },
];

/// Runs `cargo xtask clients` with the parts named, or all. With `etcd`, the clients named run over etcd instead of the
/// memory backend; all of them, if there are none.
pub(crate) fn test(named: impl Iterator<Item = String>) -> Result {
    let named: Vec<_> = named.collect();
    let known: Vec<_> = PARTS.iter().map(|part| part.name).chain([LAYOUTS, ETCD]).collect();
    if let Some(unknown) = named.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no part {unknown}; there are {}\n\n{HELP}", known.join(", ")).into());
    }
    let is_named = |name: &str| named.iter().any(|one| one == name);
    let without = PARTS.iter().find(|part| !part.has_scenarios && is_named(part.name));
    if let (true, Some(Part { name, .. })) = (is_named(ETCD), without) {
        return Err(format!("{name} has no scenarios, so it cannot run over {ETCD}\n\n{HELP}").into());
    }
    let over_etcd = named.is_empty() || is_named(ETCD);
    let has_clients = PARTS.iter().any(|part| is_named(part.name));
    let clients: Vec<_> = PARTS.iter().filter(|part| !has_clients || is_named(part.name)).collect();
    if named.is_empty() || has_clients && !over_etcd {
        over_memory(&clients)?;
    }
    if named.is_empty() || is_named(LAYOUTS) {
        layouts().map_err(|error| format!("{LAYOUTS}: {error}"))?;
    }
    if over_etcd {
        let clients: Vec<_> = clients.into_iter().filter(|part| part.has_scenarios).collect();
        scenarios_over_etcd(&clients)?;
    }
    Ok(())
}

/// Installs and builds what clients need.
fn prepare(clients: &[&Part]) -> Result<Variables> {
    let mut variables = Variables::new();
    for Part { name, prepare, .. } in clients {
        variables.extend(prepare().map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(variables)
}

/// Returns the name of the module with the tests of a client.
fn module(client: &Part) -> String {
    format!("{}::", client.name.replace('-', "_"))
}

/// Runs all tests of clients but those over etcd.
fn over_memory(clients: &[&Part]) -> Result {
    let variables = prepare(clients)?;
    let mut tests = cargo()?;
    tests.args(["test", "--workspace", "--features", FEATURES, "--test", "clients", "--", "--ignored"]);
    tests.args(OVER_ETCD.iter().flat_map(|module| ["--skip", *module]));
    // The clients need the cores more than the tests do.
    run(tests.args(["--test-threads", "2"]).args(clients.iter().map(|client| module(client))).envs(variables))
}

/// Runs the scenarios of clients over etcd.
fn scenarios_over_etcd(clients: &[&Part]) -> Result {
    let (etcd, frameworks) = frameworks().map_err(|error| format!("{ETCD}: {error}"))?;
    let (variables, features) = (prepare(clients)?, format!("{FEATURES},enlist-cli/agent"));
    run(cargo()?.args(["build", "--workspace", "--features", &features, "--bin", "enlist"]))?;
    let command = target()?.join("debug/enlist");
    let mut tests = cargo()?;
    tests.args(["test", "--workspace", "--features", FEATURES, "--test", "clients", "--", "--ignored"]);
    tests.args(["--test-threads", "2"]);
    tests.args(clients.iter().flat_map(|client| OVER_ETCD.map(|over| module(client) + over)));
    tests.arg("over_etcd::two_agents");
    run(tests.env("ENLIST_COMMAND", command).envs(variables).envs([frameworks]).envs(etcd.variables()))
}

/// Runs servers of frameworks in Go, with a client in Go.
fn layouts() -> Result {
    let ((etcd, frameworks), variables) = (frameworks()?, go()?);
    let mut tests = cargo()?;
    let features = format!("{FEATURES},enlist-cli/agent");
    tests.args(["test", "--workspace", "--features", &features, "--test", "agent_layouts", "--", "--ignored"]);
    run(tests.args(["--test-threads", "2"]).envs(variables).envs([frameworks]).envs(etcd.variables()))
}

/// Builds the programs on frameworks in Go.
fn frameworks() -> Result<(Etcd, (&'static str, PathBuf))> {
    Ok((etcd::find()?, ("ENLIST_INTEROP_BIN", interop::build(&FRAMEWORKS)?)))
}

/// The client in Python is also the one of the demo.
fn python() -> Result<Variables> {
    run(cargo()?.args(["build", "--workspace", "--features", FEATURES, "--example", "demo"]))?;
    Ok(vec![
        ("ENLIST_CLIENT_PYTHON", environment("python")?.join("python")),
        ("ENLIST_CLIENT_DEMO", target()?.join("debug/examples/demo")),
    ])
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
    let pictures = installations()?.join("pictures");
    fs::create_dir_all(&pictures)?;
    Ok(vec![
        ("ENLIST_CLIENT_PICTURES", pictures),
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
