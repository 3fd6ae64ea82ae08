//! `enlist config edit` with scripts as editors, and at a terminal.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use enlist_testkit::{EtcdServer, eventually};
use support::{Done, Running, enlist, pty::Shell, run, server};

/// Runs `enlist config edit` with a shell command as the editor, in which `$1` is the file.
fn edit(server: &EtcdServer, temporary: &Path, path: &str, script: &str) -> std::process::Command {
    let mut command = enlist(server, ["config", "edit", path]);
    command.env_remove("VISUAL").env("EDITOR", format!("sh -c '{script}' sh")).env("TMPDIR", temporary);
    command.env("E", env!("CARGO_BIN_EXE_enlist"));
    command
}

async fn get(server: &EtcdServer, path: &str) -> Done {
    run(enlist(server, ["config", "get", path])).await
}

async fn set(server: &EtcdServer, path: &str, value: &str) {
    let done = run(enlist(server, ["config", "set", path, value])).await;
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// Returns the file that is kept, as the message names it.
fn kept(done: &Done) -> PathBuf {
    let place = done.stderr.split("is kept in ").nth(1).unwrap_or_else(|| panic!("no place: {done:?}"));
    place.split(": `enlist config").next().unwrap().into()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[tokio::test]
async fn an_edited_value_is_written() {
    let (server, temporary) = (server().await, tempfile::tempdir().unwrap());
    let temporary = temporary.path();
    set(&server, "app/log.toml", "level = 1").await;
    let script = "stat -c %a \"$1\" \"${1%/*}\"; basename \"$1\"; echo level = 2 > \"$1\"";
    let done = run(edit(&server, temporary, "app/log.toml", script)).await;
    assert!(done.code == Some(0) && done.stdout.starts_with("600\n700\nlog.toml\nset app/log.toml"), "{done:?}");
    // Without the newline of the editor, because the value had none.
    assert_eq!(get(&server, "app/log.toml").await.stdout, "level = 2");
    let unchanged = run(edit(&server, temporary, "app/log.toml", "cat \"$1\"; echo >> \"$1\"")).await;
    assert!(unchanged.code == Some(0) && unchanged.stdout.ends_with("app/log.toml is unchanged\n"), "{unchanged:?}");
    let history = run(enlist(&server, ["config", "history", "app/log.toml", "--output", "json"])).await;
    assert_eq!(history.stdout.lines().count(), 2, "{history:?}");
    let new = run(edit(&server, temporary, "new", "echo text > \"$1\"")).await;
    assert_eq!((new.code, get(&server, "new").await.stdout.as_str()), (Some(0), "text"), "{new:?}");
    assert!(is_empty(temporary));
}

/// VISUAL takes precedence, and an empty variable counts as unset.
#[tokio::test]
async fn the_editor_comes_from_the_environment() {
    let (server, temporary) = (server().await, tempfile::tempdir().unwrap());
    let mut command = edit(&server, temporary.path(), "a", "echo editor > \"$1\"");
    command.env("VISUAL", "sh -c 'echo visual > \"$1\"' sh");
    assert_eq!(run(command).await.code, Some(0));
    assert_eq!(get(&server, "a").await.stdout, "visual");
    let mut command = edit(&server, temporary.path(), "a", "echo editor > \"$1\"");
    assert_eq!(
        run({
            command.env("VISUAL", " ");
            command
        })
        .await
        .code,
        Some(0)
    );
    assert_eq!(get(&server, "a").await.stdout, "editor");
}

/// The text of a conflict, of an invalid value and of a failed editor is kept, and nothing is written.
#[tokio::test]
async fn a_text_that_is_not_written_is_kept() {
    let (server, temporary) = (server().await, tempfile::tempdir().unwrap());
    let temporary = temporary.path();
    set(&server, "app.json", "{}").await;
    let conflict = "$E config set app.json [1]; echo [2] > \"$1\"";
    let invalid = "echo [ > \"$1\"";
    let failed = "echo [3] > \"$1\"; exit 7";
    for (script, reason, text) in [
        (conflict, "app.json is at revision 3 now", "[2]\n"),
        (invalid, "is not valid JSON", "[\n"),
        (failed, "the editor has exited with 7", "[3]\n"),
    ] {
        let done = run(edit(&server, temporary, "app.json", script)).await;
        assert!(done.code == Some(1) && done.stderr.contains(reason), "{done:?}");
        let file = kept(&done);
        assert!(file.starts_with(temporary), "{done:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert_eq!(get(&server, "app.json").await.stdout, "[1]");
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
    }
    // Without a change there is nothing to keep.
    let done = run(edit(&server, temporary, "app.json", "exit 7")).await;
    assert!(done.code == Some(1) && done.stderr.contains("the editor has exited with 7"), "{done:?}");
    let missing = run({
        let mut command = edit(&server, temporary, "app.json", "");
        command.env("EDITOR", "no-such-editor-anywhere");
        command
    })
    .await;
    assert!(missing.code == Some(1) && missing.stderr.contains("exited with 127"), "{missing:?}");
    assert!(is_empty(temporary));
    let unchecked = run({
        let mut command = edit(&server, temporary, "app.json", invalid);
        command.arg("--no-check");
        command
    })
    .await;
    assert_eq!(unchecked.code, Some(0), "{unchecked:?}");
}

/// A signal ends the editor as well, and keeps the text.
#[tokio::test]
async fn a_signal_during_an_edit_keeps_the_text() {
    let (server, temporary) = (server().await, tempfile::tempdir().unwrap());
    let script = "echo new > \"$1\"; echo begun; exec sleep 1000";
    let mut editing = Running::start(edit(&server, temporary.path(), "a", script));
    editing.says("begun").await;
    editing.signal("-INT");
    editing.signal("-TERM");
    let shown = editing.warns("is kept in").await;
    assert_eq!(editing.code().await, Some(143), "{shown}");
    assert_eq!(get(&server, "a").await.code, Some(1));
}

/// Returns an error unless a process is in a state.
fn state(pid: u32, expected: &str) -> Result<(), String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    if stat.contains(&format!(") {expected} ")) { Ok(()) } else { Err(stat) }
}

/// Ctrl-Z stops the editor and `enlist`, `fg` continues both, and Ctrl-C is the editor's.
#[tokio::test]
async fn an_editor_uses_the_terminal() {
    let (server, temporary) = (server().await, tempfile::tempdir().unwrap());
    let script = temporary.path().join("editor");
    let text = "trap \"echo inter''rupted\" INT\necho pid=$$ rea''dy\nread line\necho \"$line\" > \"$1\"\n";
    fs::write(&script, text).unwrap();
    let mut shell = Shell::start(&server).await;
    shell.types(&format!(
        "unset VISUAL; export TMPDIR={} EDITOR='bash {}'; $E config edit a\n",
        temporary.path().display(),
        script.display()
    ));
    let shown = shell.shows(" ready").await;
    let editor: u32 = shown.rsplit("pid=").next().unwrap().parse().unwrap();
    shell.types("\x1a");
    shell.shows("Stopped").await;
    // Until then it could still read the next line.
    eventually("the editor is stopped", || async { state(editor, "T") }).await;
    shell.types("echo shell is ba''ck\n");
    shell.shows("shell is back").await;
    shell.types("fg\n");
    shell.shows("config edit a").await;
    // Until then the signal would be the shell's.
    eventually("the editor continues", || async { state(editor, "S") }).await;
    shell.types("\x03");
    shell.shows("interrupted").await;
    shell.types("typed\n");
    shell.shows("set a at revision").await;
    assert_eq!(get(&server, "a").await.stdout, "typed");
}
