//! The plan of an import: the changes from the stored values to those of the files, and their transactions. Pure.

use std::{collections::BTreeMap, sync::Arc};

use enlist::{ConfigEntry, ConfigPath, ConfigWrite, Expect, MAX_CONFIG_WRITES};

/// Maximum size of a transaction of several writes, in bytes of paths and values. etcd allows 1.5 MiB for the request,
/// which also has the conditions and the escaped keys.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Treatment of stored values for which there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extra {
    Keep,
    Delete,
}

/// Kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Added,
    Updated,
    Removed,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Updated => "updated",
            Self::Removed => "removed",
        }
    }

    pub(crate) fn sign(self) -> char {
        match self {
            Self::Added => '+',
            Self::Updated => '~',
            Self::Removed => '-',
        }
    }
}

/// One change.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) path: ConfigPath,
    /// The stored value.
    pub(crate) old: Option<Arc<ConfigEntry>>,
    /// The value of the file.
    pub(crate) new: Option<Vec<u8>>,
}

impl Step {
    pub(crate) fn kind(&self) -> Kind {
        match (&self.old, &self.new) {
            (None, _) => Kind::Added,
            (Some(_), Some(_)) => Kind::Updated,
            (Some(_), None) => Kind::Removed,
        }
    }

    /// Returns the write, which requires that the stored value is still the old one.
    pub(crate) fn into_write(self) -> ConfigWrite {
        let expect = self.old.as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.modified));
        match self.new {
            Some(value) => ConfigWrite::put(self.path, value, expect),
            None => ConfigWrite::delete(self.path, expect),
        }
    }

    /// Returns the share of the step in the size of a transaction.
    fn size(&self) -> usize {
        self.path.as_str().len() + self.new.as_ref().map_or(0, Vec::len)
    }
}

/// The changes of an import, ordered by path.
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Number of values that are equal.
    pub(crate) unchanged: usize,
    /// Number of stored values without a file that are kept.
    pub(crate) kept: usize,
}

impl Plan {
    /// Compares the stored values with those of the files.
    pub(crate) fn new(
        stored: impl IntoIterator<Item = Arc<ConfigEntry>>,
        files: BTreeMap<ConfigPath, Vec<u8>>,
        extra: Extra,
    ) -> Self {
        let mut plan = Self { steps: Vec::new(), unchanged: 0, kept: 0 };
        let mut files = files;
        for entry in stored {
            match files.remove(&entry.path) {
                Some(new) if *new == *entry.value => plan.unchanged += 1,
                None if extra == Extra::Keep => plan.kept += 1,
                new => plan.steps.push(Step { path: entry.path.clone(), old: Some(entry), new }),
            }
        }
        plan.steps.extend(files.into_iter().map(|(path, new)| Step { path, old: None, new: Some(new) }));
        plan.steps.sort_by(|a, b| a.path.cmp(&b.path));
        plan
    }

    /// Returns the number of changes of a kind.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.steps.iter().filter(|step| step.kind() == kind).count()
    }
}

/// Distributes the steps to as few transactions as their order allows. A step that is larger than the limit has one of
/// its own.
pub(crate) fn batches(steps: Vec<Step>) -> Vec<Vec<Step>> {
    let mut batches: Vec<Vec<Step>> = Vec::new();
    let mut bytes = 0;
    for step in steps {
        bytes += step.size();
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_CONFIG_WRITES && bytes <= MAX_BATCH_BYTES => batch.push(step),
            _ => {
                bytes = step.size();
                batches.push(vec![step]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use enlist::Revision;

    use super::*;

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    fn entry(text: &str, value: &str, modified: u64) -> Arc<ConfigEntry> {
        let modified = Revision::new(modified);
        Arc::new(ConfigEntry::new(path(text), value.as_bytes(), modified, modified))
    }

    fn files(values: &[(&str, &str)]) -> BTreeMap<ConfigPath, Vec<u8>> {
        values.iter().map(|(text, value)| (path(text), value.as_bytes().to_vec())).collect()
    }

    fn added(text: &str, size: usize) -> Step {
        Step { path: path(text), old: None, new: Some(vec![0; size]) }
    }

    #[test]
    fn only_differences_are_written_under_their_revision() {
        let stored = [entry("a", "1", 5), entry("b", "1", 6), entry("d", "1", 7)];
        let new = [("a", "1"), ("b", "2"), ("c", "3")];
        for (extra, kept, removed) in [(Extra::Keep, 1, 0), (Extra::Delete, 0, 1)] {
            let plan = Plan::new(stored.clone(), files(&new), extra);
            assert_eq!((plan.unchanged, plan.kept), (1, kept));
            assert_eq!([Kind::Added, Kind::Updated, Kind::Removed].map(|kind| plan.count(kind)), [1, 1, removed]);
            let writes: Vec<_> = plan.steps.into_iter().map(Step::into_write).collect();
            let mut expected = vec![
                ConfigWrite::put(path("b"), b"2", Expect::Revision(Revision::new(6))),
                ConfigWrite::put(path("c"), b"3", Expect::Absent),
            ];
            if extra == Extra::Delete {
                expected.push(ConfigWrite::delete(path("d"), Expect::Revision(Revision::new(7))));
            }
            assert_eq!(writes, expected);
        }
    }

    #[test]
    fn transactions_are_as_few_as_the_limits_allow() {
        let sizes = |steps: Vec<Step>| batches(steps).iter().map(Vec::len).collect::<Vec<_>>();
        assert!(sizes(Vec::new()).is_empty());
        let small = |count: usize| (0..count).map(|number| added(&number.to_string(), 1)).collect::<Vec<_>>();
        assert_eq!(sizes(small(100)), [100]);
        assert_eq!(sizes(small(101)), [100, 1]);
        let half = MAX_BATCH_BYTES / 2 - 1;
        assert_eq!(sizes(vec![added("a", half), added("b", half), added("c", half)]), [2, 1]);
        assert_eq!(sizes(vec![added("a", 1), added("b", MAX_BATCH_BYTES), added("c", 1)]), [1, 1, 1]);
    }
}
