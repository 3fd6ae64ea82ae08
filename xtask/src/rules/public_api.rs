//! Listings of the public API of the library crates, with one committed file per crate.
//!
//! A listing has one line for each item that a user of the crate can name, by its public path: modules, types, traits,
//! functions, constants and macros, and the variants, public fields and methods of types. [`declarations`] reads the
//! sources, and [`paths`] follows the re-exports. All features count as enabled. Items with `#[doc(hidden)]` are left
//! out. The items that a macro makes are listed where a `pub use` names them, without their methods.

mod declarations;
mod paths;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use self::{
    declarations::Declarations,
    paths::{Entry, Target, public_paths},
};
use super::{known::Finding, sources::Source};
use crate::command::Result;

/// Library crates: the name by which users import the crate, and its folder.
pub(super) const CRATES: [(&str, &str); 7] = [
    ("enlist", "core"),
    ("enlist_agent", "agent"),
    ("enlist_config", "config"),
    ("enlist_etcd", "backend-etcd"),
    ("enlist_grpc", "resolver-grpc"),
    ("enlist_memory", "backend-memory"),
    ("enlist_testkit", "testkit"),
];

/// Folder of the committed listings.
const LISTINGS: &str = "xtask/public-api";

/// Maximum number of public modules of `enlist`: users should find an item at the root.
const MAX_MODULES: usize = 4;

/// Treatment of a listing that differs from the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listings {
    /// It is a finding.
    Check,
    /// It is written again.
    Bless,
}

/// Returns the listings that differ from the sources, and the items and modules that break a rule.
pub(super) fn findings(root: &Path, sources: &[Source], listings: Listings) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (name, folder) in CRATES {
        let folder = Path::new(folder).join("src");
        let entries = public_paths(name, &Declarations::read(&folder, sources)?);
        let place = folder.display().to_string();
        let repeated = repeated(&entries);
        if !repeated.is_empty() {
            let detail = format!("items have more than one public path: {}", repeated.join("; "));
            findings.push(Finding::new("public-paths", place.clone(), repeated.len(), detail));
        }
        let at_root = |entry: &&Entry| entry.kind == "mod" && entry.path.len() == 2;
        let modules = entries.iter().filter(at_root).count();
        if name == "enlist" && modules > MAX_MODULES {
            let detail = format!("public modules, at most {MAX_MODULES}");
            findings.push(Finding::new("public-modules", place, modules, detail));
        }
        findings.extend(compare(root, &file_of(name), &listing(&entries), listings)?);
    }
    Ok(findings)
}

/// Returns the committed listings of all crates.
pub(super) fn listed(root: &Path) -> Result<String> {
    let mut listed = String::new();
    for (name, _) in CRATES {
        listed.push_str(&fs::read_to_string(root.join(file_of(name)))?);
    }
    Ok(listed)
}

/// Path of the listing of a crate.
fn file_of(name: &str) -> String {
    format!("{LISTINGS}/{}.txt", name.replace('_', "-"))
}

/// Compares a listing with its committed file, or writes the file.
fn compare(root: &Path, file: &str, listing: &str, listings: Listings) -> Result<Option<Finding>> {
    let path = root.join(file);
    if listings == Listings::Bless {
        fs::write(path, listing)?;
        return Ok(None);
    }
    let committed = if path.exists() { fs::read_to_string(path)? } else { String::new() };
    let changes = changes(&committed, listing);
    if changes.is_empty() {
        return Ok(None);
    }
    let detail = format!("lines differ; `cargo xtask rules --bless` writes them:\n{}", changes.join("\n"));
    Ok(Some(Finding::new("public-api", file.to_owned(), changes.len(), detail)))
}

/// Lines that only one of two sorted listings has, marked with `-` for the old one and `+` for the new one.
fn changes(old: &str, new: &str) -> Vec<String> {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (old.lines().collect(), new.lines().collect());
    let removed = old.difference(&new).map(|line| format!("- {line}"));
    removed.chain(new.difference(&old).map(|line| format!("+ {line}"))).collect()
}

/// Text of a listing, one line per entry.
fn listing(entries: &BTreeSet<Entry>) -> String {
    let mut text = String::new();
    for entry in entries {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{entry}");
    }
    text
}

/// Returns the public paths of each item that has more than one. Its variants, fields and methods are left out.
fn repeated(entries: &BTreeSet<Entry>) -> Vec<String> {
    let mut by_item = BTreeMap::<_, Vec<String>>::new();
    for entry in entries.iter().filter(|entry| !matches!(entry.item, Target::Member(..))) {
        by_item.entry(&entry.item).or_default().push(entry.path.join("::"));
    }
    by_item.into_values().filter(|paths| paths.len() > 1).map(|paths| paths.join(", ")).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::sources, *};

    /// Listing of a crate `x` with these files.
    fn listed(files: &[(&str, &str)]) -> Vec<String> {
        listing(&entries(files)).lines().map(str::to_owned).collect()
    }

    fn entries(files: &[(&str, &str)]) -> BTreeSet<Entry> {
        let source =
            |(path, text): &(&str, &str)| Source { path: Path::new("x/src").join(path), text: (*text).to_owned() };
        let sources: Vec<_> = files.iter().map(source).collect();
        public_paths("x", &Declarations::read(Path::new("x/src"), &sources).expect("the sources are well formed"))
    }

    #[test]
    fn committed_listings_agree_with_the_sources() {
        let root = sources::root();
        let sources = sources::read(&root, &root).expect("the repository can be read");
        let found = findings(&root, &sources, Listings::Check).expect("the sources can be parsed");
        let differing: Vec<_> =
            found.iter().filter(|finding| finding.is_of("public-api")).map(ToString::to_string).collect();
        assert!(differing.is_empty(), "{}", differing.join("\n"));
    }

    #[test]
    fn an_item_of_a_private_module_is_listed_at_its_export() {
        let found = listed(&[
            ("lib.rs", "mod a; pub use a::{A as B, c};"),
            ("a.rs", "pub struct A { pub left: u8, right: u8 } pub fn c() {} pub struct Unreachable; struct Private;"),
        ]);
        assert_eq!(found, ["struct x::B", "field x::B::left", "fn x::c"]);
    }

    #[test]
    fn a_glob_exports_the_public_items_of_a_module() {
        let found = listed(&[
            ("lib.rs", "mod a; pub use self::a::*;"),
            ("a/mod.rs", "mod deep; pub use deep::Deep; pub enum E { One, Two } pub(crate) fn inner() {}"),
            ("a/deep.rs", "pub trait Deep { const A: u8; fn run(&self); }"),
        ]);
        let expected = ["trait x::Deep", "const x::Deep::A", "fn x::Deep::run", "enum x::E", "variant x::E::One"];
        assert_eq!(found[..5], expected);
    }

    #[test]
    fn public_modules_are_listed_with_their_contents() {
        let found = listed(&[
            ("lib.rs", "pub mod a; mod hidden; pub use hidden::shown;"),
            ("a.rs", "pub mod inner { pub const C: u8 = 1; } pub type T = u8;"),
            ("hidden/mod.rs", "pub mod shown;"),
            ("hidden/shown.rs", "pub fn f() {}"),
        ]);
        let expected =
            ["mod x::a", "type x::a::T", "mod x::a::inner", "const x::a::inner::C", "mod x::shown", "fn x::shown::f"];
        assert_eq!(found, expected);
    }

    #[test]
    fn methods_are_listed_wherever_their_block_is() {
        let found = listed(&[
            ("lib.rs", "mod a; mod b; pub use a::A;"),
            ("a.rs", "pub struct A<T>(pub T); impl<T> Drop for A<T> { fn drop(&mut self) {} }"),
            ("b.rs", "use super::a; impl a::A<u8> { pub fn get(&self) {} fn own(&self) {} pub const MAX: u8 = 1; }"),
        ]);
        assert_eq!(found, ["struct x::A", "field x::A::0", "const x::A::MAX", "fn x::A::get"]);
    }

    #[test]
    fn tests_and_hidden_items_are_left_out() {
        let text = "#[cfg(test)] pub mod tests { pub fn a() {} } #[doc(hidden)] pub fn b() {} \
                    #[cfg(doctest)] pub struct C; #[cfg(feature = \"test\")] pub struct D;";
        assert_eq!(listed(&[("lib.rs", text)]), ["struct x::D"]);
    }

    #[test]
    fn exported_macros_and_items_made_by_macros_are_listed() {
        let found = listed(&[
            ("lib.rs", "mod a; pub use a::Made; #[macro_export] macro_rules! made { () => {} }"),
            ("a.rs", "make!(Made); #[macro_export] macro_rules! deep { () => {} } macro_rules! own { () => {} }"),
        ]);
        assert_eq!(found, ["item x::Made", "macro x::deep", "macro x::made"]);
    }

    #[test]
    fn an_item_of_another_crate_is_listed_as_its_export() {
        assert_eq!(listed(&[("lib.rs", "pub use std::fmt::Debug as D;")]), ["use x::D"]);
    }

    #[test]
    fn an_item_with_two_public_paths_is_found() {
        let entries = entries(&[("lib.rs", "pub mod a; pub use a::A;"), ("a.rs", "pub enum A { B }")]);
        assert_eq!(repeated(&entries), ["x::A, x::a::A"]);
    }

    #[test]
    fn changes_name_removed_and_added_lines() {
        assert_eq!(changes("fn x::a\nfn x::b\n", "fn x::b\nfn x::c\n"), ["- fn x::a", "+ fn x::c"]);
        assert!(changes("fn x::a\n", "fn x::a\n").is_empty());
    }
}
