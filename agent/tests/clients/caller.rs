//! A program that calls without pause. For each number N on its standard input, it waits until N calls have ended since
//! the former report, and prints a report: a line of JSON.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{collections::BTreeMap, process::Stdio};

use enlist_testkit::soon;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Number of calls in a report.
const CALLS: u32 = 20;

/// Number of calls in a report on failures. Calls of a library that waits for an instance last until their deadline.
const FAILED_CALLS: u32 = 2;

/// Calls of a client since the former report.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Report {
    pub(crate) servers: BTreeMap<String, u32>,
    pub(crate) failures: Vec<String>,
    pub(crate) slowest_ms: u64,
}

impl Report {
    /// Returns the names of the servers that answered.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.servers.keys().map(String::as_str).collect()
    }
}

/// A client that calls without pause. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Caller {
    _process: Child,
    /// A process that it calls through, with the folder of its files.
    proxy: Option<(Child, TempDir)>,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Caller {
    /// Starts a client.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { _process: process, proxy: None, input, output: BufReader::new(output).lines() }
    }

    /// Keeps the proxy for as long as the client.
    pub(crate) fn through(mut self, proxy: (Child, TempDir)) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Waits until some calls have ended since the former report, and returns them.
    pub(crate) async fn report(&mut self) -> Report {
        self.report_of(CALLS).await
    }

    async fn report_of(&mut self, calls: u32) -> Report {
        self.input.write_all(format!("{calls}\n").as_bytes()).await.unwrap();
        let line = soon("a report", self.output.next_line()).await.unwrap().expect("the client runs");
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until calls reach exactly these servers. Returns the failures meanwhile.
    pub(crate) async fn reaches(&mut self, expected: &[&str]) -> Vec<String> {
        let mut failures = Vec::new();
        let reached = async {
            loop {
                let report = self.report().await;
                let has_reached = report.names() == expected && report.failures.is_empty();
                failures.extend(report.failures);
                if has_reached {
                    return;
                }
            }
        };
        soon("calls reach these servers only", reached).await;
        failures
    }

    /// Waits until all calls fail, and returns their failures.
    pub(crate) async fn fails(&mut self) -> Report {
        let failing = async {
            loop {
                let report = self.report_of(FAILED_CALLS).await;
                if report.servers.is_empty() {
                    return report;
                }
            }
        };
        soon("all calls fail", failing).await
    }
}
