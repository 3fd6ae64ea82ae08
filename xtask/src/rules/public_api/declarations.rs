//! Items, imports and methods of the modules of a crate, as the sources declare them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use syn::{Attribute, Fields, ImplItem, Item, TraitItem, Type, UseTree, Visibility};

use super::super::sources::Source;
use crate::command::Result;

/// Path of a module from the root of its crate.
pub(super) type ModulePath = Vec<String>;

/// Reach of a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Declared `pub`, and in the documentation.
    Public,
    /// Reachable in the crate only.
    Private,
}

/// Part of an item that users name through it: a variant, a field, a method.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) kind: &'static str,
    pub(super) name: String,
}

/// An item other than a module.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) reach: Reach,
    pub(super) members: Vec<Member>,
}

/// An imported path and its local name, which is `*` for all items of a module.
#[derive(Clone, Debug)]
pub(super) struct Import {
    pub(super) path: Vec<String>,
    pub(super) name: String,
    pub(super) reach: Reach,
}

/// Public methods and constants of a type, whose path is relative to the module of the block.
#[derive(Debug)]
pub(super) struct Methods {
    pub(super) of: Vec<String>,
    pub(super) members: Vec<Member>,
}

/// Declarations of one module.
#[derive(Debug, Default)]
pub(super) struct Module {
    pub(super) items: Vec<Declared>,
    pub(super) modules: BTreeMap<String, Reach>,
    pub(super) imports: Vec<Import>,
    pub(super) methods: Vec<Methods>,
}

/// Declarations of a crate.
#[derive(Debug, Default)]
pub(super) struct Declarations {
    pub(super) modules: BTreeMap<ModulePath, Module>,
    /// Macros with `#[macro_export]`, which are in the root.
    pub(super) macros: Vec<String>,
}

impl Declarations {
    /// Reads the crate whose `lib.rs` is in `folder`.
    ///
    /// # Errors
    ///
    /// A file that cannot be parsed, or that is missing.
    pub(super) fn read(folder: &Path, sources: &[Source]) -> Result<Self> {
        let files = sources.iter().filter_map(|source| {
            let path = source.path.strip_prefix(folder).ok()?;
            Some((path.to_path_buf(), source.text.as_str()))
        });
        let files: BTreeMap<_, _> = files.collect();
        let mut declarations = Self::default();
        let mut pending = vec![ModulePath::new()];
        while let Some(module) = pending.pop() {
            let (path, text) = file_of(&module, &files).ok_or(format!("there is no file of {}", module.join("::")))?;
            let file = syn::parse_file(text).map_err(|error| format!("{}: {error}", path.display()))?;
            declarations.add(module, file.items, &mut pending);
        }
        Ok(declarations)
    }

    /// Adds the items of a module, and its modules in files of their own to those that are `pending`.
    fn add(&mut self, path: ModulePath, items: Vec<Item>, pending: &mut Vec<ModulePath>) {
        let mut module = Module::default();
        for item in items {
            if attributes(&item).iter().any(is_for_tests) {
                continue;
            }
            match item {
                Item::Mod(inner) => {
                    let child: Vec<_> = path.iter().cloned().chain([inner.ident.to_string()]).collect();
                    module.modules.insert(inner.ident.to_string(), reach(&inner.vis, &inner.attrs));
                    match inner.content {
                        Some((_, items)) => self.add(child, items, pending),
                        None => pending.push(child),
                    }
                }
                Item::Use(import) => {
                    let reach = reach(&import.vis, &import.attrs);
                    add_imports(&import.tree, Vec::new(), reach, &mut module.imports);
                }
                Item::Impl(block) if block.trait_.is_none() => module.methods.extend(methods(&block)),
                Item::Macro(definition) => {
                    let is_exported =
                        definition.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"));
                    if is_exported && !definition.attrs.iter().any(is_hidden) {
                        self.macros.extend(definition.ident.map(|name| name.to_string()));
                    }
                }
                other => module.items.extend(declared(&other)),
            }
        }
        self.modules.insert(path, module);
    }
}

/// Returns the path and the text of a module's file.
fn file_of<'a>(module: &[String], files: &'a BTreeMap<PathBuf, &str>) -> Option<(&'a PathBuf, &'a str)> {
    let folder: PathBuf = module.iter().collect();
    let candidates = if module.is_empty() {
        ["lib.rs".into(), "main.rs".into()]
    } else {
        [folder.with_extension("rs"), folder.join("mod.rs")]
    };
    candidates.iter().find_map(|path| files.get_key_value(path)).map(|(path, text)| (path, *text))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Returns `true` for `#[cfg(test)]` and the like.
fn is_for_tests(attribute: &Attribute) -> bool {
    let Ok(list) = attribute.meta.require_list() else { return false };
    let condition = list.tokens.to_string();
    let has = |word: &str| condition.split(|c: char| !c.is_alphanumeric() && c != '"').any(|part| part == word);
    attribute.path().is_ident("cfg") && (has("test") || has("doctest")) && !has("not")
}

fn is_hidden(attribute: &Attribute) -> bool {
    let Ok(list) = attribute.meta.require_list() else { return false };
    attribute.path().is_ident("doc") && list.tokens.to_string() == "hidden"
}

fn reach(visibility: &Visibility, attributes: &[Attribute]) -> Reach {
    match visibility {
        Visibility::Public(_) if !attributes.iter().any(is_hidden) => Reach::Public,
        _ => Reach::Private,
    }
}

/// Adds each path of a tree of imports.
fn add_imports(tree: &UseTree, mut path: Vec<String>, reach: Reach, imports: &mut Vec<Import>) {
    let mut add = |mut path: Vec<String>, name: Option<String>| {
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
        imports.push(Import { path, name, reach });
    };
    match tree {
        UseTree::Path(inner) => {
            path.push(inner.ident.to_string());
            add_imports(&inner.tree, path, reach, imports);
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                add_imports(tree, path.clone(), reach, imports);
            }
        }
        UseTree::Name(name) => {
            path.push(name.ident.to_string());
            add(path, None);
        }
        UseTree::Rename(rename) => {
            path.push(rename.ident.to_string());
            add(path, Some(rename.rename.to_string()));
        }
        UseTree::Glob(_) => add(path, Some("*".to_owned())),
    }
}

/// Returns an item with what users name through it.
fn declared(item: &Item) -> Option<Declared> {
    let (kind, name, visibility, members) = match item {
        Item::Const(item) => ("const", &item.ident, &item.vis, Vec::new()),
        Item::Enum(item) => {
            let variants =
                item.variants.iter().map(|variant| Member { kind: "variant", name: variant.ident.to_string() });
            ("enum", &item.ident, &item.vis, variants.collect())
        }
        Item::Fn(item) => ("fn", &item.sig.ident, &item.vis, Vec::new()),
        Item::Static(item) => ("static", &item.ident, &item.vis, Vec::new()),
        Item::Struct(item) => ("struct", &item.ident, &item.vis, fields(&item.fields)),
        Item::Trait(item) => ("trait", &item.ident, &item.vis, item.items.iter().filter_map(required).collect()),
        Item::Type(item) => ("type", &item.ident, &item.vis, Vec::new()),
        _ => return None,
    };
    Some(Declared { kind, name: name.to_string(), reach: reach(visibility, attributes(item)), members })
}

/// Public fields of a type; those without a name have their number.
fn fields(fields: &Fields) -> Vec<Member> {
    let is_public = |(_, field): &(usize, &syn::Field)| reach(&field.vis, &field.attrs) == Reach::Public;
    let name = |(at, field): (usize, &syn::Field)| field.ident.as_ref().map_or(at.to_string(), ToString::to_string);
    let names = fields.iter().enumerate().filter(is_public).map(name);
    names.map(|name| Member { kind: "field", name }).collect()
}

/// Method, type or constant of a trait.
fn required(item: &TraitItem) -> Option<Member> {
    let (kind, name, attributes) = match item {
        TraitItem::Const(item) => ("const", &item.ident, &item.attrs),
        TraitItem::Fn(item) => ("fn", &item.sig.ident, &item.attrs),
        TraitItem::Type(item) => ("type", &item.ident, &item.attrs),
        _ => return None,
    };
    (!attributes.iter().any(is_hidden)).then(|| Member { kind, name: name.to_string() })
}

/// Public methods and constants of a block without a trait.
fn methods(block: &syn::ItemImpl) -> Option<Methods> {
    let Type::Path(of) = &*block.self_ty else { return None };
    let of = of.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    let member = |item: &ImplItem| {
        let (kind, name, visibility, attributes) = match item {
            ImplItem::Const(item) => ("const", &item.ident, &item.vis, &item.attrs),
            ImplItem::Fn(item) => ("fn", &item.sig.ident, &item.vis, &item.attrs),
            _ => return None,
        };
        let is_public = reach(visibility, attributes) == Reach::Public && !attributes.iter().any(is_for_tests);
        is_public.then(|| Member { kind, name: name.to_string() })
    };
    Some(Methods { of, members: block.items.iter().filter_map(member).collect() })
}
