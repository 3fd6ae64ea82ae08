//! Decisions of a view: whether a state of the store is taken over. Pure functions; `follow.rs` acts on them.

use std::{fmt, sync::Arc};

use enlist::{ConfigScope, ConfigSnapshot, Revision, backend::caught_now};
use serde::de::DeserializeOwned;

use crate::{
    layers::{Document, Layers, mark},
    merged::convert,
    rejection::{Origin, Reason, Rejection},
};

/// The user's validation function. The error is its text.
pub(crate) type Validation<T> = Arc<dyn Fn(&T) -> Result<(), String> + Send + Sync>;

/// Rules by which values of the store become a value of the user's type.
pub(crate) struct Plan<T> {
    pub(crate) scope: ConfigScope,
    pub(crate) layers: Layers,
    pub(crate) validation: Option<Validation<T>>,
}

/// Last known state of the store, with which a new one is compared.
#[derive(Debug, Default)]
pub(crate) enum Known {
    /// None is known.
    #[default]
    Nothing,
    /// The copy on disk has values of the store at this revision.
    OnDisk(Revision),
    /// There may be a copy on disk, which could not be read.
    Unreadable,
    /// The snapshot that was decided last, whatever the decision was.
    Decided(ConfigSnapshot),
}

impl Known {
    /// Returns the copy on disk of an accepted `snapshot`. An empty one does not replace a copy that was not read.
    pub(crate) fn copy_of(&self, snapshot: &ConfigSnapshot) -> Option<SavedState> {
        let spared = matches!(self, Self::Unreadable) && snapshot.is_empty();
        (!spared).then(|| SavedState { revision: snapshot.revision(), documents: Document::all_of(snapshot) })
    }
}

/// Values of one state of the store, as the copy on disk has them.
#[derive(Clone)]
pub(crate) struct SavedState {
    pub(crate) revision: Revision,
    pub(crate) documents: Vec<Document>,
}

impl SavedState {
    /// The state of the store that the copy shows, if it has values.
    pub(crate) fn known(&self) -> Known {
        if self.documents.is_empty() { Known::Nothing } else { Known::OnDisk(self.revision) }
    }
}

/// Decision about a state of the store.
#[derive(Debug)]
pub(crate) enum Decision<T> {
    /// The values are those of the state before.
    Unchanged,
    /// The value is taken over.
    Accept(T),
    /// The last good value stays.
    Reject(Rejection),
}

/// The part of a snapshot that decisions need.
#[derive(Clone, Copy)]
pub(crate) struct State<'a> {
    pub(crate) revision: Revision,
    pub(crate) documents: &'a [Document],
}

impl<T: DeserializeOwned> Plan<T> {
    /// Decides about `snapshot`.
    pub(crate) fn decide(&self, snapshot: &ConfigSnapshot, known: &Known) -> Decision<T> {
        let went_back = match known {
            Known::Nothing | Known::Unreadable => false,
            Known::OnDisk(revision) => snapshot.revision() < *revision,
            Known::Decided(decided) if snapshot.diff(decided).is_empty() => return Decision::Unchanged,
            // A watch that was opened anew counts its epochs from the beginning.
            Known::Decided(decided) => snapshot.epoch() > decided.epoch() || snapshot.revision() < decided.revision(),
        };
        // A value that is deleted leaves the defaults; a store that lost its data leaves the last good value.
        if snapshot.is_empty() && went_back {
            return Decision::Reject(lost(snapshot.revision()));
        }
        let documents = Document::all_of(snapshot);
        match self.read(State { revision: snapshot.revision(), documents: &documents }) {
            Ok(value) => Decision::Accept(value),
            Err(rejection) => Decision::Reject(rejection),
        }
    }

    /// Merges, converts and validates the values of a state.
    pub(crate) fn read(&self, state: State<'_>) -> Result<T, Rejection> {
        let merged = self.layers.merged(&self.scope, state.documents)?;
        // Conversion and validation run code of the user's.
        let converted = caught_now(|| convert::<T>(merged)).map_err(|_| self.whole(state, Reason::Panicked))?;
        let value = converted.map_err(|fault| {
            let mark = fault.mark.clone();
            let (key, fault) = fault.into_texts();
            self.attributed(state, mark.as_deref(), Reason::Mismatch { key, fault })
        })?;
        let Some(validation) = &self.validation else { return Ok(value) };
        match caught_now(|| validation(&value)) {
            Ok(Ok(())) => Ok(value),
            Ok(Err(text)) => Err(self.whole(state, Reason::invalid(&text))),
            Err(_) => Err(self.whole(state, Reason::Panicked)),
        }
    }

    /// A rejection of the layer with this mark.
    fn attributed(&self, state: State<'_>, mark: Option<&str>, reason: Reason) -> Rejection {
        let origin = match mark {
            Some(mark::ENVIRONMENT) => Origin::Environment,
            Some(mark::DEFAULTS) => Origin::Defaults,
            Some(index) => {
                let index: Option<usize> = index.parse().ok();
                let Some(document) = index.and_then(|index| state.documents.get(index)) else {
                    return self.whole(state, reason);
                };
                let origin = Origin::Value(document.path.clone());
                return Rejection { origin, revision: document.modified, reason };
            }
            None => return self.whole(state, reason),
        };
        Rejection { origin, revision: state.revision, reason }
    }

    /// A rejection of the whole state. Of a view of one value it names that value.
    fn whole(&self, state: State<'_>, reason: Reason) -> Rejection {
        match (&self.scope, state.documents) {
            (ConfigScope::Path(path), [document]) => {
                Rejection { origin: Origin::Value(path.clone()), revision: document.modified, reason }
            }
            _ => Rejection { origin: Origin::Merged, revision: state.revision, reason },
        }
    }
}

impl<T> fmt::Debug for Plan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("scope", &self.scope).finish_non_exhaustive()
    }
}

fn lost(revision: Revision) -> Rejection {
    Rejection { origin: Origin::Merged, revision, reason: Reason::Lost }
}

#[cfg(test)]
#[cfg(all(feature = "json", feature = "toml"))]
mod tests {
    use super::*;
    use crate::format::Format;
    use enlist::{ConfigEntry, ConfigPath, Epoch, backend::ConfigSnapshotBuilder};
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Settings {
        port: u16,
        name: String,
    }

    fn plan(scope: ConfigScope) -> Plan<Settings> {
        let mut layers = Layers::default();
        layers.add_default_text(Format::Toml, "name = \"x\"").unwrap();
        let validation: Validation<Settings> = Arc::new(|settings: &Settings| match settings.port {
            0 => Err("port is 0".to_owned()),
            13 => panic!("on purpose"),
            _ => Ok(()),
        });
        Plan { scope, layers, validation: Some(validation) }
    }

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    fn document(at: &str, value: &str, modified: u64) -> Document {
        Document { path: path(at), value: value.as_bytes().into(), modified: Revision::new(modified) }
    }

    fn read(plan: &Plan<Settings>, documents: &[Document]) -> Result<Settings, String> {
        plan.read(State { revision: Revision::new(9), documents }).map_err(|rejection| rejection.to_string())
    }

    #[test]
    fn a_value_is_taken_over_only_if_it_parses_and_is_valid() {
        let plan = plan(ConfigScope::Path(path("a.json")));
        let read = |text: &str| read(&plan, &[document("a.json", text, 7)]);
        assert_eq!(read(r#"{"port": 1}"#), Ok(Settings { port: 1, name: "x".to_owned() }));
        for (text, expected) in [
            (r#"{"port": "#, "it is not JSON, see line 1, column 9"),
            (r#"{"port": "hunter2"}"#, "port: expected u16, found text"),
            (r#"{"port": 0}"#, "it is not valid: port is 0"),
            (r#"{"port": 13}"#, "the code that reads it panicked"),
            ("{}", "port: missing"),
        ] {
            assert_eq!(read(text).unwrap_err(), format!("a.json at revision 7: {expected}"));
        }
    }

    #[test]
    fn a_fault_in_a_subtree_names_the_value_that_has_it() {
        let plan = plan(ConfigScope::Below(path("a")));
        let read =
            |name: &str, port: &str| read(&plan, &[document("a/1.toml", name, 3), document("a/2.toml", port, 5)]);
        assert!(read("name = \"y\"", "port = 1").is_ok());
        assert_eq!(
            read("name = 1", "port = 1").unwrap_err(),
            "a/1.toml at revision 3: name: expected a string, found integer"
        );
        assert_eq!(
            read("x = 1", "port = true").unwrap_err(),
            "a/2.toml at revision 5: port: expected u16, found boolean"
        );
        assert_eq!(read("x = 1", "y = 1").unwrap_err(), "the merged configuration at revision 9: port: missing");
        assert_eq!(
            read("x = 1", "port = 0").unwrap_err(),
            "the merged configuration at revision 9: it is not valid: port is 0"
        );
    }

    #[test]
    fn an_empty_store_at_a_lower_revision_lost_its_data() {
        let mut settings = plan(ConfigScope::All);
        settings.layers.add_default_text(Format::Toml, "port = 80").unwrap();
        let snapshot = |revision, entries: Vec<ConfigEntry>| {
            let mut builder = ConfigSnapshotBuilder::new(Revision::new(revision), Epoch::default());
            builder.patch(entries);
            builder.build()
        };
        let entry = ConfigEntry::new(path("a.toml"), *b"port = 1", Revision::new(3), Revision::new(3));
        let decided = Known::Decided(snapshot(9, vec![entry]));
        // The epoch is the same, because the watch was opened anew.
        let lost = settings.decide(&snapshot(2, Vec::new()), &decided);
        assert!(matches!(lost, Decision::Reject(Rejection { reason: Reason::Lost, .. })), "{lost:?}");
        let deleted = settings.decide(&snapshot(10, Vec::new()), &decided);
        assert!(matches!(deleted, Decision::Accept(Settings { port: 80, .. })), "{deleted:?}");
    }

    #[test]
    fn an_absent_value_leaves_the_defaults_and_the_environment() {
        let mut plan = plan(ConfigScope::Path(path("a.json")));
        assert_eq!(read(&plan, &[]).unwrap_err(), "the merged configuration at revision 9: port: missing");
        let variables = |port: &str| Some([("APP_PORT".to_owned(), port.to_owned())].into());
        plan.layers.read_environment("APP", variables("80")).unwrap();
        assert_eq!(read(&plan, &[]).unwrap().port, 80);
        plan.layers.read_environment("APP", variables("hunter2")).unwrap();
        let rejection = read(&plan, &[document("a.json", r#"{"port": 1}"#, 7)]).unwrap_err();
        assert_eq!(rejection, "the environment at revision 9: port: expected u16, found text");
    }
}
