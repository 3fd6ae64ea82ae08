//! One channel per target, shared by all callers.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use enlist::{
    DirectoryOptions, Error, Moment, Resolver, StopError, TaskOwner, backend::MutexExt as _, escape::escaped,
};

use crate::{
    channel::{builder::ChannelBuilder, channel::Channel},
    name_resolution::{
        invocation::Invocation,
        locator::{Callee, Locator},
        sources::Schemes,
        target::Target,
    },
};

/// Default time for which a channel without holders is kept.
const DEFAULT_KEEP: Duration = Duration::from_secs(300);

/// Options of a [`ConnectionManager`] that is created [from a resolver](ConnectionManager::from_resolver).
#[derive(Clone)]
#[must_use]
pub struct ManagerOptions {
    keep: Duration,
    channel: Arc<dyn Fn(&Target) -> ChannelBuilder + Send + Sync>,
    directory: DirectoryOptions,
    resolvers: Vec<(String, Arc<dyn Resolver>)>,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            keep: DEFAULT_KEEP,
            channel: Arc::new(|_| Channel::builder().traced()),
            directory: DirectoryOptions::new(),
            resolvers: Vec::new(),
        }
    }
}

impl fmt::Debug for ManagerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keep, channel: _, directory, resolvers } = self;
        let schemes: Vec<_> = resolvers.iter().map(|(scheme, _)| scheme).collect();
        let mut shown = f.debug_struct("ManagerOptions");
        shown.field("keep", keep).field("directory", directory).field("schemes", &schemes).finish_non_exhaustive()
    }
}

impl ManagerOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time for which a channel is kept after its last holder dropped it. Default: 5 min.
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// Sets the options of each new channel: credentials, retries, health checks. `channel` may be called by several
    /// callers at the same time, and may use the manager. Default: those of [`Channel::builder`],
    /// [traced](ChannelBuilder::traced).
    pub fn channel(mut self, channel: impl Fn(&Target) -> ChannelBuilder + Send + Sync + 'static) -> Self {
        self.channel = Arc::new(channel);
        self
    }

    /// Sets the options of the views. Their `idle` has no effect: it is [`Invocation::cache_ttl`]. Default:
    /// [`DirectoryOptions::new`].
    pub fn directory(mut self, directory: DirectoryOptions) -> Self {
        self.directory = directory;
        self
    }

    /// Adds the resolver of another scheme, see [`Schemes::with`]: the [resolver scheme](Invocation::resolver_scheme)
    /// of service-DNS mode, `dns` to replace the system's DNS, or that of targets for
    /// [`ConnectionManager::channel_to`].
    pub fn scheme(mut self, scheme: impl Into<String>, resolver: Arc<dyn Resolver>) -> Self {
        self.resolvers.push((scheme.into(), resolver));
        self
    }
}

/// Shares channels among callers, one per target. A channel is created without waiting; its connections are made in the
/// background. A channel that only the manager holds is removed after a while.
///
/// Dropping the manager ends its own task; channels that callers hold stay open.
pub struct ConnectionManager {
    locator: Locator,
    schemes: Schemes,
    options: Box<dyn Fn(&Target) -> ChannelBuilder + Send + Sync>,
    channels: Arc<Channels>,
    tasks: TaskOwner,
}

#[derive(Default)]
struct Channels {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_target: HashMap<Target, ManagedChannel>,
    closed: bool,
}

/// A channel of the manager.
struct ManagedChannel {
    channel: Channel,
    /// Latest time at which a caller was found to hold it.
    used: Moment,
}

impl State {
    /// The channel for `target`, if there is one.
    fn get(&mut self, target: &Target) -> Result<Option<Channel>, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        Ok(self.by_target.get_mut(target).map(|managed| {
            managed.used = Moment::now();
            managed.channel.clone()
        }))
    }
}

impl ConnectionManager {
    /// A manager of channels to the services that `resolver` finds, located as `invocation` configures it.
    ///
    /// The watch of a service ends [`Invocation::cache_ttl`] after its channel, which is kept for
    /// [`ManagerOptions::keep`] after its last holder.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = enlist_memory::MemoryStore::new();
    /// use enlist_grpc::{Callee, ConnectionManager, Invocation, ManagerOptions};
    /// use std::sync::Arc;
    ///
    /// let invocation: Invocation = serde_json::from_str(r#"{"namespace": "shop", "cache_ttl": "10s"}"#)?;
    /// let manager = ConnectionManager::from_resolver(Arc::new(store.client()), invocation, ManagerOptions::new())?;
    /// let channel = manager.channel(&Callee::parse("auth")?)?;
    /// assert_eq!(manager.targets()[0].to_string(), "enlist:///shop/auth");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Locator::new`]; [`Error::InvalidConfig`] if `keep` is zero, [`Error::Closed`] outside a runtime.
    pub fn from_resolver(
        resolver: Arc<dyn Resolver>,
        invocation: Invocation,
        options: ManagerOptions,
    ) -> Result<Self, Error> {
        let ManagerOptions { keep, channel, directory, resolvers } = options;
        let locator = Locator::new(invocation)?;
        let Invocation { cache_ttl, registry_scheme, .. } = locator.invocation();
        let mut schemes = Schemes::with_options(directory.idle(*cache_ttl));
        for (scheme, other) in resolvers {
            schemes = schemes.with(scheme, other);
        }
        schemes = schemes.with(registry_scheme, resolver);
        Self::with_options(locator, schemes, keep, move |target| channel(target))
    }

    /// A manager of channels with the default options, [traced](ChannelBuilder::traced), over the given locator and
    /// schemes.
    ///
    /// [`Invocation::cache_ttl`] has no effect here: `schemes` has its own options for views.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] outside a runtime.
    pub fn new(locator: Locator, schemes: Schemes) -> Result<Self, Error> {
        Self::with_options(locator, schemes, DEFAULT_KEEP, |_| Channel::builder().traced())
    }

    /// A manager that keeps unused channels for `keep` and creates them with `options`: credentials, retries, health
    /// checks. `options` may be called by several callers at the same time, and may use the manager.
    /// [`Invocation::cache_ttl`] has no effect, as with [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if `keep` is zero, [`Error::Closed`] outside a runtime.
    pub fn with_options(
        locator: Locator,
        schemes: Schemes,
        keep: Duration,
        options: impl Fn(&Target) -> ChannelBuilder + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        if keep.is_zero() {
            return Err(Error::invalid_config("keep", "a channel has to be kept for longer than no time"));
        }
        let (channels, tasks) = (Arc::<Channels>::default(), TaskOwner::new());
        let (stop, evicted) = (tasks.stop_signal(), Arc::clone(&channels));
        tasks.spawn("connection manager", async move {
            let evict = async {
                loop {
                    tokio::time::sleep(keep / 2).await;
                    evicted.evict(keep);
                }
            };
            stop.run_until_cancelled_owned(evict).await;
        })?;
        Ok(Self { locator, schemes, options: Box::new(options), channels, tasks })
    }

    /// The channel to `callee`.
    ///
    /// # Errors
    ///
    /// Those of [`Locator::target`] and [`channel_to`](Self::channel_to).
    pub fn channel(&self, callee: &Callee) -> Result<Channel, Error> {
        self.channel_to(&self.locator.target(callee)?)
    }

    /// The channel to `target`.
    ///
    /// # Errors
    ///
    /// Those of [`Schemes::view`]; [`Error::Closed`] after [`close`](Self::close) and outside a runtime.
    pub fn channel_to(&self, target: &Target) -> Result<Channel, Error> {
        if let Some(channel) = self.channels.lock().get(target)? {
            return Ok(channel);
        }
        // The user's code is called and dropped without the lock: it may use the manager.
        let (options, view) = ((self.options)(target), self.schemes.view(target)?);
        let mut state = self.channels.lock();
        if let Some(channel) = state.get(target)? {
            return Ok(channel);
        }
        // `build` does not wait: connections are made in the background. `options` outlives the lock.
        let channel = options.clone().build(&view)?;
        state.by_target.insert(target.clone(), ManagedChannel { channel: channel.clone(), used: Moment::now() });
        Ok(channel)
    }

    /// The targets of all channels.
    pub fn targets(&self) -> Vec<Target> {
        self.channels.lock().by_target.keys().cloned().collect()
    }

    /// Closes all channels and refuses new ones. Waits at most `limit` for each. Calls in flight finish.
    ///
    /// # Errors
    ///
    /// The first [`StopError`].
    ///
    /// # Cancel safety
    ///
    /// The manager stays closed. Channels that were not closed yet end when they are dropped.
    pub async fn close(&self, limit: Duration) -> Result<(), StopError> {
        let channels = {
            let mut state = self.channels.lock();
            state.closed = true;
            std::mem::take(&mut state.by_target)
        };
        let closed = channels.values().map(|managed| managed.channel.close(limit));
        let outcomes = futures::future::join_all(closed).await;
        let own = self.tasks.stop(limit).await;
        outcomes.into_iter().chain([own]).collect()
    }
}

impl fmt::Debug for ConnectionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionManager").field("targets", &self.targets()).finish_non_exhaustive()
    }
}

impl Channels {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.locked()
    }

    fn evict(&self, keep: Duration) {
        let is_unused = |_: &Target, managed: &mut ManagedChannel| {
            if managed.channel.holders() > 1 {
                managed.used = Moment::now();
            }
            managed.used.elapsed() >= keep
        };
        // The channels are dropped without the lock: with them goes the user's code, which may use the manager.
        let unused: Vec<_> = self.lock().by_target.extract_if(is_unused).collect();
        for (target, _) in unused {
            tracing::debug!(target = %escaped(&target), "unused channel removed");
        }
    }
}
