//! `enlist config import`, `export` and `diff --dir`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use enlist_testkit::EtcdServer;
use serde_json::Value;
use support::{Done, enlist, raw, run, server};

fn config(server: &EtcdServer, arguments: &[&str]) -> Command {
    enlist(server, ["config"].iter().chain(arguments))
}

async fn ok(server: &EtcdServer, arguments: &[&str]) -> Done {
    let done = run(config(server, arguments)).await;
    assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
    done
}

/// Returns the stored values of a namespace by path.
async fn stored(server: &EtcdServer, namespace: &str) -> BTreeMap<String, String> {
    let listed = ok(server, &["list", "--values", "--output", "json", "--namespace", namespace]).await;
    let objects = listed.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |object: &Value, field: &str| object[field].as_str().map(str::to_owned);
    objects
        .map(|object| (text(&object, "path").unwrap(), text(&object, "value").or(text(&object, "base64")).unwrap()))
        .collect()
}

/// Returns all files below a directory, relative to it.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(directory).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// Values with odd names survive the way through a directory and through a pipe, and no name leaves the directory.
#[tokio::test]
async fn values_with_odd_names_come_back() {
    let server = server().await;
    let around = tempfile::tempdir().unwrap();
    let directory = around.path().join("values");
    let place = directory.to_str().unwrap();
    let odd = ["app", "app/log.toml", "../../escape", "..", ".git/config", "50%/größe 🚀", "a b", "-rf", "x\u{202e}y"];
    for path in odd {
        ok(&server, &["set", "--", path, "a = 1\n"]).await;
    }
    raw(&server).await.put("enlist/config/default/binary", vec![0, 255], None).await.unwrap();
    let before = stored(&server, "default").await;
    assert_eq!(before.len(), odd.len() + 1, "{before:?}");
    ok(&server, &["export", place]).await;
    assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1, "nothing is outside");
    let names = files(&directory);
    let expected = ["%2E./%2E./escape", "%2E./%value", "%2Egit/config", "-rf", "50%25/größe 🚀", "a b", "app/%value"];
    assert_eq!(names[..7], expected, "{names:?}");
    ok(&server, &["import", place, "--namespace", "copy"]).await;
    assert_eq!(stored(&server, "copy").await, before);
    // The same values are no difference.
    let differences = ok(&server, &["diff", "--dir", place, "--exit-code"]).await;
    assert_eq!(differences.stdout, "");
    let again = ok(&server, &["import", place, "--output", "json"]).await;
    let summary: Value = serde_json::from_str(again.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["unchanged"], &summary["transactions"]), (&10.into(), &0.into()), "{again:?}");
    let script = "$E config export - | $E config import - --namespace pipe";
    let mut piped = Command::new("bash");
    piped.args(["-c", script]).env("ENLIST_ENDPOINTS", server.url()).env("E", env!("CARGO_BIN_EXE_enlist"));
    assert_eq!(run(piped).await.code, Some(0));
    assert_eq!(stored(&server, "pipe").await, before);
}

#[tokio::test]
async fn an_import_writes_the_differences() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    for (path, value) in [("app/same", "1"), ("app/new", "1"), ("app/gone", "1"), ("other", "1")] {
        ok(&server, &["set", path, value]).await;
    }
    fs::create_dir(directory.path().join(".git")).unwrap();
    for (file, value) in [("same", "1"), ("new", "2"), ("added.json", "[]"), (".git/HEAD", "x")] {
        fs::write(directory.path().join(file), value).unwrap();
    }
    let before = stored(&server, "default").await;
    let import = ["import", place, "--below", "app"];
    let dry = ok(&server, &[&import[..], &["--delete", "--dry-run"]].concat()).await;
    assert_eq!(
        dry.stdout,
        "+ app/added.json 2 bytes\n- app/gone\n~ app/new 1 bytes\n\
         dry run: 1 added, 1 updated, 1 removed, 1 unchanged, 0 without file\n"
    );
    assert!(dry.stderr.contains("1 files or directories whose names begin with a dot are left out"), "{dry:?}");
    assert_eq!(stored(&server, "default").await, before);
    let diff = ok(&server, &["diff", "--dir", place, "--below", "app"]).await;
    assert!(diff.stdout.contains("--- app/new (revision 3)\n+++ "), "{diff:?}");
    assert!(diff.stdout.contains("--- app/gone (revision 4)\n+++ /dev/null\n"), "{diff:?}");
    let kept = ok(&server, &import).await;
    assert!(
        kept.stdout.contains("1 added, 1 updated, 0 removed, 1 unchanged, 1 without file, at revision"),
        "{kept:?}"
    );
    let deleted = ok(&server, &[&import[..], &["--delete"]].concat()).await;
    assert!(deleted.stdout.starts_with("- app/gone\n"), "{deleted:?}");
    let names: Vec<_> = stored(&server, "default").await.into_keys().collect();
    assert_eq!(names, ["app/added.json", "app/new", "app/same", "other"]);
}

/// Nothing is written if one of the files cannot be a value.
#[tokio::test]
async fn a_directory_with_a_fault_is_not_imported() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    fs::write(place.join("good"), "1").unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    for name in ["bad.json", "50%", "link", "new\nline"] {
        let file = place.join(name);
        if name == "link" {
            std::os::unix::fs::symlink(outside.path(), &file).unwrap();
        } else {
            fs::write(&file, "[").unwrap();
        }
        let refused = run(config(&server, &["import", place.to_str().unwrap()])).await;
        assert!(refused.code == Some(1) && refused.stderr.lines().count() == 1, "{name:?}: {refused:?}");
        assert!(refused.stdout.is_empty() && stored(&server, "default").await.is_empty(), "{name:?}: {refused:?}");
        fs::remove_file(file).unwrap();
    }
    for line in ["", "{}", "[]", r#"{"path":"a","value":"1","base64":"MQ=="}"#, r#"{"path":"/a","value":"1"}"#] {
        let mut import = config(&server, &["import", "-"]);
        let input = tempfile::NamedTempFile::new().unwrap();
        fs::write(input.path(), format!("{line}\n")).unwrap();
        import.stdin(Stdio::from(input.reopen().unwrap())).stdout(Stdio::piped()).stderr(Stdio::piped());
        let done: Done = import.spawn().unwrap().wait_with_output().unwrap().into();
        assert!([Some(1), Some(2)].contains(&done.code) && !done.stderr.is_empty(), "{line:?}: {done:?}");
    }
    assert!(stored(&server, "default").await.is_empty());
}

/// An import that is larger than a transaction says so, and a value above the limit is refused.
#[tokio::test]
async fn a_large_import_takes_several_transactions() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    for number in 0..250 {
        fs::write(directory.path().join(format!("{number:03}")), "x".repeat(6000)).unwrap();
    }
    let done = ok(&server, &["import", place]).await;
    assert!(done.stderr.contains("do not fit into one transaction: 3 are needed"), "{done:?}");
    assert!(done.stdout.contains("imported: 250 added"), "{done:?}");
    assert_eq!(stored(&server, "default").await.len(), 250);
    let deleted = ok(&server, &["import", place, "--namespace", "b"]).await;
    assert!(deleted.stdout.contains("250 added"), "{deleted:?}");
    fs::write(directory.path().join("large"), vec![b'x'; 2 << 20]).unwrap();
    let refused = run(config(&server, &["import", place])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("are allowed"), "{refused:?}");
    assert_eq!(stored(&server, "default").await.len(), 250);
}

/// An export replaces files, keeps others, and does not follow links.
#[tokio::test]
async fn an_export_stays_in_its_directory() {
    let server = server().await;
    for path in ["app/a", "app/b/c", "link/x"] {
        ok(&server, &["set", path, path]).await;
    }
    let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = directory.path().to_str().unwrap();
    fs::write(directory.path().join("a"), "old").unwrap();
    fs::write(directory.path().join("kept"), "old").unwrap();
    let exported = ok(&server, &["export", place, "--below", "app"]).await;
    assert!(exported.stdout.starts_with("exported 2 values to "), "{exported:?}");
    assert_eq!(files(directory.path()), ["a", "b/c", "kept"]);
    assert_eq!(fs::read_to_string(directory.path().join("a")).unwrap(), "app/a");
    std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
    let refused = run(config(&server, &["export", place])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("link/x cannot be written"), "{refused:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
