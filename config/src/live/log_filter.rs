//! The log level as a value of configuration.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, de};
use tracing_subscriber::{Registry, filter::Targets, reload};

/// Levels by target, such as `info` or `info,my_app::db=debug`, in the syntax of
/// [`Targets`](tracing_subscriber::filter::Targets). In configuration it is a text.
#[derive(Clone, PartialEq)]
pub struct LogFilter {
    text: String,
    targets: Targets,
}

/// A text that is no [`LogFilter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidLogFilter;

impl fmt::Display for InvalidLogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a log filter is a level, or a list such as info,my_app::db=debug")
    }
}

impl std::error::Error for InvalidLogFilter {}

impl LogFilter {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for LogFilter {
    type Err = InvalidLogFilter;

    fn from_str(text: &str) -> Result<Self, InvalidLogFilter> {
        let targets = text.parse().map_err(|_| InvalidLogFilter)?;
        Ok(Self { text: text.to_owned(), targets })
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.text).finish()
    }
}

impl<'de> Deserialize<'de> for LogFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Changes the levels of a running program. Clones change the same filter.
#[derive(Clone)]
pub struct LogHandle(Arc<dyn Fn(&LogFilter) + Send + Sync>);

impl LogHandle {
    /// A handle for a filter that was created with [`reload::Layer::new`], of any subscriber.
    pub fn new<S: 'static>(handle: reload::Handle<Targets, S>) -> Self {
        Self(Arc::new(move |filter| {
            // It fails only if the subscriber is gone. Then there is nothing to log to.
            let _ = handle.reload(filter.targets.clone());
        }))
    }

    /// Sets the levels.
    pub fn set(&self, filter: &LogFilter) {
        (self.0)(filter);
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle").finish_non_exhaustive()
    }
}

/// A layer with `filter` for a [`Registry`], and the handle that changes it.
///
/// ```
/// use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (filter, handle) = enlist_config::log_filter(&"info".parse()?);
/// tracing_subscriber::registry().with(filter).with(tracing_subscriber::fmt::layer()).init();
/// // With `ConfigView::on_change`: `move |settings| handle.set(&settings.log)`.
/// handle.set(&"info,my_app=debug".parse()?);
/// # Ok(())
/// # }
/// ```
pub fn log_filter(filter: &LogFilter) -> (reload::Layer<Targets, Registry>, LogHandle) {
    let (layer, handle) = reload::Layer::new(filter.targets.clone());
    (layer, LogHandle::new(handle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn a_filter_of_the_configuration_is_checked() {
        let read = |json: &str| serde_json::from_str::<LogFilter>(json).ok();
        assert_eq!(read("\"info,a::b=debug\"").unwrap().as_str(), "info,a::b=debug");
        assert_eq!(read("\"a=loud\""), None);
        assert_eq!(read("7"), None);
    }

    #[test]
    fn the_level_changes_while_the_program_runs() {
        let (layer, handle) = log_filter(&"warn".parse().unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let enabled = || tracing::enabled!(tracing::Level::INFO);
            assert!(!enabled());
            handle.set(&"info".parse().unwrap());
            assert!(enabled());
            handle.clone().set(&"other=info".parse().unwrap());
            assert!(!enabled());
        });
    }
}
