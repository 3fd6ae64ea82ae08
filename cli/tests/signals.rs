//! Signals, and kills at arbitrary moments.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use enlist_testkit::{eventually, soon};
use support::{Running, bare, enlist, is_alive, run, server, signal};

/// Returns the child processes of a process, in order.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let mut children: Vec<u32> =
        lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    children.sort_unstable();
    children
}

/// `enlist` is killed as soon as its program exists, often before its start is reported: no process of the program is
/// left.
#[tokio::test]
async fn a_kill_at_the_start_leaves_no_process() {
    let server = server().await;
    for round in 0..20 {
        let name = format!("l{round}");
        let mut running = Running::start(enlist(&server, ["lock", &name, "--", "sleep", "1000"]));
        let pid = running.child.id();
        let searching = tokio::task::spawn_blocking(move || {
            loop {
                // The first one is the reaper.
                if let [_, command, ..] = children(pid)[..] {
                    signal(pid, "-KILL");
                    return command;
                }
            }
        });
        let command = soon("the command is started", searching).await.unwrap();
        running.code().await;
        eventually(&format!("round {round}: the command is gone"), || async {
            if is_alive(command) { Err(command) } else { Ok(()) }
        })
        .await;
    }
}

/// The starting process may have blocked the signal for the end of a child. The program ends when nothing else wakes
/// `enlist`.
#[tokio::test]
async fn a_blocked_signal_hides_no_end() {
    let server = server().await;
    for arguments in [&["register", "svc", "10.0.0.1:80"][..], &["lock", "l"]] {
        let mut command = Command::new("env");
        command.arg("--block-signal=CHLD").arg(env!("CARGO_BIN_EXE_enlist"));
        command.env("ENLIST_ENDPOINTS", server.url()).args(arguments).args(["--", "sh", "-c", "sleep 1; exit 3"]);
        assert_eq!(Running::start(command).code().await, Some(3), "{arguments:?}");
    }
}

/// A signal that is ignored at the start stays ignored, as `nohup` requires.
#[tokio::test]
async fn a_hangup_ends_nothing_under_nohup() {
    let server = server().await;
    let mut command = Command::new("nohup");
    let script = "trap 'echo usr1; exit 5' USR1; echo begun; while :; do sleep 0.05; done";
    command.arg(env!("CARGO_BIN_EXE_enlist")).args(["lock", "l", "--", "sh", "-c", script]);
    command.env("ENLIST_ENDPOINTS", server.url());
    let mut running = Running::start(command);
    running.says("begun").await;
    running.signal("-HUP");
    // The next signal is forwarded to the program, which still runs.
    running.signal("-USR1");
    running.says("usr1").await;
    assert_eq!(running.code().await, Some(5));
}

/// The reaper ends only its own group, for any input.
#[tokio::test]
async fn the_reaper_ends_only_its_own_group() {
    let mut other = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    for own_group in [true, false] {
        let mut command = bare();
        command.arg("reap").stdin(Stdio::piped()).stderr(Stdio::null());
        if own_group {
            command.process_group(0);
        }
        let mut reaper = command.spawn().unwrap();
        // A reaper that refuses to start does not read it.
        let _ = writeln!(reaper.stdin.take().unwrap(), "{}", other.id());
        tokio::task::spawn_blocking(move || reaper.wait().unwrap()).await.unwrap();
        assert_eq!(other.try_wait().unwrap(), None, "own group: {own_group}");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

/// The program does not inherit blocked signals.
#[tokio::test]
async fn a_command_has_no_signals_blocked() {
    let server = server().await;
    let command = ["lock", "l", "--", "grep", "SigBlk", "/proc/self/status"];
    let done = run(enlist(&server, command)).await;
    assert_eq!(done.stdout, "SigBlk:\t0000000000000000\n", "{done:?}");
}
