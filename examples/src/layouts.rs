//! Layouts of the examples, by name.

use enlist::Error;
use enlist_etcd::{
    Etcd, EtcdBuilder,
    layout::{LAYOUTS, LayoutOptions, NamedLayout},
};

/// Returns a builder for this etcd with the layout `layout` (default: the native one) and the prefix `prefix` (default:
/// that of the layout).
pub(crate) fn builder(endpoint: &str, layout: Option<&str>, prefix: Option<&str>) -> Result<EtcdBuilder, Error> {
    let Some(layout) = NamedLayout::find(layout.unwrap_or("native")) else {
        let names: Vec<_> = LAYOUTS.iter().map(NamedLayout::name).collect();
        return Err(Error::invalid_config("--layout", format!("expected one of {}", names.join(", "))));
    };
    let options = match prefix {
        Some(_) if !layout.has_prefix() => return Err(Error::invalid_config("--prefix", "this layout has none")),
        Some(prefix) => LayoutOptions::new().prefix(prefix),
        None => LayoutOptions::new(),
    };
    Etcd::builder([endpoint]).named_layout(layout, &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_chosen_by_name() {
        for (layout, prefix, expected) in [
            (None, None, Ok("native")),
            (None, Some("mine"), Ok("native")),
            (Some("kitex"), Some("kitex/registry-etcd"), Ok("kitex")),
            (Some("go-kit"), Some("/services/"), Ok("go-kit")),
            (Some("kratos"), None, Ok("kratos")),
            (Some("etcd-naming"), None, Ok("etcd-naming")),
            (Some("go-zero"), None, Ok("go-zero")),
            (Some("go-zero"), Some("mine"), Err("--prefix")),
            (Some("etcd-naming"), Some("mine"), Err("--prefix")),
            (Some("go-kit"), Some("/services"), Err("prefix")),
            (Some("kite"), None, Err("--layout")),
        ] {
            let built = builder("127.0.0.1:2379", layout, prefix).and_then(EtcdBuilder::build);
            match (built, expected) {
                (Ok(etcd), Ok(name)) => assert_eq!(etcd.layout().name(), name),
                (Err(error), Err(field)) => assert!(error.to_string().contains(field), "{error}"),
                (built, expected) => panic!("{layout:?} {prefix:?}: {built:?}, expected {expected:?}"),
            }
        }
    }
}
