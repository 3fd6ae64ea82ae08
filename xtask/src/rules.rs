//! Rules for the whole repository: dependencies between crates (the table is that of CONTRIBUTING.md), openings and
//! sections of documentation comments, lengths of files, functions and lines, names and words, escaping in logs,
//! files that no program contains, imports between files, the public API, and the pages in Markdown: their links, the
//! tests that they name, and a row for each option.

mod architecture;
mod doc_openings;
mod doc_sections;
mod import_cycles;
mod known;
mod layouts;
mod limits;
mod logs;
mod markdown;
mod names;
mod options;
mod orphans;
mod prose;
mod public_api;
mod sources;
mod test_names;
mod tokens;

use std::{collections::BTreeSet, path::Path};

use self::{
    doc_openings::Openings,
    known::{Finding, Known},
    public_api::Listings,
    sources::Source,
};
use crate::command::{Result, cargo, run};

/// A package, and packages that must not be in its dependency tree, apart from development dependencies.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    ("enlist", &["etcd-client", "tonic", "tower", "enlist-memory", "enlist-etcd", "enlist-grpc", "enlist-config"]),
    ("enlist-memory", &["etcd-client", "tonic", "tower", "enlist-etcd", "enlist-grpc"]),
    ("enlist-etcd", &["enlist-grpc", "enlist-memory"]),
    ("enlist-grpc", &["etcd-client", "enlist-etcd", "enlist-memory"]),
    ("enlist-agent", &["etcd-client", "enlist-etcd", "enlist-memory", "enlist-grpc"]),
    ("enlist-config", &["etcd-client", "tonic", "tower", "enlist-etcd", "enlist-memory", "enlist-grpc"]),
    ("enlist-testkit", &["etcd-client", "enlist-etcd", "enlist-memory", "enlist-grpc"]),
    // Without its feature `etcd`.
    ("enlist-examples", &["etcd-client", "enlist-etcd"]),
    ("enlist-cli", &["enlist-grpc"]),
    ("enlist-simulation", &["enlist-memory", "enlist-grpc"]),
    ("xtask", &["enlist", "enlist-memory", "enlist-etcd", "enlist-grpc", "enlist-testkit"]),
];

/// Packages that are built alone anyway, to be run.
const BUILT_ALONE: [&str; 2] = ["enlist-simulation", "xtask"];

/// Options of cargo for a build without default features.
const NO_FEATURES: [&str; 1] = ["--no-default-features"];

/// Options of clippy.
const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];

/// A package, and packages that must not be in its dependency tree without its default features.
const WITHOUT_FEATURES: &[(&str, &[&str])] = &[("enlist-etcd", &["ring", "rustls", "tokio-rustls"])];

/// Runs `cargo xtask rules`; with `--bless` it only writes the listings of the public API.
pub(crate) fn check_or_bless(mut args: impl Iterator<Item = String>) -> Result {
    match (args.next().as_deref(), args.next()) {
        (None, _) => check(),
        (Some("--bless"), None) => bless(),
        _ => Err("rules takes --bless and nothing else".into()),
    }
}

fn bless() -> Result {
    let root = sources::root();
    public_api::findings(&root, &sources::read(&root, &root)?, Listings::Bless)?;
    Ok(())
}

fn check() -> Result {
    check_files()?;
    check_dependencies()
}

/// Checks the sources and the pages, which needs no build.
fn check_files() -> Result {
    let root = sources::root();
    let sources = sources::read(&root, &root)?;
    Openings::of(&sources).report()?;
    let mut findings = limits::findings(&sources);
    findings.extend(names::findings(&sources));
    findings.extend(logs::findings(&sources));
    findings.extend(test_names::findings(&sources));
    findings.extend(orphans::findings(&sources, &sources::manifests(&root)?));
    findings.extend(cycles(&sources));
    findings.extend(doc_sections::findings(&root, &sources)?);
    findings.extend(public_api::findings(&root, &sources, Listings::Check)?);
    let pages = sources::pages(&root)?;
    findings.extend(markdown::findings(&root, &pages, &sources));
    findings.extend(prose::findings(&pages, &sources));
    findings.extend(options::findings(&root, &sources)?);
    findings.extend(layouts::findings(&root, &sources)?);
    findings.extend(architecture::findings(&root, &sources)?);
    Known::read(&root)?.judge(&findings)
}

/// Returns the number of cycles of imports between the files of each crate, and prints them.
fn cycles(sources: &[Source]) -> Vec<Finding> {
    let is_root = |path: &Path| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    let roots = sources.iter().map(|source| &*source.path).filter(|path| is_root(path));
    let folders: BTreeSet<_> = roots.filter_map(Path::parent).collect();
    let found: Vec<_> = folders.into_iter().map(|folder| (folder, import_cycles::cycles(folder, sources))).collect();
    let groups: usize = found.iter().map(|(_, cycles)| import_cycles::groups(cycles).len()).sum();
    let count: usize = found.iter().map(|(_, cycles)| cycles.len()).sum();
    println!("{groups} groups of files import each other, in {count} cycles");
    let mut findings = Vec::new();
    for (folder, cycles) in found {
        for cycle in &cycles {
            println!("{}: {} -> {}", folder.display(), cycle.join(" -> "), cycle[0]);
        }
        if !cycles.is_empty() {
            let place = folder.display().to_string();
            findings.push(Finding::new("import-cycles", place, cycles.len(), "cycles of imports between files"));
        }
    }
    findings
}

fn check_dependencies() -> Result {
    let whole = MUST_NOT_KNOW.iter().map(|(package, forbidden)| (*package, *forbidden, &[][..]));
    let bare = WITHOUT_FEATURES.iter().map(|(package, forbidden)| (*package, *forbidden, &NO_FEATURES[..]));
    for (package, forbidden, options) in whole.clone().chain(bare.clone()) {
        let shown = [&[package], options].concat().join(" ");
        let known = dependencies(package, options)?;
        if let Some(known) = forbidden.iter().find(|name| known.contains(**name)) {
            return Err(format!("{shown} must not depend on {known}").into());
        }
        println!("{shown} has {} dependencies, none of {}", known.len(), forbidden.join(", "));
    }
    for (package, _, options) in whole.chain(bare).filter(|(package, ..)| !BUILT_ALONE.contains(package)) {
        run(cargo()?.args(["clippy", "--quiet", "--package", package]).args(options).args(DENY_WARNINGS))?;
    }
    // A newcomer runs them without a protoc.
    let examples = ["clippy", "--quiet", "--package", "enlist-examples", "--examples"];
    run(cargo()?.args(examples).args(DENY_WARNINGS).env("PROTOC", "/none"))
}

/// Returns the names of all dependencies of a package, built with these options, apart from development dependencies.
fn dependencies(package: &str, options: &[&str]) -> Result<BTreeSet<String>> {
    let mut tree = cargo()?;
    tree.args(["tree", "--package", package, "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    tree.args(options);
    let output = tree.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let lines = String::from_utf8(output.stdout)?;
    // The first line is the package itself.
    let names = lines.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_keeps_its_rules() {
        super::check_files().expect("no file breaks a rule");
    }
}
