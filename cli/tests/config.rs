//! `enlist config`: single values, listings and differences.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    io::Write,
    process::{Command, Stdio},
};

use enlist_testkit::{EtcdServer, soon};
use serde_json::{Value, json};
use support::{Done, Running, assert_snapshot, enlist, raw, run, server};

/// Returns the arguments of `enlist config`, without spaces in any of them.
fn config(server: &EtcdServer, line: &str) -> Command {
    enlist(server, ["config"].into_iter().chain(line.split(' ')))
}

async fn ok(server: &EtcdServer, line: &str) -> Done {
    let done = run(config(server, line)).await;
    assert_eq!(done.code, Some(0), "{line}: {done:?}");
    done
}

/// Runs a command with JSON output, and returns its objects.
async fn objects(server: &EtcdServer, line: &str) -> Vec<Value> {
    let done = run(config(server, &format!("{line} --output json"))).await;
    done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the revision of a value.
async fn revision(server: &EtcdServer, path: &str) -> u64 {
    objects(server, &format!("get {path}")).await[0]["revision"].as_u64().unwrap()
}

/// Runs a command with an input, and returns its output as bytes.
async fn piped(mut command: Command, input: &[u8]) -> std::process::Output {
    let input = input.to_vec();
    let running = tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that refuses the input need not read all of it.
        let _ = child.stdin.take().unwrap().write_all(&input);
        child.wait_with_output().unwrap()
    });
    soon("the command ends", running).await.unwrap()
}

#[tokio::test]
async fn a_value_can_be_changed_by_commands() {
    let server = server().await;
    let mut shown = String::new();
    for arguments in [
        "list",
        "get app/level",
        "get app/level --output json",
        "set app/level debug",
        "set app/log.json {\"level\":1}",
        "set app/log.json {\"level\":1",
        "set app/log.json {\"level\":1 --no-check",
        "get app/level",
        "get app/level --output json",
        "list",
        "list app/ --output json",
        "list app --values",
        "list elsewhere",
        "set app/level info --create",
        "set app/level info --expect 2",
        "set app/level info --expect 99",
        "history app/level",
        "history app/level --values --output json",
        "history app/level --limit 1 --values",
        "history app/none",
        "diff app/level",
        "diff app/level --output json",
        "get app/level --revision 3",
        "get app/level --revision 1",
        "delete app/level --expect 2",
        "delete app/level",
        "delete app/level",
        "delete app --recursive --output json",
        "set /app x",
    ] {
        let done = run(config(&server, arguments)).await;
        shown = format!("{shown}$ enlist config {arguments}\n{}{}[{}]\n", done.stdout, done.stderr, done.code.unwrap());
    }
    assert_snapshot("config.txt", &shown);
}

/// Bytes are neither added nor changed, by any way in.
#[tokio::test]
async fn a_value_is_exactly_its_bytes() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let all: Vec<u8> = (0..=255).chain(*b"\n\n").collect();
    for value in [&b""[..], b"\n", b"text", &all] {
        let file = directory.path().join("value");
        std::fs::write(&file, value).unwrap();
        ok(&server, &format!("set from-file --file {}", file.display())).await;
        for arguments in ["set from-input -", "set from-file-option --file -"] {
            let set = piped(config(&server, arguments), value).await;
            assert!(set.status.success(), "{set:?}");
        }
        for path in ["from-file", "from-input", "from-file-option"] {
            let stored = raw(&server).await.get(format!("enlist/config/default/{path}"), None).await.unwrap();
            assert_eq!(stored.kvs()[0].value(), value);
            assert_eq!(piped(config(&server, &format!("get {path}")), b"").await.stdout, value);
        }
    }
    let object = &objects(&server, "get from-file").await[0];
    assert!(object["value"].is_null() && object["base64"].as_str().unwrap().starts_with("AAECAwQF"), "{object}");
}

/// A value that is too long is refused, from wherever it comes.
#[tokio::test]
async fn a_value_above_the_limit_is_refused() {
    let server = server().await;
    let value = vec![b'x'; 3 << 20];
    let refused: Done = piped(config(&server, "set a -"), &value).await.into();
    assert!(refused.code == Some(1) && refused.stderr.contains("are allowed"), "{refused:?}");
    let missing = run(config(&server, "set a --file /nonexistent")).await;
    assert!(missing.code == Some(1) && missing.stderr.contains("/nonexistent cannot be read"), "{missing:?}");
}

#[tokio::test]
async fn of_two_guarded_writes_one_wins() {
    let server = server().await;
    let first = run(config(&server, "set app/level one --create")).await;
    let second = run(config(&server, "set app/level two --expect 0 --output json")).await;
    assert_eq!((first.code, second.code), (Some(0), Some(1)), "{second:?}");
    let read = revision(&server, "app/level").await;
    let error: Value = serde_json::from_str(&second.stderr).unwrap();
    let expected = format!("app/level is at revision {read} now and was left alone; read it again");
    assert_eq!(error, json!({ "error": expected, "kind": "Conflict" }));
    ok(&server, &format!("set app/level two --expect {read}")).await;
    let late = run(config(&server, &format!("delete app/level --expect {read}"))).await;
    assert_eq!(late.code, Some(1), "{late:?}");
    assert_eq!(ok(&server, "get app/level").await.stdout, "two");
}

/// Values and secrets appear only if they are asked for.
#[tokio::test]
async fn listings_show_no_values_unless_asked() {
    let server = server().await;
    ok(&server, "set app/password s3cret").await;
    ok(&server, "set app/password s3cret2").await;
    let mut watching = Running::start(config(&server, "watch"));
    let watched = watching.says_all("= 1 values").await;
    for line in ["list", "list --output json", "history app/password", "history app/password --output json"] {
        let done = ok(&server, line).await;
        assert!(!done.stdout.contains("s3cret") && !done.stderr.contains("s3cret"), "{done:?}");
        let with_values = ok(&server, &format!("{line} --values")).await;
        assert!(with_values.stdout.contains("s3cret"), "{with_values:?}");
    }
    assert!(watched.contains("+ app/password") && !watched.contains("s3cret"), "{watched}");
    let refused = run(config(&server, "set app/password.toml s3cret")).await;
    assert!(refused.code == Some(1) && !refused.stderr.contains("s3cret"), "{refused:?}");
}

#[tokio::test]
async fn differences_are_shown() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("new");
    let set = async |value: &str| {
        let done: Done = piped(config(&server, "set app/log -"), value.as_bytes()).await.into();
        assert_eq!(done.code, Some(0), "{done:?}");
        revision(&server, "app/log").await
    };
    let (one, two, three) = (set("a\nb\nc\n").await, set("a\nB\nc\n").await, set("a\nB\nC\n").await);
    let head = |from: u64, to: u64| format!("--- app/log (revision {from})\n+++ app/log (revision {to})\n");
    let shown = ok(&server, "diff app/log").await.stdout;
    assert_eq!(shown, head(two, three) + "@@ -1,3 +1,3 @@\n a\n B\n-c\n+C\n");
    let shown = ok(&server, &format!("diff app/log --from {one} --to {two}")).await.stdout;
    assert_eq!(shown, head(one, two) + "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
    let shown = ok(&server, &format!("diff app/log --to {one}")).await;
    assert!(shown.stdout.starts_with("--- /dev/null\n+++ app/log"), "{shown:?}");
    // A revision between two changes is that of the version at the time.
    ok(&server, "set other x").await;
    let now = revision(&server, "other").await;
    let shown = ok(&server, &format!("diff app/log --from {one} --to {now} --output json")).await.stdout;
    let object: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&object["from"], &object["to"], &object["change"]), (&one.into(), &three.into(), &"updated".into()));
    std::fs::write(&file, "a\nB\nC\nd").unwrap();
    let against = format!("diff app/log --file {}", file.display());
    let shown = ok(&server, &against).await.stdout;
    assert!(shown.ends_with("@@ -1,3 +1,4 @@\n a\n B\n C\n+d\n\\ No newline at end of file\n"), "{shown}");
    assert_eq!(run(config(&server, &format!("{against} --exit-code"))).await.code, Some(1));
    std::fs::write(&file, "a\nB\nC\n").unwrap();
    assert_eq!(ok(&server, &format!("{against} --exit-code")).await.stdout, "");
    let absent = run(config(&server, "diff app/none")).await;
    assert!(absent.code == Some(1) && absent.stderr.contains("there is no value app/none"), "{absent:?}");
}

/// Keys of other programs: no escapes, no namespace.
#[tokio::test]
async fn plain_keys_are_accessible() {
    let server = server().await;
    let mut raw = raw(&server).await;
    raw.put("/confd/app/50% off.toml", "a = 1", None).await.unwrap();
    raw.put("/confd2/other", "x", None).await.unwrap();
    let plain = |line: &[&str]| {
        let mut command = enlist(&server, ["config"].iter().chain(line));
        command.env("ENLIST_CONFIG_PREFIX", "/confd");
        command
    };
    assert_eq!(run(plain(&["get", "app/50% off.toml"])).await.stdout, "a = 1");
    let listed = run(plain(&["list", "--output", "json"])).await;
    assert_eq!(listed.stdout.lines().count(), 1, "{listed:?}");
    assert_eq!(run(plain(&["set", "app/new.json", "[]"])).await.code, Some(0));
    assert_eq!(raw.get("/confd/app/new.json", None).await.unwrap().kvs()[0].value(), b"[]");
    let refused = run(plain(&["list", "--namespace", "other"])).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    // Native keys are others.
    assert_eq!(ok(&server, "list --output json").await.stdout, "");
}

/// A closed standard output is no failure.
#[tokio::test]
async fn a_listing_that_nobody_reads_ends() {
    let server = server().await;
    let script = "printf '{\"path\":\"a/%s\",\"value\":\"v\"}\\n' $(seq 500) | $E config import - >/dev/null && \
                  for line in list 'export -' 'list --values' 'history a/1' 'get a/1'; do $E config $line | head -c 1 \
                  >/dev/null; echo ${PIPESTATUS[0]}; done";
    let mut command = Command::new("bash");
    command.args(["-c", script]).env("ENLIST_ENDPOINTS", server.url()).env("E", env!("CARGO_BIN_EXE_enlist"));
    let done = run(command).await;
    assert_eq!(done.stdout, "0\n0\n0\n0\n0\n", "{done:?}");
    let mut watching = Command::new("bash");
    let script = "$E config watch | head -n 1; echo status ${PIPESTATUS[0]}";
    watching.args(["-c", script]).env("ENLIST_ENDPOINTS", server.url()).env("E", env!("CARGO_BIN_EXE_enlist"));
    let mut watching = Running::start(watching);
    // The first line after the end of `head` ends the watch.
    let changing = async {
        loop {
            ok(&server, "set a/1 changed").await;
        }
    };
    tokio::select! {
        ended = watching.says("status") => assert_eq!(ended, "status 0"),
        () = changing => panic!("the changes go on"),
    }
}
