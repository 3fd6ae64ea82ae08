//! Access to the values of the namespace, and their listings.

use std::sync::Arc;

use enlist::{
    Config, ConfigEntry, ConfigPath, ConfigScope, ConfigSnapshot, ConfigVersion, ConfigWrite, Error, Namespace,
    Revision,
};
use serde_json::{Value, json};

use super::content;
use crate::{
    args::{ConfigHistory, ConfigList, Global},
    output::{Failure, Output, To},
    table,
};

/// Number of versions that are read first when one of a certain revision is looked for.
const FIRST_VERSIONS: usize = 32;

/// The values of a namespace.
#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) config: Arc<dyn Config>,
    pub(crate) namespace: Namespace,
    pub(crate) output: Output,
}

impl Values {
    pub(crate) fn new(global: &Global, output: Output) -> Result<Self, Failure> {
        Ok(Self { config: Arc::new(global.client()?), namespace: global.namespace()?, output })
    }

    pub(crate) async fn get(&self, path: &ConfigPath) -> Result<Option<Arc<ConfigEntry>>, Failure> {
        self.config.get(&self.namespace, path).await.map_err(failure)
    }

    pub(crate) async fn list(&self, scope: &ConfigScope) -> Result<ConfigSnapshot, Failure> {
        self.config.list(&self.namespace, scope).await.map_err(failure)
    }

    /// Applies all writes in one transaction.
    pub(crate) async fn write(&self, writes: Vec<ConfigWrite>) -> Result<Revision, Failure> {
        self.config.write(&self.namespace, writes).await.map_err(failure)
    }

    pub(crate) async fn versions(&self, path: &ConfigPath, limit: usize) -> Result<Vec<ConfigVersion>, Failure> {
        self.config.history(&self.namespace, path, limit).await.map_err(failure)
    }

    /// Returns the version that was stored at `revision`.
    pub(crate) async fn version_at(&self, path: &ConfigPath, revision: u64) -> Result<ConfigVersion, Failure> {
        let mut limit = FIRST_VERSIONS;
        loop {
            let versions = self.versions(path, limit).await?;
            let is_complete = versions.len() < limit;
            if let Some(version) = versions.into_iter().find(|version| version.modified.get() <= revision) {
                return Ok(version);
            }
            if is_complete {
                let text = format!("{path} did not exist at revision {revision}, or the store no longer has it");
                return Err(Failure::Error { text, kind: "NotFound", code: 1 });
            }
            limit = limit.saturating_mul(4);
        }
    }

    /// Returns an object with the namespace and a path.
    pub(crate) fn object(&self, path: &ConfigPath) -> Value {
        json!({ "namespace": self.namespace.as_str(), "path": path.as_str() })
    }

    /// Returns the object of a value: path, revisions and size.
    pub(crate) fn entry_object(&self, entry: &ConfigEntry) -> Value {
        let mut object = self.object(&entry.path);
        object["revision"] = entry.modified.get().into();
        object["created"] = entry.created.get().into();
        object["size"] = entry.value.len().into();
        object
    }
}

/// Returns the failure for an error of the store, with advice for values.
pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Conflict { what, revision } => {
            let state = match revision.get() {
                0 => "does not exist".to_owned(),
                revision => format!("is at revision {revision} now"),
            };
            let text = format!("{what} {state} and was left alone; read it again");
            Failure::Error { text, kind: "Conflict", code: 1 }
        }
        Error::TooLarge { .. } => Failure::Error { text: error.to_string(), kind: "TooLarge", code: 1 },
        error => error.into(),
    }
}

/// Returns the failure for a value that does not exist.
pub(crate) fn absent(path: &ConfigPath) -> Failure {
    let text = format!("there is no value {path}; `enlist config list` lists the values");
    Failure::Error { text, kind: "NotFound", code: 1 }
}

pub(crate) fn path(text: &str) -> Result<ConfigPath, Failure> {
    Ok(ConfigPath::parse(text)?)
}

/// Returns the path below which values are meant; a final `/` is allowed.
pub(crate) fn root(text: Option<&str>) -> Result<Option<ConfigPath>, Failure> {
    text.map(|text| path(text.strip_suffix('/').unwrap_or(text))).transpose()
}

/// Returns the scope of all values below `root`.
pub(crate) fn below(root: Option<&ConfigPath>) -> ConfigScope {
    root.map_or(ConfigScope::All, |root| ConfigScope::Below(root.clone()))
}

pub(crate) async fn list(values: &Values, list: &ConfigList) -> Result<u8, Failure> {
    let output = values.output;
    let snapshot = values.list(&below(root(list.below.as_deref())?.as_ref())).await?;
    if output.json {
        for entry in snapshot.entries() {
            let mut object = values.entry_object(entry);
            if list.values {
                content::add_fields(&mut object, Some(&entry.value));
            }
            output.line(To::Stdout, "", &object)?;
        }
    } else if snapshot.is_empty() {
        output.line(To::Stderr, "there are no values", &())?;
    } else {
        let head = |entry: &ConfigEntry| [entry.path.to_string(), entry.modified.to_string(), size(&entry.value)];
        let lines = if list.values {
            let row = |entry: &Arc<ConfigEntry>| {
                let [path, revision, size] = head(entry);
                [path, revision, size, content::shown(&entry.value)]
            };
            table::arrange(["PATH", "REVISION", "BYTES", "VALUE"], snapshot.entries().map(row))
        } else {
            table::arrange(["PATH", "REVISION", "BYTES"], snapshot.entries().map(|entry| head(entry)))
        };
        for line in lines {
            output.line(To::Stdout, line, &())?;
        }
    }
    Ok(0)
}

fn size(value: &[u8]) -> String {
    value.len().to_string()
}

pub(crate) async fn history(values: &Values, history: &ConfigHistory) -> Result<u8, Failure> {
    let (output, path) = (values.output, path(&history.path)?);
    let versions = values.versions(&path, history.limit).await?;
    if versions.is_empty() && history.limit > 0 {
        return Err(absent(&path));
    }
    if output.json {
        for version in &versions {
            let value = version.value.as_deref();
            let mut object = values.object(&path);
            object["revision"] = version.modified.get().into();
            object["size"] = value.map(<[u8]>::len).into();
            if history.values {
                content::add_fields(&mut object, value);
            }
            output.line(To::Stdout, "", &object)?;
        }
        return Ok(0);
    }
    let row = |version: &ConfigVersion| {
        let size = version.value.as_deref().map_or_else(|| "deleted".to_owned(), size);
        [version.modified.to_string(), size]
    };
    let lines = if history.values {
        let row = |version: &ConfigVersion| {
            let [revision, size] = row(version);
            [revision, size, version.value.as_deref().map_or_else(|| "-".to_owned(), content::shown)]
        };
        table::arrange(["REVISION", "BYTES", "VALUE"], versions.iter().map(row))
    } else {
        table::arrange(["REVISION", "BYTES"], versions.iter().map(row))
    };
    for line in lines {
        output.line(To::Stdout, line, &())?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_the_current_revision() {
        let text = |revision| {
            let error = Error::Conflict { what: "a".to_owned(), revision: Revision::new(revision) };
            match failure(error) {
                Failure::Error { text, kind: "Conflict", code: 1 } => text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(text(12), "a is at revision 12 now and was left alone; read it again");
        assert_eq!(text(0), "a does not exist and was left alone; read it again");
    }

    #[test]
    fn a_root_may_end_with_a_slash() {
        let below_app = ConfigScope::Below(ConfigPath::parse("app").unwrap());
        for text in ["app", "app/"] {
            assert_eq!(below(root(Some(text)).unwrap().as_ref()), below_app);
        }
        assert_eq!(below(root(None).unwrap().as_ref()), ConfigScope::All);
        assert!(root(Some("/")).is_err() && root(Some("app//")).is_err());
    }
}
