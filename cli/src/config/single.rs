//! `enlist config get`, `set` and `delete`: one value.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::unix::ffi::OsStringExt,
    path::Path,
};

use enlist::{ConfigEntry, ConfigPath, ConfigWrite, Expect, MAX_CONFIG_BYTES, MAX_CONFIG_WRITES, Revision};
use serde_json::{Value, json};

use super::{
    content,
    values::{Values, absent, below, path},
};
use crate::{
    args::{ConfigDelete, ConfigGet, ConfigSet, HiddenValue},
    output::{Failure, To},
};

pub(crate) async fn get(values: &Values, get: &ConfigGet) -> Result<u8, Failure> {
    let path = path(&get.path)?;
    let (value, revision) = match get.revision {
        None => match values.get(&path).await? {
            Some(entry) => (Some(entry.value.clone()), Some(entry.modified)),
            None => (None, None),
        },
        Some(revision) => {
            let version = values.version_at(&path, revision).await?;
            (version.value, Some(version.modified))
        }
    };
    if values.output.json {
        let mut object = values.object(&path);
        object["revision"] = revision.map(Revision::get).into();
        content::add_fields(&mut object, value.as_deref());
        values.output.line(To::Stdout, "", &object)?;
        return Ok(u8::from(value.is_none()));
    }
    match value {
        Some(value) => print(&value)?,
        None => return Err(absent(&path)),
    }
    Ok(0)
}

/// Writes the bytes of a value. On a terminal they are escaped and end with a line.
fn print(value: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        let text = content::shown(value);
        write!(out, "{text}{}", if text.is_empty() || text.ends_with('\n') { "" } else { "\n" })?;
    } else {
        out.write_all(value)?;
    }
    out.flush()
}

pub(crate) async fn set(values: &Values, set: ConfigSet) -> Result<u8, Failure> {
    let path = path(&set.path)?;
    let value = match (set.value, &set.file) {
        (Some(HiddenValue(value)), _) if value != "-" => value.into_vec(),
        (Some(_), _) => read(Path::new("-"))?,
        (None, Some(file)) => read(file)?,
        (None, None) => return Err(Failure::usage("the value is missing")),
    };
    content::check(set.check, &path, &value).map_err(|fault| content::refusal(&path, &fault))?;
    let expect = match set.expect {
        _ if set.create => Expect::Absent,
        None => Expect::Any,
        Some(0) => Expect::Absent,
        Some(revision) => Expect::Revision(Revision::new(revision)),
    };
    let size = value.len();
    let revision = values.write(vec![ConfigWrite::put(path.clone(), value, expect)]).await?;
    report_written(values, &path, revision, size)
}

/// Reports that a value was written.
pub(crate) fn report_written(
    values: &Values,
    path: &ConfigPath,
    revision: Revision,
    size: usize,
) -> Result<u8, Failure> {
    let object = event(values, "set", path, json!({ "revision": revision.get(), "size": size }));
    values.output.line(To::Stdout, format!("set {path} at revision {revision}, {size} bytes"), &object)?;
    Ok(0)
}

/// Reads a file, or the standard input for `-`, as far as a value may be long.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    // One byte more, so that the store refuses a longer value.
    let limit = u64::try_from(MAX_CONFIG_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let outcome = if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut value)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut value))
    };
    outcome.map_err(|error| Failure::new(format!("{} cannot be read: {error}", file.display())))?;
    Ok(value)
}

pub(crate) async fn delete(values: &Values, delete: &ConfigDelete) -> Result<u8, Failure> {
    let path = path(&delete.path)?;
    if delete.recursive {
        return delete_all(values, &path).await;
    }
    let expect = match delete.expect {
        Some(revision) => Expect::Revision(Revision::new(revision)),
        None if values.get(&path).await?.is_none() => return Err(absent(&path)),
        None => Expect::Any,
    };
    let revision = values.write(vec![ConfigWrite::delete(path.clone(), expect)]).await?;
    report_deleted(values, &path, revision)?;
    Ok(0)
}

/// Deletes the value at `root` and all values below it.
async fn delete_all(values: &Values, root: &ConfigPath) -> Result<u8, Failure> {
    let itself = values.get(root).await?;
    let snapshot = values.list(&below(Some(root))).await?;
    let entries: Vec<_> = itself.iter().chain(snapshot.entries()).map(AsRef::as_ref).collect();
    if entries.is_empty() {
        return Err(absent(root));
    }
    for batch in entries.chunks(MAX_CONFIG_WRITES) {
        let revision = values.write(deletions(batch)).await?;
        for entry in batch {
            report_deleted(values, &entry.path, revision)?;
        }
    }
    Ok(0)
}

/// Returns the deletions of values that have not changed since they were read.
fn deletions(entries: &[&ConfigEntry]) -> Vec<ConfigWrite> {
    let deletion = |entry: &&ConfigEntry| ConfigWrite::delete(entry.path.clone(), Expect::Revision(entry.modified));
    entries.iter().map(deletion).collect()
}

fn report_deleted(values: &Values, path: &ConfigPath, revision: Revision) -> Result<(), Failure> {
    let object = event(values, "deleted", path, json!({ "revision": revision.get() }));
    Ok(values.output.line(To::Stdout, format!("deleted {path} at revision {revision}"), &object)?)
}

/// Returns the object of an event.
fn event(values: &Values, event: &str, path: &ConfigPath, fields: Value) -> Value {
    let mut object = values.object(path);
    object["event"] = event.into();
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recursive_deletion_expects_the_values_that_were_read() {
        let path = ConfigPath::parse("a/b").unwrap();
        let entry = ConfigEntry::new(path.clone(), *b"1", Revision::new(3), Revision::new(7));
        assert_eq!(deletions(&[&entry]), [ConfigWrite::delete(path, Expect::Revision(Revision::new(7)))]);
    }
}
