//! Layouts by name: the one table of this crate's layouts, for command lines, configuration files and tests.

use std::{fmt, sync::Arc};

use enlist::Error;

use super::{
    Layout, LockLayout,
    dubbo::Dubbo,
    etcd_concurrency::EtcdConcurrency,
    etcd_naming::EtcdNaming,
    fireflycore::{Fireflycore, FireflycoreByLease},
    go_kit::GoKit,
    go_micro::GoMicro,
    go_zero::GoZero,
    gobase::Gobase,
    gobase_lock::GobaseLock,
    kitex::Kitex,
    kratos::Kratos,
    native::Native,
};

/// Name of the native layouts.
pub(crate) const NATIVE: &str = "native";

/// Default environment of the fireflycore layouts.
const DEFAULT_ENVIRONMENT: &str = "prod";

/// Layouts of instances.
pub const LAYOUTS: &[NamedLayout] = &[
    NamedLayout {
        name: NATIVE,
        prefix: Prefix::Option,
        build: |options| prefixed(options, Native::default, Native::with_prefix),
    },
    NamedLayout { name: "etcd-naming", prefix: Prefix::Fixed, build: |options| Ok(Arc::new(etcd_naming(options))) },
    NamedLayout {
        name: "kitex",
        prefix: Prefix::Option,
        build: |options| prefixed(options, Kitex::default, Kitex::with_prefix),
    },
    NamedLayout {
        name: "kratos",
        prefix: Prefix::Option,
        build: |options| prefixed(options, Kratos::default, Kratos::with_namespace),
    },
    NamedLayout {
        name: "go-kit",
        prefix: Prefix::Option,
        build: |options| prefixed(options, GoKit::default, GoKit::with_prefix),
    },
    NamedLayout { name: "go-micro", prefix: Prefix::Fixed, build: |_| Ok(Arc::new(GoMicro)) },
    NamedLayout { name: "go-zero", prefix: Prefix::Fixed, build: |_| Ok(Arc::new(GoZero)) },
    NamedLayout { name: "dubbo", prefix: Prefix::Fixed, build: |_| Ok(Arc::new(Dubbo)) },
    NamedLayout { name: "fireflycore", prefix: Prefix::Fixed, build: |options| Ok(Arc::new(fireflycore(options)?)) },
    NamedLayout {
        name: "fireflycore-by-lease",
        prefix: Prefix::Fixed,
        build: |options| Ok(Arc::new(FireflycoreByLease::from(fireflycore(options)?))),
    },
    NamedLayout { name: "gobase", prefix: Prefix::Fixed, build: |_| Ok(Arc::new(Gobase)) },
];

/// Layouts of locks and elections.
pub const LOCK_LAYOUTS: &[NamedLockLayout] = &[
    NamedLockLayout { name: NATIVE, build: || None },
    NamedLockLayout { name: "etcd-concurrency", build: || Some(Arc::new(EtcdConcurrency)) },
    NamedLockLayout { name: "gobase", build: || Some(Arc::new(GobaseLock)) },
];

/// Options of layouts that are chosen by name. A layout ignores the options that it does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayoutOptions {
    prefix: Option<String>,
    default_port: Option<u16>,
    environment: Option<String>,
}

impl LayoutOptions {
    /// Returns the defaults of every layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the prefix of all keys; in `kratos` it is the namespace. Default: that of the layout.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Sets the port of addresses without one, in `etcd-naming` and the fireflycore layouts. Default: such values are
    /// malformed.
    #[must_use]
    pub fn default_port(mut self, port: u16) -> Self {
        self.default_port = Some(port);
        self
    }

    /// Sets the environment in the fireflycore layouts. Default: `prod`.
    #[must_use]
    pub fn environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Returns the prefix, if one is set.
    pub(crate) fn own_prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }
}

/// Prefix of a layout's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    Option,
    Fixed,
}

/// Layout of instances that is chosen by name, see [`EtcdBuilder::named_layout`](crate::EtcdBuilder::named_layout).
#[derive(Clone, Copy)]
pub struct NamedLayout {
    name: &'static str,
    prefix: Prefix,
    build: fn(&LayoutOptions) -> Result<Arc<dyn Layout>, Error>,
}

impl NamedLayout {
    /// Returns the layout with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.name == name)
    }

    /// Returns the name. It is that of [`Layout::name`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns `true` if the prefix of its keys is an option.
    pub fn has_prefix(&self) -> bool {
        self.prefix == Prefix::Option
    }

    /// Returns the layout with these options.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] or [`Error::InvalidName`] if the layout does not accept them.
    pub fn build(&self, options: &LayoutOptions) -> Result<Arc<dyn Layout>, Error> {
        (self.build)(options)
    }
}

impl fmt::Debug for NamedLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedLayout").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Layout of locks and elections that is chosen by name, see
/// [`EtcdBuilder::named_lock_layout`](crate::EtcdBuilder::named_lock_layout).
#[derive(Clone, Copy)]
pub struct NamedLockLayout {
    name: &'static str,
    /// `None` is the native layout, whose prefix is an option of the client.
    build: fn() -> Option<Arc<dyn LockLayout>>,
}

impl NamedLockLayout {
    /// Returns the layout with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        LOCK_LAYOUTS.iter().find(|layout| layout.name == name)
    }

    /// Returns the name. It is that of [`LockLayout::name`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the layout; `None` for the native one.
    pub(crate) fn build(&self) -> Option<Arc<dyn LockLayout>> {
        (self.build)()
    }
}

impl fmt::Debug for NamedLockLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedLockLayout").field("name", &self.name).finish_non_exhaustive()
    }
}

fn prefixed<L: Layout>(
    options: &LayoutOptions,
    default: impl FnOnce() -> L,
    with_prefix: impl FnOnce(&str) -> Result<L, Error>,
) -> Result<Arc<dyn Layout>, Error> {
    let layout = options.prefix.as_deref().map_or_else(|| Ok(default()), with_prefix)?;
    Ok(Arc::new(layout))
}

fn etcd_naming(options: &LayoutOptions) -> EtcdNaming {
    let layout = EtcdNaming::default();
    match options.default_port {
        Some(port) => layout.default_port(port),
        None => layout,
    }
}

fn fireflycore(options: &LayoutOptions) -> Result<Fireflycore, Error> {
    let layout = Fireflycore::new(options.environment.as_deref().unwrap_or(DEFAULT_ENVIRONMENT))?;
    Ok(match options.default_port {
        Some(port) => layout.default_port(port),
        None => layout,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_layout_has_its_own_name() {
        for layout in LAYOUTS {
            assert_eq!(layout.build(&LayoutOptions::new()).unwrap().name(), layout.name());
            assert_eq!(NamedLayout::find(layout.name()).unwrap().name(), layout.name());
        }
        for layout in LOCK_LAYOUTS {
            assert_eq!(layout.build().map_or(NATIVE, |built| built.name()), layout.name());
            assert_eq!(NamedLockLayout::find(layout.name()).unwrap().name(), layout.name());
        }
        let names: BTreeSet<_> = LAYOUTS.iter().map(NamedLayout::name).collect();
        assert_eq!(names.len(), LAYOUTS.len());
        assert!(NamedLayout::find("x").is_none() && NamedLockLayout::find("x").is_none());
    }

    /// Reads a value without a port.
    fn port(name: &str, options: &LayoutOptions) -> Option<u16> {
        let layout = NamedLayout::find(name).unwrap().build(options).unwrap();
        let value = r#"{"Op":0,"Addr":"10.0.0.1","network":{"internal":"10.0.0.1"},"meta":{"env":"e","app_id":"s"}}"#;
        let service = enlist::ServiceRef::parse("s").unwrap();
        let mut key = layout.service_range(&service).unwrap().bounds().0.to_vec();
        key.push(b'1');
        Some(layout.decode(&service, &key, value.as_bytes()).ok()?.instance.endpoints()[0].port())
    }

    #[test]
    fn addresses_without_a_port_get_that_of_the_options() {
        for name in ["etcd-naming", "fireflycore", "fireflycore-by-lease"] {
            assert_eq!(port(name, &LayoutOptions::new()), None, "{name}");
            assert_eq!(port(name, &LayoutOptions::new().default_port(7)), Some(7), "{name}");
        }
    }

    #[test]
    fn keys_of_fireflycore_contain_the_environment_of_the_options() {
        let service = enlist::ServiceRef::parse("s").unwrap();
        for name in ["fireflycore", "fireflycore-by-lease"] {
            let start = |options: &LayoutOptions| {
                let layout = NamedLayout::find(name).unwrap().build(options).unwrap();
                String::from_utf8(layout.service_range(&service).unwrap().bounds().0.to_vec()).unwrap()
            };
            assert_eq!(start(&LayoutOptions::new()), "default/prod/s/", "{name}");
            assert_eq!(start(&LayoutOptions::new().environment("test")), "default/test/s/", "{name}");
        }
    }

    #[test]
    fn only_layouts_with_a_prefix_use_the_option() {
        let service = enlist::ServiceRef::parse("s").unwrap();
        for layout in LAYOUTS {
            let start = |options: LayoutOptions| {
                let range = layout.build(&options).unwrap().service_range(&service).unwrap();
                range.bounds().0.to_vec()
            };
            let changed = start(LayoutOptions::new().prefix("/mine/")) != start(LayoutOptions::new());
            assert_eq!(changed, layout.has_prefix(), "{layout:?}");
        }
    }
}
