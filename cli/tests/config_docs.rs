//! The commands of the section on configuration in `docs/cli.md`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

mod support;

use std::{path::Path, process::Command};

use enlist_testkit::EtcdServer;
use support::{Running, run, server};

const DOCS: &str = include_str!("../../docs/cli.md");

/// Returns the first shell block after a heading.
fn block(heading: &str) -> &'static str {
    let section = DOCS.split(&format!("\n{heading}\n")).nth(1).unwrap();
    section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap()
}

/// Returns a shell with the command on its path.
fn shell(server: &EtcdServer, directory: &Path, script: &str) -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_enlist")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-e", "-o", "pipefail", "-c", script]).current_dir(directory);
    command.env_remove("VISUAL").env("ENLIST_ENDPOINTS", server.url()).env("PATH", path);
    command
}

#[tokio::test]
async fn the_commands_of_the_documentation_work() {
    let (server, directory) = (server().await, tempfile::tempdir().unwrap());
    let done = run(shell(&server, directory.path(), block("## Configuration"))).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    for part in [
        "level = \"info\"\n",
        "it exists\n",
        "\n-info\n",
        "\n+debug\n",
        "set app/log.toml",
        "exported 2 values to values",
        "dry run: 2 added",
        "deleted app/level",
    ] {
        assert!(done.stdout.contains(part), "{part:?}: {done:?}");
    }
}

#[tokio::test]
async fn the_watches_of_the_documentation_work() {
    let (server, directory) = (server().await, tempfile::tempdir().unwrap());
    let directory = directory.path();
    let prepare = "printf 'level = 1\\n' | enlist config set app/log.toml - && \
                   printf '#!/bin/sh\necho started; cat $2; exec sleep 60' > app && chmod +x app";
    assert_eq!(run(shell(&server, directory, prepare)).await.code, Some(0));
    let watches: Vec<_> = block("### Commands on change").lines().collect();
    assert_eq!(watches.len(), 2);
    // The first command ends by itself, perhaps before the signal arrives.
    for (watch, begin, codes) in
        [(watches[0], "changed", &[Some(143), Some(0)][..]), (watches[1], "started", &[Some(143)])]
    {
        let mut watching = Running::start(shell(&server, directory, &format!("exec {watch}")));
        watching.says(begin).await;
        watching.says("level = 1").await;
        watching.signal("-TERM");
        let code = watching.code().await;
        assert!(codes.contains(&code), "{watch}: {code:?}");
    }
}
