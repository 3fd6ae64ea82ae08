//! Cycles of imports between the files of a crate.
//!
//! An import is a `use` declaration or a path from `crate` outside of tests, from a file to the file that defines the
//! item. A re-export is followed to the file that defines the item, and is no import of its own. An item that is not
//! found, because a macro defines it, counts as one of the module that the path names.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
};

use super::{
    sources::Source,
    tokens::{tokens, without_tests},
};

/// Keywords before the name of an item.
const ITEMS: [&str; 9] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "macro_rules"];

/// Maximum number of re-exports between an import and its item.
const MAX_STEPS: usize = 16;

/// Path of a module from the root of its crate.
type Module = Vec<String>;

/// An imported path, and its local name.
#[derive(Clone, Debug, PartialEq)]
struct Import {
    path: Vec<String>,
    name: String,
    is_exported: bool,
}

/// Items and imports of a file.
#[derive(Debug, Default)]
struct File {
    items: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths in the code that begin with `crate`.
    code_paths: BTreeSet<Vec<String>>,
    test_modules: BTreeSet<String>,
    /// Pairs of words with `::` between them: uses of imported modules.
    paths: BTreeSet<(String, String)>,
}

/// Target of an import.
#[derive(Debug, PartialEq)]
enum Target {
    Module(Module),
    ItemOf(Module),
}

/// Files of one crate by their modules.
#[derive(Debug)]
struct Crate {
    files: BTreeMap<Module, File>,
}

/// Returns the cycles among the files of the crate in `folder`: for each import that is part of one, the shortest.
pub(super) fn cycles(folder: &Path, sources: &[Source]) -> Vec<Vec<String>> {
    let (mut files, mut paths) = (BTreeMap::new(), BTreeMap::new());
    let has_library = sources.iter().any(|source| source.path == folder.join("lib.rs"));
    let root = if has_library { "lib" } else { "main" };
    for source in sources {
        let Ok(path) = source.path.strip_prefix(folder) else { continue };
        let module = module_of(path, root);
        paths.insert(module.clone(), path.display().to_string());
        files.insert(module, File::parse(&source.text));
    }
    let edges = Crate { files }.edges();
    let shortest = shortest_cycles(&edges);
    let named = |cycle: Vec<Module>| cycle.iter().filter_map(|module| paths.get(module).cloned()).collect();
    shortest.into_iter().map(named).collect()
}

/// Returns the groups of files that these cycles connect.
pub(super) fn groups(cycles: &[Vec<String>]) -> Vec<BTreeSet<&str>> {
    let mut groups: Vec<BTreeSet<&str>> = Vec::new();
    for cycle in cycles {
        let mut group: BTreeSet<_> = cycle.iter().map(String::as_str).collect();
        groups.retain(|other| {
            let is_apart = other.is_disjoint(&group);
            if !is_apart {
                group.extend(other);
            }
            is_apart
        });
        groups.push(group);
    }
    groups
}

/// Returns the module of a file below `src`.
fn module_of(path: &Path, root: &str) -> Module {
    let path = path.with_extension("");
    let mut module: Module = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module == [root] || module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

impl File {
    fn parse(text: &str) -> Self {
        let all = tokens(text);
        let (tokens, test_modules) = without_tests(&all);
        let mut file = Self { test_modules: test_modules.into_iter().map(str::to_owned).collect(), ..Self::default() };
        let (mut depth, mut declared) = (0_usize, 0);
        for (at, token) in tokens.iter().enumerate() {
            match (*token, tokens.get(at + 1..).unwrap_or_default()) {
                ("{", _) => depth += 1,
                ("crate", ["::", ..]) if at >= declared && is_code_path(&tokens[..at]) => {
                    file.code_paths.insert(code_path(&tokens[at..]));
                }
                ("}", _) => depth = depth.saturating_sub(1),
                // Not the `use<…>` of a type.
                ("use", rest) if rest.first().is_some_and(|next| *next != "<") => {
                    let end = rest.iter().position(|token| *token == ";").unwrap_or(rest.len());
                    declared = at + end;
                    let is_exported = depth == 0 && is_exported(&tokens[..at]);
                    tree(&rest[..end], &[], &mut |path, name| {
                        file.imports.push(Import { path, name, is_exported });
                    });
                }
                ("macro_rules", ["!", name, ..]) if depth == 0 => _ = file.items.insert((*name).to_owned()),
                ("mod", [name, "{", ..]) if depth == 0 => _ = file.items.insert((*name).to_owned()),
                (keyword, [name, ..]) if depth == 0 && ITEMS.contains(&keyword) => {
                    file.items.insert((*name).to_owned());
                }
                (word, ["::", next, ..]) => _ = file.paths.insert((word.to_owned(), (*next).to_owned())),
                _ => {}
            }
        }
        file
    }
}

/// Returns `true` if the tokens before a `use` make it visible to other modules.
fn is_exported(before: &[&str]) -> bool {
    let open = || before.iter().rposition(|token| *token == "(");
    match before.last() {
        Some(&"pub") => true,
        Some(&")") => open().is_some_and(|open| before[..open].ends_with(&["pub"])),
        _ => false,
    }
}

/// Returns `true` if a `crate` after these tokens begins a path: it is neither that of a visibility nor of a macro.
fn is_code_path(before: &[&str]) -> bool {
    before.last().is_none_or(|last| !["in", "$"].contains(last))
}

/// Returns the path at the beginning of these tokens.
fn code_path(tokens: &[&str]) -> Vec<String> {
    let pairs = tokens.chunks(2).scan(true, |goes_on, pair| {
        let segment = goes_on.then(|| pair[0].to_owned());
        *goes_on = pair.get(1) == Some(&"::");
        segment
    });
    pairs.filter(|segment| segment.starts_with(|first: char| first.is_alphabetic() || first == '_')).collect()
}

/// Reports each path of a tree of imports and its name.
fn tree(tokens: &[&str], parent: &[String], report: &mut impl FnMut(Vec<String>, String)) {
    let mut path = parent.to_vec();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match *token {
            "::" => {}
            "{" => {
                for branch in branches(&tokens[at + 1..tokens.len().saturating_sub(1)]) {
                    tree(branch, &path, report);
                }
                return;
            }
            "as" => break,
            word => path.push(word.to_owned()),
        }
        at += 1;
    }
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = tokens.get(at + 1).filter(|_| tokens.get(at) == Some(&"as")).map(|name| (*name).to_owned());
    if let Some(name) = name.or_else(|| path.last().cloned()) {
        report(path, name);
    }
}

/// Splits the inside of braces at its commas.
fn branches<'a, 'b>(tokens: &'b [&'a str]) -> Vec<&'b [&'a str]> {
    let mut depth = 0_usize;
    let parts = tokens.split(|token| {
        match *token {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        *token == "," && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}

impl Crate {
    /// Returns the modules from which each module imports.
    fn edges(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut edges = BTreeMap::<_, BTreeSet<_>>::new();
        for (module, file) in &self.files {
            if self.is_test(module) {
                continue;
            }
            let to = edges.entry(module.clone()).or_default();
            for import in file.imports.iter().filter(|import| !import.is_exported) {
                match self.resolve(module, &import.path, 0) {
                    Some(Target::ItemOf(target)) => _ = to.insert(target),
                    Some(Target::Module(target)) => to.extend(self.used_of(file, &import.name, target)),
                    None => {}
                }
            }
            to.extend(file.code_paths.iter().filter_map(|path| self.resolve(module, path, 0)).map(Target::into_module));
            to.remove(module);
        }
        edges
    }

    /// Returns `true` if the module, or one around it, is for tests only.
    fn is_test(&self, module: &[String]) -> bool {
        (0..module.len()).any(|depth| {
            self.files.get(&module[..depth]).is_some_and(|file| file.test_modules.contains(&module[depth]))
        })
    }

    /// Returns the files that define the items that `file` uses of the module imported as `name`.
    fn used_of(&self, file: &File, name: &str, module: Module) -> BTreeSet<Module> {
        let used = file.paths.iter().filter(|(first, _)| first == name);
        let found: BTreeSet<_> =
            used.filter_map(|(_, item)| self.step(module.clone(), item, 0)).map(Target::into_module).collect();
        if found.is_empty() { BTreeSet::from([module]) } else { found }
    }

    /// Resolves `path` within `module`; `None` for an item of another crate.
    fn resolve(&self, module: &Module, path: &[String], steps: usize) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let mut at = module.clone();
        match first.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => _ = at.pop()?,
            child => {
                at.push(child.to_owned());
                if !self.files.contains_key(&at) {
                    return None;
                }
            }
        }
        while let Some((_, after)) = rest.split_first().filter(|(first, _)| *first == "super") {
            at.pop()?;
            rest = after;
        }
        for segment in rest {
            match self.step(at, segment, steps)? {
                Target::Module(next) => at = next,
                item @ Target::ItemOf(_) => return Some(item),
            }
        }
        Some(Target::Module(at))
    }

    /// Resolves `name` in `module`: a module in it, an item, or an import.
    fn step(&self, module: Module, name: &str, steps: usize) -> Option<Target> {
        let mut child = module.clone();
        child.push(name.to_owned());
        if self.files.contains_key(&child) {
            return Some(Target::Module(child));
        }
        let Some(file) = self.files.get(&module) else { return Some(Target::ItemOf(module)) };
        if file.items.contains(name) || steps == MAX_STEPS {
            return Some(Target::ItemOf(module));
        }
        if let Some(import) = file.imports.iter().find(|import| import.name == name) {
            return self.resolve(&module, &import.path, steps + 1);
        }
        let globs = file.imports.iter().filter(|import| import.name == "*" && import.is_exported);
        let defining =
            globs.filter_map(|import| self.resolve(&module, &import.path[..import.path.len() - 1], steps + 1));
        let mut defining = defining.map(Target::into_module);
        let has = |module: &Module| self.files.get(module).is_some_and(|file| file.items.contains(name));
        Some(Target::ItemOf(defining.find(has).unwrap_or(module)))
    }
}

impl Target {
    fn into_module(self) -> Module {
        match self {
            Self::Module(module) | Self::ItemOf(module) => module,
        }
    }
}

/// Returns the shortest cycle through each edge that is part of one, each once, beginning with its first node.
fn shortest_cycles<N: Clone + Ord>(edges: &BTreeMap<N, BTreeSet<N>>) -> BTreeSet<Vec<N>> {
    let all = edges.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to)));
    let cycle = |(from, to)| {
        let mut path = shortest_path(edges, to, from)?;
        let first = path.iter().enumerate().min_by_key(|(_, node)| *node).map_or(0, |(at, _)| at);
        path.rotate_left(first);
        Some(path)
    };
    all.filter_map(cycle).collect()
}

fn shortest_path<N: Clone + Ord>(edges: &BTreeMap<N, BTreeSet<N>>, from: &N, to: &N) -> Option<Vec<N>> {
    let (mut before, mut queue) = (BTreeMap::from([(from, None)]), VecDeque::from([from]));
    while let Some(node) = queue.pop_front() {
        if node == to {
            let mut path: Vec<_> = std::iter::successors(Some(node), |node| *before.get(node)?).cloned().collect();
            path.reverse();
            return Some(path);
        }
        for next in edges.get(node).into_iter().flatten() {
            if !before.contains_key(next) {
                before.insert(next, Some(node));
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cycles among these files of a crate.
    fn cycles_of(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source { path: Path::new("x/src").join(path), text: (*text).to_owned() })
            .collect();
        cycles(Path::new("x/src"), &sources).into_iter().map(|cycle| cycle.join(" ")).collect()
    }

    #[test]
    fn files_that_import_each_other_are_a_cycle() {
        let found = cycles_of(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::{B, Other as O}; pub(crate) struct A;"),
            ("b.rs", "use super::{c::C}; pub struct B; pub struct Other;"),
            ("c.rs", "use std::fmt; use crate::a::A; struct C; fn c() { use crate::b::B; }"),
        ]);
        assert_eq!(found, ["a.rs b.rs c.rs", "b.rs c.rs"]);
    }

    #[test]
    fn cycles_that_share_a_file_are_one_group() {
        let cycles: Vec<Vec<_>> =
            ["a b", "c d", "e f", "d g b"].iter().map(|cycle| cycle.split(' ').map(str::to_owned).collect()).collect();
        let groups: Vec<_> = groups(&cycles).into_iter().map(Vec::from_iter).collect();
        assert_eq!(groups, [vec!["e", "f"], vec!["a", "b", "c", "d", "g"]]);
    }

    #[test]
    fn a_re_export_is_followed_and_is_no_import() {
        let found = cycles_of(&[
            ("lib.rs", "mod a; mod b; pub use self::{a::A, b::*};"),
            ("a/mod.rs", "mod deep; pub use self::deep::Deep; pub struct A;"),
            ("a/deep.rs", "use crate::B; pub struct Deep;"),
            ("b.rs", "use crate::a::Deep; pub struct B;"),
        ]);
        assert_eq!(found, ["a/deep.rs b.rs"]);
    }

    #[test]
    fn items_of_an_imported_module_lead_to_their_files() {
        let files = |through: &str| {
            let b = format!("use super::a; fn b() {{ a::{through}(); }}");
            cycles_of(&[
                ("main.rs", "mod a; mod b; use b::b; fn main() { b() }"),
                ("a.rs", "mod inner; pub(crate) use self::inner::hidden; use crate::b; fn own() {}"),
                ("a/inner.rs", "pub(crate) fn hidden() {}"),
                ("b.rs", &b),
            ])
        };
        assert_eq!(files("own"), ["a.rs b.rs"]);
        assert!(files("hidden").is_empty());
    }

    #[test]
    fn paths_in_code_are_imports() {
        let found = cycles_of(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "pub struct A; fn a() -> Option<crate::b::B> { crate::b::B::new::<crate::c::C>() }"),
            ("b.rs", "use crate::a::A; pub struct B; pub(in crate::a) fn b() {}"),
            ("c.rs", "pub struct C; macro_rules! c { () => { $crate::a::A } }"),
        ]);
        assert_eq!(found, ["a.rs b.rs"]);
    }

    #[test]
    fn tests_and_other_crates_make_no_cycle() {
        let found = cycles_of(&[
            ("lib.rs", "mod a; mod b; #[cfg(test)] mod support;"),
            ("a.rs", "use b::B; use crate::b::B; pub struct A; #[cfg(test)] mod tests { use super::*; }"),
            ("b.rs", "pub struct B; #[cfg(test)] use crate::a::A; #[cfg(test)] mod tests { use crate::a::A; }"),
            ("support.rs", "use crate::a::A;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
