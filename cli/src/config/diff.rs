//! `enlist config diff`: differences between versions of a value, and between files and stored values.

use std::{path::Path, sync::Arc, time::Duration};

use enlist::{ConfigPath, ConfigVersion, Revision};
use similar::TextDiff;

use super::{
    directory, file_names,
    plan::{Extra, Kind, Plan, Step},
    single::read,
    values::{Values, absent, below, path, root},
};
use crate::{
    args::ConfigDiff,
    output::{Failure, Paint, Text, To},
};

/// Lines around each difference.
const CONTEXT: usize = 3;

/// Time after which a difference need not be minimal any more.
const MINIMAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Name of the side without a value.
const NO_VALUE: &str = "/dev/null";

/// One side of a difference.
#[derive(Clone)]
struct Side {
    label: String,
    value: Option<Arc<[u8]>>,
    /// Revision of a stored value.
    revision: Option<Revision>,
}

impl Side {
    fn version(path: &ConfigPath, version: ConfigVersion) -> Self {
        let label = match version.value {
            Some(_) => format!("{path} (revision {})", version.modified),
            None => NO_VALUE.to_owned(),
        };
        Self { label, value: version.value, revision: Some(version.modified) }
    }

    fn file(label: String, value: Option<Vec<u8>>) -> Self {
        Self { label, value: value.map(Arc::from), revision: None }
    }

    fn none() -> Self {
        Self { label: NO_VALUE.to_owned(), value: None, revision: None }
    }
}

/// Two states of a value.
struct Pair {
    path: ConfigPath,
    old: Side,
    new: Side,
}

/// Difference of two values.
#[derive(Debug, PartialEq, Eq)]
enum Difference {
    None,
    /// Lines of a unified diff.
    Lines(String),
    /// One of the values is no text.
    Binary,
}

pub(crate) async fn diff(values: &Values, diff: &ConfigDiff) -> Result<u8, Failure> {
    let pairs = match (&diff.path, &diff.dir) {
        (_, Some(dir)) => with_directory(values, dir, root(diff.below.as_deref())?.as_ref()).await?,
        (Some(text), None) => {
            let path = path(text)?;
            let (old, new) = match &diff.file {
                Some(file) => with_file(values, &path, file).await?,
                None => between(values, &path, diff.from, diff.to).await?,
            };
            vec![Pair { path, old, new }]
        }
        (None, None) => return Err(Failure::usage("the path, or --dir, is missing")),
    };
    let mut differ = false;
    for pair in &pairs {
        let difference = difference(&pair.old, &pair.new);
        differ |= difference != Difference::None;
        print(values, pair, difference)?;
    }
    Ok(u8::from(differ && diff.exit_code))
}

/// Compares the stored values with the files of a directory.
async fn with_directory(values: &Values, dir: &Path, root: Option<&ConfigPath>) -> Result<Vec<Pair>, Failure> {
    let files = directory::read(dir, root)?.values;
    let snapshot = values.list(&below(root)).await?;
    let plan = Plan::new(snapshot.entries().map(Arc::clone), files, Extra::Delete);
    let paths: Vec<_> = plan.steps.iter().filter(|step| step.kind() != Kind::Removed).map(|step| &step.path).collect();
    let names = file_names::names(root, &paths).unwrap_or_default();
    let places: Vec<_> =
        plan.steps.iter().map(|step| names.get(&step.path).map(|names| directory::place(dir, names))).collect();
    let pairs = plan.steps.into_iter().zip(places).map(|(step, place)| {
        let Step { path, old, new } = step;
        let old = old.map_or_else(Side::none, |entry| {
            Side::version(&path, ConfigVersion::new(Some(Arc::clone(&entry.value)), entry.modified))
        });
        let new = match (new, place) {
            (Some(new), Some(place)) => Side::file(place.display().to_string(), Some(new)),
            (Some(new), None) => Side::file(path.to_string(), Some(new)),
            (None, _) => Side::none(),
        };
        Pair { path, old, new }
    });
    Ok(pairs.collect())
}

/// Compares the stored value with a file.
async fn with_file(values: &Values, path: &ConfigPath, file: &Path) -> Result<(Side, Side), Failure> {
    let new = Side::file(file.display().to_string(), Some(read(file)?));
    let old = values.get(path).await?.map_or_else(Side::none, |entry| {
        Side::version(path, ConfigVersion::new(Some(Arc::clone(&entry.value)), entry.modified))
    });
    Ok((old, new))
}

/// Compares two versions of a value.
async fn between(
    values: &Values,
    path: &ConfigPath,
    from: Option<u64>,
    to: Option<u64>,
) -> Result<(Side, Side), Failure> {
    let new = match to {
        Some(revision) => values.version_at(path, revision).await?,
        None => values.versions(path, 1).await?.pop().ok_or_else(|| absent(path))?,
    };
    let before = new.modified.get().saturating_sub(1);
    let old = match from {
        Some(revision) => Side::version(path, values.version_at(path, revision).await?),
        None if created(values, path).await? == Some(new.modified) => Side::none(),
        None => Side::version(path, values.version_at(path, before).await?),
    };
    Ok((old, Side::version(path, new)))
}

/// Returns the revision at which the stored value was created.
async fn created(values: &Values, path: &ConfigPath) -> Result<Option<Revision>, Failure> {
    Ok(values.get(path).await?.map(|entry| entry.created))
}

/// Prints the difference of a pair, if there is one.
fn print(values: &Values, pair: &Pair, difference: Difference) -> Result<(), Failure> {
    let Pair { path, old, new } = pair;
    if difference == Difference::None {
        return Ok(());
    }
    if values.output.json {
        let mut object = values.object(path);
        let kind = match (&old.value, &new.value) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
            _ => Kind::Updated,
        };
        object["change"] = kind.word().into();
        object["from"] = old.revision.map(Revision::get).into();
        object["to"] = new.revision.map(Revision::get).into();
        object["diff"] = match difference {
            Difference::Lines(lines) => lines.into(),
            _ => serde_json::Value::Null,
        };
        values.output.line(To::Stdout, "", &object)?;
        return Ok(());
    }
    match difference {
        Difference::Lines(lines) => {
            for line in lines.lines() {
                values.output.line(To::Stdout, painted(line), &())?;
            }
        }
        _ => values.output.line(To::Stdout, format!("{} and {} differ, and are no text", old.label, new.label), &())?,
    }
    Ok(())
}

/// Returns a line of a unified diff with its colour.
fn painted(line: &str) -> Text {
    let paint = match line.chars().next() {
        Some('+') => Paint::Good,
        Some('-') => Paint::Bad,
        Some('@') => Paint::Faint,
        _ => return line.into(),
    };
    Text::painted(paint, line, "")
}

/// Returns the difference of two values.
fn difference(old: &Side, new: &Side) -> Difference {
    let is_equal = match (&old.value, &new.value) {
        (Some(a), Some(b)) => a == b,
        (a, b) => a.is_none() == b.is_none(),
    };
    if is_equal {
        return Difference::None;
    }
    let text = |side: &Side| std::str::from_utf8(side.value.as_deref().unwrap_or_default()).map(str::to_owned);
    let (Ok(before), Ok(after)) = (text(old), text(new)) else { return Difference::Binary };
    let lines = TextDiff::configure().timeout(MINIMAL_TIMEOUT).diff_lines(before.as_str(), after.as_str());
    let unified = lines.unified_diff().context_radius(CONTEXT).header(&old.label, &new.label).to_string();
    if unified.is_empty() {
        // An empty value has no lines.
        return Difference::Lines(format!("--- {}\n+++ {}\n", old.label, new.label));
    }
    Difference::Lines(unified)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(label: &str, value: Option<&[u8]>) -> Side {
        Side::file(label.to_owned(), value.map(<[u8]>::to_vec))
    }

    fn between(old: Option<&[u8]>, new: Option<&[u8]>) -> Difference {
        difference(&side("old", old), &side("new", new))
    }

    #[test]
    fn differences_are_unified_lines() {
        let lines = |text: &str| Difference::Lines(text.to_owned());
        assert_eq!(between(Some(b"a\n"), Some(b"a\n")), Difference::None);
        assert_eq!(between(None, None), Difference::None);
        assert_eq!(
            between(Some(b"a\nb\n"), Some(b"a\nc")),
            lines("--- old\n+++ new\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n\\ No newline at end of file\n")
        );
        assert_eq!(between(None, Some(b"a\n")), lines("--- old\n+++ new\n@@ -0,0 +1 @@\n+a\n"));
        assert_eq!(between(None, Some(b"")), lines("--- old\n+++ new\n"));
        assert_eq!(between(Some(b"\xff"), Some(b"a")), Difference::Binary);
        assert_eq!(between(Some(b"\xff"), None), Difference::Binary);
    }
}
