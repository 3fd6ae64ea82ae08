//! Names of services, instances, namespaces and locks.
//!
//! A name is checked once, at its construction. Escaping for a store belongs to that store's layout, so nearly every
//! character is allowed here. [`parse_name`](super::parse_name) creates names from texts.

use std::{fmt, sync::Arc};

/// Maximum length of a name, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// Default namespace.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Fault of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameFault {
    /// The name has no characters.
    Empty,
    /// The name has more than 255 bytes of UTF-8.
    TooLong {
        /// Its number of bytes.
        bytes: usize,
    },
    /// The name contains a control character.
    ControlCharacter {
        /// Byte position of the first one.
        at: usize,
    },
    /// The path has more than 1,024 bytes of UTF-8.
    PathTooLong {
        /// Its number of bytes.
        bytes: usize,
    },
    /// The path has an empty segment: it begins or ends with `/`, or has two of them in a row.
    EmptySegment,
    /// The store's layout does not support this character.
    NotCarried {
        /// The character that would change the key.
        character: char,
    },
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong { bytes } => write!(f, "it has {bytes} bytes, at most 255 are allowed"),
            Self::ControlCharacter { at } => write!(f, "it has a control character at byte {at}"),
            Self::PathTooLong { bytes } => write!(f, "it has {bytes} bytes, at most 1024 are allowed"),
            Self::EmptySegment => f.write_str("it has an empty segment"),
            Self::NotCarried { character } => write!(f, "the layout cannot carry {character:?}"),
        }
    }
}

fn check(text: &str) -> Result<(), NameFault> {
    if text.is_empty() {
        Err(NameFault::Empty)
    } else if text.len() > MAX_NAME_BYTES {
        Err(NameFault::TooLong { bytes: text.len() })
    } else if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
        Err(NameFault::ControlCharacter { at })
    } else {
        Ok(())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        ///
        /// 1–255 bytes of UTF-8 without control characters. Cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            pub(super) fn checked(text: &str) -> Result<Self, NameFault> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The given name.
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
    };
}

name!(
    /// A set of services and of locks, separate from all other sets.
    Namespace
);
name!(
    /// The name of a service within its namespace.
    ServiceName
);
name!(
    /// Identity of one instance among the others of its service.
    InstanceId
);

impl Default for Namespace {
    /// The namespace `default`.
    fn default() -> Self {
        Self(DEFAULT_NAMESPACE.into())
    }
}

/// A service, named together with its namespace. Prints as `namespace/name`.
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

    /// Namespace of the service.
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
    pub(super) fn checked(name: &str) -> Result<Self, NameFault> {
        check(name)?;
        Ok(Self { namespace: Namespace::default(), name: name.into() })
    }

    /// The lock of the same name in `namespace`.
    #[must_use]
    pub fn within(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Namespace of the lock.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
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
