//! Subscriber of logs for tests.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock, Mutex},
};

use enlist::backend::MutexExt as _;
use tracing::{Dispatch, subscriber::NoSubscriber};

/// A second subscriber. With a single one, tracing asks that of the thread in which an event occurs first whether it is
/// of interest: a test without a subscriber would decide for all others.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// Fields of an event, the message included.
type Fields = BTreeMap<&'static str, String>;

/// Events that a module has logged.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    module: &'static str,
    events: Arc<Mutex<Vec<Fields>>>,
}

impl Logged {
    /// A subscriber for the events of a module.
    pub(crate) fn of(module: &'static str) -> Self {
        LazyLock::force(&SECOND);
        Self { module, events: Arc::default() }
    }

    /// The messages so far, each with the value of a field.
    pub(crate) fn messages(&self, field: &str) -> Vec<(String, String)> {
        let events = self.events.locked();
        let text = |event: &Fields, field: &str| event.get(field).cloned().unwrap_or_default();
        events.iter().map(|event| (text(event, "message"), text(event, field))).collect()
    }
}

impl tracing::Subscriber for Logged {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == self.module
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn fmt::Debug| {
            fields.insert(field.name(), format!("{value:?}"));
        });
        self.events.locked().push(fields);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
