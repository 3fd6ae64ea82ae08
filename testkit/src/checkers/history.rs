//! Checker for watchers and registrations: compares their recorded history with the content of the store.
//!
//! A test records a [`History`] during a run with faults. [`History::check`] is pure and returns the violations. The
//! checker is tested itself: valid histories pass, and each mutant of one is flagged.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use enlist::{Change, Entry, Event};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::checkers::{lock_history::LockHistory, semaphore_history::SemaphoreHistory};

/// Tolerance for an age that is reported too small, in microseconds.
pub const AGE_TOLERANCE: u64 = 1_000_000;

/// Revisions of the creation and the last change of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Version {
    /// Revision of its creation.
    pub created: u64,
    /// Revision of its last change.
    pub modified: u64,
}

/// Versions of all instances of a service at one revision, by id.
pub type Versions = BTreeMap<String, Version>;

/// Events of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Every change of the store, in order.
    changes: Vec<Changed>,
    /// Views that each watcher returned, in order.
    watchers: Vec<Vec<(u64, Versions)>>,
    /// Age that each watcher reported.
    ages: Vec<Vec<Age>>,
    /// Watchers whose folded events differed from the snapshot, with the revision.
    torn: Vec<(usize, u64)>,
    /// Instances with a confirmed deregistration, and the store's revision at that time.
    #[serde(rename = "left")]
    deregistered: BTreeMap<String, u64>,
}

/// A change of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    revision: u64,
    id: String,
    /// Content of the key after the change; `None` after a deletion.
    version: Option<Version>,
    /// Time at which the change was known, in microseconds. It may have been made earlier.
    micros: u64,
}

/// Age that a watcher reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Age {
    micros: u64,
    /// Revision of the watcher's view.
    revision: u64,
    /// Reported age of the view, in microseconds.
    #[serde(rename = "told")]
    reported: u64,
}

/// Violation of a guarantee.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The folded events of a watcher differed from its snapshot.
    Torn {
        /// The watcher.
        watcher: usize,
        /// At this revision.
        revision: u64,
    },
    /// A watcher reported an age smaller than the age of its view.
    Dishonest {
        /// The watcher.
        watcher: usize,
        /// Revision of its view.
        revision: u64,
        /// Revision of a change that its view should have had, by the reported age.
        missed: u64,
    },
    /// The revisions of a watcher decreased.
    WentBack {
        /// The watcher.
        watcher: usize,
        /// From this revision.
        from: u64,
        /// To this one.
        to: u64,
    },
    /// A watcher showed a view that the store did not have at that revision.
    NeverSo {
        /// The watcher.
        watcher: usize,
        /// At this revision.
        revision: u64,
        /// View that it showed.
        shown: Versions,
        /// Content of the store.
        held: Versions,
    },
    /// A watcher showed an empty view although the store was never empty.
    Empty {
        /// The watcher.
        watcher: usize,
        /// At this revision.
        revision: u64,
    },
    /// The last view of a watcher differs from the store.
    NotConverged {
        /// The watcher.
        watcher: usize,
    },
    /// An instance was stored again after its deregistration had been confirmed.
    CameBack {
        /// The instance.
        id: String,
        /// At this revision.
        revision: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl History {
    /// Returns an empty history with this number of watchers.
    pub fn new(watchers: usize) -> Self {
        Self { watchers: vec![Vec::new(); watchers], ages: vec![Vec::new(); watchers], ..Self::default() }
    }

    /// Records a change of the store: at `revision` the key of `id` had `version`, or was deleted. This was known at
    /// `micros`.
    pub fn changed(&mut self, micros: u64, revision: u64, id: impl Into<String>, version: Option<Version>) {
        self.changes.push(Changed { revision, id: id.into(), version, micros });
    }

    /// Records a reported age: at `micros` a watcher had the view of `revision`, and reported an age of `age`
    /// microseconds.
    ///
    /// # Panics
    ///
    /// If there is no such watcher.
    pub fn aged(&mut self, watcher: usize, micros: u64, revision: u64, age: u64) {
        self.ages[watcher].push(Age { micros, revision, reported: age });
    }

    /// Records that the folded events of a watcher differed from its snapshot at `revision`.
    pub fn torn(&mut self, watcher: usize, revision: u64) {
        self.torn.push((watcher, revision));
    }

    /// Records that a watcher showed `view` at `revision`.
    ///
    /// # Panics
    ///
    /// If there is no such watcher.
    pub fn shown(&mut self, watcher: usize, revision: u64, view: Versions) {
        self.watchers[watcher].push((revision, view));
    }

    /// Records that the deregistration of `id` was confirmed while the store was at `revision`.
    pub fn deregistered(&mut self, id: impl Into<String>, revision: u64) {
        self.deregistered.insert(id.into(), revision);
    }

    /// Number of watchers.
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// Number of views that the watchers showed.
    pub fn views(&self) -> usize {
        self.watchers.iter().map(Vec::len).sum()
    }

    /// Number of ages that the watchers reported.
    pub fn ages(&self) -> usize {
        self.ages.iter().map(Vec::len).sum()
    }

    /// Returns the watchers whose last view is older than `revision`, or differs from `content`: a watch that has lost
    /// an event reaches the revision without it.
    pub fn behind(&self, revision: u64, content: &Versions) -> Vec<usize> {
        let last = |watcher: &usize| self.watchers[*watcher].last();
        let shows = |watcher: &usize| last(watcher).is_some_and(|(shown, view)| *shown >= revision && view == content);
        (0..self.watchers.len()).filter(|watcher| !shows(watcher)).collect()
    }

    /// Returns the content of the store after each of its revisions.
    fn contents(&self) -> BTreeMap<u64, OrdMap<String, Version>> {
        let mut changes: Vec<_> = self.changes.iter().collect();
        changes.sort_by_key(|change| change.revision);
        let mut held = OrdMap::new();
        let mut contents = BTreeMap::new();
        for Changed { revision, id, version, .. } in changes {
            match version {
                Some(version) => held.insert(id.clone(), *version),
                None => held.remove(id),
            };
            contents.insert(*revision, held.clone());
        }
        contents
    }

    /// Returns the times at which changes of instances were known, in order. Other values change no instance.
    fn known(&self, contents: &BTreeMap<u64, OrdMap<String, Version>>) -> BTreeMap<u64, u64> {
        let mut known = BTreeMap::new();
        let mut newest = 0;
        for Changed { revision, micros, .. } in &self.changes {
            let before = contents.range(..*revision).next_back().map(|(_, held)| held);
            let differs = match before {
                Some(before) => contents.get(revision) != Some(before),
                None => contents.get(revision).is_some_and(|held| !held.is_empty()),
            };
            if differs {
                newest = newest.max(*revision);
                known.insert(*micros, newest);
            }
        }
        known
    }

    /// Returns the ages that were reported too small: the view was not the content of the store at any time since.
    fn wrong_ages(&self, contents: &BTreeMap<u64, OrdMap<String, Version>>) -> Vec<Violation> {
        let known = self.known(contents);
        let mut violations = Vec::new();
        for (watcher, ages) in self.ages.iter().enumerate() {
            for Age { micros, revision, reported } in ages {
                // Nothing was changed before the start of the record.
                let Some(proven_at) = micros.checked_sub(reported + AGE_TOLERANCE) else { continue };
                let due = known.range(..=proven_at).next_back().map_or(0, |(_, due)| *due);
                let now = known.range(..=micros).next_back().map_or(0, |(_, now)| *now);
                let view = contents.range(..=*revision).next_back().map(|(_, held)| held.clone()).unwrap_or_default();
                if due > *revision && !contents.range(due..=now).any(|(_, held)| *held == view) {
                    violations.push(Violation::Dishonest { watcher, revision: *revision, missed: due });
                }
            }
        }
        violations
    }

    /// Returns all violations.
    pub fn check(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let contents = self.contents();
        let held =
            |revision: u64| contents.range(..=revision).next_back().map(|(_, held)| held.clone()).unwrap_or_default();
        // First revision after which the store was never empty; `None` if it was empty at the end.
        let never_empty_from = contents.iter().rev().take_while(|(_, held)| !held.is_empty()).last().map(|(at, _)| *at);
        let end = held(u64::MAX);
        for (watcher, shown) in self.watchers.iter().enumerate() {
            for pair in shown.windows(2) {
                let (from, to) = (pair[0].0, pair[1].0);
                if to < from {
                    violations.push(Violation::WentBack { watcher, from, to });
                }
            }
            for (revision, view) in shown {
                let (revision, held) = (*revision, held(*revision));
                if !same(view, &held) {
                    let held = held.into_iter().collect();
                    violations.push(Violation::NeverSo { watcher, revision, shown: view.clone(), held });
                }
                if view.is_empty() && never_empty_from.is_some_and(|from| from <= revision) {
                    violations.push(Violation::Empty { watcher, revision });
                }
            }
            if shown.last().is_none_or(|(_, last)| !same(last, &end)) {
                violations.push(Violation::NotConverged { watcher });
            }
        }
        violations.extend(
            self.torn.iter().map(|(watcher, revision)| Violation::Torn { watcher: *watcher, revision: *revision }),
        );
        violations.extend(self.wrong_ages(&contents));
        for Changed { revision, id, version, .. } in &self.changes {
            if version.is_some() && self.deregistered.get(id).is_some_and(|at| revision > at) {
                violations.push(Violation::CameBack { id: id.clone(), revision: *revision });
            }
        }
        violations
    }
}

fn same(view: &Versions, held: &OrdMap<String, Version>) -> bool {
    view.len() == held.len() && view.iter().zip(held).all(|(shown, held)| shown == held)
}

/// Folds the events of one watcher, and compares the result with the snapshots that the watcher returned.
#[derive(Clone, Debug, Default)]
pub struct WatchRecorder {
    folded: Versions,
}

impl WatchRecorder {
    /// Records a change that the watcher with this number returned. Returns the versions in its snapshot.
    ///
    /// # Panics
    ///
    /// If `history` has no such watcher.
    pub fn record(&mut self, history: &mut History, watcher: usize, change: &Change) -> Versions {
        let version = |entry: &Entry| {
            let version = Version { created: entry.created().get(), modified: entry.modified().get() };
            (entry.instance().id().to_string(), version)
        };
        for event in &change.events {
            match event {
                Event::Added(entry) | Event::Updated { new: entry, .. } => self.folded.extend([version(entry)]),
                Event::Removed(entry) => drop(self.folded.remove(&version(entry).0)),
            }
        }
        let revision = change.snapshot.revision().get();
        let versions: Versions = change.snapshot.entries().map(|entry| version(entry)).collect();
        if self.folded != versions {
            history.torn(watcher, revision);
        }
        history.shown(watcher, revision, versions.clone());
        versions
    }
}

/// Record of a run. The program `judge` of this crate reads a saved one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Record {
    /// History of watchers and registrations.
    pub instances: History,
    /// History of the holders of a lock.
    pub locks: LockHistory,
    /// History of the holders of a semaphore.
    #[serde(default)]
    pub semaphore: SemaphoreHistory,
}

impl Record {
    /// Returns all violations as text.
    pub fn check(&self) -> Vec<String> {
        let instances = self.instances.check().into_iter().map(|violation| violation.to_string());
        let locks = self.locks.check().into_iter().map(|violation| violation.to_string());
        let semaphore = self.semaphore.check().into_iter().map(|violation| violation.to_string());
        instances.chain(locks).chain(semaphore).collect()
    }

    /// Writes the record to a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// Reads a record from a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is no record.
    pub fn load(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn version(created: u64, modified: u64) -> Version {
        Version { created, modified }
    }

    fn view(versions: &[(&str, u64, u64)]) -> Versions {
        versions.iter().map(|(id, created, modified)| ((*id).to_owned(), version(*created, *modified))).collect()
    }

    fn good() -> History {
        let mut history = History::new(1);
        history.changed(2 * SECOND, 2, "a", Some(version(2, 2)));
        history.changed(3 * SECOND, 3, "b", Some(version(3, 3)));
        history.changed(4 * SECOND, 4, "a", Some(version(2, 4)));
        history.changed(5 * SECOND, 5, "b", None);
        // A value that is no instance changes no view.
        history.changed(6 * SECOND, 6, "garbage", None);
        history.deregistered("b", 5);
        history.aged(0, 4 * SECOND, 2, SECOND);
        history.aged(0, 60 * SECOND, 5, 0);
        history.shown(0, 2, view(&[("a", 2, 2)]));
        history.shown(0, 4, view(&[("a", 2, 4), ("b", 3, 3)]));
        history.shown(0, 5, view(&[("a", 2, 4)]));
        history
    }

    /// Changes a valid history, and returns the kinds of the violations found.
    fn spoiled(spoil: impl FnOnce(&mut History)) -> Vec<String> {
        let mut history = good();
        spoil(&mut history);
        let kind = |violation: &Violation| format!("{violation:?}").split(' ').next().unwrap_or_default().to_owned();
        history.check().iter().map(kind).collect()
    }

    #[test]
    fn a_view_without_a_lost_deletion_is_behind() {
        let mut history = good();
        let stored = view(&[("a", 2, 4)]);
        assert_eq!(history.behind(5, &stored), [0; 0]);
        assert_eq!(history.behind(6, &stored), [0]);
        assert_eq!(history.behind(5, &view(&[("a", 2, 2)])), [0], "a lost change");
        history.shown(0, 7, view(&[("a", 2, 4), ("b", 3, 3)]));
        assert_eq!(history.behind(7, &stored), [0]);
        assert_eq!(History::new(1).behind(0, &Versions::new()), [0], "it has shown nothing");
    }

    #[test]
    fn valid_histories_pass_and_each_mutant_is_flagged() {
        assert_eq!(good().check(), []);
        assert_eq!(spoiled(|history| history.watchers[0].swap(1, 2)), ["WentBack", "NotConverged"]);
        assert_eq!(spoiled(|history| drop(history.watchers[0].pop())), ["NotConverged"]);
        assert_eq!(spoiled(|history| history.watchers[0].clear()), ["NotConverged"]);
        // Half a list, a late removal, an older version, an instance that never existed.
        let show = |history: &mut History, shown| history.watchers[0][1].1 = shown;
        assert_eq!(spoiled(|history| show(history, view(&[("a", 2, 4)]))), ["NeverSo"]);
        assert_eq!(spoiled(|history| show(history, view(&[("a", 2, 2), ("b", 3, 3)]))), ["NeverSo"]);
        assert_eq!(spoiled(|history| show(history, view(&[("a", 2, 4), ("c", 3, 3)]))), ["NeverSo"]);
        assert_eq!(spoiled(|history| show(history, Versions::new())), ["NeverSo", "Empty"]);
        // A write after the deregistration.
        let late = |history: &mut History| {
            history.changed(70 * SECOND, 7, "b", Some(version(7, 7)));
            history.changed(70 * SECOND, 8, "b", None);
            history.shown(0, 8, view(&[("a", 2, 4)]));
        };
        assert_eq!(spoiled(late), ["CameBack"]);
        // An age that is too small, and events that differ from the snapshot.
        assert_eq!(spoiled(|history| history.aged(0, 5 * SECOND, 2, SECOND)), ["Dishonest"]);
        assert_eq!(spoiled(|history| history.aged(0, 5 * SECOND - 1, 2, SECOND)), [""; 0]);
        assert_eq!(spoiled(|history| history.torn(0, 4)), ["Torn"]);
    }

    #[test]
    fn records_of_all_watchers_are_counted() {
        let mut history = History::new(2);
        history.shown(0, 1, Versions::new());
        history.shown(1, 1, Versions::new());
        history.shown(1, 2, Versions::new());
        history.aged(1, 0, 2, 0);
        assert_eq!((history.watchers(), history.views(), history.ages()), (2, 3, 1));
    }

    #[test]
    fn a_saved_record_has_the_same_violations() {
        let mut record = Record { instances: good(), ..Record::default() };
        record.locks.ended(1, Vec::new());
        record.instances.watchers[0].clear();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new").join("record.json");
        record.save(&path).unwrap();
        let loaded = Record::load(&path).unwrap();
        assert_eq!(loaded, record);
        assert_eq!(loaded.check().len(), 2, "{:?}", loaded.check());
    }

    #[test]
    fn a_view_that_is_current_again_is_fresh() {
        let mut history = History::new(1);
        history.changed(2 * SECOND, 2, "a", Some(version(2, 2)));
        history.changed(3 * SECOND, 3, "a", None);
        history.aged(0, 3 * SECOND, 1, 0);
        assert_eq!(history.wrong_ages(&history.contents()), []);
        history.changed(9 * SECOND, 4, "a", Some(version(4, 4)));
        history.aged(0, 10 * SECOND, 1, 0);
        assert_eq!(history.wrong_ages(&history.contents()).len(), 1);
    }

    #[test]
    fn an_age_from_before_the_record_is_honest() {
        let mut history = History::new(1);
        history.changed(0, 2, "a", Some(version(2, 2)));
        history.aged(0, AGE_TOLERANCE - 1, 1, 0);
        assert_eq!(history.wrong_ages(&history.contents()), []);
        history.aged(0, AGE_TOLERANCE, 1, 0);
        assert_eq!(history.wrong_ages(&history.contents()).len(), 1);
    }

    #[test]
    fn empty_views_of_an_empty_store_are_valid() {
        let mut history = History::new(1);
        history.shown(0, 1, Versions::new());
        history.changed(0, 2, "a", Some(version(2, 2)));
        history.changed(0, 3, "a", None);
        history.shown(0, 3, Versions::new());
        assert_eq!(history.check(), []);
    }
}
