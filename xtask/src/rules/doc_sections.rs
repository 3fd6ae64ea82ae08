//! Sections of documentation comments: a public async function describes the effect of dropping its future, and a
//! function with a `Result` its errors.
//!
//! A section of a trait or a type counts for all of its functions. A function is async if it is written so, or returns
//! `impl Future`.

use std::{collections::BTreeSet, path::Path};

use syn::{
    Attribute, Expr, GenericArgument, ImplItem, Item, Lit, Meta, PathArguments, ReturnType, Signature, TraitItem, Type,
    TypeParamBound, Visibility,
};

use super::{
    known::Finding,
    public_api::{CRATES, listed},
    sources::Source,
};
use crate::command::Result;

const CANCEL_SAFETY: &str = "# Cancel safety";
const ERRORS: &str = "# Errors";

/// Returns the files with public functions that lack a section.
pub(super) fn findings(root: &Path, sources: &[Source]) -> Result<Vec<Finding>> {
    let listed = listed(root)?;
    let public: BTreeSet<_> =
        listed.lines().filter_map(|line| line.split_once(' ').map(|(_, path)| last_two(path))).collect();
    let mut findings = Vec::new();
    for (_, folder) in CRATES {
        let folder = Path::new(folder).join("src");
        for source in sources.iter().filter(|source| source.path.starts_with(&folder)) {
            let missing = missing(&source.text, &public)?;
            if let Some(first) = missing.first() {
                let detail = format!("public functions without a section, such as {first}");
                findings.push(Finding::new("doc-sections", source.path.display().to_string(), missing.len(), detail));
            }
        }
    }
    Ok(findings)
}

/// Last two segments of a path: the name of a type or module, and that of the function.
fn last_two(path: &str) -> (&str, &str) {
    let mut parts = path.rsplit("::");
    let name = parts.next().unwrap_or_default();
    (parts.next().unwrap_or_default(), name)
}

/// A documented function.
struct Function<'a> {
    /// Name of its trait or type; `None` for a free function.
    of: Option<String>,
    signature: &'a Signature,
    documentation: String,
}

/// Public functions in a file that lack a section, each with the section.
fn missing(text: &str, public: &BTreeSet<(&str, &str)>) -> Result<Vec<String>> {
    let file = syn::parse_file(text)?;
    let types = documented_types(&file.items);
    let documentation_of =
        |of: &str| types.iter().filter(|(name, _)| name == of).map(|(_, text)| text.as_str()).collect();
    let mut missing = Vec::new();
    for function in functions(&file.items) {
        let name = function.signature.ident.to_string();
        let is_public = match &function.of {
            Some(of) => public.contains(&(of.as_str(), name.as_str())),
            None => public.iter().any(|(_, known)| *known == name),
        };
        let shared: String = function.of.as_deref().map(documentation_of).unwrap_or_default();
        let has = |section: &str| function.documentation.contains(section) || shared.contains(section);
        for (section, is_needed) in
            [(CANCEL_SAFETY, is_async(function.signature)), (ERRORS, output(function.signature).is_some_and(is_result))]
        {
            if is_public && is_needed && !has(section) {
                missing.push(format!("{name} ({section})"));
            }
        }
    }
    Ok(missing)
}

/// Public functions of the file, whether or not they are reachable from outside of the crate.
fn functions(items: &[Item]) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    for item in items {
        match item {
            Item::Fn(item) if is_public(&item.vis) => {
                found.push(Function { of: None, signature: &item.sig, documentation: documentation(&item.attrs) });
            }
            Item::Trait(item) => found.extend(item.items.iter().filter_map(|member| match member {
                TraitItem::Fn(method) => Some(Function {
                    of: Some(item.ident.to_string()),
                    signature: &method.sig,
                    documentation: documentation(&method.attrs),
                }),
                _ => None,
            })),
            Item::Impl(item) if item.trait_.is_none() => {
                let Some(of) = type_name(&item.self_ty) else { continue };
                found.extend(item.items.iter().filter_map(|member| match member {
                    ImplItem::Fn(method) if is_public(&method.vis) => Some(Function {
                        of: Some(of.clone()),
                        signature: &method.sig,
                        documentation: documentation(&method.attrs),
                    }),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    found
}

/// Names of the types and traits of a file, with their documentation.
fn documented_types(items: &[Item]) -> Vec<(String, String)> {
    let documented = items.iter().filter_map(|item| match item {
        Item::Enum(item) => Some((&item.ident, &item.attrs)),
        Item::Struct(item) => Some((&item.ident, &item.attrs)),
        Item::Trait(item) => Some((&item.ident, &item.attrs)),
        _ => None,
    });
    documented.map(|(name, attributes)| (name.to_string(), documentation(attributes))).collect()
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn type_name(of: &Type) -> Option<String> {
    let Type::Path(of) = of else { return None };
    of.path.segments.last().map(|segment| segment.ident.to_string())
}

/// Text of the documentation comments among these attributes.
fn documentation(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        let Meta::NameValue(pair) = &attribute.meta else { continue };
        let Expr::Lit(literal) = &pair.value else { continue };
        if let Lit::Str(line) = &literal.lit {
            text.push_str(line.value().trim());
            text.push('\n');
        }
    }
    text
}

fn is_async(signature: &Signature) -> bool {
    signature.asyncness.is_some() || future(&signature.output).is_some()
}

/// Output of an `impl Future<Output = …>`.
fn future(output: &ReturnType) -> Option<&Type> {
    let ReturnType::Type(_, output) = output else { return None };
    let Type::ImplTrait(output) = &**output else { return None };
    let bound = output.bounds.iter().find_map(|bound| match bound {
        TypeParamBound::Trait(bound) => bound.path.segments.last().filter(|segment| segment.ident == "Future"),
        _ => None,
    })?;
    let PathArguments::AngleBracketed(arguments) = &bound.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(argument) => Some(&argument.ty),
        _ => None,
    })
}

/// Type that the caller gets, after an await where there is a future.
fn output(signature: &Signature) -> Option<&Type> {
    future(&signature.output).or(match &signature.output {
        ReturnType::Type(_, output) => Some(output),
        ReturnType::Default => None,
    })
}

fn is_result(of: &Type) -> bool {
    matches!(of, Type::Path(of) if of.path.segments.last().is_some_and(|segment| segment.ident == "Result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let public = [("x", "free"), ("A", "method"), ("T", "method")].into();
        missing(text, &public).expect("it is well formed")
    }

    #[test]
    fn async_functions_describe_a_drop() {
        assert_eq!(found("pub async fn free() {}"), ["free (# Cancel safety)"]);
        assert_eq!(found("impl A { pub fn method(&self) -> impl Future<Output = ()> + Send {} }").len(), 1);
        assert!(found("/// Waits.\n///\n/// # Cancel safety\n///\n/// None.\npub async fn free() {}").is_empty());
    }

    #[test]
    fn functions_with_results_describe_errors() {
        assert_eq!(found("trait T { fn method(&self) -> Result<(), E>; }"), ["method (# Errors)"]);
        let future = "/// # Cancel safety\npub fn free() -> impl Future<Output = Result<(), E>> {}";
        assert_eq!(found(future), ["free (# Errors)"]);
        assert!(found("pub fn free(f: impl Fn() -> Result<(), E>) -> A {}").is_empty());
    }

    #[test]
    fn a_section_of_the_type_counts_for_its_functions() {
        let text = "/// # Cancel safety\npub trait T { async fn method(&self); }";
        assert!(found(text).is_empty());
        assert_eq!(found("/// # Cancel safety\nstruct A;\nstruct B;\nimpl A { pub async fn method() {} }"), [""; 0]);
    }

    #[test]
    fn private_functions_need_no_sections() {
        assert!(
            found("pub(crate) async fn free() {} pub async fn other() {} impl A { async fn method() {} }").is_empty()
        );
    }
}
