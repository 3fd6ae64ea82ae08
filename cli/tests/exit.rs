//! Exit statuses, and checks before a program is started.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{fs, path::Path, process::Stdio};

use enlist_testkit::{EtcdServer, eventually, soon};
use etcd_client::GetOptions;
use support::{Done, Running, bare, enlist, hears_signals, raw, run, server, with_default_signals};

/// Commands that run a program.
const COMMANDS: [&[&str]; 7] = [
    &["lock", "l"],
    &["elect", "e", "v"],
    &["register", "svc", "10.0.0.1:80"],
    &["once", "job"],
    &["config", "watch"],
    &["config", "watch", "--signal", "HUP"],
    &["config", "watch", "--postpone"],
];

async fn revision(server: &EtcdServer) -> i64 {
    raw(server).await.get("\0", None).await.unwrap().header().unwrap().revision()
}

/// Creates an executable file.
fn executable(directory: &Path, name: &str, content: &[u8]) -> String {
    use std::os::unix::fs::PermissionsExt;
    let file = directory.join(name);
    fs::write(&file, content).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.display().to_string()
}

/// A program that cannot be executed fails with the status of a shell, before anything is registered or locked.
#[tokio::test]
async fn a_missing_program_fails_before_anything_is_held() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let script = |name: &str, text: &str| executable(directory.path(), name, text.as_bytes());
    let scripts = [
        (script("no-interpreter", "#! /nonexistent/interpreter -x\n"), 127),
        (script("plain-interpreter", &format!("#!{}\n", plain.display())), 126),
        (script("nothing-after-it", "#!\n"), 126),
        (script("text", "echo begun\n"), 126),
        (script("empty", ""), 126),
    ];
    let before = revision(&server).await;
    let directory = directory.path().display().to_string();
    let programs = [
        ("/nonexistent", 127),
        ("no-such-command-anywhere", 127),
        ("", 127),
        (plain.to_str().unwrap(), 126),
        (directory.as_str(), 126),
    ];
    let scripts = scripts.iter().map(|(path, code)| (path.as_str(), *code));
    for (program, code) in programs.into_iter().chain(scripts) {
        for arguments in COMMANDS {
            let done = run(enlist(&server, arguments.iter().chain(&["--", program]))).await;
            assert_eq!(done.code, Some(code), "{arguments:?} {program:?}: {done:?}");
            assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
            assert!(done.stderr.contains("cannot be started"), "{done:?}");
        }
    }
    assert_eq!(revision(&server).await, before, "nothing was written");
}

/// An invalid renewal interval is refused before anything is registered or locked.
#[tokio::test]
async fn an_interval_that_cannot_work_is_refused() {
    let server = server().await;
    let ending = ["--", "true"];
    for command in [vec!["lock", "l"], vec!["elect", "e", "v"], vec!["register", "svc", "10.0.0.1:80"]] {
        let before = revision(&server).await;
        let interval =
            |interval| command.iter().copied().chain(["--ttl", "3s", "--renewal-interval", interval]).chain(ending);
        let done = run(enlist(&server, interval("2s"))).await;
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(done.stderr.contains("renewal_interval") && done.stderr.lines().count() == 1, "{done:?}");
        assert_eq!(revision(&server).await, before, "nothing was written");
        let done = run(enlist(&server, interval("500ms"))).await;
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// A damaged program is found, but cannot be started.
#[tokio::test]
async fn a_program_that_cannot_start_releases_the_lock() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let damaged = executable(directory.path(), "damaged", b"\x7fELF\0\0\0\0");
    let done = run(enlist(&server, ["lock", "l", "--ttl", "1h", "--", &damaged])).await;
    assert_eq!(done.code, Some(126), "{done:?}");
    assert!(done.stderr.contains("acquired"), "{done:?}");
    let mut client = raw(&server).await;
    let left = client.get("enlist/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(left.count(), 0, "{done:?}");
    let once = run(enlist(&server, ["once", "job", "--", &damaged])).await;
    assert_eq!(once.code, Some(126), "{once:?}");
    // The record of the attempt stays. The next caller may run the job at once.
    let locks = client.get("enlist/locks/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(locks.count(), 0, "{once:?}");
    let again = run(enlist(&server, ["once", "job", "--try", "--", "true"])).await;
    assert_eq!(again.code, Some(0), "{again:?}");
}

/// The first start of a damaged program ends the watch, which holds nothing.
#[tokio::test]
async fn a_program_that_cannot_start_ends_watches() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let damaged = executable(directory.path(), "damaged", b"\x7fELF\0\0\0\0");
    for options in [&[][..], &["--signal", "HUP"]] {
        let arguments = ["config", "watch"].iter().chain(options).copied().chain(["--", damaged.as_str()]);
        let done = run(enlist(&server, arguments)).await;
        assert_eq!(done.code, Some(126), "{done:?}");
        assert!(done.stderr.contains("cannot be started"), "{done:?}");
    }
}

/// Statuses that could be those of the program are options.
#[tokio::test]
async fn the_statuses_of_locks_can_be_chosen() {
    let server = server().await;
    let mut holder = Running::start(enlist(&server, ["lock", "l", "--lost-status", "71", "--", "sleep", "1000"]));
    holder.warns("acquired").await;
    let tried = run(enlist(&server, ["lock", "l", "--try", "--not-acquired-status", "70"])).await;
    assert_eq!(tried.code, Some(70), "{tried:?}");
    let quiet = run(enlist(&server, ["lock", "l", "--wait", "100ms", "--not-acquired-status", "0"])).await;
    assert_eq!(quiet.code, Some(0), "{quiet:?}");
    let mut raw = raw(&server).await;
    for lease in raw.leases().await.unwrap().leases().to_vec() {
        raw.lease_revoke(lease.id()).await.unwrap();
    }
    assert_eq!(holder.code().await, Some(71));
    let mut leader = Running::start(enlist(&server, ["elect", "e", "v"]));
    leader.says("acquired").await;
    let other = run(enlist(&server, ["elect", "e", "v", "--wait", "100ms", "--not-acquired-status", "70"])).await;
    assert_eq!(other.code, Some(70), "{other:?}");
}

#[tokio::test]
async fn an_empty_service_can_fail_or_be_awaited() {
    let server = server().await;
    let resolve = |more: &[&str]| run(enlist(&server, ["resolve", "db"].iter().chain(more)));
    assert_eq!(resolve(&[]).await.code, Some(0));
    let failed = resolve(&["--fail-empty"]).await;
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""), "{failed:?}");
    let late = resolve(&["--wait", "200ms"]).await;
    assert_eq!((late.code, late.stdout.as_str()), (Some(1), ""), "{late:?}");
    let mut waiting = Running::start(enlist(&server, ["resolve", "db", "--wait", "1h"]));
    // It still waits when a command that was started later has found nothing.
    assert_eq!(resolve(&["--wait", "200ms"]).await.code, Some(1));
    assert_eq!(waiting.child.try_wait().unwrap(), None);
    let published = run(enlist(&server, ["publish", "db", "10.0.0.1:5432"])).await;
    assert_eq!(published.code, Some(0), "{published:?}");
    waiting.says("10.0.0.1:5432").await;
    assert_eq!(waiting.code().await, Some(0));
    for arguments in [vec!["--fail-empty"], vec!["--wait", "1h"]] {
        assert_eq!(resolve(&arguments).await.code, Some(0));
    }
    let mut interrupted = Running::start(enlist(&server, ["resolve", "other", "--wait", "1h"]));
    assert_eq!(run(enlist(&server, ["resolve", "other", "--wait", "200ms"])).await.code, Some(1));
    hears_signals(interrupted.child.id()).await;
    interrupted.signal("-TERM");
    assert_eq!(interrupted.code().await, Some(143));
}

/// A closed standard output is neither a failure nor a panic.
#[tokio::test]
async fn unread_output_is_no_failure() {
    for arguments in [vec!["completions", "bash"], vec!["completions", "zsh"], vec!["man"], vec!["man", "lock"]] {
        let mut command = bare();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.args(&arguments).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let running = tokio::task::spawn_blocking(move || command.spawn().unwrap().wait_with_output().unwrap());
        let done: Done = soon("it ends", running).await.unwrap().into();
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[tokio::test]
async fn an_unread_standard_error_changes_no_exit_status() {
    let server = server().await;
    let mut command = enlist(&server, ["resolve", "db", "--fail-empty"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(writer);
    let done = run(command).await;
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""), "{done:?}");
}

/// A usage error is reported; a closed standard error or a full disk does not change the exit status.
#[tokio::test]
async fn an_unwritable_usage_text_does_not_panic() {
    for arguments in [vec![], vec!["reap"], vec!["no-such-command"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let (reader, unread) = std::io::pipe().unwrap();
        drop(reader);
        for stderr in [Stdio::from(full), Stdio::from(unread)] {
            let mut command = bare();
            command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
            let running = tokio::task::spawn_blocking(move || command.status().unwrap());
            assert_eq!(soon("it ends", running).await.unwrap().code(), Some(2), "{arguments:?}");
        }
    }
}

/// Without the option the program starts at once; with it, after the instance is registered.
#[tokio::test]
async fn a_command_can_wait_until_it_is_registered() {
    let mut server = server().await;
    server.kill().await;
    let url = server.url();
    let register = |id: &str, more: &[&str]| {
        let base = ["register", "svc", "10.0.0.1:80", "--id", id, "--timeout", "1s"];
        let script = ["--", "sh", "-c", "echo begun; $E resolve svc; echo done; exec sleep 1000"];
        let mut command = bare();
        command.args(base.iter().chain(more).chain(&script));
        command.env("ENLIST_ENDPOINTS", &url).env("E", env!("CARGO_BIN_EXE_enlist"));
        command
    };
    let mut early = Running::start(register("early", &[]));
    early.says("begun").await;
    early.says("done").await;
    let mut late = Running::start(register("late", &["--wait-registered"]));
    late.warns("registering").await;
    server.restart().await;
    let seen = late.says_all("done").await;
    assert!(seen.starts_with("begun\n") && seen.contains("late "), "{seen}");
    // A refusal is reported, and the program is never started.
    let refused = run(register("late", &["--wait-registered", "--ttl", "2s"])).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
    // A signal ends the wait, and the program is never started.
    server.kill().await;
    let mut waiting = Running::start(register("waiting", &["--wait-registered"]));
    waiting.warns("registering").await;
    waiting.signal("-TERM");
    let mut all = String::new();
    while let Some(line) = waiting.next().await {
        all.push_str(&line);
    }
    assert_eq!((waiting.code().await, all.as_str()), (Some(143), ""));
}

/// An upgrade removes the file of a running program, which starts a command only later.
#[tokio::test]
async fn a_command_starts_after_an_upgrade() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("enlist");
    fs::copy(env!("CARGO_BIN_EXE_enlist"), &program).unwrap();
    let mut holder = Running::start(enlist(&server, ["lock", "l"]));
    holder.says("acquired").await;
    let mut command = with_default_signals(&program);
    command.env("ENLIST_ENDPOINTS", server.url()).args(["lock", "l", "--", "echo", "started"]);
    let mut waiting = Running::start(command);
    let client = raw(&server).await;
    eventually("it waits for the lock", || async {
        let queue = client.clone().get("enlist/locks/", Some(GetOptions::new().with_prefix())).await.unwrap().count();
        if queue == 2 { Ok(()) } else { Err(queue) }
    })
    .await;
    fs::remove_file(&program).unwrap();
    holder.signal("-TERM");
    waiting.says("started").await;
    assert_eq!(waiting.code().await, Some(0));
}
