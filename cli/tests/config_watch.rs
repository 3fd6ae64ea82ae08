//! `enlist config watch`: lines, files, commands and signals.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{fs, path::Path, process::Command};

use enlist_testkit::{EtcdServer, eventually};
use serde_json::Value;
use support::{Running, bare, enlist, raw, run, server};

fn config(server: &EtcdServer, arguments: &[&str]) -> Command {
    let mut command = enlist(server, ["config"].iter().chain(arguments));
    command.env("E", env!("CARGO_BIN_EXE_enlist"));
    command
}

async fn set(server: &EtcdServer, path: &str, value: &str) {
    let done = run(config(server, &["set", path, value, "--no-check"])).await;
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// Waits until a file has this content.
async fn shows(file: &Path, content: &str) {
    eventually(&format!("{} has {content:?}", file.display()), || async {
        let found = fs::read_to_string(file).unwrap_or_default();
        if found == content { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn changes_are_printed_one_per_line() {
    let server = server().await;
    set(&server, "app/a", "1").await;
    set(&server, "other", "1").await;
    let mut text = Running::start(config(&server, &["watch", "app/"]));
    let mut values = Running::start(config(&server, &["watch", "app/a", "--values"]));
    let mut json = Running::start(config(&server, &["watch", "--output", "json"]));
    assert_eq!(text.says_all("= 1").await, "+ app/a revision=2 bytes=1\n= 1 values at revision 3\n");
    assert_eq!(values.says("+").await, "+ app/a revision=2 bytes=1 value=1");
    values.says("=").await;
    json.says("synced").await;
    set(&server, "app/a", "22").await;
    set(&server, "app/b", "1").await;
    // Changes that follow each other quickly are one, in the order of the paths.
    let added = text.says_all("+ app/b").await;
    assert!(added.ends_with("+ app/b revision=5 bytes=1\n"), "{added}");
    let deleted = run(config(&server, &["delete", "app/a"])).await;
    assert_eq!(deleted.code, Some(0), "{deleted:?}");
    let seen = added + &text.says_all("- app/a").await;
    assert!(!seen.contains("other") && !seen.contains('!'), "{seen}");
    assert!(!values.says_all("- app/a").await.contains("app/b"));
    let removed: Value = serde_json::from_str(&json.says("removed").await).unwrap();
    let fields: Vec<_> = removed.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["created", "event", "namespace", "path", "revision", "size"]);
    text.signal("-TERM");
    assert_eq!(text.code().await, Some(143));
}

#[tokio::test]
async fn a_watch_survives_an_outage() {
    let mut server = server().await;
    set(&server, "a", "1").await;
    let mut text = Running::start(config(&server, &["watch"]));
    text.says("= 1 values").await;
    server.kill().await;
    text.says("! not up to date").await;
    // A watch that starts without an answer says so.
    let mut late = Running::start(config(&server, &["watch"]));
    late.warns("the values are not known yet").await;
    server.restart().await;
    text.says("! up to date again").await;
    late.says("= 1 values").await;
    set(&server, "a", "2").await;
    text.says("~ a").await;
}

/// A burst of changes during a run causes one more run, never two at the same time, and the last run sees the last
/// value.
#[tokio::test]
async fn a_burst_is_never_run_twice_at_once() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().display().to_string();
    set(&server, "a", "0").await;
    // A second run at the same time would find the directory.
    let script = "mkdir $D/lock || echo twice >> $D/runs; $E config get a > $D/next; mv $D/next $D/seen; \
                  echo run >> $D/runs; rmdir $D/lock";
    let mut command = config(&server, &["watch", "a", "--debounce", "10ms", "--", "sh", "-c", script]);
    command.env("D", &place);
    let mut watching = Running::start(command);
    shows(&directory.path().join("seen"), "0").await;
    let mut client = raw(&server).await;
    for value in 1..=300 {
        client.put("enlist/config/default/a", value.to_string(), None).await.unwrap();
    }
    shows(&directory.path().join("seen"), "300").await;
    watching.signal("-TERM");
    watching.code().await;
    let runs = fs::read_to_string(directory.path().join("runs")).unwrap();
    assert!(!runs.contains("twice") && runs.lines().count() < 300, "{runs}");
}

/// The command runs at the start unless that is postponed, its failure does not end the watch, and its output is the
/// only one on the standard output.
#[tokio::test]
async fn a_command_runs_after_each_change() {
    let server = server().await;
    let script = "echo path=$ENLIST_CONFIG_PATH revision=$ENLIST_CONFIG_REVISION; exit 3";
    let mut now = Running::start(config(&server, &["watch", "app/", "--", "sh", "-c", script]));
    let mut later = Running::start(config(&server, &["watch", "app/", "--postpone", "--", "sh", "-c", script]));
    assert_eq!(now.next().await.unwrap(), "path=app/ revision=1");
    now.warns("the command has exited with 3").await;
    later.warns("= 0 values").await;
    set(&server, "app/a", "1").await;
    for running in [&mut now, &mut later] {
        assert_eq!(running.next().await.unwrap(), "path=app/ revision=2");
        running.signal("-TERM");
        let code = running.code().await;
        assert!([Some(143), Some(3)].contains(&code), "{code:?}");
    }
    // A signal is passed on to a command that runs.
    let script = "trap 'echo ended; exit 5' TERM; echo begun; while :; do sleep 0.05; done";
    let mut running = Running::start(config(&server, &["watch", "--", "sh", "-c", script]));
    running.says("begun").await;
    running.signal("-TERM");
    running.says("ended").await;
    assert_eq!(running.code().await, Some(5));
    let missing = run(config(&server, &["watch", "--", "/nonexistent"])).await;
    assert_eq!(missing.code, Some(127), "{missing:?}");
}

/// With --signal the command is started once, and its end is that of the watch. Its children get no signal.
#[tokio::test]
async fn a_command_gets_a_signal_at_each_change() {
    let server = server().await;
    set(&server, "a", "0").await;
    let script = "trap 'echo reloaded $($E config get a)' HUP; trap 'exit 4' USR1; echo begun; \
                  sh -c 'trap \"echo child\" HUP; while :; do sleep 0.05; done' & while :; do wait; done";
    let mut running = Running::start(config(&server, &["watch", "a", "--signal", "HUP", "--", "sh", "-c", script]));
    running.says("begun").await;
    set(&server, "a", "1").await;
    running.says("reloaded 1").await;
    set(&server, "a", "2").await;
    running.says("reloaded 2").await;
    // A hangup of `enlist` itself asks for the same.
    running.signal("-HUP");
    running.says("reloaded 2").await;
    running.signal("-USR1");
    assert_eq!(running.code().await, Some(4));
    while let Some(line) = running.next().await {
        assert!(line.starts_with("reloaded"), "{line}");
    }
}

/// The file has the last good value: one that is deleted or does not parse leaves it, and the command, alone.
#[tokio::test]
async fn a_file_keeps_the_last_good_value() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    let arguments = ["watch", "a.json", "--write-to", file.to_str().unwrap(), "--", "sh", "-c", "cat $F; echo"];
    let mut command = config(&server, &arguments);
    command.env("F", &file);
    let mut running = Running::start(command);
    // Without a value there is nothing to run with.
    running.warns("there is no value a.json").await;
    set(&server, "a.json", "[1]").await;
    assert_eq!(running.next().await.unwrap(), "[1]");
    set(&server, "a.json", "[").await;
    let warned = running.warns("is not valid JSON").await;
    assert!(warned.contains("at revision 3") && warned.ends_with("stays as it is"), "{warned}");
    run(config(&server, &["delete", "a.json"])).await;
    running.warns("there is no value a.json").await;
    assert_eq!(fs::read_to_string(&file).unwrap(), "[1]");
    set(&server, "a.json", "[2]").await;
    assert_eq!(running.next().await.unwrap(), "[2]");
    let refused = run(config(&server, &["watch", "app/", "--write-to", file.to_str().unwrap()])).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
}

/// If the store does not answer, a command that is started once starts with the file of an earlier run.
#[tokio::test]
async fn a_command_starts_without_the_store() {
    let mut server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    fs::write(&file, "old").unwrap();
    set(&server, "a", "new").await;
    server.kill().await;
    let script = "trap 'echo now $(cat $F)' HUP; echo began with $(cat $F); while :; do sleep 0.05; done";
    let arguments = ["watch", "a", "--write-to", file.to_str().unwrap(), "--signal", "hup", "--", "sh", "-c", script];
    let mut command = config(&server, &arguments);
    command.env("F", &file);
    let mut running = Running::start(command);
    running.says("began with old").await;
    server.restart().await;
    running.says("now new").await;
}

/// No secret reaches the command, and usage errors come before anything is started.
#[tokio::test]
async fn a_watched_command_gets_no_secret() {
    let server = server().await;
    let mut command = config(&server, &["watch", "--", "sh", "-c", "env; echo en''d"]);
    command.env("ENLIST_PASSWORD", "s3cret").env("ENLIST_OWNER", "s3cret");
    let mut running = Running::start(command);
    let seen = running.says_all("end").await;
    assert!(!seen.contains("s3cret") && seen.contains("ENLIST_CONFIG_REVISION="), "{seen}");
    let mut command = bare();
    command.args(["config", "watch", "a", "--write-to", "/nonexistent/file", "--", "true"]);
    assert_eq!(run(command).await.code, Some(2));
}
