//! `enlist … -- CMD` at a terminal: interactive shells, scripts, job control.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::fs;

use support::{enlist, pty::Shell, run, server};

/// A command that runs in the background of an interactive shell holds its lock: `enlist` is not stopped by the terminal, and the next
/// holder waits.
#[tokio::test]
async fn a_lock_taken_in_the_background_of_a_shell_is_kept() {
    let server = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("order");
    let mut shell = Shell::start(&server).await;
    let work = format!("echo first begins >> {0}; echo beg''un; sleep 4; echo first ends >> {0}", file.display());
    shell.types(&format!("$E lock l --ttl 2s -- sh -c \"{work}\" &\n"));
    shell.shows("begun").await;
    let next = format!("echo second begins >> {}", file.display());
    let done = run(enlist(&server, ["lock", "l", "--ttl", "2s", "--", "sh", "-c", &next])).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "first begins\nfirst ends\nsecond begins\n");
}
