//! Names that clients request, as services of the registry.
//!
//! A name without a `/` is in the namespace `default`; otherwise the part before the first `/` is the namespace. gRPC's
//! C-core decodes `%20` in a target before it requests the name, tonic-xds does not. So a name is looked up as given,
//! then decoded. The answer has the name as given.

use enlist::{Namespace, ServiceName, ServiceRef};
use percent_encoding::percent_decode_str;

/// Returns the services that a requested name can mean, the most likely one first. None for a name that is not one of a
/// service.
pub(super) fn services(name: &str) -> Vec<ServiceRef> {
    let decoded = percent_decode_str(name).decode_utf8().ok().filter(|decoded| *decoded != name);
    let texts = [Some(name), decoded.as_deref()];
    texts.into_iter().flatten().filter_map(service).collect()
}

fn service(text: &str) -> Option<ServiceRef> {
    match text.split_once('/') {
        None => ServiceRef::parse(text).ok(),
        Some((namespace, name)) => {
            Some(ServiceRef::new(Namespace::parse(namespace).ok()?, ServiceName::parse(name).ok()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str) -> Vec<String> {
        services(name).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_one_of_a_namespace() {
        for (name, expected) in [
            ("greeter", vec!["default/greeter"]),
            ("team/greeter", vec!["team/greeter"]),
            ("team/a/b", vec!["team/a/b"]),
            // The port is part of the name.
            ("greeter:80", vec!["default/greeter:80"]),
            ("gree%20ter", vec!["default/gree%20ter", "default/gree ter"]),
            ("gree ter", vec!["default/gree ter"]),
            ("%ff", vec!["default/%ff"]),
            ("a%2Fb", vec!["default/a%2Fb", "a/b"]),
        ] {
            assert_eq!(texts(name), expected, "{name}");
        }
    }

    #[test]
    fn other_texts_mean_no_service() {
        for name in ["", "/greeter", "team/", "a\nb", &"x".repeat(256)] {
            assert!(texts(name).is_empty(), "{name:?}");
        }
        assert_eq!(texts("a%0Ab"), ["default/a%0Ab"], "only as given");
    }
}
