//! Names: what a service, an instance, a namespace and a lock may be called.
//!
//! A name is checked once, where it is made. Escaping for a store belongs to that store's layout, so nearly every
//! character is allowed here. See [`crate::error`] for what a refused name looks like.

use std::{fmt, str::FromStr, sync::Arc};

use crate::error::{Error, NameFault};

/// The longest name, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// The namespace used where none is given.
pub const DEFAULT_NAMESPACE: &str = "default";

fn check(field: &'static str, text: &str) -> Result<(), Error> {
    let fault = if text.is_empty() {
        NameFault::Empty
    } else if text.len() > MAX_NAME_BYTES {
        NameFault::TooLong { bytes: text.len() }
    } else if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
        NameFault::ControlCharacter { at }
    } else {
        return Ok(());
    };
    Err(Error::InvalidName { field, fault })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        ///
        /// 1–255 bytes of UTF-8 without control characters. Cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `text` and makes the name.
            ///
            /// # Errors
            ///
            /// [`Error::InvalidName`] if it is empty, longer than 255 bytes or holds a control character.
            pub fn parse(text: impl AsRef<str>) -> Result<Self, Error> {
                let text = text.as_ref();
                check($field, text)?;
                Ok(Self(text.into()))
            }

            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }
    };
}

name!(
    /// A set of services, and of locks, that does not see any other set.
    Namespace, "namespace"
);
name!(
    /// The name of a service within its namespace.
    ServiceName, "service"
);
name!(
    /// Identity of one instance among the others of its service.
    InstanceId, "instance id"
);

impl Default for Namespace {
    /// The namespace `default`.
    fn default() -> Self {
        Self(DEFAULT_NAMESPACE.into())
    }
}

/// A service, named together with the namespace it lives in. Prints as `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    namespace: Namespace,
    name: ServiceName,
}

impl ServiceRef {
    /// The service `name` of `namespace`.
    pub fn new(namespace: Namespace, name: ServiceName) -> Self {
        Self { namespace, name }
    }

    /// The service called `name` in the namespace `default`. A `/` in it is part of the name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], as for [`ServiceName::parse`].
    pub fn parse(name: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self::new(Namespace::default(), ServiceName::parse(name)?))
    }

    /// The namespace the service lives in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The name of a lock or of an election, together with its namespace. Prints as `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName {
    namespace: Namespace,
    name: Arc<str>,
}

impl LockName {
    /// The lock called `name` in the namespace `default`. A `/` in it is part of the name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if it is empty, longer than 255 bytes or holds a control character.
    pub fn parse(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        check("lock", name)?;
        Ok(Self { namespace: Namespace::default(), name: name.into() })
    }

    /// The lock of the same name in `namespace`.
    #[must_use]
    pub fn within(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// The namespace the lock lives in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for LockName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_but_printable_names_are_allowed() {
        for text in ["a", "a/b", "..", "50%", "two words", "größe", "🚀", &"x".repeat(255)] {
            assert_eq!(ServiceName::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_refused_name_says_which_field_and_why() {
        let long = "x".repeat(256);
        for (text, why) in [("", "empty"), (&*long, "256 bytes"), ("a\nb", "control"), ("a\0", "control")] {
            let error = InstanceId::parse(text).unwrap_err().to_string();
            assert!(error.contains("instance id") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_service_prints_with_its_namespace() {
        assert_eq!(ServiceRef::parse("greeter").unwrap().to_string(), "default/greeter");
    }
}
