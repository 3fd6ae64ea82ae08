//! Cost of building a program on these crates: crates, processor time from an empty folder, size of the program.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::command::{Result, cargo};

/// Folder of the programs below the build folder.
const FOLDER: &str = "build-cost";

/// Clock ticks per second in `/proc` (`sysconf(_SC_CLK_TCK)`, which is 100 on all architectures of Linux).
const TICKS: f64 = 100.0;

/// Begin of each program: it needs everything that a small one does.
const COMMON: &str = "\
use std::sync::Arc;
use enlist::{Directory, Endpoint, Instance, InstanceId, PickPolicy, RegisterOptions, Registry, ServiceRef};

#[tokio::main(flavor = \"current_thread\")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = ServiceRef::parse(\"greeter\")?;
    let instance = Instance::new(InstanceId::parse(\"a\")?, [Endpoint::parse(\"grpc://127.0.0.1:1\")?])?;
";

/// End of each program.
const END: &str = "\
    let registration = store.register(&service, instance, RegisterOptions::new()).await?;
    let view = Directory::new(Arc::new(store)).view(&service);
    view.ready().await?;
    println!(\"{:?}\", view.picker(PickPolicy::RoundRobin).pick()?.instance());
    registration.deregister().await?;
    Ok(())
}
";

/// The backend of the programs with etcd.
const ETCD: &str = "    let store = enlist_etcd::Etcd::connect(\"127.0.0.1:2379\").await?;\n";

/// A program.
struct Program {
    name: &'static str,
    /// Dependencies beside `enlist` and tokio: package, folder, and further keys.
    dependencies: &'static [(&'static str, &'static str, &'static str)],
    /// Statements that make `store`.
    store: &'static str,
    /// Statements after the view is there.
    use_view: &'static str,
}

const PROGRAMS: [Program; 5] = [
    Program {
        name: "core+memory",
        dependencies: &[("enlist-memory", "backend-memory", "")],
        store: "    let store = enlist_memory::MemoryStore::new().client();\n",
        use_view: "",
    },
    Program {
        name: "core+etcd without TLS",
        dependencies: &[("enlist-etcd", "backend-etcd", ", default-features = false")],
        store: ETCD,
        use_view: "",
    },
    Program { name: "core+etcd", dependencies: &[("enlist-etcd", "backend-etcd", "")], store: ETCD, use_view: "" },
    Program {
        name: "core+etcd+grpc without TLS",
        dependencies: &[
            ("enlist-etcd", "backend-etcd", ", default-features = false"),
            ("enlist-grpc", "resolver-grpc", ""),
        ],
        store: ETCD,
        use_view: "    let _channel = enlist_grpc::Channel::builder().build(&view)?;\n",
    },
    Program {
        name: "core+etcd+grpc",
        dependencies: &[
            ("enlist-etcd", "backend-etcd", ""),
            ("enlist-grpc", "resolver-grpc", ", features = [\"tls-ring\"]"),
        ],
        store: ETCD,
        use_view: "    let _channel = enlist_grpc::Channel::builder().build(&view)?;\n",
    },
];

/// Measures all programs, each from an empty folder, and prints a table.
pub(crate) fn measure() -> Result {
    println!("| program | crates | processor time | size |\n|---|---|---|---|");
    for program in &PROGRAMS {
        let folder = write(program)?;
        let (crates, before) = (count(&folder)?, spent()?);
        let mut build = cargo()?;
        build
            .current_dir(&folder)
            .args(["build", "--release", "--quiet"])
            .env("CARGO_TARGET_DIR", folder.join("target"));
        let status = build.env_remove("CARGO_INCREMENTAL").status()?;
        if !status.success() {
            return Err(format!("{}: {status}", program.name).into());
        }
        let time = spent()? - before;
        let bytes = fs::metadata(folder.join("target/release/program"))?.len();
        let mebibytes = f64::from(u32::try_from(bytes)?) / f64::from(1 << 20);
        println!("| {} | {crates} | {time:.0} s | {mebibytes:.1} MiB |", program.name);
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Writes a program with the dependencies' versions of this workspace, and returns its folder.
fn write(program: &Program) -> Result<PathBuf> {
    let root = env::current_dir()?;
    let build = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = root.join(build).join(FOLDER).join(program.name.replace([' ', '+'], "-"));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join("src"))?;
    let mut manifest = String::from(
        "[package]\nname = \"program\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[profile.release]\n\
         strip = true\n\n[dependencies]\ntokio = { version = \"1\", features = [\"macros\", \"rt\"] }\n",
    );
    for (package, source, keys) in [("enlist", "core", "")].iter().chain(program.dependencies) {
        let path = root.join(source);
        writeln!(manifest, "{package} = {{ path = {:?}{keys} }}", path.display().to_string())?;
    }
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let end = END.replacen("    println!", &format!("{}    println!", program.use_view), 1);
    fs::write(folder.join("src/main.rs"), [COMMON, program.store, &end].concat())?;
    Ok(folder)
}

/// Returns the number of crates that are compiled, those of build scripts and macros and the program included.
fn count(folder: &Path) -> Result<usize> {
    let mut tree = cargo()?;
    tree.current_dir(folder).args(["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    let lines = output(&mut tree)?;
    let crates: BTreeSet<_> = lines.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    Ok(crates.len())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns the processor time of all ended processes that this one started, in seconds.
fn spent() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may contain spaces; `cutime` and `cstime` are fields 16 and 17.
    let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(13).take(2).collect();
    let ticks: f64 = fields.iter().map(|field| field.parse::<f64>()).sum::<std::result::Result<f64, _>>()?;
    Ok(ticks / TICKS)
}
