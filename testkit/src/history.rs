//! Judges what watchers showed and what registrations promised against what the store really held.
//!
//! Pure: a test records a [`History`] while things go wrong, and [`History::check`] says what was broken. The checker is tested
//! itself: good histories pass, and each way of spoiling one is flagged.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::lock_history::LockHistory;

/// By how much an age may be told too small, in microseconds.
pub const HONEST: u64 = 1_000_000;

/// Content of one key: when it was created and when it was last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Version {
    /// Time at which it was created.
    pub created: u64,
    /// Time at which it was last changed.
    pub modified: u64,
}

/// All instances of a service at one revision, by id.
pub type Picture = BTreeMap<String, Version>;

/// Events of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Every change of the store, in order.
    changes: Vec<Changed>,
    /// Pictures that each watcher showed, in order.
    watchers: Vec<Vec<(u64, Picture)>>,
    /// Age that each watcher reported.
    ages: Vec<Vec<Age>>,
    /// Watchers whose events, taken together, were not the picture that came with them, and at which revision.
    torn: Vec<(usize, u64)>,
    /// Instances whose deregistration had been confirmed when the store was at this revision.
    left: BTreeMap<String, u64>,
}

/// A change of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    revision: u64,
    id: String,
    /// Content of the key then.
    version: Option<Version>,
    /// Time at which it was known, in microseconds; it may have been so for longer.
    micros: u64,
}

/// Age that a watcher reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Age {
    micros: u64,
    /// The revision of the picture it had.
    revision: u64,
    /// Time since the picture had been proven, in microseconds.
    told: u64,
}

/// Promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The events that a watcher told did not lead to the picture that it showed.
    Torn {
        /// The watcher.
        watcher: usize,
        /// At this revision.
        revision: u64,
    },
    /// A watcher said that its picture was newer than it was.
    Dishonest {
        /// The watcher.
        watcher: usize,
        /// The revision that it showed.
        revision: u64,
        /// A change that it should have shown by its own word.
        missed: u64,
    },
    /// A watcher went back in time.
    WentBack {
        /// The watcher.
        watcher: usize,
        /// From this revision.
        from: u64,
        /// To this one.
        to: u64,
    },
    /// A watcher showed what the store did not hold at that revision.
    NeverSo {
        /// The watcher.
        watcher: usize,
        /// At this revision.
        revision: u64,
        /// Picture that it showed.
        shown: Picture,
        /// Content of the store.
        held: Picture,
    },
    /// A watcher showed nobody although there was always somebody.
    Empty {
        /// The watcher.
        watcher: usize,
        /// At this revision.
        revision: u64,
    },
    /// A watcher did not end at what the store holds.
    NotConverged {
        /// The watcher.
        watcher: usize,
    },
    /// An instance was put after its deregistration had been confirmed.
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
    /// A history in which nothing has happened, with so many watchers.
    pub fn new(watchers: usize) -> Self {
        Self { watchers: vec![Vec::new(); watchers], ages: vec![Vec::new(); watchers], ..Self::default() }
    }

    /// The store changed: at `revision` the key of `id` held `version`, or was deleted, which was known at `micros`.
    pub fn changed(&mut self, micros: u64, revision: u64, id: impl Into<String>, version: Option<Version>) {
        self.changes.push(Changed { revision, id: id.into(), version, micros });
    }

    /// At `micros` a watcher had the picture of `revision`, and said that it had been proven `age` microseconds before.
    ///
    /// # Panics
    ///
    /// If there is no such watcher.
    pub fn aged(&mut self, watcher: usize, micros: u64, revision: u64, age: u64) {
        self.ages[watcher].push(Age { micros, revision, told: age });
    }

    /// The events of a watcher, taken together, were not the picture that it showed at `revision`.
    pub fn torn(&mut self, watcher: usize, revision: u64) {
        self.torn.push((watcher, revision));
    }

    /// A watcher showed `picture` as of `revision`.
    ///
    /// # Panics
    ///
    /// If there is no such watcher.
    pub fn shown(&mut self, watcher: usize, revision: u64, picture: Picture) {
        self.watchers[watcher].push((revision, picture));
    }

    /// The deregistration of `id` was confirmed while the store was at `revision`.
    pub fn left(&mut self, id: impl Into<String>, revision: u64) {
        self.left.insert(id.into(), revision);
    }

    /// Number of watchers.
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// The watchers that have not shown `revision` yet.
    pub fn behind(&self, revision: u64) -> Vec<usize> {
        let shows = |watcher: &usize| self.watchers[*watcher].last().is_some_and(|(shown, _)| *shown >= revision);
        (0..self.watchers.len()).filter(|watcher| !shows(watcher)).collect()
    }

    /// Content of the store after each of its revisions.
    fn pictures(&self) -> BTreeMap<u64, OrdMap<String, Version>> {
        let mut changes: Vec<_> = self.changes.iter().collect();
        changes.sort_by_key(|change| change.revision);
        let mut held = OrdMap::new();
        let mut pictures = BTreeMap::new();
        for Changed { revision, id, version, .. } in changes {
            match version {
                Some(version) => held.insert(id.clone(), *version),
                None => held.remove(id),
            };
            pictures.insert(*revision, held.clone());
        }
        pictures
    }

    /// Times at which changes of the picture were known, in order. What is no instance changes none.
    fn known(&self, pictures: &BTreeMap<u64, OrdMap<String, Version>>) -> BTreeMap<u64, u64> {
        let mut known = BTreeMap::new();
        let mut newest = 0;
        for Changed { revision, micros, .. } in &self.changes {
            let before = pictures.range(..*revision).next_back().map(|(_, held)| held);
            let differs = match before {
                Some(before) => pictures.get(revision) != Some(before),
                None => pictures.get(revision).is_some_and(|held| !held.is_empty()),
            };
            if differs {
                newest = newest.max(*revision);
                known.insert(*micros, newest);
            }
        }
        known
    }

    /// Ages that were told too small.
    fn dishonest(&self, pictures: &BTreeMap<u64, OrdMap<String, Version>>) -> Vec<Violation> {
        let known = self.known(pictures);
        let mut violations = Vec::new();
        for (watcher, ages) in self.ages.iter().enumerate() {
            for Age { micros, revision, told } in ages {
                let by_its_word = micros.saturating_sub(told + HONEST);
                let due = known.range(..=by_its_word).next_back().map_or(0, |(_, due)| *due);
                if due > *revision {
                    violations.push(Violation::Dishonest { watcher, revision: *revision, missed: due });
                }
            }
        }
        violations
    }

    /// Everything that was broken.
    pub fn check(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let pictures = self.pictures();
        let held =
            |revision: u64| pictures.range(..=revision).next_back().map(|(_, held)| held.clone()).unwrap_or_default();
        // The first revision from which on there was always somebody; `None` if there was nobody at the end.
        let never_empty_from = pictures.iter().rev().take_while(|(_, held)| !held.is_empty()).last().map(|(at, _)| *at);
        let end = held(u64::MAX);
        for (watcher, shown) in self.watchers.iter().enumerate() {
            for pair in shown.windows(2) {
                let (from, to) = (pair[0].0, pair[1].0);
                if to < from {
                    violations.push(Violation::WentBack { watcher, from, to });
                }
            }
            for (revision, picture) in shown {
                let (revision, held) = (*revision, held(*revision));
                if !same(picture, &held) {
                    let held = held.into_iter().collect();
                    violations.push(Violation::NeverSo { watcher, revision, shown: picture.clone(), held });
                }
                if picture.is_empty() && never_empty_from.is_some_and(|from| from <= revision) {
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
        violations.extend(self.dishonest(&pictures));
        for Changed { revision, id, version, .. } in &self.changes {
            if version.is_some() && self.left.get(id).is_some_and(|left| revision > left) {
                violations.push(Violation::CameBack { id: id.clone(), revision: *revision });
            }
        }
        violations
    }
}

fn same(picture: &Picture, held: &OrdMap<String, Version>) -> bool {
    picture.len() == held.len() && picture.iter().zip(held).all(|(shown, held)| shown == held)
}

/// Everything that a run recorded, as it is kept for later: the program `judge` of this crate reads it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain input of a pure function")]
pub struct Record {
    /// What watchers showed and registrations promised.
    pub instances: History,
    /// What holders of a lock believed and did.
    pub locks: LockHistory,
}

impl Record {
    /// Everything that was broken, as text.
    pub fn check(&self) -> Vec<String> {
        let instances = self.instances.check().into_iter().map(|violation| violation.to_string());
        instances.chain(self.locks.check().into_iter().map(|violation| violation.to_string())).collect()
    }

    /// Writes it to a file.
    ///
    /// # Errors
    ///
    /// If that cannot be done.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// Reads it from a file.
    ///
    /// # Errors
    ///
    /// If there is no such file, or it holds something else.
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

    fn picture(versions: &[(&str, u64, u64)]) -> Picture {
        versions.iter().map(|(id, created, modified)| ((*id).to_owned(), version(*created, *modified))).collect()
    }

    fn good() -> History {
        let mut history = History::new(1);
        history.changed(2 * SECOND, 2, "a", Some(version(2, 2)));
        history.changed(3 * SECOND, 3, "b", Some(version(3, 3)));
        history.changed(4 * SECOND, 4, "a", Some(version(2, 4)));
        history.changed(5 * SECOND, 5, "b", None);
        // What is no instance is no change.
        history.changed(6 * SECOND, 6, "garbage", None);
        history.left("b", 5);
        history.aged(0, 4 * SECOND, 2, SECOND);
        history.aged(0, 60 * SECOND, 5, 0);
        history.shown(0, 2, picture(&[("a", 2, 2)]));
        history.shown(0, 4, picture(&[("a", 2, 4), ("b", 3, 3)]));
        history.shown(0, 5, picture(&[("a", 2, 4)]));
        history
    }

    /// Spoils a good history, and tells the kinds of what is found.
    fn spoiled(spoil: impl FnOnce(&mut History)) -> Vec<String> {
        let mut history = good();
        spoil(&mut history);
        let kind = |violation: &Violation| format!("{violation:?}").split(' ').next().unwrap_or_default().to_owned();
        history.check().iter().map(kind).collect()
    }

    #[test]
    fn a_good_history_passes_and_each_mutant_is_flagged() {
        assert_eq!(good().check(), []);
        assert_eq!(spoiled(|history| history.watchers[0].swap(1, 2)), ["WentBack", "NotConverged"]);
        assert_eq!(spoiled(|history| drop(history.watchers[0].pop())), ["NotConverged"]);
        assert_eq!(spoiled(|history| history.watchers[0].clear()), ["NotConverged"]);
        // Half a list, a late removal, an older version, one that never was.
        let show = |history: &mut History, shown| history.watchers[0][1].1 = shown;
        assert_eq!(spoiled(|history| show(history, picture(&[("a", 2, 4)]))), ["NeverSo"]);
        assert_eq!(spoiled(|history| show(history, picture(&[("a", 2, 2), ("b", 3, 3)]))), ["NeverSo"]);
        assert_eq!(spoiled(|history| show(history, picture(&[("a", 2, 4), ("c", 3, 3)]))), ["NeverSo"]);
        assert_eq!(spoiled(|history| show(history, Picture::new())), ["NeverSo", "Empty"]);
        // A put after the end.
        let late = |history: &mut History| {
            history.changed(70 * SECOND, 7, "b", Some(version(7, 7)));
            history.changed(70 * SECOND, 8, "b", None);
            history.shown(0, 8, picture(&[("a", 2, 4)]));
        };
        assert_eq!(spoiled(late), ["CameBack"]);
        // An age that is told too small, and events that lead elsewhere.
        assert_eq!(spoiled(|history| history.aged(0, 5 * SECOND, 2, SECOND)), ["Dishonest"]);
        assert_eq!(spoiled(|history| history.aged(0, 5 * SECOND - 1, 2, SECOND)), [""; 0]);
        assert_eq!(spoiled(|history| history.torn(0, 4)), ["Torn"]);
    }

    #[test]
    fn a_saved_record_is_judged_as_before() {
        let mut record = Record { instances: good(), locks: LockHistory::default() };
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
    fn an_empty_picture_is_fine_where_the_store_was_empty() {
        let mut history = History::new(1);
        history.shown(0, 1, Picture::new());
        history.changed(0, 2, "a", Some(version(2, 2)));
        history.changed(0, 3, "a", None);
        history.shown(0, 3, Picture::new());
        assert_eq!(history.check(), []);
    }
}
