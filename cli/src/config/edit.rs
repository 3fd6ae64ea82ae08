//! `enlist config edit`: a value is changed in an editor, and written if no other client has changed it meanwhile.
//!
//! The editor is in the process group of `enlist`, as a program that a shell starts: it uses the terminal, and Ctrl-Z
//! stops both.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use enlist::{ConfigPath, ConfigWrite, Expect};
use rustix::process::{Pid, Signal as Number, kill_process};
use tempfile::TempDir;
use tokio::{process::Command, signal::unix::SignalKind};

use super::{
    content, file_names, single,
    values::{Values, path},
};
use crate::{
    args::ConfigEdit,
    child::exit_code,
    connect::SECRETS,
    output::{Failure, To},
    signals::{Signal, Signals},
};

/// Maximum length of the file's name.
const MAX_NAME_BYTES: usize = 200;

/// End of the editor.
enum Ended {
    Itself(ExitStatus),
    /// After a signal to this process.
    Signal(Signal),
}

pub(crate) async fn edit(values: &Values, edit: &ConfigEdit) -> Result<u8, Failure> {
    let path = path(&edit.path)?;
    let entry = values.get(&path).await?;
    let expect = entry.as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.modified));
    let before = entry.as_ref().map_or(&[][..], |entry| &entry.value);
    let text = EditedText::create(&path, before)?;
    let ended = run_editor(&text.file).await?;
    let after = fs::read(&text.file)
        .map_err(|error| Failure::new(format!("{} cannot be read: {error}", text.file.display())))?;
    let changed = changed(before, after);
    match (ended, changed) {
        (Ended::Signal(signal), None) => Ok(signal.as_exit()),
        (Ended::Signal(signal), Some(_)) => {
            Err(text.keep(&path, expect, "a signal has ended the editor", "Interrupted", signal.as_exit()))
        }
        (Ended::Itself(status), None) if status.success() => {
            let mut object = values.object(&path);
            object["event"] = "unchanged".into();
            values.output.line(To::Stdout, format!("{path} is unchanged"), &object)?;
            Ok(0)
        }
        (Ended::Itself(status), None) => Err(Failure::new(editor_failure(status))),
        (Ended::Itself(status), Some(_)) if !status.success() => {
            Err(text.keep(&path, expect, &editor_failure(status), "Failed", 1))
        }
        (Ended::Itself(_), Some(after)) => {
            if let Err(fault) = content::check(edit.check, &path, &after) {
                return Err(text.keep(&path, expect, &format!("{path} {fault}"), "InvalidValue", 1));
            }
            let size = after.len();
            match values.write(vec![ConfigWrite::put(path.clone(), after, expect)]).await {
                Ok(revision) => single::report_written(values, &path, revision, size),
                Err(Failure::Error { text: reason, kind, code }) => Err(text.keep(&path, expect, &reason, kind, code)),
                Err(failure) => Err(failure),
            }
        }
    }
}

/// Returns the new value if it differs. A final newline that the editor has added is removed: that of a value without
/// one, and that of a new value of one line.
fn changed(before: &[u8], mut after: Vec<u8>) -> Option<Vec<u8>> {
    let is_one_line = after.split_inclusive(|byte| *byte == b'\n').count() == 1;
    let is_added = !before.ends_with(b"\n") && (!before.is_empty() || is_one_line);
    if is_added && after.ends_with(b"\n") {
        after.pop();
    }
    (after != before).then_some(after)
}

fn editor_failure(status: ExitStatus) -> String {
    format!("the editor has exited with {}", exit_code(status))
}

/// A file with the text, in a directory that only this user can read. Dropping it deletes both.
struct EditedText {
    directory: TempDir,
    file: PathBuf,
}

impl EditedText {
    fn create(path: &ConfigPath, value: &[u8]) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(format!("no temporary file can be written: {error}"));
        let private = fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix("enlist-").permissions(private).tempdir().map_err(failed)?;
        let file = directory.path().join(name(path));
        fs::write(&file, value).map_err(failed)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { directory, file })
    }

    /// Keeps the file, and returns the failure with its place.
    fn keep(self, path: &ConfigPath, expect: Expect, reason: &str, kind: &'static str, code: u8) -> Failure {
        // Not deleted from here on.
        let _ = self.directory.keep();
        let file = self.file.display();
        let revision = match expect {
            Expect::Revision(revision) => revision.get(),
            Expect::Absent | Expect::Any => 0,
        };
        let text = format!(
            "{reason}; the text, which began with revision {revision} of {path}, is kept in {file}: `enlist config \
             diff` and `enlist config set` with --file continue with it"
        );
        Failure::Error { text, kind, code }
    }
}

/// Returns the name of the file: that of the last segment, so that the editor knows the format.
fn name(path: &ConfigPath) -> String {
    let last = path.segments().last().unwrap_or_default();
    let name = file_names::file_name(last);
    if name.len() <= MAX_NAME_BYTES {
        return name;
    }
    let suffix = last.rsplit_once('.').map(|(_, suffix)| suffix).filter(|suffix| suffix.len() < MAX_NAME_BYTES / 4);
    suffix.map_or_else(|| "value".to_owned(), |suffix| format!("value.{}", file_names::file_name(suffix)))
}

/// Returns the command line of the editor, for a shell.
fn editor() -> String {
    let set = ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok());
    set.into_iter().find(|editor| !editor.trim().is_empty()).unwrap_or_else(|| "vi".to_owned())
}

/// Runs the editor to its end. The signals of the keyboard are its own.
async fn run_editor(file: &Path) -> Result<Ended, Failure> {
    let editor = editor();
    let mut signals = Signals::ending()?;
    // A variable may have options as well: `code --wait`. Signals of the keyboard must not end the shell before the
    // editor; the editor itself does not inherit the trap.
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("trap : INT QUIT; {editor} \"$@\"")).arg(&editor).arg(file);
    for secret in SECRETS {
        command.env_remove(secret);
    }
    let mut child =
        command.spawn().map_err(|error| Failure::new(format!("the editor {editor} cannot be started: {error}")))?;
    let mut received = None;
    loop {
        let signal = tokio::select! {
            status = child.wait() => {
                let status = status?;
                return Ok(received.map_or(Ended::Itself(status), Ended::Signal));
            }
            signal = signals.next() => signal,
        };
        if ![SignalKind::interrupt(), SignalKind::quit()].contains(&signal.0) {
            received = Some(signal);
            let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
            if let (Some(id), Some(number)) = (id, Number::from_named_raw(signal.0.as_raw_value())) {
                // An error means that it has ended.
                let _ = kill_process(id, number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newline_of_the_editor_is_removed() {
        for (before, after, expected) in [
            ("a", "a\n", None),
            ("a\n", "a\n", None),
            ("", "\n", None),
            ("", "a\n", Some("a")),
            ("", "a\nb\n", Some("a\nb\n")),
            ("a", "b\n", Some("b")),
            ("a", "b\n\n", Some("b\n")),
            ("a\n", "b\n", Some("b\n")),
            ("a\n", "b", Some("b")),
        ] {
            let found = changed(before.as_bytes(), after.as_bytes().to_vec());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{before:?} {after:?}");
        }
    }

    #[test]
    fn the_file_keeps_the_suffix() {
        let named = |text: &str| name(&ConfigPath::parse(text).unwrap());
        assert_eq!(named("app/log.toml"), "log.toml");
        assert_eq!(named("a/.."), "%2E.");
        assert_eq!(named(&format!("{}.json", "x".repeat(300))), "value.json");
        assert_eq!(named(&"x".repeat(300)), "value");
    }
}
