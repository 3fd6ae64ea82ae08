//! Output as text and as JSON, and exit statuses.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]
#![allow(dead_code, reason = "that a field is there, and nothing else, is what a schema says")]

mod support;

use std::collections::BTreeMap;

use serde::Deserialize;
use support::{
    Done, Running, assert_snapshot, bare, enlist,
    pty::{self, Shell},
    raw, run, server, server_with,
};

const COMMANDS: [&str; 31] = [
    "register",
    "resolve",
    "watch",
    "services",
    "publish",
    "remove",
    "lock",
    "locks",
    "semaphores",
    "once",
    "jobs",
    "forget",
    "elect",
    "elections",
    "leader",
    "observe",
    "config",
    "config get",
    "config set",
    "config edit",
    "config delete",
    "config list",
    "config watch",
    "config diff",
    "config history",
    "config import",
    "config export",
    "doctor",
    "demo",
    "completions",
    "man",
];

/// Replaces numbers, which differ between runs.
fn normalized(text: &str) -> String {
    let mut normalized = String::new();
    let mut digits = false;
    for character in text.chars() {
        if !character.is_ascii_digit() {
            normalized.push(character);
        } else if !digits {
            normalized.push('N');
        }
        digits = character.is_ascii_digit();
    }
    normalized
}

#[tokio::test]
async fn the_help_of_each_command_has_an_example() {
    let mut all = run({
        let mut command = bare();
        command.arg("--help");
        command
    })
    .await
    .stdout;
    for name in COMMANDS {
        let help = run({
            let mut command = bare();
            command.args(name.split(' ')).arg("--help");
            command
        })
        .await;
        assert_eq!(help.code, Some(0), "{help:?}");
        let (_, example) = help.stdout.split_once("\nExample").unwrap_or_else(|| panic!("{}", help.stdout));
        let is_own = ["s:", ":"].iter().any(|end| example.starts_with(&format!("{end}\n  enlist {name}")));
        assert!(is_own, "{}", help.stdout);
        // The global options are the same for all commands.
        let own = help.stdout.split("Global options:").next().unwrap();
        all = format!("{all}\n=== enlist {name} ===\n{own}Example{example}");
    }
    // One command exists with a feature only. It has tests of its own.
    let all: String = all.split_inclusive('\n').filter(|line| !line.starts_with("  agent ")).collect();
    assert_snapshot("help.txt", &all);
}

#[tokio::test]
async fn completions_with_man_pages_are_printed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = run({
            let mut command = bare();
            command.args(["completions", shell]);
            command
        })
        .await;
        assert!(done.code == Some(0) && done.stdout.contains("register"), "{shell}");
    }
    let page = run({
        let mut command = bare();
        command.arg("man");
        command
    })
    .await;
    assert!(page.code == Some(0) && page.stdout.contains(".TH enlist 1"));
    let page = run({
        let mut command = bare();
        command.args(["man", "lock"]);
        command
    })
    .await;
    assert!(page.stdout.contains("ENLIST_FENCING_TOKEN"));
    let page = run({
        let mut command = bare();
        command.args(["man", "config", "set"]);
        command
    })
    .await;
    assert!(page.code == Some(0) && page.stdout.contains("no\\-check"), "{page:?}");
    let unknown = run({
        let mut command = bare();
        command.args(["man", "nonsense"]);
        command
    })
    .await;
    assert_eq!(unknown.code, Some(2));
}

#[tokio::test]
async fn fixed_instances_are_shown_until_removed() {
    let server = server().await;
    let mut transcript = String::new();
    let mut note = |arguments: &str, done: Done| {
        transcript =
            format!("{transcript}$ enlist {arguments}\n{}{}[{}]\n", done.stdout, done.stderr, done.code.unwrap());
    };
    for arguments in [
        "resolve db",
        "publish db postgres://10.0.0.9:5432 --id primary --zone eu-1a --version 16.1 --meta role=primary \
         --meta disk=ssd",
        "publish db postgres://10.0.0.10:5432 postgres://[::1]:5433 --weight 0",
        "resolve db",
        "resolve db --output json",
        "services",
        "services --output json",
        "services --namespace elsewhere",
        "remove db primary",
        "remove db primary",
        "remove db 10.0.0.10:5432 --output json",
        "resolve db --layout kitex",
        "publish db tcp://10.0.0.9:5432 --layout kitex --zone z",
        "leader office",
        "leader office --output json",
    ] {
        note(arguments, run(enlist(&server, arguments.split(' '))).await);
    }
    assert_snapshot("fixed.txt", &transcript);
}

/// A usage error is 2, a missing program 127, every other failure 1. Each error is one line with advice.
#[tokio::test]
async fn errors_are_one_sentence_each() {
    let server = server().await;
    let mut transcript = String::new();
    for (arguments, code) in [
        ("register svc 10.0.0.1", 2),
        ("register svc 0.0.0.0:80", 2),
        ("resolve svc --endpoints ftp://x", 2),
        ("resolve svc --user root", 2),
        ("resolve svc --password-file /nonexistent --user root", 2),
        ("resolve svc --endpoints http://127.0.0.1:1", 1),
        ("resolve a/b --layout kitex", 2),
        ("services --layout go-zero", 1),
        ("lock l --lock-layout etcd-concurrency --shared -- true", 1),
        ("lock l -- /nonexistent", 127),
    ] {
        let done = run(enlist(&server, arguments.split(' '))).await;
        assert_eq!((done.code, done.stdout.as_str()), (Some(code), ""), "{arguments}: {done:?}");
        let errors = done.stderr.lines().filter(|line| !line.contains("acquired") && !line.contains("released"));
        let errors: Vec<_> = errors.collect();
        assert_eq!(errors.len(), 1, "{arguments}: {done:?}");
        transcript = format!("{transcript}$ enlist {arguments}\n{}\n", errors[0]);
        let json = run(enlist(&server, arguments.split(' ').chain(["--output", "json"]).collect::<Vec<_>>())).await;
        if !arguments.contains("--") || !arguments.contains("lock l") {
            let object: ErrorObject = serde_json::from_str(&json.stderr).unwrap();
            assert!(!object.error.is_empty() && !object.kind.is_empty());
        }
    }
    assert_snapshot("errors.txt", &transcript);
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorObject {
    error: String,
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceObject {
    service: Option<String>,
    id: String,
    endpoints: Vec<String>,
    weight: u32,
    version: Option<String>,
    zone: Option<String>,
    health: String,
    presence: String,
    metadata: BTreeMap<String, String>,
    created: u64,
    modified: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, tag = "event", rename_all = "kebab-case")]
enum WatchObject {
    Added { service: String, revision: u64, instance: InstanceObject },
    Updated { service: String, revision: u64, instance: InstanceObject },
    Removed { service: String, revision: u64, instance: InstanceObject },
    Synced { service: String, revision: u64, instances: usize },
    Freshness { service: String, live: bool, age_seconds: f64, cause: Option<String> },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaderObject {
    election: String,
    leader: Option<String>,
    token: Option<u64>,
    modified: Option<u64>,
    live: Option<bool>,
    cause: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, tag = "event", rename_all = "kebab-case")]
enum LockObject {
    Acquired { lock: Option<String>, election: Option<String>, token: u64 },
    Released { lock: Option<String>, election: Option<String>, result: String },
    NotAcquired { lock: Option<String>, election: Option<String>, holder: Option<String>, cause: Option<String> },
    Lost { lock: Option<String>, election: Option<String>, cause: String },
    Stopped { lock: Option<String>, election: Option<String>, seconds: f64 },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateObject {
    event: String,
    instance: String,
    revision: Option<u64>,
    cause: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckObject {
    check: String,
    status: String,
    detail: String,
    advice: Option<String>,
}

/// Each object has the fields that `docs/cli.md` lists, and no others.
#[tokio::test]
async fn json_keeps_to_its_schema() {
    let server = server().await;
    let json = |arguments: &str| {
        let mut command = enlist(&server, arguments.split(' '));
        command.env("ENLIST_OUTPUT", "json");
        command
    };
    let mut watching = Running::start(json("watch svc"));
    let WatchObject::Synced { service, instances: 0, .. } =
        serde_json::from_str(&watching.says("synced").await).unwrap()
    else {
        panic!("first what is there");
    };
    assert_eq!(service, "default/svc");
    let mut registered = Running::start(json("register svc grpc://10.0.0.1:80 --id a --zone z --version 1 --meta k=v"));
    let state: StateObject = serde_json::from_str(&registered.says("registered").await).unwrap();
    assert!(state.instance == "default/svc/a" && state.revision.is_some() && state.cause.is_none(), "{state:?}");
    let added = watching.says("added").await;
    let WatchObject::Added { instance, revision, .. } = serde_json::from_str(&added).unwrap() else {
        panic!("{added}")
    };
    assert_eq!((instance.id.as_str(), instance.endpoints), ("a", vec!["grpc://10.0.0.1:80".to_owned()]));
    assert!(instance.created == revision && instance.modified == revision && instance.service.is_none());
    let resolved: InstanceObject = serde_json::from_str(&run(json("resolve svc")).await.stdout).unwrap();
    assert_eq!(resolved.service.as_deref(), Some("default/svc"));
    assert_eq!((resolved.weight, resolved.health.as_str(), resolved.metadata["k"].as_str()), (100, "serving", "v"));
    assert_eq!((resolved.version.as_deref(), resolved.zone.as_deref()), (Some("1"), Some("z")));
    registered.signal("-TERM");
    let left: serde_json::Value = serde_json::from_str(&registered.says("deregistered").await).unwrap();
    assert_eq!(
        left,
        serde_json::json!({
            "event": "deregistered", "instance": "default/svc/a", "result": "removed", "cause": null
        })
    );
    assert_eq!(registered.code().await, Some(128 + 15));
    let removed = watching.says("removed").await;
    assert!(matches!(serde_json::from_str(&removed).unwrap(), WatchObject::Removed { .. }));

    let mut leading = Running::start(json("elect office 10.0.0.1:9"));
    let LockObject::Acquired { election, token, .. } = serde_json::from_str(&leading.says("acquired").await).unwrap()
    else {
        panic!("it is free")
    };
    assert_eq!(election.as_deref(), Some("default/office"));
    let mut observing = Running::start(json("observe office"));
    let seen: LeaderObject = serde_json::from_str(&observing.says("10.0.0.1:9").await).unwrap();
    assert_eq!((seen.token, seen.live, seen.election.as_str()), (Some(token), Some(true), "default/office"));
    let object: LeaderObject = serde_json::from_str(&run(json("leader office")).await.stdout).unwrap();
    assert_eq!((object.leader.as_deref(), object.live, object.cause), (Some("10.0.0.1:9"), None, None));
    assert!(object.modified.is_some());
    let refused = run(json("elect office other --wait 100ms")).await;
    assert!(matches!(serde_json::from_str(&refused.stdout).unwrap(), LockObject::NotAcquired { .. }), "{refused:?}");
    leading.signal("-INT");
    assert!(matches!(serde_json::from_str(&leading.says("released").await).unwrap(), LockObject::Released { .. }));
    let gone: LeaderObject = serde_json::from_str(&observing.says("null").await).unwrap();
    assert!(gone.leader.is_none());

    let checks = run(json("doctor")).await;
    assert_eq!(checks.code, Some(0), "{checks:?}");
    for line in checks.stdout.lines() {
        let check: CheckObject = serde_json::from_str(line).unwrap();
        assert!(!check.detail.is_empty() && (check.status == "ok" || check.advice.is_some()), "{check:?}");
    }
    let played = run({
        let mut command = bare();
        command.args(["demo", "--for", "1s", "--output", "json"]);
        command
    })
    .await;
    assert!(played.code == Some(0) && played.stdout.lines().count() >= 2, "{played:?}");
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong() {
    let server = server().await;
    let healthy = run(enlist(&server, ["doctor"])).await;
    let version = healthy.stdout.lines().find(|line| line.contains("version: ")).unwrap();
    let rest: Vec<_> = healthy.stdout.lines().filter(|line| !line.contains("version: ")).collect();
    assert!(version.contains("etcd 3."), "{version}");
    assert_snapshot("doctor.txt", &normalized(&format!("{}\n", rest.join("\n"))));
    assert_eq!(
        raw(&server).await.get("enlist/", Some(etcd_client::GetOptions::new().with_prefix())).await.unwrap().count(),
        0
    );
    let absent = run(enlist(&server, ["doctor", "--endpoints", "http://127.0.0.1:1"])).await;
    assert_eq!(absent.code, Some(1));
    assert_snapshot("doctor-absent.txt", &absent.stdout);
    // No free space.
    let small = server_with(&["--quota-backend-bytes=65536"]).await;
    let mut client = raw(&small).await;
    while client.put("filler", vec![b'x'; 20_000], None).await.is_ok() {}
    let full = run(enlist(&small, ["doctor"])).await;
    assert_eq!(full.code, Some(1));
    assert!(full.stdout.contains("failed   space: etcd is out of space"), "{}", full.stdout);
    // Users.
    let mut root = raw(&server).await;
    root.user_add("root", "secret", None).await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("reader").await.unwrap();
    let read = etcd_client::Permission::read("enlist/").with_prefix();
    root.role_grant_permission("reader", read).await.unwrap();
    root.user_add("reader", "secret", None).await.unwrap();
    root.user_grant_role("reader", "reader").await.unwrap();
    root.auth_enable().await.unwrap();
    let nobody = run(enlist(&server, ["doctor"])).await;
    assert!(nobody.code == Some(1) && nobody.stdout.contains("failed   auth:"), "{}", nobody.stdout);
    let as_user = |user: &str, password: &str| {
        let mut command = enlist(&server, ["doctor", "--user", user]);
        command.env("ENLIST_PASSWORD", password);
        command
    };
    let wrong = run(as_user("reader", "wrong")).await;
    assert!(wrong.code == Some(1) && wrong.stdout.contains("failed   auth:"), "{}", wrong.stdout);
    assert!(!wrong.stdout.contains("wrong password") && wrong.stderr.is_empty(), "{}", wrong.stderr);
    let reader = run(as_user("reader", "secret")).await;
    assert_eq!(reader.code, Some(1));
    assert!(reader.stdout.contains("ok       read: below enlist/services/default/"), "{}", reader.stdout);
    assert!(reader.stdout.contains("failed   write: below enlist/services/default/"), "{}", reader.stdout);
    assert!(reader.stdout.contains("grant the user's role readwrite"), "{}", reader.stdout);
}

/// A closed standard output ends a listing without an error; a held lock continues.
#[tokio::test]
async fn a_closed_output_ends_watches_not_locks() {
    let server = server().await;
    let script = format!("{} watch svc | head -n 1", env!("CARGO_BIN_EXE_enlist"));
    let mut piped = std::process::Command::new("sh");
    piped.args(["-c", &script]).env("ENLIST_ENDPOINTS", server.url());
    let mut piped = Running::start(piped);
    piped.says("0 instances").await;
    // The next line finds the output closed.
    let mut reader = std::process::Command::new("head");
    reader.args(["-c", "1"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut reader = reader.spawn().unwrap();
    let mut held = enlist(&server, ["register", "svc", "10.0.0.1:80", "--id", "a"]);
    held.stdout(reader.stdin.take().unwrap());
    let mut held = held.spawn().unwrap();
    assert_eq!(piped.code().await, Some(0));
    let client = raw(&server).await;
    enlist_testkit::eventually("the instance is there", || async {
        let there = client.clone().get("enlist/services/default/svc/a", None).await.unwrap().count();
        if there == 1 { Ok(()) } else { Err(there) }
    })
    .await;
    assert!(reader.wait().unwrap().success());
    assert!(held.try_wait().unwrap().is_none(), "it goes on");
    held.kill().unwrap();
    held.wait().unwrap();
}

/// A very long value of one instance does not break the table; JSON has the whole value.
#[tokio::test]
async fn a_very_long_value_breaks_no_table() {
    let server = server().await;
    let long = "x".repeat(70_000);
    for arguments in [
        vec!["publish", "db", "10.0.0.1:80", "--id", "a"],
        vec!["publish", "db", "10.0.0.2:80", "--id", "b", "--version", &long, "--meta", &format!("k={long}")],
    ] {
        assert_eq!(run(enlist(&server, arguments)).await.code, Some(0));
    }
    let table = run(enlist(&server, ["resolve", "db"])).await;
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    let lines: Vec<_> = table.stdout.lines().collect();
    // The widths of other rows do not change, and nothing is cut without a terminal.
    assert!(lines[0].len() < 200 && lines[1].len() < 200, "{} {}", lines[0].len(), lines[1].len());
    assert_eq!(lines[2].matches('x').count(), 140_000);
    let mut json = enlist(&server, ["resolve", "db"]);
    json.env("ENLIST_OUTPUT", "json");
    assert_eq!(run(json).await.stdout.matches(&long).count(), 2);
    // On a terminal, each row takes one line.
    let mut shell = Shell::start(&server).await;
    shell.types("$E resolve db; echo do''ne\n");
    let shown = shell.shows("done").await;
    let lines: Vec<_> = shown.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 3, "{shown}");
    for line in &lines {
        assert!(line.chars().count() <= usize::from(pty::COLUMNS), "{line}");
    }
    assert!(lines[2].starts_with("b ") && lines[2].contains("x…") && lines[2].contains("k=x"), "{shown}");
}
