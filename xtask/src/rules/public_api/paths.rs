//! Public paths of the items of a crate: its public modules, and its re-exports followed to the items.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::declarations::{Declarations, Declared, Import, Member, ModulePath, Reach};

/// Maximum number of imports between a path and its item.
const MAX_STEPS: usize = 16;

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Public path, with the name of the crate.
    pub(super) path: Vec<String>,
    pub(super) kind: &'static str,
    /// The item itself, whatever its public path.
    pub(super) item: Target,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.path.join("::"))
    }
}

/// Target of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A module of the crate.
    Module(ModulePath),
    /// An item, by its module, kind and name.
    Item(ModulePath, &'static str, String),
    /// An item that is not in the source of its module, because a macro makes it.
    Made(ModulePath, String),
    /// A variant, a field or a method of an item.
    Member(Box<Target>, Member),
    /// A path in another crate.
    Elsewhere(Vec<String>),
}

/// Returns the public items of the crate named `name`.
pub(super) fn public_paths(name: &str, declarations: &Declarations) -> BTreeSet<Entry> {
    let mut walk = Walk { declarations, methods: methods(declarations), entries: BTreeSet::new() };
    let root = vec![name.to_owned()];
    for exported in &declarations.macros {
        walk.add(&root, exported, "macro", Target::Item(ModulePath::new(), "macro", exported.clone()));
    }
    walk.contents(&ModulePath::new(), &root, 0);
    walk.entries
}

/// Returns the methods of each type, from all blocks of the crate.
fn methods(declarations: &Declarations) -> BTreeMap<Target, Vec<&Member>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for (path, module) in &declarations.modules {
        for block in &module.methods {
            for target in declarations.resolve(path, &block.of, 0) {
                all.entry(target).or_default().extend(&block.members);
            }
        }
    }
    all
}

/// Collects entries from the root downwards.
struct Walk<'a> {
    declarations: &'a Declarations,
    methods: BTreeMap<Target, Vec<&'a Member>>,
    entries: BTreeSet<Entry>,
}

impl Walk<'_> {
    /// Adds the public contents of `module`, which users reach as `public`.
    fn contents(&mut self, module: &ModulePath, public: &[String], steps: usize) {
        let Some(declared) = self.declarations.modules.get(module).filter(|_| steps < MAX_STEPS) else { return };
        for (name, reach) in &declared.modules {
            if *reach == Reach::Public {
                self.export(public, name, Target::Module(child(module, name)), steps);
            }
        }
        for item in declared.items.iter().filter(|item| item.reach == Reach::Public) {
            self.export(public, &item.name, target(module, item), steps);
        }
        for import in declared.imports.iter().filter(|import| import.reach == Reach::Public) {
            for target in self.declarations.resolve(module, &import.path, 0) {
                match target {
                    Target::Module(module) if import.name == "*" => self.contents(&module, public, steps + 1),
                    target if self.declarations.may_be_exported(&target) => {
                        self.export(public, &import.name, target, steps);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Adds an item that users reach as `name` in `public`, with its contents.
    fn export(&mut self, public: &[String], name: &str, target: Target, steps: usize) {
        let inside = child(public, name);
        match &target {
            Target::Module(module) => self.contents(module, &inside, steps + 1),
            Target::Item(module, kind, original) => {
                let items = self.declarations.modules.get(module).into_iter().flat_map(|module| &module.items);
                let item = items.filter(|item| item.kind == *kind && item.name == *original);
                let own: Vec<_> = item.flat_map(|item| &item.members).collect();
                let methods = self.methods.get(&target).cloned().unwrap_or_default();
                for member in own.into_iter().chain(methods) {
                    let of = Box::new(target.clone());
                    self.add(&inside, &member.name, member.kind, Target::Member(of, member.clone()));
                }
            }
            Target::Made(..) | Target::Member(..) | Target::Elsewhere(_) => {}
        }
        self.add(public, name, target.kind(), target);
    }

    fn add(&mut self, public: &[String], name: &str, kind: &'static str, item: Target) {
        self.entries.insert(Entry { path: child(public, name), kind, item });
    }
}

impl Target {
    fn kind(&self) -> &'static str {
        match self {
            Self::Module(_) => "mod",
            Self::Item(_, kind, _) => kind,
            Self::Made(..) => "item",
            Self::Member(_, member) => member.kind,
            Self::Elsewhere(_) => "use",
        }
    }
}

impl Declarations {
    /// Resolves `path` within `module`. A name can be a module, a type and a function at once.
    fn resolve(&self, module: &ModulePath, path: &[String], steps: usize) -> BTreeSet<Target> {
        let mut at = module.clone();
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => _ = at.pop(),
                _ => break,
            }
            rest = after;
        }
        let Some((first, after)) = rest.split_first() else { return BTreeSet::from([Target::Module(at)]) };
        let mut found = self.lookup(&at, first, steps);
        if found.is_empty() {
            let is_local = rest.len() < path.len();
            let target = if is_local { Target::Made(at, first.clone()) } else { Target::Elsewhere(path.to_vec()) };
            return BTreeSet::from([target]);
        }
        for name in after {
            let modules = found.into_iter().filter_map(|target| match target {
                Target::Module(module) => Some(module),
                _ => None,
            });
            found = modules.flat_map(|module| self.lookup_or_made(&module, name, steps)).collect();
        }
        found
    }

    fn lookup_or_made(&self, module: &ModulePath, name: &str, steps: usize) -> BTreeSet<Target> {
        let found = self.lookup(module, name, steps);
        if found.is_empty() && name != "*" {
            BTreeSet::from([Target::Made(module.clone(), name.to_owned())])
        } else {
            found
        }
    }

    /// Returns the targets of `name` in `module`: its modules and items, what it imports, and items of globs.
    fn lookup(&self, module: &ModulePath, name: &str, steps: usize) -> BTreeSet<Target> {
        let Some(declared) = self.modules.get(module).filter(|_| steps < MAX_STEPS) else { return BTreeSet::new() };
        let mut found: BTreeSet<_> =
            declared.items.iter().filter(|item| item.name == name).map(|item| target(module, item)).collect();
        if declared.modules.contains_key(name) {
            found.insert(Target::Module(child(module, name)));
        }
        let named = declared.imports.iter().filter(|import| import.name == name);
        found.extend(named.flat_map(|import| self.imported(module, import, steps)));
        if found.is_empty() {
            let globs = declared.imports.iter().filter(|import| import.name == "*");
            let modules = globs.flat_map(|import| self.resolve(module, &import.path, steps + 1));
            found.extend(modules.flat_map(|target| match target {
                Target::Module(inner) if inner != *module => self.lookup(&inner, name, steps + 1),
                _ => BTreeSet::new(),
            }));
        }
        found
    }

    /// Returns the targets of an import. One that names only itself, such as `use a;` of a crate `a`, is elsewhere.
    fn imported(&self, module: &ModulePath, import: &Import, steps: usize) -> BTreeSet<Target> {
        if import.path == [import.name.clone()] {
            return BTreeSet::from([Target::Elsewhere(import.path.clone())]);
        }
        self.resolve(module, &import.path, steps + 1)
    }

    /// Returns `true` if a `pub use` of the target is an export: items that are private have the name only by chance.
    fn may_be_exported(&self, target: &Target) -> bool {
        match target {
            Target::Module(path) => path.split_last().is_some_and(|(name, parent)| {
                self.modules.get(parent).and_then(|module| module.modules.get(name)) == Some(&Reach::Public)
            }),
            Target::Item(path, kind, name) => self.modules.get(path).is_some_and(|module| {
                let mut items = module.items.iter().filter(|item| item.kind == *kind && item.name == *name);
                items.any(|item| item.reach == Reach::Public)
            }),
            Target::Made(..) | Target::Member(..) | Target::Elsewhere(_) => true,
        }
    }
}

fn target(module: &ModulePath, item: &Declared) -> Target {
    Target::Item(module.clone(), item.kind, item.name.clone())
}

fn child(path: &[String], name: &str) -> Vec<String> {
    path.iter().cloned().chain([name.to_owned()]).collect()
}
