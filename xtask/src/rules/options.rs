//! The reference of options: `docs/options.md` has a row for each option of a public type, and `docs/cli.md` one for
//! each option of the command line.
//!
//! An option is a public method that takes `self` and returns it changed, or a public field of a type whose other
//! members are options. The options of the command line are those of `cli/tests/snapshots/help.txt`, which a test of
//! the command line compares with its help, and the fields of `AgentOptions`, which are there with a feature only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{FnArg, ImplItem, Item, ReceiverKind, ReturnType, Type, Visibility};

use super::{
    known::Finding,
    public_api::{CRATES, listed},
    sources::Source,
    tokens::is_word,
};
use crate::command::Result;

const OPTIONS: &str = "docs/options.md";
const COMMANDS: &str = "docs/cli.md";
const HELP: &str = "cli/tests/snapshots/help.txt";
const AGENT: &str = "cli/src/args/commands.rs";

/// Public types with methods that return a changed `self` and that are values, not options.
const VALUES: [&str; 8] = ["Callee", "Endpoint", "Entry", "Epoch", "Instance", "LockName", "RawEntry", "Revision"];

/// Types whose public fields are options as well.
const WITH_FIELDS: [&str; 7] = [
    "DirectoryOptions",
    "Invocation",
    "LockOptions",
    "PoolOptions",
    "RegisterOptions",
    "SemaphoreOptions",
    "ServerOptions",
];

/// Returns the options without a row.
pub(super) fn findings(root: &Path, sources: &[Source]) -> Result<Vec<Finding>> {
    let read = |path: &str| fs::read_to_string(root.join(path));
    let mut methods = BTreeSet::new();
    for (_, folder) in CRATES {
        let folder = Path::new(folder).join("src");
        for source in sources.iter().filter(|source| source.path.starts_with(&folder)) {
            methods.extend(changing_methods(&source.text)?);
        }
    }
    let missing = without_row(&options(&listed(root)?, &methods), &read(OPTIONS)?);
    let (help, agent) = (read(HELP)?, read(AGENT)?);
    let missing_flags = flags_without_row(&flags(&help, &agent), &read(COMMANDS)?);
    let report = |place: &str, missing: Vec<String>| {
        let detail = format!("options without a row: {}", missing.join(", "));
        (!missing.is_empty()).then(|| Finding::new("options", place.to_owned(), missing.len(), detail))
    };
    Ok(report(OPTIONS, missing).into_iter().chain(report(COMMANDS, missing_flags)).collect())
}

/// Public methods that take `self` and return `Self` or `Result<Self, …>`, each with the name of its type.
fn changing_methods(text: &str) -> Result<BTreeSet<(String, String)>> {
    let mut found = BTreeSet::new();
    for item in syn::parse_file(text)?.items {
        let Item::Impl(block) = item else { continue };
        let Type::Path(of) = &*block.self_ty else { continue };
        let Some(name) = of.path.segments.last().filter(|_| block.trait_.is_none()) else { continue };
        for item in &block.items {
            let ImplItem::Fn(method) = item else { continue };
            let is_public = matches!(method.vis, Visibility::Public(_));
            let takes_self = match method.sig.inputs.first() {
                Some(FnArg::Receiver(receiver)) => matches!(receiver.kind, ReceiverKind::Value),
                _ => false,
            };
            if is_public && takes_self && returns_self(&method.sig.output) {
                found.insert((name.ident.to_string(), method.sig.ident.to_string()));
            }
        }
    }
    Ok(found)
}

fn returns_self(output: &ReturnType) -> bool {
    let ReturnType::Type(_, output) = output else { return false };
    let Type::Path(output) = &**output else { return false };
    let Some(last) = output.path.segments.last() else { return false };
    match &last.arguments {
        syn::PathArguments::AngleBracketed(arguments) if last.ident == "Result" => {
            let first = arguments.args.first();
            matches!(first, Some(syn::GenericArgument::Type(Type::Path(it))) if it.path.is_ident("Self"))
        }
        _ => last.ident == "Self",
    }
}

/// Options of the public types in these listings.
fn options<'a>(listed: &'a str, methods: &BTreeSet<(String, String)>) -> BTreeSet<(&'a str, &'a str)> {
    let mut found = BTreeSet::new();
    for line in listed.lines().filter(|line| !line.contains("::backend::")) {
        let Some((kind, path)) = line.split_once(' ') else { continue };
        let mut parts = path.rsplit("::");
        let (Some(name), Some(of)) = (parts.next(), parts.next()) else { continue };
        let is_option = match kind {
            "fn" => methods.contains(&(of.to_owned(), name.to_owned())) && !VALUES.contains(&of),
            "field" => WITH_FIELDS.contains(&of),
            _ => false,
        };
        if is_option {
            found.insert((of, name));
        }
    }
    found
}

/// Options that no row of the section of their type names.
fn without_row(options: &BTreeSet<(&str, &str)>, page: &str) -> Vec<String> {
    let mut rows = BTreeMap::<_, BTreeSet<_>>::new();
    let mut section = "";
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.trim_matches('`');
        }
        if let Some(cells) = line.strip_prefix('|') {
            rows.entry(section).or_default().extend(quoted(cells.split('|').next().unwrap_or_default()));
        }
    }
    let is_missing = |(of, name): &&(&str, &str)| !rows.get(of).is_some_and(|names| names.contains(name));
    options.iter().filter(is_missing).map(|(of, name)| format!("{of}::{name}")).collect()
}

/// Names that a text quotes as code.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split('`').skip(1).step_by(2);
    code.map(|code| code.split(|c: char| !is_word(c) && c != '-').next().unwrap_or_default())
}

/// Options of each command; those of all commands are the options of the empty one.
fn flags<'a>(help: &'a str, agent: &'a str) -> BTreeSet<(&'a str, String)> {
    let mut found = BTreeSet::new();
    let mut command = "";
    for line in help.lines() {
        if let Some(name) = line.strip_prefix("=== enlist ") {
            command = name.trim_end_matches(" ===");
        }
        // Descriptions are indented further, and options with a short form less: `-h` and `-V`.
        let flag = line.strip_prefix("      --").and_then(|rest| rest.split(' ').next());
        found.extend(flag.map(|flag| (command, format!("--{flag}"))));
    }
    let fields = agent.split_once("struct AgentOptions {").map_or("", |(_, rest)| rest);
    let fields = fields.split_once("\n}").map_or("", |(fields, _)| fields);
    let names = fields.lines().filter_map(|line| line.trim().strip_prefix("pub(crate) ")?.split_once(':'));
    found.extend(names.map(|(name, _)| ("agent", format!("--{}", name.replace('_', "-")))));
    found
}

/// Options of commands that no row has: one with the option in its first cell, and the command in the second.
fn flags_without_row(flags: &BTreeSet<(&str, String)>, page: &str) -> Vec<String> {
    let mut rows = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix('|')) {
        let mut cells = line.split('|');
        let (first, second) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let commands: Vec<_> = second.split('`').skip(1).step_by(2).collect();
        for flag in quoted(first).filter(|flag| flag.starts_with("--")) {
            // Global options have their variable in the second cell.
            rows.extend(second.contains("`ENLIST_").then_some(("", flag)));
            rows.extend(commands.iter().map(|command| (*command, flag)));
        }
    }
    let is_missing = |(command, flag): &&(&str, String)| !rows.contains(&(*command, flag.as_str()));
    flags.iter().filter(is_missing).map(|(command, flag)| format!("{command} {flag}").trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_methods_that_return_a_changed_self() {
        let text = "impl A { pub fn a(mut self) -> Self {} pub fn b(self) -> Result<Self, E> {} \
                    pub fn c(&self) -> Self {} fn d(self) -> Self {} pub fn e() -> Self {} pub fn f(self) -> B {} } \
                    impl T for A { fn g(self) {} }";
        let names: Vec<_> =
            changing_methods(text).expect("it is well formed").into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn only_public_options_count() {
        let methods = [("A", "a"), ("A", "b"), ("Instance", "c"), ("B", "d")];
        let methods = methods.map(|(of, name)| (of.to_owned(), name.to_owned())).into();
        let listed = "fn x::A::a\nfn x::Instance::c\nfn x::backend::B::d\nfield x::Invocation::e\nfield x::A::f\n";
        assert_eq!(options(listed, &methods), [("A", "a"), ("Invocation", "e")].into());
    }

    #[test]
    fn a_row_of_the_section_of_its_type_documents_an_option() {
        let page = "## `A`\n\n| `a`, `b` | `c` |\n\n## `B`\n\n| `d` (field `e`) | x |\n";
        let options = [("A", "a"), ("A", "b"), ("A", "c"), ("B", "d"), ("B", "e"), ("B", "a")].into();
        assert_eq!(without_row(&options, page), ["A::c", "B::a"]);
    }

    #[test]
    fn options_of_commands_are_read_from_the_help() {
        let help = "      --all <X>\n          --no\n  -h, --help\n=== enlist config get ===\n      --one  See\n\
                    \x20            --two\n  -V, --version\n      --version <V>\n";
        let agent =
            "struct AgentOptions {\n    /// A.\n    pub(crate) http_host: X,\n}\nstruct B {\n    pub(crate) c: X,\n}";
        let expected = [("", "--all"), ("agent", "--http-host"), ("config get", "--one"), ("config get", "--version")];
        assert_eq!(flags(help, agent), expected.map(|(command, flag)| (command, flag.to_owned())).into());
    }

    #[test]
    fn a_row_documents_an_option_of_the_commands_that_it_names() {
        let page = "| `--a TIME`, `--b` | `lock`, `config get` | x |\n| `--c` | `ENLIST_C` |\n";
        let flags = [("lock", "--a"), ("once", "--a"), ("config get", "--b"), ("", "--a"), ("", "--c")];
        let flags = flags.map(|(command, flag)| (command, flag.to_owned())).into();
        assert_eq!(flags_without_row(&flags, page), ["--a", "once --a"]);
    }

    #[test]
    fn lists_are_sorted() {
        assert!(VALUES.is_sorted() && WITH_FIELDS.is_sorted());
    }
}
