//! Options of a view.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use enlist::{Config, ConfigScope, Counters, Error, Namespace, backend::LONGEST};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::OnceCell;

use crate::{
    copy_on_disk::CopyOnDisk,
    follower::Follower,
    format::Format,
    layers::{Layers, Tree},
    plan::{Plan, Validation},
    rejection::{Origin, Reason, Rejection},
    start::{First, Start, WithoutStore},
    state::PublishedView,
    task::ViewTask,
    view::ConfigView,
};

/// Default maximum time for [`ConfigViewBuilder::open`].
pub const DEFAULT_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of a view.
///
/// The configuration has three layers: defaults, values of the store, environment. A later layer overrides an earlier
/// one, key by key; lists are replaced as a whole.
///
/// ```
/// use std::sync::Arc;
///
/// use enlist::{ConfigPath, ConfigScope};
/// use enlist_config::{ConfigView, Format, WithoutStore};
///
/// #[derive(serde::Deserialize)]
/// struct Settings {
///     port: u16,
///     workers: usize,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), enlist::Error> {
/// # let config = Arc::new(enlist_memory::MemoryStore::new().client());
/// let scope = ConfigScope::Path(ConfigPath::parse("app.toml")?);
/// let view = ConfigView::<Settings>::builder(config, scope)
///     .default_text(Format::Toml, "port = 8080\nworkers = 4")
///     .environment("APP") // `APP_PORT=80` overrides the port
///     .validate(|settings| if settings.workers > 0 { Ok(()) } else { Err("no workers") })
///     .without_store(WithoutStore::UseDefaults)
///     .open()
///     .await?;
/// assert_eq!(view.current().workers, 4);
/// # Ok(())
/// # }
/// ```
#[must_use = "options do nothing until the view is opened"]
pub struct ConfigViewBuilder<T> {
    config: Arc<dyn Config>,
    namespace: Namespace,
    scope: ConfigScope,
    layers: Layers,
    environment: Option<String>,
    validation: Option<Validation<T>>,
    disk: Option<PathBuf>,
    without_store: WithoutStore,
    open_timeout: Duration,
    /// Fault of the defaults.
    fault: Option<Reason>,
}

impl<T: DeserializeOwned + Send + Sync + 'static> ConfigView<T> {
    /// Options of a view of `scope`, with the defaults.
    pub fn builder(config: Arc<dyn Config>, scope: ConfigScope) -> ConfigViewBuilder<T> {
        ConfigViewBuilder::new(config, scope)
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> ConfigViewBuilder<T> {
    fn new(config: Arc<dyn Config>, scope: ConfigScope) -> Self {
        Self {
            config,
            namespace: Namespace::default(),
            scope,
            layers: Layers::default(),
            environment: None,
            validation: None,
            disk: None,
            without_store: WithoutStore::default(),
            open_timeout: DEFAULT_OPEN_TIMEOUT,
            fault: None,
        }
    }

    /// Sets the namespace. Default: `default`.
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Sets the format of all values of the view. Default: that of the suffix of each path, `.json` or `.toml`.
    pub fn format(mut self, format: Format) -> Self {
        self.layers.format = Some(format);
        self
    }

    /// Sets the place of the values of a subtree in the configuration. Default: each is a layer of the whole.
    pub fn tree(mut self, tree: Tree) -> Self {
        self.layers.tree = tree;
        self
    }

    /// Adds defaults, which the store and the environment override. Defaults that are added later override earlier
    /// ones.
    pub fn defaults(mut self, defaults: &impl Serialize) -> Self {
        let added = self.layers.add_defaults(defaults);
        self.fault = self.fault.or(added.err());
        self
    }

    /// Adds defaults as text, such as `include_str!("defaults.toml")`.
    pub fn default_text(mut self, format: Format, text: &str) -> Self {
        let added = self.layers.add_default_text(format, text);
        self.fault = self.fault.or(added.err());
        self
    }

    /// Lets environment variables override the store. Default: they do not.
    ///
    /// The name of a variable is `prefix`, `_`, and the keys, separated by `__`: with the prefix `APP`, the variable
    /// `APP_LOG__LEVEL` is the key `log.level`. Keys are in lower case, so a key with upper-case letters cannot be
    /// overridden. The text is converted to the type of the field; a list or a table is written in JSON. In flattened
    /// fields and untagged enums it stays text. The environment is read once, by [`open`](Self::open).
    pub fn environment(mut self, prefix: impl Into<String>) -> Self {
        self.environment = Some(prefix.into());
        self
    }

    /// Sets the validation function, which sees the merged value. The text of its error is reported, so it must not
    /// contain secrets. A panic in it is a refusal.
    pub fn validate<E: fmt::Display>(
        mut self,
        validation: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.validation = Some(Arc::new(move |value| validation(value).map_err(|error| error.to_string())));
        self
    }

    /// Sets the directory on disk for the last good state of the store. It is read at the start if the store does not
    /// answer within a second, or if its state is not used, and written at most once a second. Only the user can read
    /// the file (0600) and the directories that are created (0700): it contains all values, secrets included. Default:
    /// none.
    pub fn disk(mut self, directory: impl Into<PathBuf>) -> Self {
        self.disk = Some(directory.into());
        self
    }

    /// Sets the start if the store does not answer within a second, and there is no copy on disk. Default: it fails.
    pub fn without_store(mut self, without_store: WithoutStore) -> Self {
        self.without_store = without_store;
        self
    }

    /// Sets the maximum time for [`open`](Self::open). Default: 10 s, at most 100 years.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout.min(LONGEST);
        self
    }

    /// Opens the view: waits for the first good value of the store, the disk or the defaults.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidConfig`] if the state of the store is not used and there is no good copy on disk, or for
    ///   malformed defaults.
    /// - [`Error::Timeout`], or an error that will not pass by itself, if there is neither the store nor another value.
    /// - [`Error::Closed`] outside a runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    pub async fn open(self) -> Result<ConfigView<T>, Error> {
        let Self { config, namespace, scope, mut layers, environment, validation, disk, without_store, .. } = self;
        let refused = |origin, reason| Error::from(Rejection { origin, revision: enlist::Revision::default(), reason });
        if let Some(reason) = self.fault {
            return Err(refused(Origin::Defaults, reason));
        }
        if let Some(prefix) = environment {
            layers.read_environment(&prefix, None).map_err(|reason| refused(Origin::Environment, reason))?;
        }
        let disk = disk.map(|directory| CopyOnDisk::new(&directory, &namespace, &scope));
        let counters = Arc::new(Counters::default());
        let mut start = Start {
            follower: Follower::new(config, namespace, scope.clone()),
            plan: Plan { scope: scope.clone(), layers, validation },
            disk: disk.clone(),
            without_store,
            limit: self.open_timeout,
            counters: Arc::clone(&counters),
            copied: OnceCell::new(),
        };
        let First { value, state, known, unsaved } = start.first().await?;
        let shared = Arc::new(PublishedView::new(scope, value, state, counters));
        let Start { follower, plan, .. } = start;
        ConfigView::start(ViewTask { follower, plan, shared, disk, known, unsaved })
    }
}

impl<T> fmt::Debug for ConfigViewBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigViewBuilder").field("scope", &self.scope).finish_non_exhaustive()
    }
}
