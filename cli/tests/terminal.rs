//! `enlist … -- CMD` at a terminal: interactive shells, scripts, job control.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{fs, path::Path, process::Command};

use enlist_testkit::eventually;
use support::{Running, enlist, pty::Shell, run, server, state};

/// A lock of a background job in an interactive shell is kept: the terminal does not stop `enlist`, and the next
/// contender waits.
#[tokio::test]
async fn a_lock_in_a_background_job_is_kept() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("order");
    let mut shell = Shell::start(&server).await;
    let work = format!("echo first begins >> {0}; echo beg''un; sleep 8; echo first ends >> {0}", file.display());
    shell.types(&format!("$E lock l --ttl 5s -- sh -c \"{work}\" &\n"));
    shell.shows("begun").await;
    let next = format!("echo second begins >> {}", file.display());
    let done = run(enlist(&server, ["lock", "l", "--ttl", "5s", "--", "sh", "-c", &next])).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "first begins\nfirst ends\nsecond begins\n");
}

/// After the end of the program, a script at the terminal can read again.
#[tokio::test]
async fn a_script_reads_its_terminal_after_a_command() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    let text =
        "$E lock l -- sh -c 'read line; echo command has $line'\necho asking\nread line\necho script has $line\n";
    fs::write(&script, text).unwrap();
    let mut shell = Shell::start(&server).await;
    shell.types(&format!("sh {}\n", script.display()));
    shell.shows("acquired").await;
    shell.types("one\n");
    shell.shows("command has one").await;
    shell.shows("asking").await;
    shell.types("two\n");
    shell.shows("script has two").await;
}

/// The internal command for the end of a group would ignore Ctrl-C at a terminal.
#[tokio::test]
async fn the_reaper_does_not_run_at_a_terminal() {
    let server = server().await;
    let mut shell = Shell::start(&server).await;
    shell.types("$E reap; echo status $?\n");
    assert!(shell.shows("status 2").await.contains("is started by `enlist` itself"));
}

/// Ctrl-Z stops the program and `enlist`, so that the shell continues; `fg` continues both, and the program reads
/// again.
#[tokio::test]
async fn a_stopped_program_continues_in_the_foreground() {
    let server = server().await;
    let mut shell = Shell::start(&server).await;
    shell.types("$E lock l --ttl 60s -- sh -c 'echo rea\"\"dy; read line; echo command has $line'\n");
    shell.shows("ready").await;
    shell.types("\x1a");
    shell.shows("Stopped").await;
    shell.types("echo shell is ba''ck\n");
    shell.shows("shell is back").await;
    shell.types("fg\n");
    shell.shows("lock l").await;
    shell.types("one\n");
    shell.shows("command has one").await;
    shell.shows("released").await;
    // The same holds for a program that was started in the background and reads.
    shell.types("$E lock l --ttl 60s -- sh -c 'read line; echo command has $line' &\n");
    shell.shows("acquired").await;
    eventually_stopped(&mut shell).await;
    shell.types("fg\n");
    shell.shows("lock l").await;
    shell.types("two\n");
    shell.shows("command has two").await;
    shell.shows("released").await;
}

/// Returns the first CPU on which this process may run.
fn first_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    list.split(|character: char| !character.is_ascii_digit()).next().unwrap().to_owned()
}

/// A program that runs while a lock is held, and the pipe that it reads.
struct Program {
    pid: u32,
    input: std::path::PathBuf,
}

impl Program {
    /// Types a command line with a program that reads from a pipe, and waits until it runs.
    async fn start(shell: &mut Shell, directory: &Path, after: &str) -> Self {
        let input = directory.join("input");
        assert!(Command::new("mkfifo").arg(&input).status().unwrap().success());
        let reads = format!("echo program \"$$\" ru\"\"ns; read line < {}; echo command has $line", input.display());
        shell.types(&format!("$E lock l --ttl 60s -- sh -c '{reads}' {after}\n"));
        shell.shows("program ").await;
        let pid = shell.shows(" runs").await.trim().parse().unwrap();
        Self { pid, input }
    }

    /// Stops it from the keyboard, continues it, and lets it end.
    async fn stop_from_the_keyboard(self, shell: &mut Shell) {
        shell.types("\x1a");
        shell.shows("Stopped").await;
        becomes(self.pid, "stopped", |state| state == 'T').await;
        shell.types("fg\n");
        becomes(self.pid, "continued", |state| state != 'T').await;
        fs::write(&self.input, "one\n").unwrap();
        shell.shows("command has one").await;
        shell.shows("released").await;
    }
}

/// Waits until the state of a program, as in `/proc`, fits.
async fn becomes(pid: u32, what: &str, fits: impl Fn(char) -> bool) {
    eventually(&format!("the program is {what}"), || async {
        let state = state(pid);
        if state.is_some_and(&fits) { Ok(()) } else { Err(state) }
    })
    .await;
}

/// `fg` of a job that runs sends it no signal, so the keyboard's signals go to `enlist`.
#[tokio::test]
async fn a_background_job_stops_as_a_whole() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(&server).await;
    let program = Program::start(&mut shell, directory.path(), "&").await;
    shell.types("echo jo''b $! in back\n");
    shell.shows("job ").await;
    let job = shell.shows(" in back").await.trim().parse().unwrap();
    shell.types("fg\n");
    shell.is_in_front(job).await;
    program.stop_from_the_keyboard(&mut shell).await;
}

/// Without a terminal as its input the program is not in the foreground, and is stopped nevertheless.
#[tokio::test]
async fn a_program_with_other_input_is_stopped() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(&server).await;
    let program = Program::start(&mut shell, directory.path(), "< /dev/null").await;
    program.stop_from_the_keyboard(&mut shell).await;
}

/// A stop that arrives while `enlist` still starts the program is passed on like a later one. On one CPU and without
/// preemption at wake-ups, the program runs before `enlist` does.
#[tokio::test]
async fn a_stop_during_the_start_is_passed_on() {
    for tool in ["chrt", "taskset"] {
        Command::new(tool)
            .arg("--version")
            .output()
            .expect("this test needs `chrt` and `taskset` (util-linux) on the PATH");
    }
    let server = server().await;
    let mut shell = Shell::start(&server).await;
    shell.types(&format!("E=\"chrt --batch 0 taskset --cpu-list {} $E\"\n", first_cpu()));
    for _ in 0..10 {
        shell.types("$E lock l --ttl 60s -- sh -c 'echo program \"$$\" ru\"\"ns; kill -s TSTP $PPID; read line'\n");
        shell.shows("program ").await;
        let pid = shell.shows(" runs").await.trim().parse().unwrap();
        shell.shows("Stopped").await;
        becomes(pid, "stopped", |state| state == 'T').await;
        shell.types("fg\n");
        shell.types("one\n");
        shell.shows("released").await;
    }
}

/// While `enlist` waits for a lock there is no program yet, and the keyboard stops `enlist` itself.
#[tokio::test]
async fn a_waiting_contender_is_stopped() {
    let server = server().await;
    let mut holder = Running::start(enlist(&server, ["lock", "l"]));
    holder.says("acquired").await;
    let mut shell = Shell::start(&server).await;
    shell.types("$E lock l -- echo command ru''ns\n");
    eventually("it waits", || async {
        let locks = run(enlist(&server, ["locks", "l", "--output", "json"])).await;
        if locks.stdout.contains("\"waiting\":1") { Ok(()) } else { Err(locks) }
    })
    .await;
    shell.types("\x1a");
    shell.shows("Stopped").await;
    shell.types("fg\n");
    shell.shows("lock l").await;
    holder.signal("-TERM");
    shell.shows("command runs").await;
    shell.shows("released").await;
}

/// Types empty lines until the shell reports the stopped job, which it does before a prompt.
async fn eventually_stopped(shell: &mut Shell) {
    shell.types("until jobs | grep -q Stopped; do :; done; echo it is stop''ped\n");
    shell.shows("it is stopped").await;
}

/// Without a shell that could continue it, a program that is stopped from the keyboard continues.
#[tokio::test]
async fn a_program_without_a_shell_is_not_stopped() {
    let server = server().await;
    let mut shell = Shell::start(&server).await;
    // No process of the session controls jobs: the group is orphaned.
    shell.types("exec $E lock l --ttl 60s -- sh -c 'echo rea\"\"dy; read line; echo command has $line'\n");
    shell.shows("ready").await;
    shell.types("\x1a");
    shell.types("one\n");
    shell.shows("command has one").await;
    shell.shows("released").await;
}
