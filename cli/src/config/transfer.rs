//! `enlist config import` and `export`: values as the files of a directory, or as lines of JSON.

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
    path::Path,
    sync::Arc,
};

use enlist::{ConfigPath, MAX_CONFIG_BYTES, Revision};
use serde::Deserialize;
use serde_json::json;

use super::{
    content, directory, file_names,
    plan::{Extra, Kind, Plan, Step, batches},
    values::{Values, below, path, root},
};
use crate::{
    args::{ConfigExport, ConfigImport},
    output::{Failure, To},
};

pub(crate) async fn export(values: &Values, export: &ConfigExport) -> Result<u8, Failure> {
    let root = root(export.below.as_deref())?;
    let snapshot = values.list(&below(root.as_ref())).await?;
    if export.dir == Path::new("-") {
        let lines = values.output.as_json();
        for entry in snapshot.entries() {
            let mut object = values.entry_object(entry);
            content::add_fields(&mut object, Some(&entry.value));
            lines.line(To::Stdout, "", &object)?;
        }
        return Ok(0);
    }
    let paths: Vec<_> = snapshot.entries().map(|entry| &entry.path).collect();
    let names = file_names::names(root.as_ref(), &paths);
    let names = names.map_err(|(path, fault)| Failure::new(format!("{path} {fault}; nothing was exported")))?;
    let opened = directory::create(&export.dir)?;
    for entry in snapshot.entries() {
        let Some(names) = names.get(&entry.path) else { continue };
        directory::write(&opened, names, &entry.value).map_err(|error| {
            let place = directory::place(&export.dir, names);
            Failure::new(format!("{} cannot be written: {error}", place.display()))
        })?;
    }
    let (count, revision) = (snapshot.len(), snapshot.revision());
    let text = format!("exported {count} values to {} at revision {revision}", export.dir.display());
    let object = json!({
        "event": "exported", "namespace": values.namespace.as_str(), "values": count, "revision": revision.get(),
    });
    values.output.line(To::Stdout, text, &object)?;
    Ok(0)
}

/// One line of `export -`. Other fields are ignored.
#[derive(Deserialize)]
struct Line {
    path: String,
    value: Option<String>,
    base64: Option<String>,
}

/// Values by path.
type Files = BTreeMap<ConfigPath, Vec<u8>>;

/// Reads the lines of `export -`.
fn lines(input: impl BufRead) -> Result<Files, Failure> {
    let mut values = BTreeMap::new();
    for (number, line) in (1..).zip(input.lines()) {
        let line = line?;
        // The text of an error could have a part of the value.
        let line: Line = serde_json::from_str(&line).map_err(|error| {
            Failure::new(format!("line {number} is no object of `export -`: an error at column {}", error.column()))
        })?;
        let value = content::from_fields(line.value, line.base64);
        let value = value.map_err(|fault| Failure::new(format!("line {number} {fault}")))?;
        if values.insert(path(&line.path)?, value).is_some() {
            return Err(Failure::new(format!("line {number} repeats the path {}", line.path)));
        }
    }
    Ok(values)
}

/// Reads the values of an import, and checks them.
fn files(values: &Values, import: &ConfigImport, root: Option<&ConfigPath>) -> Result<Files, Failure> {
    let files = if import.dir == Path::new("-") {
        let all = lines(io::stdin().lock())?;
        let scope = below(root);
        if let Some(outside) = all.keys().find(|path| !scope.contains(path)) {
            return Err(Failure::usage(format!("{outside} is not part of --below {scope}")));
        }
        all
    } else {
        let directory::Files { values: found, hidden } = directory::read(&import.dir, root)?;
        if hidden > 0 {
            let warning = format!("{hidden} files or directories whose names begin with a dot are left out");
            values.output.tell(To::Stderr, format!("enlist: {warning}"), &json!({ "warning": warning }));
        }
        found
    };
    for (path, value) in &files {
        if value.len() > MAX_CONFIG_BYTES {
            let text = format!("{path} is too large: at most {MAX_CONFIG_BYTES} bytes are allowed");
            return Err(Failure::Error { text, kind: "TooLarge", code: 1 });
        }
        content::check(import.check, path, value).map_err(|fault| content::refusal(path, &fault))?;
    }
    Ok(files)
}

pub(crate) async fn import(values: &Values, import: &ConfigImport) -> Result<u8, Failure> {
    let root = root(import.below.as_deref())?;
    let files = files(values, import, root.as_ref())?;
    let snapshot = values.list(&below(root.as_ref())).await?;
    let extra = if import.delete { Extra::Delete } else { Extra::Keep };
    let plan = Plan::new(snapshot.entries().map(Arc::clone), files, extra);
    let counts = [Kind::Added, Kind::Updated, Kind::Removed].map(|kind| plan.count(kind));
    let (unchanged, kept) = (plan.unchanged, plan.kept);
    let batches = batches(plan.steps);
    let transactions = batches.len();
    if transactions > 1 {
        let warning = format!("the changes do not fit into one transaction: {transactions} are needed");
        values.output.tell(To::Stderr, format!("enlist: {warning}"), &json!({ "warning": warning }));
    }
    let mut revision = None;
    for (done, batch) in batches.into_iter().enumerate() {
        if !import.dry_run {
            revision = Some(write(values, &batch, done, transactions).await?);
        }
        for step in &batch {
            report(values, step, revision)?;
        }
    }
    let [added, updated, removed] = counts;
    let head = if import.dry_run { "dry run" } else { "imported" };
    let mut text = format!(
        "{head}: {added} added, {updated} updated, {removed} removed, {unchanged} unchanged, {kept} without file"
    );
    if let Some(revision) = revision {
        text = format!("{text}, at revision {revision}");
    }
    let object = json!({
        "event": head.replace(' ', "-"), "namespace": values.namespace.as_str(), "added": added, "updated": updated,
        "removed": removed, "unchanged": unchanged, "kept": kept, "transactions": transactions,
        "revision": revision.map(Revision::get),
    });
    values.output.line(To::Stdout, text, &object)?;
    Ok(0)
}

/// Writes one batch, after `done` of all `transactions`.
async fn write(values: &Values, batch: &[Step], done: usize, transactions: usize) -> Result<Revision, Failure> {
    let writes = batch.iter().cloned().map(Step::into_write).collect();
    match values.write(writes).await {
        Err(Failure::Error { text, kind, code }) if transactions > 1 => {
            let text = format!("{text}; {done} of {transactions} transactions were applied");
            Err(Failure::Error { text, kind, code })
        }
        outcome => outcome,
    }
}

fn report(values: &Values, step: &Step, revision: Option<Revision>) -> Result<(), Failure> {
    let (kind, size) = (step.kind(), step.new.as_ref().map(Vec::len));
    let mut object = values.object(&step.path);
    object["event"] = kind.word().into();
    object["size"] = size.into();
    object["revision"] = revision.map(Revision::get).into();
    let size = size.map(|size| format!(" {size} bytes")).unwrap_or_default();
    Ok(values.output.line(To::Stdout, format!("{} {}{size}", kind.sign(), step.path), &object)?)
}
