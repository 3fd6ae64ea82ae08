//! One line per change of the values that are watched.

use enlist::{ConfigChange, ConfigEntry, ConfigEvent, Freshness};
use serde_json::json;

use super::{content, plan::Kind, values::Values};
use crate::{
    freshness::PrintedFreshness,
    output::{Failure, To},
};

/// Content of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Revisions,
    Values,
}

/// Output of one line per change.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    values: &'a Values,
    to: To,
    show: Show,
    /// The first snapshot has been printed.
    is_synced: bool,
    freshness: PrintedFreshness,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(values: &'a Values, to: To, show: Show) -> Self {
        Self { values, to, show, is_synced: false, freshness: PrintedFreshness::default() }
    }

    /// Returns `true` once the values are known.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced
    }

    pub(crate) fn write(&mut self, change: &ConfigChange) -> Result<(), Failure> {
        for event in &change.events {
            match event {
                ConfigEvent::Added(entry) => self.event(Kind::Added, entry)?,
                ConfigEvent::Updated { new, .. } => self.event(Kind::Updated, new)?,
                ConfigEvent::Removed(entry) => self.event(Kind::Removed, entry)?,
            }
        }
        if !std::mem::replace(&mut self.is_synced, true) {
            let (count, revision) = (change.snapshot.len(), change.snapshot.revision());
            let object = json!({
                "event": "synced", "namespace": self.values.namespace.as_str(), "revision": revision.get(),
                "values": count,
            });
            self.values.output.line(self.to, format!("= {count} values at revision {revision}"), &object)?;
        }
        self.freshness(&change.freshness)
    }

    fn event(&self, kind: Kind, entry: &ConfigEntry) -> Result<(), Failure> {
        let mut object = self.values.entry_object(entry);
        object["event"] = kind.word().into();
        let mut text = format!("{} {} revision={}", kind.sign(), entry.path, entry.modified);
        if kind != Kind::Removed {
            text = format!("{text} bytes={}", entry.value.len());
        }
        if self.show == Show::Values {
            let value = (kind != Kind::Removed).then_some(&*entry.value);
            content::add_fields(&mut object, value);
            if let Some(value) = value {
                text = format!("{text} value={}", content::shown(value));
            }
        }
        Ok(self.values.output.line(self.to, text, &object)?)
    }

    /// Prints a line if the freshness has changed.
    fn freshness(&mut self, freshness: &Freshness) -> Result<(), Failure> {
        let Some((text, mut object)) = self.freshness.change(freshness) else { return Ok(()) };
        object["namespace"] = self.values.namespace.as_str().into();
        Ok(self.values.output.line(self.to, text, &object)?)
    }
}
