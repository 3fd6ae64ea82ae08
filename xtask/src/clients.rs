//! Runs the agent with clients in other languages, whose libraries are installed below the build folder.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    command::{FEATURES, HELP, Result, cargo, run},
    counted::{self, ByModule},
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
const OVER_ETCD: [&str; 4] = ["over_etcd::", "over_kitex::", "over_kitex_by_default::", "over_go_zero::"];

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
    needs: &'static [Tool],
    /// Installs and builds what is missing. Returns paths for the tests.
    prepare: fn() -> Result<Variables>,
}

const PARTS: [Part; 9] = [
    Part { name: "python", has_scenarios: true, needs: &[Tool::Python], prepare: python },
    Part { name: "envoy", has_scenarios: true, needs: &[Tool::Python], prepare: envoy },
    Part { name: "go", has_scenarios: true, needs: &[Tool::Go], prepare: go },
    Part { name: "tonic-xds", has_scenarios: true, needs: &[], prepare: tonic },
    Part { name: "java", has_scenarios: true, needs: &[Tool::Maven], prepare: java },
    Part { name: "console", has_scenarios: false, needs: &[Tool::Node], prepare: node },
    Part { name: "http", has_scenarios: false, needs: &[Tool::Python, Tool::Curl], prepare: http },
    Part { name: "prometheus", has_scenarios: false, needs: &[Tool::Prometheus], prepare: prometheus },
    Part { name: "browser", has_scenarios: false, needs: &[Tool::Chromium, Tool::ChromeDriver], prepare: browser },
];

/// A program that users install.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tool {
    Python,
    Go,
    Maven,
    Node,
    Curl,
    Prometheus,
    Chromium,
    ChromeDriver,
}

impl Tool {
    /// Returns the path of the program, or its name.
    ///
    /// # Errors
    ///
    /// If it is missing or unsuitable. The text names what to install.
    fn find(self) -> Result<PathBuf> {
        match self {
            Self::Python => python3(),
            Self::Go => etcd::go::find().ok_or_else(|| format!("install Go {} or newer", etcd::go::OLDEST).into()),
            Self::Maven => match Command::new("mvn").arg("--version").output() {
                Ok(output) if output.status.success() => Ok("mvn".into()),
                _ => Err("install Maven and a Java of version 17 or newer".into()),
            },
            Self::Node => node_20(),
            Self::Curl => program(&["curl"], "curl"),
            Self::Prometheus => program(&["prometheus"], "prometheus"),
            Self::Chromium => {
                program(&["chromium-headless-shell", "chromium", "google-chrome"], "chromium-headless-shell")
            }
            Self::ChromeDriver => program(&["chromedriver"], "chromium-driver"),
        }
    }
}

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
    check_tools(&needed(&named))?;
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

/// Returns the tools that the parts named need, or all.
fn needed(named: &[String]) -> BTreeSet<Tool> {
    let is_named = |name: &str| named.is_empty() || named.iter().any(|one| one == name);
    let has_clients = PARTS.iter().any(|part| is_named(part.name));
    // Without a client, those with scenarios run over etcd.
    let is_needed = |part: &&Part| if has_clients { is_named(part.name) } else { part.has_scenarios && is_named(ETCD) };
    let parts = PARTS.iter().filter(is_needed);
    let go = (is_named(LAYOUTS) || is_named(ETCD)).then_some(Tool::Go);
    parts.flat_map(|part| part.needs).copied().chain(go).collect()
}

/// Looks for these tools.
///
/// # Errors
///
/// If some are missing. The text names all of them, each once.
fn check_tools(tools: &BTreeSet<Tool>) -> Result {
    let mut missing: Vec<_> =
        tools.iter().filter_map(|tool| tool.find().err()).map(|error| error.to_string()).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ").into()) }
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
    client.name.replace('-', "_")
}

/// Runs tests of clients, and of other modules.
///
/// # Errors
///
/// If one fails, or none of a client ran.
fn run_tests(tests: &mut Command, clients: &[&Part], others: &[&str]) -> Result {
    let mut modules = ByModule::new();
    let counts = counted::run_by_module(tests, &mut modules)?;
    let wanted = clients.iter().map(|client| module(client)).chain(others.iter().map(|&module| module.to_owned()));
    if let Some(missing) = wanted.into_iter().find(|module| !modules.contains_key(module)) {
        return Err(format!("no test of {missing} ran").into());
    }
    counted::passed(counts)
}

/// Runs all tests of clients but those over etcd.
fn over_memory(clients: &[&Part]) -> Result {
    let variables = prepare(clients)?;
    let mut tests = cargo()?;
    tests.args(["test", "--workspace", "--features", FEATURES, "--test", "clients", "--", "--ignored"]);
    tests.args(OVER_ETCD.iter().flat_map(|module| ["--skip", *module]));
    // The clients need the cores more than the tests do.
    tests.args(["--test-threads", "2"]).args(clients.iter().map(|client| module(client) + "::"));
    run_tests(tests.envs(variables), clients, &[])
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
    tests.args(clients.iter().flat_map(|client| OVER_ETCD.map(|over| module(client) + "::" + over)));
    tests.arg("over_etcd::without_client::");
    tests.env("ENLIST_COMMAND", command).envs(variables).envs([frameworks]).envs(etcd.variables());
    run_tests(&mut tests, clients, &["over_etcd"])
}

/// Runs servers of frameworks in Go, with a client in Go.
fn layouts() -> Result {
    let ((etcd, frameworks), variables) = (frameworks()?, go()?);
    let mut tests = cargo()?;
    let features = format!("{FEATURES},enlist-cli/agent");
    tests.args(["test", "--workspace", "--features", &features, "--test", "agent_layouts", "--", "--ignored"]);
    tests.args(["--test-threads", "2"]).envs(variables).envs([frameworks]).envs(etcd.variables());
    counted::run(&mut tests).and_then(counted::passed)
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
    let (folder, go) = (installations()?.join("go"), Tool::Go.find()?);
    fs::create_dir_all(&folder)?;
    let mut build = Command::new(&go);
    build.current_dir(root().join(SOURCES).join("go")).args(["build", "-buildvcs=false", "-trimpath", "-o"]);
    build.arg(&folder).arg("./...");
    etcd::build::plain(&mut build);
    run(&mut build)?;
    Ok(vec![("ENLIST_CLIENT_GO", folder), ("ENLIST_CLIENT_GO_PROGRAM", go)])
}

fn tonic() -> Result<Variables> {
    let target = target()?;
    let mut build = cargo()?;
    build
        .arg("build")
        .arg("--manifest-path")
        .arg(root().join(SOURCES).join("tonic/Cargo.toml"))
        .args(["--workspace", "--locked"]);
    // Crates that both builds need are compiled once.
    run(build.arg("--target-dir").arg(&target))?;
    Ok(vec![("ENLIST_CLIENT_TONIC", target.join("debug"))])
}

fn java() -> Result<Variables> {
    let folder = installations()?.join("java");
    let libraries = folder.join("libraries");
    let mut build = Command::new(Tool::Maven.find()?);
    build.current_dir(root().join(SOURCES).join("java")).args(["--quiet", "--batch-mode", "compile"]);
    build.arg("dependency:copy-dependencies").arg(format!("-Doutput={}", folder.display()));
    build.arg(format!("-DoutputDirectory={}", libraries.display()));
    run(&mut build)?;
    let classes = folder.join("classes");
    Ok(vec![("ENLIST_CLIENT_JAVA", format!("{}:{}/*", classes.display(), libraries.display()).into())])
}

/// The scripts of the console are tested in Node.
fn node() -> Result<Variables> {
    Ok(vec![("ENLIST_CLIENT_NODE", Tool::Node.find()?)])
}

fn node_20() -> Result<PathBuf> {
    let version = Command::new("node").arg("--version").output();
    let version = version.map_err(|error| format!("install Node 20 or newer ({error})"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|text| text.parse::<u32>().ok());
    match major {
        Some(20..) => Ok("node".into()),
        _ => Err(format!("install Node 20 or newer instead of {}", version.trim_end()).into()),
    }
}

/// Requests are generated by a program in Python, or sent by curl.
fn http() -> Result<Variables> {
    Ok(vec![("ENLIST_CLIENT_SCHEMATHESIS", environment("http")?.join("schemathesis"))])
}

fn prometheus() -> Result<Variables> {
    Ok(vec![("ENLIST_CLIENT_PROMETHEUS", Tool::Prometheus.find()?)])
}

fn browser() -> Result<Variables> {
    let pictures = installations()?.join("pictures");
    fs::create_dir_all(&pictures)?;
    Ok(vec![
        ("ENLIST_CLIENT_PICTURES", pictures),
        ("ENLIST_CLIENT_CHROMIUM", Tool::Chromium.find()?),
        ("ENLIST_CLIENT_CHROMEDRIVER", Tool::ChromeDriver.find()?),
    ])
}

/// Finds a Python that makes complete environments. Debian's python3 alone does not.
fn python3() -> Result<PathBuf> {
    let modules = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    match modules {
        Ok(output) if output.status.success() => Ok("python3".into()),
        Ok(_) => Err("install python3-venv".into()),
        Err(error) => Err(format!("install python3, with its module venv ({error})").into()),
    }
}

/// Returns the path of the first of these programs that is on the `PATH`. `package`: Debian's package of it.
fn program(names: &[&str], package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        names.iter().find_map(|name| env::split_paths(&path).map(|folder| folder.join(name)).find(|one| one.is_file()));
    found
        .ok_or_else(|| format!("install Debian's package {package} ({} is not on the PATH)", names.join(" or ")).into())
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
    run(Command::new(Tool::Python.find()?).args(["-m", "venv"]).arg(&folder))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_looked_for() {
        let needed = |named: &[&str]| needed(&named.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(needed(&["layouts"]), [Tool::Go].into());
        assert_eq!(needed(&["etcd"]), [Tool::Python, Tool::Go, Tool::Maven].into());
        assert_eq!(needed(&["etcd", "java"]), [Tool::Go, Tool::Maven].into());
        assert_eq!(needed(&["tonic-xds"]), BTreeSet::new());
        assert!(needed(&[]).contains(&Tool::Chromium));
    }

    #[test]
    fn a_client_without_a_test_fails() {
        let mut tests = Command::new("printf");
        tests.arg("test go::one ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
        let [go, java] = ["go", "java"].map(|name| PARTS.iter().find(|part| part.name == name).unwrap());
        run_tests(&mut tests, &[go], &[]).unwrap();
        assert_eq!(run_tests(&mut tests, &[go, java], &[]).unwrap_err().to_string(), "no test of java ran");
        let other = run_tests(&mut tests, &[go], &["over_etcd"]).unwrap_err();
        assert_eq!(other.to_string(), "no test of over_etcd ran");
    }
}
