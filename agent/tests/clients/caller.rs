//! A program that calls 500 times a second. For each number N on its standard input, it waits until N calls have ended
//! since the former report, and prints a report: a line of JSON.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{collections::BTreeMap, process::Stdio};

use enlist_testkit::soon;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::Instant,
};

/// Number of calls in a report.
const CALLS: u32 = 20;

/// Number of successive reports without a server, after which calls avoid it. A client that chooses at random may leave
/// it out of a few.
const AVOIDING: u32 = 10;

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
    /// Returns the number of calls.
    fn calls(&self) -> u32 {
        self.servers.values().sum::<u32>() + u32::try_from(self.failures.len()).unwrap()
    }

    /// Returns the names of the servers that answered.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.servers.keys().map(String::as_str).collect()
    }
}

/// A client that calls all the time. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Caller {
    _process: Child,
    /// A process that it calls through, with the folder of its files.
    proxy: Option<(Child, TempDir)>,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Number of reported calls since a time.
    counted: (u32, Instant),
}

impl Caller {
    /// Starts a client.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self {
            _process: process,
            proxy: None,
            input,
            output: BufReader::new(output).lines(),
            counted: (0, Instant::now()),
        }
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

    pub(crate) async fn report_of(&mut self, calls: u32) -> Report {
        self.input.write_all(format!("{calls}\n").as_bytes()).await.unwrap();
        let line = soon("a report", self.output.next_line()).await.unwrap().expect("the client runs");
        let report: Report = serde_json::from_str(&line).unwrap();
        self.counted.0 += report.calls();
        report
    }

    /// Begins to count the calls.
    pub(crate) async fn count(&mut self) {
        self.report().await;
        self.counted = (0, Instant::now());
    }

    /// Returns the number of calls per second since the count began.
    pub(crate) fn rate(&self) -> f64 {
        let (calls, since) = self.counted;
        f64::from(calls) / since.elapsed().as_secs_f64()
    }

    /// Waits until calls reach exactly these servers. Returns the failures meanwhile.
    pub(crate) async fn reaches(&mut self, expected: &[&str]) -> Vec<String> {
        let has_reached = |report: &Report| report.names() == expected && report.failures.is_empty();
        self.until("calls reach these servers only", has_reached).await
    }

    /// Waits for a report that `fits`. Returns the failures up to it.
    async fn until(&mut self, what: &str, mut fits: impl FnMut(&Report) -> bool) -> Vec<String> {
        let mut failures = Vec::new();
        let fitting = async {
            loop {
                let report = self.report().await;
                failures.extend(report.failures.iter().cloned());
                if fits(&report) {
                    return;
                }
            }
        };
        soon(what, fitting).await;
        failures
    }

    /// Waits until calls no longer reach this server. Returns the failures meanwhile.
    pub(crate) async fn avoids(&mut self, server: &str) -> Vec<String> {
        let mut reports = 0;
        let avoids = |report: &Report| {
            reports = if report.servers.contains_key(server) { 0 } else { reports + 1 };
            reports == AVOIDING
        };
        self.until("calls avoid the server", avoids).await
    }

    /// Waits until calls that reached this server are reported. Returns the outcomes other than success meanwhile, and
    /// the number of these calls.
    pub(crate) async fn meets(&mut self, server: &str) -> Vec<(String, u32)> {
        let mut calls = 0;
        let failures = self.until("a call reaches the server", |report| {
            calls = report.servers.get(server).copied().unwrap_or(0);
            calls > 0
        });
        let failures: Vec<_> = failures.await.into_iter().map(|failure| (failure, 1)).collect();
        failures.into_iter().chain([(server.to_owned(), calls)]).collect()
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
