//! `enlist config watch`: changes are printed, written to a file, and passed to a command.

use std::time::Duration;

use enlist::{ConfigPath, ConfigScope, with_causes};
use serde_json::json;

use super::{
    following::{Lines, Show},
    program::Reaction,
    value_file::ValueFile,
    values::{Values, failure, path, root},
};
use crate::{
    args::ConfigWatch,
    child,
    output::{Failure, To},
    signals::Signals,
};

/// Wait for the first values before a request determines the cause of the delay.
const FIRST_VALUES_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the scope of an argument: one value, or with a final `/` all values below it.
fn scope(text: Option<&str>) -> Result<ConfigScope, Failure> {
    Ok(match text {
        None => ConfigScope::All,
        Some(below) if below.ends_with('/') => root(Some(below))?.map_or(ConfigScope::All, ConfigScope::Below),
        Some(one) => ConfigScope::Path(path(one)?),
    })
}

pub(crate) async fn watch(values: &Values, watch: ConfigWatch) -> Result<u8, Failure> {
    let scope = scope(watch.path.as_deref())?;
    let file = file(values, &watch, &scope)?;
    child::check(&watch.run.command)?;
    let runs_a_command = !watch.run.command.is_empty();
    let mut signals = if runs_a_command { Signals::all()? } else { Signals::ending()? };
    let mut watcher = values.config.watch(&values.namespace, &scope).await.map_err(failure)?;
    // Standard output belongs to the command, if there is one.
    let to = if runs_a_command { To::Stderr } else { To::Stdout };
    let mut lines = Lines::new(values, to, if watch.values { Show::Values } else { Show::Revisions });
    let mut reaction = Reaction::new(watch, file, values.output);
    let mut silence = std::pin::pin!(report_silence(values, &scope));
    let mut silence_reported = false;
    loop {
        let code = tokio::select! {
            change = watcher.next() => {
                let change = change.map_err(failure)?;
                let is_first = !lines.is_synced();
                lines.write(&change)?;
                if is_first || !change.events.is_empty() {
                    reaction.changed(&change.snapshot);
                }
                None
            }
            () = &mut silence, if !silence_reported && !lines.is_synced() => {
                silence_reported = true;
                reaction.unanswered();
                None
            }
            signal = signals.next() => reaction.signal(signal, &mut signals).await?,
            event = reaction.next() => reaction.handle(event).await?,
        };
        if let Some(code) = code {
            return Ok(code);
        }
    }
}

/// Returns the file of `--write-to`.
fn file(values: &Values, watch: &ConfigWatch, scope: &ConfigScope) -> Result<Option<ValueFile>, Failure> {
    let one = |path: &ConfigPath, file| ValueFile::new(file, path.clone(), watch.check, values.output);
    match (&watch.write_to, scope) {
        (None, _) => Ok(None),
        (Some(file), ConfigScope::Path(path)) => one(path, file).map(Some),
        (Some(_), _) => Err(Failure::usage("--write-to needs the path of one value, without a final `/`")),
    }
}

/// Waits until the values are late, and reports the cause if the store does not answer. Otherwise it does not return.
async fn report_silence(values: &Values, scope: &ConfigScope) {
    tokio::time::sleep(FIRST_VALUES_TIMEOUT).await;
    match values.config.list(&values.namespace, scope).await {
        Err(error) if error.is_retryable() => {
            let warning = format!("the values are not known yet: {}", with_causes(&error));
            values.output.tell(To::Stderr, format!("enlist: {warning}"), &json!({ "warning": warning }));
        }
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_slash_stands_for_the_values_below() {
        let path = |text| ConfigPath::parse(text).unwrap();
        for (text, expected) in [
            (None, ConfigScope::All),
            (Some("app"), ConfigScope::Path(path("app"))),
            (Some("app/"), ConfigScope::Below(path("app"))),
            (Some("app/log"), ConfigScope::Path(path("app/log"))),
        ] {
            assert_eq!(scope(text).unwrap(), expected);
        }
        assert!(scope(Some("/")).is_err() && scope(Some("")).is_err());
    }
}
