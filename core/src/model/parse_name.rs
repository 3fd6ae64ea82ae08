//! Construction of names from texts. An invalid text is refused with the error of the traits.

use std::str::FromStr;

use crate::{
    error::Error,
    model::name::{InstanceId, LockName, Namespace, ServiceName, ServiceRef},
};

macro_rules! parse {
    ($type:ident, $field:literal) => {
        impl $type {
            /// Checks `text` and creates the name.
            ///
            /// # Errors
            ///
            /// [`Error::InvalidName`] if it is empty, longer than 255 bytes or holds a control character.
            pub fn parse(text: impl AsRef<str>) -> Result<Self, Error> {
                Self::checked(text.as_ref()).map_err(|fault| Error::InvalidName { field: $field, fault })
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

parse!(Namespace, "namespace");
parse!(ServiceName, "service");
parse!(InstanceId, "instance id");

impl ServiceRef {
    /// The service with this name in the namespace `default`. A `/` in it is part of the name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], as for [`ServiceName::parse`].
    pub fn parse(name: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self::new(Namespace::default(), ServiceName::parse(name)?))
    }
}

impl LockName {
    /// The lock with this name in the namespace `default`. A `/` in it is part of the name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] if it is empty, longer than 255 bytes or holds a control character.
    pub fn parse(name: impl AsRef<str>) -> Result<Self, Error> {
        Self::checked(name.as_ref()).map_err(|fault| Error::InvalidName { field: "lock", fault })
    }
}

impl FromStr for LockName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
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
