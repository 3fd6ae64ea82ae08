//! Passwords and tokens are sent to etcd and appear nowhere else.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::fs;

use support::{Running, bare, enlist, raw, run, server};

const SECRET: &str = "correct-horse";

#[tokio::test]
async fn started_processes_get_no_secret() {
    let server = server().await;
    // The reaper is the first process of the program's group.
    let script = "env; tr '\\0' '\\n' < /proc/$(cut -d' ' -f5 /proc/$$/stat)/environ; echo KEPT=$KEPT";
    for arguments in [vec!["lock", "l"], vec!["elect", "e", "v"], vec!["register", "svc", "10.0.0.1:80"]] {
        let mut command = enlist(&server, arguments.iter().chain(&["--", "sh", "-c", script]));
        command.env("ENLIST_PASSWORD", SECRET).env("ENLIST_OWNER", SECRET).env("KEPT", "yes");
        let done = run(command).await;
        assert!(done.code == Some(0) && done.stdout.contains("KEPT=yes"), "{done:?}");
        let lines: Vec<_> = done.stdout.lines().filter(|line| line.contains(SECRET)).collect();
        assert_eq!(lines, Vec::<&str>::new(), "{arguments:?}");
    }
}

/// The owner token need not be on the command line, which every user of the machine can read.
#[tokio::test]
async fn owner_tokens_come_from_variables_or_files() {
    let server = server().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{SECRET}\n")).unwrap();
    let path = file.path().display().to_string();
    for (id, from_file) in [("a", false), ("b", true)] {
        let mut command = enlist(&server, ["register", "svc", "10.0.0.1:80", "--id", id]);
        if from_file {
            command.args(["--owner-file", &path]);
        } else {
            command.env("ENLIST_OWNER", SECRET);
        }
        let mut running = Running::start(command);
        running.says("registered").await;
        let stored = raw(&server).await.get(format!("enlist/services/default/svc/{id}"), None).await.unwrap();
        let stored: serde_json::Value = serde_json::from_slice(stored.kvs()[0].value()).unwrap();
        assert_eq!(stored["owner"], SECRET);
    }
    let mut help = bare();
    help.args(["register", "--help"]).env("ENLIST_OWNER", SECRET).env("ENLIST_ENDPOINTS", format!("http://{SECRET}:1"));
    let help = run(help).await;
    assert!(help.stdout.contains("ENLIST_OWNER") && !help.stdout.contains(SECRET), "{}", help.stdout);
}

#[tokio::test]
async fn a_password_in_clear_text_is_warned_of() {
    let server = server().await;
    let elsewhere = "http://etcd.invalid:2379";
    let with_user = |arguments: &[&str]| {
        let mut command = enlist(&server, arguments);
        command.env("ENLIST_USER", "root").env("ENLIST_PASSWORD", SECRET);
        command
    };
    let warned = |text: &str| text.contains("in clear text") && text.contains(elsewhere) && !text.contains(SECRET);
    let done = run(with_user(&["services", "--endpoints", elsewhere])).await;
    assert!(warned(done.stderr.lines().next().unwrap()), "{done:?}");
    let json = run(with_user(&["services", "--endpoints", elsewhere, "--output", "json"])).await;
    let warning: serde_json::Value = serde_json::from_str(json.stderr.lines().next().unwrap()).unwrap();
    assert!(warned(warning["warning"].as_str().unwrap()), "{json:?}");
    let doctor = run(with_user(&["doctor", "--endpoints", elsewhere])).await;
    let line = doctor.stdout.lines().find(|line| line.contains(" tls: ")).unwrap();
    assert!(doctor.code == Some(1) && line.starts_with("failed") && warned(line), "{doctor:?}");
    // Over loopback, over TLS and without a user, no warning is printed.
    for endpoints in [server.url(), "https://etcd.invalid:2379".to_owned(), "http://[::1]:1".to_owned()] {
        let done = run(with_user(&["services", "--endpoints", &endpoints])).await;
        assert!(!done.stderr.contains("in clear text"), "{done:?}");
    }
    let done = run(enlist(&server, ["services", "--endpoints", elsewhere])).await;
    assert!(!done.stderr.contains("in clear text"), "{done:?}");
}

/// A password in a URL is refused by every command, and never printed.
#[tokio::test]
async fn a_password_in_an_endpoint_is_refused() {
    let server = server().await;
    let url = server.url().replace("//", &format!("//root:{SECRET}@"));
    for arguments in [["doctor", "--endpoints", &url], ["services", "--endpoints", &url]] {
        let done = run(enlist(&server, arguments)).await;
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.stderr.contains("give user and password as options"), "{done:?}");
        assert!(!done.stdout.contains(SECRET) && !done.stderr.contains(SECRET), "{done:?}");
    }
}
