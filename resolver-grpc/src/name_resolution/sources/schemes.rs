//! Selection of the resolver for a target.

use std::{collections::BTreeMap, sync::Arc};

use enlist::{Directory, DirectoryOptions, Error, Resolver, ServiceRef, ServiceView};

use crate::name_resolution::{
    sources::{Dns, Fixed},
    target::Target,
};

/// Maps the schemes of [`Target`]s to resolvers. `dns` and `static` are predefined; the user adds others.
#[derive(Clone, Debug)]
pub struct Schemes {
    options: DirectoryOptions,
    directories: BTreeMap<String, Directory>,
}

impl Default for Schemes {
    fn default() -> Self {
        Self::new()
    }
}

impl Schemes {
    /// Creates the schemes `dns` and `static`.
    pub fn new() -> Self {
        Self::with_options(DirectoryOptions::new())
    }

    /// Creates the schemes `dns` and `static`, with these options for the views.
    pub fn with_options(options: DirectoryOptions) -> Self {
        Self { options, directories: BTreeMap::new() }.with("dns", Arc::new(Dns::new()))
    }

    /// Sets the resolver of the services of `scheme`. `dns` can be replaced by another [`Dns`].
    #[must_use]
    pub fn with(mut self, scheme: impl Into<String>, resolver: Arc<dyn Resolver>) -> Self {
        let directory = Directory::with_options(resolver, self.options.clone());
        self.directories.insert(scheme.into(), directory);
        self
    }

    /// A view of the instances of `target`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a scheme that has no resolver; [`Error::InvalidName`] for names that are too long.
    pub fn view(&self, target: &Target) -> Result<ServiceView, Error> {
        match target {
            Target::Service { scheme, service } => Ok(self.directory(scheme)?.view(service)),
            Target::Dns { host, port } => Ok(self.directory("dns")?.view(&Dns::service(host, *port)?)),
            Target::Static(endpoints) => {
                let fixed = Fixed::new(endpoints.iter().cloned())?;
                let directory = Directory::with_options(Arc::new(fixed), self.options.clone());
                Ok(directory.view(&ServiceRef::parse("static")?))
            }
        }
    }

    fn directory(&self, scheme: &str) -> Result<&Directory, Error> {
        let known = || self.directories.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.directories
            .get(scheme)
            .ok_or_else(|| Error::Unsupported { what: format!("the scheme {scheme}, only static, {}", known()) })
    }
}
